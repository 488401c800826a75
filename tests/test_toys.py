"""The toy family: configurations, training that resumes, and what the package ships."""

import numpy as np
import pytest
import torch

from lrc import LrcError, corpora, toy_training, toys
from lrc.toy_training import Preset

TINY = Preset(steps=4, batch=2)


@pytest.fixture
def short_corpus(monkeypatch):
    """Random tokens in place of the embedded corpus, which takes seconds to read."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, toy_training.VOCABULARY, (16, 32)).astype(np.int32)
    made = corpora.Sequences(tokens, tuple(corpora.DOMAINS) * 2)
    monkeypatch.setattr(toy_training, "training_sequences", lambda preset: made)
    monkeypatch.setattr(toy_training, "held_out_sequences", lambda per_domain: made)


def test_every_variant_differs_from_the_baseline_only_where_it_says():
    baseline = toys.config("baseline").to_dict()
    for name, variant in toys.VARIANTS.items():
        config = toys.config(name).to_dict()
        differing = {key for key in baseline if config[key] != baseline[key]}
        assert differing == set(variant.config)
    assert toys.VARIANTS["baseline"].config == {}


@pytest.mark.parametrize("name", toys.VARIANTS)
def test_active_width_is_that_of_the_baseline(name):
    """All but the variants of top-k spend the same expert width on a token."""
    config = toys.config(name)
    width = config.num_experts_per_tok * config.moe_intermediate_size
    width += config.shared_expert_intermediate_size
    factor = {"more_active": 2, "fewer_active": 0.25}.get(name, 1)
    assert width == factor * 8 * toys.EXPERT_WIDTH


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
