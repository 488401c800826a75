"""The GPU kernels in Triton's interpreter against those of the CPU: `test_gpu.py` runs this file.

In a process of its own with TRITON_INTERPRET=1, because Triton decides when it is imported. A step
of a program takes some 50 µs here, so traces are small and examples few; lanes and blocks are made
small too, so that there are several of each.
"""

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from race_detector import no_races
from strategies import traces

import lrc
from lrc import kernels
from lrc.kernels import cpu_windows, gpu_arrays, gpu_bootstrap, gpu_caches, gpu_windows

POLICIES = {
    "lru": kernels.LRU,
    "lfu": kernels.LFU,
    "belady": kernels.BELADY,
    "lookahead": kernels.LOOKAHEAD,
    "static": kernels.STATIC,
}
# A failing example is shown as it was drawn: to shrink it would take many minutes.
few = settings(max_examples=5, phases=[Phase.explicit, Phase.reuse, Phase.generate])
small_traces = traces(max_sequences=3, max_tokens=8, max_layers=2, max_experts=7)


def exactly(there, here):
    """Assert that counts on a "GPU" are those of the CPU, integer by integer."""
    there = kernels.host(there)
    assert there.dtype == here.dtype == np.int64
    assert there.shape == here.shape
    assert np.array_equal(there, here)


@few
@given(trace=small_traces, data=st.data())
def test_windows(trace, data):
    rows = st.integers(-1, 2)
    groups = np.array(data.draw(st.lists(rows, min_size=trace.num_sequences, max_size=9)))
    expert_rows = np.array(data.draw(st.lists(rows, min_size=trace.num_experts, max_size=9)))
    layers = np.array(data.draw(st.permutations(range(trace.num_layers))))
    m = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True)))
    which = (groups[: trace.num_sequences], 3, layers, expert_rows[: trace.num_experts], m)
    here = kernels.count_windows(trace.experts, trace.lengths, *which)
    there = trace.to("interpreter").experts
    lanes = data.draw(st.sampled_from([2, 4, 128]), label="EXPERTS")
    with patch.object(gpu_windows, "EXPERTS", lanes), no_races():
        exactly(kernels.count_windows(there, trace.lengths, *which), here)


@few
@given(trace=small_traces, m=st.integers(1, 4), data=st.data())
def test_windows_by_position(trace, m, data):
    rows = st.lists(st.integers(-1, 1), min_size=trace.num_sequences, max_size=3)
    groups = np.array(data.draw(rows)[: trace.num_sequences])
    which = (groups, 2, np.arange(trace.num_layers), trace.num_experts, m)
    here = kernels.count_windows_by_position(trace.experts, trace.lengths, *which)
    there = trace.to("interpreter").experts
    lanes = data.draw(st.sampled_from([2, 128]), label="EXPERTS")
    with patch.object(gpu_windows, "EXPERTS", lanes), no_races():
        exactly(kernels.count_windows_by_position(there, trace.lengths, *which), here)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@few
@given(trace=small_traces, m=st.integers(1, 10), data=st.data())
def test_caches(policy, shared, trace, m, data):
    drawn = st.lists(st.integers(0, trace.num_sequences - 1), max_size=4)
    which = (np.array(data.draw(drawn), np.int64), trace.num_experts, shared)
    here = kernels.count_new_hits(POLICIES[policy], m, trace.experts, trace.lengths, *which)
    there = trace.to("interpreter").experts
    with ExitStack() as stack:
        for name in ("SLOTS", "PLACES", "BLOCK"):
            lanes = data.draw(st.sampled_from([2, 4, 64]), label=name)
            stack.enter_context(patch.object(gpu_caches, name, lanes))
        stack.enter_context(no_races())
        if data.draw(st.booleans(), label="long keys"):
            stack.enter_context(patch.object(gpu_caches, "SHORT", 0))
        few_bytes = data.draw(st.sampled_from([1, 1 << 14]), label="bytes of a block")
        stack.enter_context(patch.object(gpu_arrays, "INTERPRETER_BLOCK_BYTES", few_bytes))
        there = kernels.count_new_hits(POLICIES[policy], m, there, trace.lengths, *which)
    exactly(there, here)


