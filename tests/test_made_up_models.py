"""Classes that no version of transformers has: recorded by a general rule, or refused aloud."""

from functools import partial

import numpy as np
import pytest
import torch
from made_up_models import NUM_EXPERTS, TOP_K, Capped, LanguageModel, Listed, Stacked, choose
from tiny_models import random_tokens
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrc


def record(model, *batches, **options):
    with lrc.Recorder(model, **options) as recorder, torch.no_grad():
        for batch in batches:
            model(batch)
    return recorder.trace()


def logged(model):
    """Ids that the blocks said they chose, ascending, [tokens, layers, slots]."""
    layers = [torch.cat(layer.block.log) for layer in model.layers]
    return np.sort(torch.stack(layers, dim=1).numpy(), axis=-1)


def recorded(trace):
    return np.sort(
        np.concatenate(
            [experts[:n] for experts, n in zip(trace.experts, trace.lengths, strict=True)]
        ),
        axis=-1,
    )


# --- experts in a list ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        Listed,
        lambda: Listed(names=("wg", "parts")),
        lambda: Listed(extra=True),
        Capped,
    ],
    ids=["called experts", "beside a router", "with a dropout among them", "with capacity"],
)
def test_experts_in_a_list(block):
    model = LanguageModel(block)
    trace = record(model, random_tokens(2, 9), random_tokens(1, 4, seed=1))
    assert trace.shape[2:] == (2, TOP_K)
    assert trace.num_experts == NUM_EXPERTS
    np.testing.assert_array_equal(recorded(trace), logged(model))
    assert trace.meta["rule"] == "rows of experts in a list"
    assert trace.meta["slots"].startswith("ascending")
    assert trace.meta["layers"] == ["layers.0.block", "layers.1.block"]
    one = sum(p.numel() * 4 for p in model.layers[0].block.state_dict().values())
    assert trace.meta["expert_bytes"] * NUM_EXPERTS < one, "without the router"
    if block is Capped:
        assert (recorded(trace) == -1).any(), "tokens must be dropped for this to test anything"


def test_identical_rows_at_the_start_of_every_sequence():
    tokens = random_tokens(6, 5)
    tokens[:, 0] = 1
    model = LanguageModel(Listed)
    np.testing.assert_array_equal(recorded(record(model, tokens)), logged(model))
    with pytest.raises(lrc.RecordError, match=r"block\.experts .* of 6 identical tokens"):
        record(LanguageModel(Capped), tokens)


def test_experts_in_a_list_of_a_compiled_model():
    model, tokens = LanguageModel(Listed), random_tokens(2, 6)
    expected = record(model, tokens)
    torch.compiler.reset()
    with lrc.Recorder(model) as recorder, torch.no_grad():
        torch.compile(model, backend="eager")(tokens)
    np.testing.assert_array_equal(recorder.trace().experts, expected.experts)
    torch.compiler.reset()


def test_experts_in_a_list_of_a_checkpointed_model():
    model, tokens = LanguageModel(Listed).train(), random_tokens(2, 6)
    expected = record(model, tokens)
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    with lrc.Recorder(model) as recorder:
        for _ in range(2):
            model(tokens).logits.sum().backward()
    np.testing.assert_array_equal(recorder.trace().experts, np.tile(expected.experts, (2, 1, 1, 1)))


def test_weights_of_experts_in_a_list_are_unknown():
    with pytest.raises(lrc.RecordError, match="says nothing of weights"):
        lrc.Recorder(LanguageModel(Listed), weights=True)


class Scaled(Listed):
    """Hands its experts what are no longer tokens."""

    def forward(self, hidden):
        return self.experts[0](3 * hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)


def test_rows_that_are_no_tokens():
    with pytest.raises(
        lrc.RecordError, match=r"layers\.0\.block\.experts .*rows that are no tokens"
    ):
        record(LanguageModel(Scaled), random_tokens(1, 4))


class Fused(Listed):
    """Computes its experts without calling them."""

    def forward(self, hidden):
        return self.experts[0].forward(hidden)


def test_experts_that_are_never_called():
    with pytest.raises(lrc.RecordError, match=r"block\.experts .*none of its experts was called"):
        record(LanguageModel(Fused), random_tokens(1, 4))


# --- all experts in one module -------------------------------------------------------------------


class Block(nn.Module):
    """A block around stacked experts; `call` hands them the ids."""

    def __init__(self, experts, call):
        super().__init__()
        self.gate = nn.Linear(16, NUM_EXPERTS, bias=False)
        self.experts = experts()
        self.call = call
        self.log = []

    def forward(self, hidden):
        rows = hidden.reshape(-1, hidden.shape[-1])
        weights, ids = choose(self.gate, rows, self.log)
        return self.call(self.experts, rows, ids, weights).reshape(hidden.shape)


class NovelExperts(Stacked):
    def forward(self, rows, whom_to_ask, how_much):
        return self.run(rows, whom_to_ask, how_much)


def test_unknown_class_with_an_unknown_argument():
    model = LanguageModel(lambda: Block(NovelExperts, lambda e, x, ids, w: e(x, ids, how_much=w)))
    trace = record(model, random_tokens(2, 7), weights=True)
    np.testing.assert_array_equal(recorded(trace), logged(model))
    assert (trace.weights == 0.5).all()
    assert trace.meta["rule"] == "index argument, found by its kind"


class TwoFacedExperts(Stacked):
    def forward(self, rows, one, other, weights):
        return self.run(rows, one, weights)


class SecretExperts(Stacked):
    def forward(self, rows):
        ids = self.up.sum(dim=(1, 2)).argsort()[:1].expand(len(rows), 1)
        return self.run(rows, ids, torch.ones(len(rows), 1))


class OneHotExperts(Stacked):
    def forward(self, rows, mask, weights):
        return self.run(rows, mask.argmax(dim=-1, keepdim=True), weights)


@pytest.mark.parametrize(
    ("experts", "call", "message"),
    [
        (
            TwoFacedExperts,
            lambda e, x, ids, w: e(x, ids, ids.flip(-1), w),
            "called with 2 arguments that can be expert ids",
        ),
        (
            OneHotExperts,
            lambda e, x, ids, w: e(x, nn.functional.one_hot(ids[:, 0], NUM_EXPERTS), w),
            "called with 0 arguments that can be expert ids",
        ),
        (SecretExperts, lambda e, x, ids, w: e(x), "its forward takes no expert ids"),
    ],
)
def test_unknown_classes_say_so(experts, call, message):
    model = LanguageModel(lambda: Block(experts, call))
    with pytest.raises(lrc.RecordError, match=message) as error:
        record(model, random_tokens(1, 4))
    assert experts.__name__ in str(error.value)
    assert "layers.0.block.experts" in str(error.value)


class DenseBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, hidden):
        for part in self.parts:
            hidden = part(hidden)
        return hidden


def test_a_list_of_modules_is_not_yet_one_of_experts():
    with pytest.raises(lrc.RecordError, match="has no MoE layer"):
        lrc.Recorder(LanguageModel(DenseBlock))


def test_one_unknown_layer_among_known_ones_is_refused():
    model = LanguageModel(Listed)
    model.layers[1].block = Block(SecretExperts, lambda e, x, ids, w: e(x))
    with pytest.raises(lrc.RecordError, match=r"layers\.1\.block\.experts \(SecretExperts\)"):
        lrc.Recorder(model)
