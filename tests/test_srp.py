"""SRP against its definition, the published scripts' numbers and its own invariants."""

import doctest
import itertools
import sys
from contextlib import nullcontext
from functools import reduce
from operator import add
from unittest.mock import patch

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import kernels, srp_bootstrap
from lrc.bootstrap import mirrored_interval, resample_weights
from lrc.kernels import cpu_windows, gpu_columns
from lrc.window_counts import window_counts

srp_module = sys.modules["lrc.srp"]  # `lrc.srp` is the function
LEVELS = ["model", "layer", "expert"]
MEASURES = ["srp", "size_ratio", "activation_rate"]
GOLDEN = ["top1_of_32", "top2_of_8", "top8_of_64"]
# Three roundings to float32 (numerator, denominator, quotient), half a unit in the last place each.
FLOAT32_ERROR = 1.5 * 2.0**-23


# --- The definition ---------------------------------------------------------------------------


def groups_of(trace, level):
    """Keys of a level's rows, and what `plain.segments` has to look at for each."""
    if level == "model":
        return [({}, {})]
    if level == "layer":
        return [({"layer": i}, {"layers": [i]}) for i in range(trace.num_layers)]
    pairs = itertools.product(range(trace.num_layers), range(trace.num_experts))
    return [({"layer": i, "expert": e}, {"layers": [i], "experts": [e]}) for i, e in pairs]


def plain_table(trace, segment_lengths, level, by_dataset):
    everything = range(trace.num_sequences)
    members = {None: list(everything)}
    if by_dataset:
        members = {
            d: [i for i in everything if trace.datasets[i] == d]
            for d in sorted(set(trace.datasets.tolist()))
        }
    rows = []
    for dataset, sequences in members.items():
        for keys, group in groups_of(trace, level):
            for m in segment_lengths:
                f = plain.segments(trace, m, sequences=sequences, **group)
                if f:
                    rows.append(
                        ({"dataset": dataset} if by_dataset else {})
                        | keys
                        | {"segment_length": m}
                        | dict(zip(MEASURES, map(float, plain.srp(f, m)), strict=True))
                        | {"windows": sum(max(trace.lengths[i] - m + 1, 0) for i in sequences)}
                    )
    return rows


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_srp_equals_its_definition(data):
    level, by_dataset = data.draw(st.sampled_from(LEVELS)), data.draw(st.booleans())
    trace = data.draw(traces(datasets=True if by_dataset else None, max_tokens=20))
    lengths = data.draw(st.lists(st.integers(1, 22), min_size=1, max_size=3, unique=True))
    table = lrc.srp(trace, lengths, level=level, by_dataset=by_dataset)
    # Floats with == : one division of whole numbers, rounded once on either side.
    assert table.to_dict("records") == plain_table(trace, lengths, level, by_dataset)


@settings(max_examples=80, deadline=None)
@given(traces(max_sequences=2, max_tokens=4, max_layers=1, max_experts=3), st.integers(1, 3))
def test_no_segment_router_beats_srp(trace, m):
    """Every router there is, not only thresholds: checks the step from max_R to max_a."""
    f = plain.segments(trace, m)
    if 0 < len(f) <= 12:
        best = max(plain.f1(router, f, m) for router in itertools.product((0, 1), repeat=len(f)))
        assert lrc.srp(trace, m).srp.item() == float(best)


@settings(max_examples=60, deadline=None)
@given(traces(max_tokens=16), st.integers(1, 16))
def test_srp_by_position_equals_its_definition(trace, m):
    starts = range(max(int(trace.lengths.max()) - m + 1, 0))
    for level in ("model", "layer"):
        expected = [
            (*keys.values(), m, p, *map(float, plain.srp(f, m)[:2]))
            for keys, group in groups_of(trace, level)
            for p in starts
            for f in [plain.segments(trace, m, start=p, **group)]
        ]
        table = lrc.srp_by_position(trace, m, level=level)
        assert list(table.itertuples(index=False, name=None)) == expected


def test_srp_by_position_of_one_dataset_is_that_of_its_part():
    trace = golden_trace("top2_of_8")
    table = lrc.srp_by_position(trace, (4, 16), level="layer", by_dataset=True)
    for dataset in trace.dataset_names:
        part = table[table.dataset == dataset].drop(columns="dataset").reset_index(drop=True)
        alone = lrc.srp_by_position(trace.select(datasets=dataset), (4, 16), level="layer")
        pd.testing.assert_frame_equal(part, alone, check_exact=True)


# --- Numbers of others ------------------------------------------------------------------------


def golden_trace(name):
    return lrc.load_trace(ROOT / "tests" / "golden" / name / "trace.parquet")