@pytest.mark.parametrize("policy", POLICIES)
def test_caches_of_a_model_of_usual_size(policy):
    rng = np.random.default_rng(1)
    popularity = rng.gamma(0.5, size=(1, 1, 2, 100))
    noise = rng.random((1, 8, 2, 100)).repeat(2, axis=1)
    trace = lrc.Trace((noise**popularity).argsort(axis=-1)[..., :6], 100)
    which = (np.zeros(1, np.int64), 100, True)
    there = trace.to("interpreter").experts
    exactly(
        kernels.count_new_hits(POLICIES[policy], 4, there, trace.lengths, *which),
        kernels.count_new_hits(POLICIES[policy], 4, trace.experts, trace.lengths, *which),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_the_race_detector_misses_the_barriers(policy):
    trace = lrc.Trace([[[[0, 1]], [[1, 2]], [[3, 0]], [[2, 4]], [[1, 0]]]], 5)
    there = trace.to("interpreter").experts
    which = (2, there, trace.lengths, np.zeros(1, np.int64), 5, False)
    with no_races(barriers=False), pytest.raises(Exception, match="meets a"):
        kernels.count_new_hits(POLICIES[policy], *which)


@given(trace=traces(max_tokens=6))
def test_used_layers(trace):
    there = trace.to("interpreter").experts
    assert np.array_equal(kernels.used_layers(there), kernels.used_layers(trace.experts))


@given(seed=st.integers(0, 99), largest=st.sampled_from([1, 2**11, 2**12, 2**40]))
def test_products_are_exact_and_refused_where_they_might_not_be(seed, largest):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 9, (3, 5)).astype(float)
    counts = rng.integers(largest // 2, largest, (5, 2, 3), endpoint=True)
    sums = kernels.weighted_sums(weights, torch.from_numpy(counts))
    assert sums.dtype == torch.float64
    exact = np.einsum("bs,sij->bij", weights.astype(object), counts.astype(object))
    assert (kernels.host(sums) == exact).all()
    with pytest.raises(lrc.LrcError, match="too many to be exact"):
        kernels.weighted_sums(weights + 2**20, torch.from_numpy(counts + 2**40))


@pytest.mark.parametrize("on", [np.asarray, torch.from_numpy])
def test_no_sequences_add_up_to_nothing(on):
    sums = kernels.weighted_sums(np.empty((4, 0)), on(np.empty((0, 2, 3), np.int64)))
    assert np.array_equal(kernels.host(sums), np.zeros((4, 2, 3)))


@given(seed=st.integers(0, 99), step=st.sampled_from([1, 40, 1 << 26]))
def test_thresholds_to_the_last_bit(seed, step):
    rng = np.random.default_rng(seed)
    histograms = rng.integers(0, rng.choice([2, 9, 2**40], (50, 1)), (50, rng.integers(2, 20)))
    histograms[rng.random(50) < 0.2, 1:] = 0
    histograms[rng.random(50) < 0.1] = 0
    here = cpu_windows.best_thresholds(histograms)
    with patch.object(gpu_bootstrap, "STEP", step):
        for given_as in (np.int64, np.float64):
            there = kernels.best_thresholds(torch.from_numpy(histograms.astype(given_as)))
            assert np.array_equal(there, here)


@pytest.mark.parametrize("level", ["model", "layer", "expert"])
@settings(few, max_examples=2)
@given(trace=traces(max_sequences=4, max_tokens=6, max_layers=2, max_experts=5, datasets=True))
def test_srp_is_the_same_table(level, trace):
    there = trace.to("interpreter")
    for options in ({"by_dataset": True}, {"bootstrap": 5, "seed": 3}):
        tables = [lrc.srp(t, (1, 3), level=level, **options) for t in (there, trace)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    if level != "expert":
        tables = [lrc.srp_by_position(t, 2, level=level) for t in (there, trace)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("level", ["model", "layer"])
@settings(few, max_examples=2)
@given(trace=traces(max_sequences=3, max_tokens=6, max_layers=2, max_experts=5, datasets=True))
def test_hit_rates_are_the_same_table(level, trace):
    there = trace.to("interpreter")
    for options in ({"by_dataset": True}, {"bootstrap": 5, "seed": 3}):
        for measure, variants in (
            (lrc.hit_rates, ["lru", "lfu", "belady"]),
            (lrc.sch, (1, 4)),
            (lambda *args, **more: lrc.sch(*args, **more, definition="static"), (2,)),
        ):
            tables = [measure(t, variants, level=level, **options) for t in (there, trace)]
            pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_sequence_too_long_for_the_keys_is_refused():
    with pytest.raises(lrc.LrcError, match="too long"):
        gpu_caches._key_bits(kernels.LFU, 0, 2**26, 2**11)
    assert gpu_caches._key_bits(kernels.LOOKAHEAD, 256, 512, 384) == (9, 18)
