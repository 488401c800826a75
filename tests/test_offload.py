"""`lrc.Offloader`: the hits that `lrc.replay` predicts, and the numbers of the model itself."""

import numpy as np
import plain_replay
import pytest
import torch
from tiny_models import random_tokens, tiny_model

import lrc

POLICIES = ["lru", "fifo", "lfu", "lfu_cached", "lfu_decay", "lfru", "score", "random", "sieve"]


def generate(model, tokens):
    return model.generate(
        tokens, max_new_tokens=6, do_sample=False, eos_token_id=-1, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3_moe")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("level", ["model", "layer"])
def test_hits_are_those_that_the_replay_predicts(model, policy, level):
    tokens = random_tokens(1, 5)
    with lrc.Recorder(model, weights=True) as recorder:
        resident = generate(model, tokens)
    trace = recorder.trace()
    with lrc.Offloader(model, policy, cache_size=4, level=level) as offloader:
        offloaded = generate(model, tokens)
    predicted = lrc.replay(trace, policy, cache_size=4, level=level, prompt_tokens=5)
    assert np.concatenate(offloader.hits).tolist() == predicted.hits.tolist()
    assert offloader.hit_rate == predicted.hit_rate
    assert sum(offloader.load_bytes) == predicted.bytes
    assert torch.equal(resident.sequences, offloaded.sequences)
    for before, after in zip(resident.logits, offloaded.logits, strict=True):
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3", "olmoe", "gpt_oss"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_model_computes_as_before_and_is_whole_afterwards(name, implementation):
    model = tiny_model(name)
    model.set_experts_implementation(implementation)
    tokens = random_tokens(2, 7)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(tokens).logits
        with lrc.Offloader(model, cache_size=3):
            torch.testing.assert_close(model(tokens).logits, before)
        assert torch.equal(model(tokens).logits, before)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_fast_memory_holds_only_the_cache(model):
    with lrc.Offloader(model, cache_size=4) as offloader:
        experts = offloader.layers[0].experts
        held = {id(p): p.numel() for layer in offloader.layers for p in layer.experts.parameters()}
        assert sum(held.values()) * 4 == 4 * offloader.layers[0].expert_bytes
        assert experts.num_experts == 8  # until the first request
    assert len(next(experts.parameters())) == 8


def test_texts_start_from_an_empty_cache_if_told_to(model):
    tokens = random_tokens(2, 4)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(tokens)
    trace = recorder.trace()
    for carry_over in (False, True):
        with lrc.Offloader(model, cache_size=6) as offloader, torch.no_grad():
            for text in tokens:
                if not carry_over:
                    offloader.forget()
                model(text[None])
        predicted = lrc.replay(trace, cache_size=6, prompt_tokens=4, carry_over=carry_over)
        assert np.concatenate(offloader.hits).tolist() == predicted.hits.tolist()


def test_a_batch_needs_the_experts_of_all_its_texts(model):
    tokens = random_tokens(3, 5)
    with lrc.Recorder(model) as recorder:
        resident = generate(model, tokens)
    trace = recorder.trace()
    with lrc.Offloader(model, "lfu", cache_size=6) as offloader:
        offloaded = generate(model, tokens)
    assert torch.equal(resident.sequences, offloaded.sequences)
    steps, _ = plain_replay.joined_steps(trace, [5, 5, 5], [[0, 1, 2]], 1)
    asked = [
        (batch, step, layer, {(layer, e): weight for e, weight in experts.items()})
        for (batch, step, layer), experts in sorted(steps.items(), key=lambda item: item[0])
    ]
    cache = plain_replay.Cache("lfu", 6, [1] * trace.num_layers, "engine")
    predicted = [hit for answer in cache.run(asked) for hit in answer]
    assert np.concatenate(offloader.hits).tolist() == predicted


def test_loading_takes_as_long_as_the_link_does(model):
    link = lrc.throughput.Device(compute_ms=0, bandwidth=1e8, latency_ms=0.5)
    with lrc.Offloader(model, cache_size=4, link=link) as offloader:
        generate(model, random_tokens(1, 3))
    size = offloader.layers[0].expert_bytes
    for seconds, num_bytes in zip(offloader.load_seconds, offloader.load_bytes, strict=True):
        assert seconds >= num_bytes // size * 0.0005 + num_bytes / 1e8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_experts_come_from_pinned_memory_to_a_gpu():
    there = tiny_model("qwen3_moe").to("cuda")
    tokens = random_tokens(1, 5).to("cuda")
    with lrc.Recorder(there, weights=True) as recorder:
        resident = generate(there, tokens)
    with lrc.Offloader(there, cache_size=4) as offloader:
        assert all(
            slow.is_pinned() for memory in offloader._memories for slow in memory.slow.values()
        )
        offloaded = generate(there, tokens)
    predicted = lrc.replay(recorder.trace(), cache_size=4, prompt_tokens=5)
    assert np.concatenate(offloader.hits).tolist() == predicted.hits.tolist()
    assert torch.equal(resident.sequences, offloaded.sequences)
    assert next(offloader.layers[0].experts.parameters()).device.type == "cuda"


def test_what_a_gpu_does_with_memory_that_only_claims_to_be_pinned(model, monkeypatch):
    """The path of a GPU on the CPU: slow memory is a tensor in RAM, and there is no file."""
    made = []

    def pinned(shape, like, path):
        made.append(torch.empty(shape, dtype=like.dtype))
        return made[-1]

    monkeypatch.setattr("lrc.offload._slow", pinned)
    tokens = random_tokens(1, 5)
    resident = generate(model, tokens)
    with lrc.Offloader(model, cache_size=4) as offloader:
        offloaded = generate(model, tokens)
        assert not next(iter(offloader._memories[0].slow.values())).is_shared()
    assert made
    assert torch.equal(resident.sequences, offloaded.sequences)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("qwen3_moe", {"policy": "belady", "cache_size": 4}, "knows the future"),
        ("qwen3_moe", {"cache_size": 0}, "holds not one expert"),
        ("qwen3_moe", {"budget_bytes": 10}, "holds not one expert"),
        ("qwen3_moe", {}, "give either cache_size"),
        ("qwen3_moe", {"cache_size": 4, "level": "expert"}, "level is"),
    ],
)
def test_what_cannot_be_offloaded(name, arguments, says):
    with pytest.raises(lrc.LrcError, match=says):
        lrc.Offloader(tiny_model(name), **arguments)