def published_arithmetic(histogram):
    """The last step as the published scripts take it: whole numbers, then float32."""
    m = histogram.shape[-1] - 1
    at_least = np.array([histogram[..., a:].sum(-1) for a in range(m + 1)])
    matches = np.array([(histogram * np.arange(m + 1))[..., a:].sum(-1) for a in range(m + 1)])
    slots, activations = m * at_least, matches[0]
    f1 = np.float32(2 * matches) / np.float32(np.maximum(slots + activations, 1))
    best = f1.argmax(axis=0)[None]
    size = np.take_along_axis(slots, best, 0)[0] * (activations > 0)
    ratio = np.float32(size) / np.float32(np.maximum(activations, 1))
    return f1.max(axis=0), ratio, np.float32(activations) / np.float32(slots[0])


def check_golden_srp(trace, golden):
    """Every row of a golden table: float32 results to the last bit, float64 ones within it."""
    checked = 0
    for (level, by_dataset), part in golden.groupby(["level", golden.dataset.notna()]):
        lengths = sorted(part.segment_length.unique())
        table = lrc.srp(trace, lengths, level=level, by_dataset=by_dataset)
        counts = window_counts(trace, lengths, level=level, by_dataset=by_dataset)
        exact = [published_arithmetic(counts.histogram(i)) for i in range(len(lengths))]
        for column, values in zip(MEASURES, zip(*exact, strict=True), strict=True):
            table[f"{column}_float32"] = np.stack(values, axis=-1).ravel()
        keys = [c for c in ("dataset", "layer", "expert", "segment_length") if c in table]
        both = part.merge(table, on=keys, suffixes=("_golden", ""), validate="1:1")
        assert len(both) == len(part)
        for column in MEASURES:
            truth = both[f"{column}_golden"]
            assert (np.float32(truth) == both[f"{column}_float32"]).all(), (level, column)
            assert (abs(both[column] - truth) <= FLOAT32_ERROR * truth).all(), (level, column)
        checked += len(both)
    assert checked == len(golden) > 0


def check_golden_positions(trace, golden):
    table = lrc.srp_by_position(trace, sorted(golden.segment_length.unique()))
    both = golden.merge(table, on=["segment_length", "start"], suffixes=("_golden", ""))
    assert len(both) == len(golden) > 0
    for column in ("srp", "size_ratio"):
        truth = both[f"{column}_golden"]
        assert (abs(both[column] - truth) <= FLOAT32_ERROR * truth).all(), column


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_fixtures(name):
    folder = ROOT / "tests" / "golden" / name
    check_golden_srp(golden_trace(name), pd.read_csv(folder / "srp.csv", dtype={"dataset": "str"}))
    check_golden_positions(golden_trace(name), pd.read_csv(folder / "srp_by_position.csv"))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_in_full(shared, name):
    folder = shared / "golden" / name
    with np.load(folder / "trace.npz", allow_pickle=False) as file:
        trace = lrc.Trace(
            file["experts"], file["num_experts"].item(), datasets=file["dataset"].astype(str)
        )
    check_golden_srp(trace, pd.read_csv(folder / "srp.csv", dtype={"dataset": "str"}))
    positions = pd.read_csv(folder / "srp_position.csv").rename(columns={"start_pos": "start"})
    check_golden_positions(trace, positions)


def test_deepseek_v2_lite(shared):
    with np.load(shared / "traces/deepseek-v2-lite/deepseek-v2-lite.npz") as file:
        ids, offsets = file["expert_ids"], file["offsets"]
    lengths = np.diff(offsets)
    experts = np.full((len(lengths), lengths.max(), *ids.shape[1:]), -1, np.int16)
    experts[np.arange(lengths.max()) < lengths[:, None]] = ids
    table = lrc.srp(lrc.Trace(experts, 64, lengths=lengths))
    assert table.srp.round(4).tolist() == [0.5434, 0.4162, 0.3538, 0.2996]


# --- Invariants -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_names_of_experts_and_direction_of_time_do_not_matter(trace, m, random):
    names = list(range(trace.num_experts))
    random.shuffle(names)
    renamed = np.append(names, -1)[trace.experts]
    for i, length in enumerate(trace.lengths):
        renamed[i, :length] = renamed[i, :length][::-1]
    other = lrc.Trace(renamed, trace.num_experts, lengths=trace.lengths)
    for level in ("model", "layer"):
        table = lrc.srp(trace, m, level=level)
        pd.testing.assert_frame_equal(table, lrc.srp(other, m, level=level), check_exact=True)
        # A router that is always on has F1 = 2r / (1 + r).
        chance = 2 * table.activation_rate / (1 + table.activation_rate)
        assert ((table.srp >= chance * (1 - 1e-12)) & (table.srp <= 1)).all()


