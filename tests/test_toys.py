"""The toy family: configurations, training that resumes, and what the package ships."""

import numpy as np
import pytest
import torch

from lrc import (
    LrcError,
    corpora,
    toy_models,
    toy_texts,
    toy_training,
    toys,
    trace_file,
)
from lrc.toy_training import Preset

TINY = Preset(steps=4, batch=2)
EVERY = toys.VARIANTS | toys.EXPERIMENTS


def test_every_variant_differs_from_the_baseline_only_where_it_says():
    baseline = toys.config("baseline").to_dict()
    for name, variant in EVERY.items():
        config = toys.config(name).to_dict()
        differing = {key for key in baseline if config[key] != baseline[key]}
        assert differing == set(variant.config)
    assert toys.VARIANTS["baseline"].config == {}


@pytest.mark.parametrize("name", EVERY)
def test_active_width_is_that_of_the_baseline(name):
    """All but the variants of top-k and of width spend the same expert width on a token."""
    config = toys.config(name)
    width = config.num_experts_per_tok * config.moe_intermediate_size
    width += config.shared_expert_intermediate_size
    factor = {"more_active": 2, "fewer_active": 0.25, "half_width": 0.5, "double_width": 2}
    factor = factor.get(name, 1)
    assert width == factor * 8 * toys.EXPERT_WIDTH


def test_experiments_differ_from_the_baseline_in_one_thing():
    fields = ("config", "aux_loss", "z_loss", "bias_rate", "domains", "piece")
    for name, variant in toys.EXPERIMENTS.items():
        assert name == variant.name
        assert name not in toys.VARIANTS
        changed = [f for f in fields if getattr(variant, f) != getattr(EVERY["baseline"], f)]
        # A bias takes the place of the loss.
        assert len(changed) == 1 or changed == ["aux_loss", "bias_rate"]
    assert {name for names in toys.QUESTIONS.values() for name in names} >= set(toys.EXPERIMENTS)
    assert all(name in EVERY for names in toys.QUESTIONS.values() for name in names)


def test_experiments_keep_the_share_of_active_experts():
    for name in toys.QUESTIONS["experts at fixed share"]:
        config = toys.config(name)
        assert config.num_experts == 8 * config.num_experts_per_tok
        assert config.num_experts * config.moe_intermediate_size == 64 * toys.EXPERT_WIDTH


def test_routing_losses_follow_their_definition():
    torch.manual_seed(0)
    logits = (torch.randn(50, 6), torch.randn(50, 6) * 3)
    balance = z = 0.0
    for layer in logits:
        probabilities = layer.softmax(-1)
        chosen = torch.zeros(50, 6).scatter(1, layer.topk(2).indices, 1.0)
        balance += 6 / 2 * (chosen.mean(0) * probabilities.mean(0)).sum()
        z += (layer.exp().sum(-1).log() ** 2).mean()
    found = toy_training.routing_losses(logits, num_experts=6, top_k=2)
    torch.testing.assert_close(torch.stack(found), torch.stack((balance, z)))


def test_balanced_routing_costs_one_a_layer():
    uniform = (torch.zeros(64, 8),)
    balance, _ = toy_training.routing_losses(uniform, num_experts=8, top_k=8)
    assert balance.item() == pytest.approx(1.0)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path, short_corpus, one_thread, monkeypatch
):
    from safetensors.torch import load_file
    from transformers import Trainer

    whole = toy_training.train("baseline", 3, tmp_path / "whole", TINY)
    step = Trainer.training_step
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy_training.train("baseline", 3, tmp_path / "parts", TINY)
    parts = toy_training.train("baseline", 3, tmp_path / "parts", TINY)
    assert len(calls) == 5  # Two steps, the interruption, and only the two that were missing.
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    losses = [(folder.parent / "losses.csv").read_text() for folder in (whole, parts)]
    assert losses[0] == losses[1]
    monkeypatch.setattr(Trainer, "training_step", None)
    assert toy_training.train("baseline", 3, tmp_path / "parts", TINY) == parts  # Nothing to do.


def test_biased_routers_choose_by_the_bias_and_weigh_without_it():
    torch.manual_seed(0)
    config = toys.config("baseline")
    model = toy_models.build(config, biased=True)
    plain = toy_models.build(config)
    (router, *others), hidden = toy_models.biased_routers(model), torch.randn(50, 96)
    assert len(others) == toys.LAYERS - 1
    assert not toy_models.biased_routers(plain)
    router.selection_bias[5] = 100.0
    logits, weights, chosen = router(hidden)
    assert (chosen[:, 0] == 5).all()
    assert torch.equal(logits, hidden @ router.weight.T)
    assert torch.equal(weights, logits.softmax(-1).gather(1, chosen))
    assert torch.equal(router.load, torch.bincount(chosen.flatten(), minlength=64))
    # Without a bias it is the router it stands for.
    router.selection_bias.zero_()
    gate = plain.model.layers[0].mlp.gate
    gate.load_state_dict({"weight": router.weight})
    for ours, theirs in zip(router(hidden), gate(hidden), strict=True):
        assert torch.equal(ours, theirs)


