"""Models with an encoder and a decoder: two records, each of its own tokens."""

import numpy as np
import pytest
import torch
from every_architecture import executed_experts, used
from tiny_models import hook_count, random_tokens, record_pass, tiny_model

import lrc


@pytest.fixture(scope="module")
def switch():
    return tiny_model("switch_transformers", expert_capacity=64)


@pytest.fixture(scope="module")
def batch():
    """Texts of 9 and 6 tokens, and translations of 4 and 5, padded."""
    tokens, targets = random_tokens(2, 9), random_tokens(2, 5, seed=1)
    mask, target_mask = torch.ones_like(tokens), torch.ones_like(targets)
    mask[1, 6:] = target_mask[0, 4:] = 0
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "decoder_input_ids": targets,
        "decoder_attention_mask": target_mask,
    }


def test_each_stack_has_its_tokens_and_its_padding(switch, batch):
    traces = record_pass(switch, weights=True, **batch)
    assert list(traces) == ["encoder", "decoder"]
    assert traces["encoder"].lengths.tolist() == [9, 6]
    assert traces["decoder"].lengths.tolist() == [4, 5]
    assert traces["encoder"].token_ids[1, :6].tolist() == batch["input_ids"][1, :6].tolist()
    assert traces["decoder"].token_ids[1].tolist() == batch["decoder_input_ids"][1].tolist()
    for name, trace in traces.items():
        assert trace.meta["stack"] == name
        assert all(layer.startswith(name) for layer in trace.meta["layers"])
        truth = executed_experts(switch, trace.meta["layers"], batch)
        np.testing.assert_array_equal(used(trace) & truth, used(trace))
        valid = trace.valid.flatten()
        np.testing.assert_array_equal(used(trace)[:, valid], truth[:, valid])
        assert (trace.weights[trace.experts >= 0] > 0).all()


def test_predictions_are_those_of_the_decoder(switch, batch):
    traces = record_pass(switch, **batch)
    with torch.no_grad():
        expected = switch(**batch).logits.argmax(dim=-1).numpy()
    assert traces["encoder"].predicted_ids is None
    valid = traces["decoder"].valid
    np.testing.assert_array_equal(traces["decoder"].predicted_ids[valid], expected[valid])
    with lrc.Recorder(switch, predictions=False) as recorder, torch.no_grad():
        switch(**batch)
    assert recorder.trace()["decoder"].predicted_ids is None


def test_generation_runs_the_encoder_once(switch, batch):
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with lrc.Recorder(switch) as recorder:
        text = switch.generate(
            **source, max_new_tokens=6, do_sample=False, eos_token_id=None, decoder_start_token_id=0
        )
    traces = recorder.trace()
    assert traces["encoder"].lengths.tolist() == [9, 6]
    assert traces["decoder"].lengths.tolist() == [6, 6], "the last sampled token is never routed"
    whole = record_pass(switch, **source, decoder_input_ids=text[:, :-1])
    for name, trace in traces.items():
        np.testing.assert_array_equal(trace.experts, whole[name].experts)
    np.testing.assert_array_equal(traces["decoder"].token_ids, text[:, :-1])
    np.testing.assert_array_equal(traces["decoder"].predicted_ids, text[:, 1:])


def test_a_stack_without_experts_is_absent(batch):
    model = tiny_model("switch_transformers")
    for block in model.decoder.block:
        block.layer[-1].mlp = torch.nn.Identity()
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(**batch)
    assert list(recorder.trace()) == ["encoder"]
    assert recorder.num_sequences == 2
    assert hook_count(model) == 0


def test_labels_are_those_of_both(switch, batch):
    with lrc.Recorder(switch) as recorder, torch.no_grad():
        switch(**batch)
    for trace in recorder.trace(["a", "b"]).values():
        assert trace.datasets.tolist() == ["a", "b"]
    recorder.clear()
    with pytest.raises(lrc.RecordError, match="no forward pass was recorded"):
        recorder.trace()


def test_an_encoder_alone(switch, batch):
    """It is a model of its own, with one record."""
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    alone = record_pass(switch.get_encoder(), **source)
    assert alone.meta["stack"] == "encoder"
    np.testing.assert_array_equal(alone.experts, record_pass(switch, **batch)["encoder"].experts)


def test_a_block_that_is_refined_several_times():
    """A diffusion decoder only reads the cache of its encoder: every pass is a record."""
    model = tiny_model("diffusion_gemma")
    tokens, canvas = random_tokens(2, 7), random_tokens(2, 4, seed=1)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        cache = model(input_ids=tokens, decoder_input_ids=canvas).past_key_values
        for seed in (2, 3):
            model(past_key_values=cache, decoder_input_ids=random_tokens(2, 4, seed=seed))
    traces = recorder.trace()
    assert traces["encoder"].shape[:2] == (2, 7)
    assert traces["decoder"].shape[:2] == (6, 4)
    np.testing.assert_array_equal(traces["decoder"].token_ids[2:4], random_tokens(2, 4, seed=2))