def test_all_experts_always_active_is_perfect():
    experts = np.broadcast_to(np.arange(5), (2, 9, 3, 5))
    table = lrc.srp(lrc.Trace(experts, 5), (1, 4, 9), level="expert")
    assert (table[MEASURES] == 1).all(axis=None)
    assert len(table) == 3 * 5 * 3


@settings(max_examples=60, deadline=None)
@given(traces(datasets=True), st.sampled_from(LEVELS), st.booleans(), st.randoms())
def test_shards_add_up_in_any_order(trace, level, by_dataset, random):
    options = {"segment_lengths": (1, 3, 8), "level": level, "by_dataset": by_dataset}
    order = list(range(trace.num_sequences))
    random.shuffle(order)
    cut = random.randint(0, len(order))
    shards = [part for part in (order[:cut], order[cut:]) if part]
    parts = [window_counts(trace.select(shard), **options) for shard in shards]
    table = reduce(add, parts).table()
    pd.testing.assert_frame_equal(table, lrc.srp(trace, **options), check_exact=True)


def test_counts_of_different_kinds_do_not_add_up():
    trace = golden_trace("top2_of_8")
    with pytest.raises(lrc.LrcError, match="different kinds"):
        window_counts(trace, (4,)) + window_counts(trace, (16,))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_a_count(threads):
    trace = golden_trace("top2_of_8")
    expected = [window_counts(trace, level=level, by_dataset=True).counts for level in LEVELS]
    positions = lrc.srp_by_position(trace, 16)
    with patch.object(cpu_windows.config, "NUMBA_NUM_THREADS", threads):
        for level, counts in zip(LEVELS, expected, strict=True):
            assert (window_counts(trace, level=level, by_dataset=True).counts == counts).all()
        pooled = window_counts(trace.select(layers=0), level="expert").counts[0, 0]
        assert (pooled == expected[2][:, 0].sum(axis=0)).all()
        pd.testing.assert_frame_equal(lrc.srp_by_position(trace, 16), positions, check_exact=True)