def test_biases_move_against_the_error_of_the_load():
    model = toy_models.build(toys.config("baseline"), biased=True)
    for router in toy_models.biased_routers(model):
        router.load = torch.full((64,), 10)
        router.load[:3] = torch.tensor([4, 10, 16])
    toy_models.move_biases(model, 0.25)
    for router in toy_models.biased_routers(model):
        assert router.selection_bias[:4].tolist() == [0.25, 0.0, -0.25, 0.0]


def test_biases_are_saved_and_balance_the_load(tmp_path, short_corpus, one_thread):
    folder = toy_training.train("bias_0.01", 0, tmp_path, TINY)
    model = toy_models.load(folder, biased=True)
    biases = torch.stack([r.selection_bias for r in toy_models.biased_routers(model)])
    moved = (biases * 100).round()
    assert torch.allclose(moved, biases * 100, atol=1e-4)
    assert biases.any(dim=1).all()
    assert moved.abs().max() <= TINY.steps


def test_mixing_keeps_every_piece_at_its_place():
    tokens = np.arange(3 * 4 * 12).reshape(3, 4, 12)
    found = toy_texts.mixed(tokens, 4).reshape(3, 4, 3, 4)
    pieces = tokens.reshape(3, 4, 3, 4)
    for sequence in range(4):
        for place in range(3):
            ours = sorted(map(tuple, found[:, sequence, place].tolist()))
            assert ours == sorted(map(tuple, pieces[:, sequence, place].tolist()))
    domain = found[..., 0] // 48
    assert (domain != domain[:, :, :1]).any()


def test_training_sequences_follow_the_experiment(monkeypatch):
    texts = {d: [f"{d} " * 600] for d in corpora.DOMAINS}
    monkeypatch.setattr(
        corpora, "embedded", lambda split, domains: {domain: texts[domain] for domain in domains}
    )
    every = toy_texts.training_sequences(16)
    assert every.datasets == tuple(d for d in corpora.DOMAINS for _ in range(2))
    one = toy_texts.training_sequences(16, ("python",))
    assert one.datasets == ("python",) * 16
    assert np.array_equal(one.token_ids[0], every.token_ids[0])
    mixed = toy_texts.training_sequences(16, piece=64)
    assert np.array_equal(np.sort(mixed.token_ids, None), np.sort(every.token_ids, None))
    assert not np.array_equal(mixed.token_ids, every.token_ids)


def test_snapshot_steps_span_the_training():
    assert toy_training.snapshot_steps(1200) == [0, 1, 3, 8, 20, 40, 80, 160, 300, 500, 800, 1200]
    assert toy_training.snapshot_steps(3) == [0, 1, 2, 3]


def test_snapshots_do_not_disturb_the_training(tmp_path, short_corpus, one_thread):
    from safetensors.torch import load_file

    folders = [
        toy_training.train("baseline", 3, tmp_path / str(taken), TINY, snapshots=taken)
        for taken in (False, True)
    ]
    without, with_them = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(without[key], with_them[key]) for key in without)
    traces = [trace_file.load_trace(file) for file in (tmp_path / "True").glob("*/snapshots/*")]
    assert len(traces) == len(toy_training.snapshot_steps(TINY.steps))


def test_shipped_runs_are_whole():
    runs = toys.shipped()
    assert {name for name, _ in runs} == set(toys.VARIANTS)
    assert runs == [
        (name, seed) for name, variant in toys.VARIANTS.items() for seed in range(variant.seeds)
    ]
    assert not (toys.losses().groupby(["model", "seed"])["step"].max() < 1_000).any()


@pytest.mark.parametrize("name", toys.VARIANTS)
def test_shipped_trace_fits_its_configuration(name):
    config, trace = toys.config(name), toys.load_trace(name)
    dense = config.mlp_only_layers or []
    assert trace.shape == (
        96,
        corpora.SEQUENCE_LENGTH,
        toys.LAYERS - len(dense),
        config.num_experts_per_tok,
    )
    assert trace.num_experts == config.num_experts
    assert trace.token_ids is None  # No text of others is shipped.
    counts = toys.load_counts(name)
    assert (counts.num_layers, counts.num_experts) == (trace.num_layers, trace.num_experts)
    assert counts.kinds == ("in", "predicted", "next")
    assert {label: list(trace.datasets).count(label) for label in corpora.DOMAINS} == dict.fromkeys(
        corpora.DOMAINS, 12
    )
    assert trace.meta["model"] == f"toy:{name}"
    assert [layer.split(".")[2] for layer in trace.meta["layers"]] == [
        str(layer) for layer in range(toys.LAYERS) if layer not in dense
    ]


def test_shipped_data_stay_small():
    size = sum(file.stat().st_size for file in toys.DATA.parent.rglob("*") if file.is_file())
    assert size < 30e6


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(LrcError, match="no toy model named 'basline': choose from baseline"):
        toys.config("basline")
    with pytest.raises(LrcError, match="weights of toy 'no_balance' are not shipped, only those"):
        toys.path("no_balance")
    with pytest.raises(LrcError, match="no shipped traces of seed 7"):
        toys.load_trace("baseline", 7)
    with pytest.raises(LrcError, match="no shipped counts of seed 7"):
        toys.load_counts("baseline", 7)