# --- Bootstrap --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_interval_is_that_of_literal_resampling(data):
    level, by_dataset = data.draw(st.sampled_from(LEVELS)), data.draw(st.booleans())
    trace = data.draw(traces(datasets=True if by_dataset else None, max_tokens=12))
    seed = data.draw(st.integers(0, 99))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=2, unique=True))
    options = {"level": level, "by_dataset": by_dataset}
    # Small blocks, so that rows and sequences are worked off in several steps; few thresholds at
    # first, so that more are needed.
    small = data.draw(st.booleans())
    sizes = {"SUM_BYTES_IN_MEMORY": 1000, "BLOCK_BYTES": 100, "REACH": 0.1}
    with patch.multiple(srp_bootstrap, **sizes) if small else nullcontext():
        table = lrc.srp(trace, lengths, **options, bootstrap=9, confidence=0.8, seed=seed)
    datasets = trace.dataset_names if by_dataset else [None]
    for m, dataset in itertools.product(lengths, datasets):
        group = trace.select(trace.lengths >= m)
        if by_dataset:
            group = group.select(group.datasets == dataset)
        rows = table[table.segment_length == m]
        rows = rows[rows.dataset == dataset] if by_dataset else rows
        if not group.num_sequences:
            assert len(rows) == 0
            continue
        strata = np.zeros(group.num_sequences) if group.datasets is None else group.datasets
        resampled = [
            lrc.srp(group.select(np.repeat(np.arange(len(row)), row)), m, level=level).srp
            for row in resample_weights(strata, 9, seed)
        ]
        low, high = mirrored_interval(rows.srp, np.array(resampled), 0.8)
        assert rows.ci_low.tolist() == low.tolist()
        assert rows.ci_high.tolist() == high.tolist()
    without = lrc.srp(trace, lengths, **options)
    pd.testing.assert_frame_equal(table[without.columns], without, check_exact=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_columns_are_read_off_the_histograms(data):
    """By numba on the CPU, and, as on a GPU, by torch."""
    trace = data.draw(traces(max_tokens=12))
    lengths = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=2, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    shape = (3, len(lengths), trace.num_layers, trace.num_experts)
    highest = np.array(lengths)[:, None, None]
    low, high = np.sort(rng.integers(1, highest + 1, (2, *shape)), axis=0)
    wanted = rng.random(shape) < 0.8
    # One row for all layers, one for each of them, and one for each expert.
    wanted[0, :, 1:] = wanted[0, :, :, 1:] = wanted[1, :, :, 1:] = False
    first = np.full(shape, -1)
    first[wanted] = np.cumsum(np.append(0, (3 + high - low)[wanted]))[:-1]
    sequences = rng.permutation(trace.num_sequences)
    arguments = (sequences, np.arange(trace.num_layers), lengths, (first, low, high), np.float64)
    counted = cpu_windows.count_columns(trace.experts, trace.lengths, *arguments)
    for row, s in enumerate(sequences):
        for level, i, layer, expert in np.argwhere(wanted):
            group = {"layers": [layer]} if level else {}
            group |= {"experts": [expert]} if level == 2 else {}
            f = plain.segments(trace, lengths[i], sequences=[s], **group)
            lowest, highest = low[level, i, layer, expert], high[level, i, layer, expert]
            above = [n for n in f if n >= highest]
            expected = [sum(f), len(above), sum(above), *map(f.count, range(lowest, highest))]
            c = first[level, i, layer, expert]
            assert counted[row, c : c + len(expected)].tolist() == expected
    count_windows = cpu_windows.count_windows
    with patch.object(kernels, "count_windows", lambda *a: torch.from_numpy(count_windows(*a))):
        by_torch = gpu_columns.count_columns(trace.experts, trace.lengths, *arguments)
    assert by_torch.tolist() == counted.tolist()


@settings(max_examples=30, deadline=None)
@given(traces(datasets=True), st.permutations(LEVELS), st.integers(1, 3), st.booleans())
def test_several_levels_at_once_are_those_one_by_one(trace, levels, number, by_dataset):
    levels = levels[:number]
    options = {"segment_lengths": (2, 5), "by_dataset": by_dataset, "bootstrap": 9}
    table = lrc.srp(trace, level=levels, **options)
    assert table.level.drop_duplicates().tolist() == (levels if len(table) else [])
    for level in levels:
        alone = lrc.srp(trace, level=level, **options)
        part = table[table.level == level].drop(columns="level").reset_index(drop=True)
        pooled = part.columns.difference(alone.columns)
        assert part[pooled].isna().all(axis=None)
        pd.testing.assert_frame_equal(
            part.drop(columns=pooled), alone, check_exact=True, check_dtype=False
        )


@settings(max_examples=30, deadline=None)
@given(traces(datasets=True), st.permutations([False, True]), st.booleans())
def test_pooled_and_by_dataset_at_once_are_those_one_by_one(trace, both, by_level):
    options = {"segment_lengths": (2, 5), "bootstrap": 9, "level": "layer"}
    if by_level:
        options["level"] = ("layer", "model")
    table = lrc.srp(trace, by_dataset=both, **options)
    parts = [lrc.srp(trace, by_dataset=by_dataset, **options) for by_dataset in both]
    pooled = table.dataset.isna()
    for by_dataset, alone in zip(both, parts, strict=True):
        part = table[pooled != by_dataset].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            part[alone.columns], alone, check_exact=True, check_dtype=False
        )
    assert len(table) == sum(map(len, parts))
    assert pooled.tolist() == sorted(pooled.tolist(), reverse=not both[0])


def test_mirrored_interval_by_hand():
    resampled = np.arange(101)[:, None] / 100  # percentiles are what they are called
    low, high = mirrored_interval(np.array([0.6]), resampled, 0.9)
    assert (low.item(), high.item()) == pytest.approx((2 * 0.6 - 0.95, 2 * 0.6 - 0.05))


def test_resamples_keep_the_mix_of_datasets():
    strata = np.array(["a", "b", "a", "c", "b", "a"])
    weights = resample_weights(strata, 4000, seed=1)
    for label in "abc":
        assert (weights[:, strata == label].sum(axis=1) == (strata == label).sum()).all()
    # A sequence among three is drawn 3 times with chance 1/27, 0 times with 8/27.
    assert np.bincount(weights[:, 0], minlength=4) / 4000 == pytest.approx(
        [8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.03
    )
    assert (weights == resample_weights(strata, 4000, seed=1)).all()
    assert (weights != resample_weights(strata, 4000, seed=2)).any()


# --- Edges ------------------------------------------------------------------------------------


def test_nothing_to_measure_is_an_empty_frame():
    trace = lrc.Trace(np.zeros((2, 3, 1, 1), int), 2, lengths=[3, 0], datasets=["a", "b"])
    for kwargs in ({}, {"level": "expert", "by_dataset": True, "bootstrap": 5}):
        empty, full = lrc.srp(trace, 4, **kwargs), lrc.srp(trace, 3, **kwargs)
        assert len(empty) == 0
        assert len(full) > 0
        assert (empty.dtypes == full.dtypes).all()
        assert not full.isna().any(axis=None)
    nothing = trace.select([])
    assert len(lrc.srp(nothing)) == len(lrc.srp(nothing, by_dataset=True, bootstrap=3)) == 0
    assert len(lrc.srp_by_position(trace, 4)) == len(lrc.srp_by_position(nothing, 4)) == 0
    assert len(lrc.srp_by_position(nothing, 4, level="layer", by_dataset=True)) == 0
    assert lrc.srp_by_position(trace, 4).columns.tolist() == [
        *("segment_length", "start", "srp", "size_ratio")
    ]


def test_experts_that_are_never_active_score_nothing():
    trace = lrc.Trace(np.array([[[[0, -1]], [[-1, -1]], [[-1, 0]]]]), 2)
    table = lrc.srp(trace, (1, 2), level="expert")
    assert table[table.expert == 1][MEASURES].eq(0).all(axis=None)
    assert table[table.expert == 0].activation_rate.tolist() == [2 / 3, 1 / 2]


def test_segment_lengths_keep_their_order():
    trace = golden_trace("top2_of_8")
    assert lrc.srp(trace, (16, 4)).segment_length.tolist() == [16, 4]
    assert lrc.srp_by_position(trace, (16, 4)).segment_length.unique().tolist() == [16, 4]


def test_columns():
    table = lrc.srp(golden_trace("top2_of_8"), 4, level="expert", by_dataset=True, bootstrap=2)
    assert ",".join(table.columns) == (
        "dataset,layer,expert,segment_length,srp,ci_low,ci_high,size_ratio,activation_rate,windows"
    )
    assert table.windows.dtype == np.int64


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"segment_lengths": 0}, "segment_lengths is 0, but must"),
        ({"segment_lengths": (4, -1)}, "at least 1"),
        ({"segment_lengths": (4.5,)}, "whole numbers"),
        ({"segment_lengths": ()}, "at least 1"),
        ({"segment_lengths": (4, 4)}, "give each once"),
        ({"segment_lengths": "4"}, "whole numbers"),
        ({"level": ("model", "head")}, "'head', but must be one of"),
        ({"level": ()}, r"level is \(\), but must be one of"),
        ({"level": ("layer", "layer")}, "give each once"),
        ({"level": "head"}, "'head', but must be one of 'model', 'layer', 'expert'"),
        ({"by_dataset": True}, "by_dataset needs labels"),
        ({"by_dataset": (False, True)}, "by_dataset needs labels"),
        ({"by_dataset": ()}, r"by_dataset is \(\), but must be False, True, or"),
        ({"by_dataset": ("code",)}, "'code',., but must be False, True, or"),
        ({"by_dataset": (True, True)}, "give each once"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"bootstrap": True}, "bootstrap is True"),
        ({"bootstrap": 10, "confidence": 1}, "confidence is 1"),
        ({"bootstrap": 10, "confidence": 95}, "confidence is 95"),
    ],
)
def test_bad_arguments_end_in_one_line(kwargs, message):
    trace = lrc.Trace(np.zeros((1, 3, 1, 1), int), 2)
    with pytest.raises(lrc.LrcError, match=message) as caught:
        lrc.srp(trace, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_trace_is_asked_for():
    with pytest.raises(lrc.LrcError, match=r"not int .*load_trace"):
        lrc.srp(3)
    with pytest.raises(lrc.LrcError, match=r"not str .*load_trace"):
        lrc.srp_by_position("trace.parquet", 4)
    with pytest.raises(lrc.LrcError, match=r"not dict .*'decoder'"):
        lrc.srp_by_position({"decoder": None}, 4)
    with pytest.raises(lrc.LrcError, match="level is 'expert'"):
        lrc.srp_by_position(golden_trace("top2_of_8"), 4, level="expert")


def test_examples_in_docstrings():
    names = {"Trace": lrc.Trace, "lrc": lrc}
    assert doctest.testmod(srp_module, extraglobs=names).failed == 0


@pytest.mark.parametrize(
    "measure",
    [lrc.balance, lrc.shuffle, lrc.decompose, lrc.token_counts],
)
def test_every_measure_asks_for_a_trace(measure):
    with pytest.raises(lrc.LrcError, match=r"expected a lrc\.Trace, not str \(lrc\.load_trace"):
        measure("trace.parquet")


def test_a_slip_in_a_segment_length_does_not_fill_memory():
    trace = lrc.Trace(np.zeros((1, 4, 1, 1), int), 2)
    with pytest.raises(lrc.LrcError, match="at most 1,000,000 each"):
        lrc.srp(trace, 10**10)
