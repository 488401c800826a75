"""Load balance against plain loops over windows, and against numbers worked by hand."""

import math
from importlib import import_module
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import traces

import lrc

MEASURES = ["activation_sd", "load_cv", "entropy"]


def plain_groups(trace, level):
    """Lists of (layer, expert) that are balanced against each other."""
    experts, layers = range(trace.num_experts), range(trace.num_layers)
    by_layer = [[(layer, expert) for expert in experts] for layer in layers]
    return by_layer if level == "layer" else [[place for group in by_layer for place in group]]


def plain_loads(trace, group, tokens):
    """Activations of each expert of a group at (sequence, token) places."""
    return [
        sum(int(expert in trace.experts[i, t, layer]) for i, t in tokens) for layer, expert in group
    ]


def plain_measures(loads, num_tokens):
    rates = [load / num_tokens for load in loads]
    total = sum(loads)
    if not total:
        return stdev(rates), None, None
    shares = [load / total for load in loads]
    entropy = -sum(share * math.log(share) for share in shares if share)
    return stdev(rates), stdev(rates) / mean(rates), entropy / math.log(len(loads))


def plain_windows(trace, length):
    """All windows as lists of (sequence, token) places."""
    return [
        [(i, t) for t in range(start, start + length)]
        for i, valid in enumerate(trace.lengths.tolist())
        for start in range(valid - length + 1)
    ]


def plain_local(trace, level, window):
    """Means over windows for each group; None where no window has any activation."""
    windows = plain_windows(trace, window)
    rows = []
    for group in plain_groups(trace, level):
        each = [plain_measures(plain_loads(trace, group, tokens), window) for tokens in windows]
        columns = ([v for v in values if v is not None] for values in zip(*each, strict=True))
        rows.append([mean(values) if values else None for values in columns])
    return rows


def plain_global(trace, level, segment_length):
    """Windows of the segment length one after the other, as if they were one long text."""
    places = [place for window in plain_windows(trace, segment_length) for place in window]
    return [
        list(plain_measures(plain_loads(trace, group, places), len(places)))
        for group in plain_groups(trace, level)
    ]


def check(found, expected):
    """Compare a table, or the error that stands for groups without activations."""
    if any(None in row for row in expected):
        with pytest.raises(lrc.LrcError, match="no expert is ever active"):
            found()
    else:
        np.testing.assert_allclose(found()[MEASURES], expected, rtol=1e-12, atol=1e-12)


small = traces(max_sequences=3, max_tokens=12, max_layers=2, max_experts=6, min_length=1)


@given(small, st.sampled_from(["layer", "model"]), st.integers(1, 5))
def test_local_equals_plain_loops(trace, level, window):
    assume(trace.lengths.max() >= window and trace.num_experts > 1)
    check(lambda: lrc.balance(trace, window, level=level), plain_local(trace, level, window))


@given(small, st.sampled_from(["layer", "model"]), st.sampled_from([1, 1, 3]))
def test_global_equals_plain_loops(trace, level, length):
    assume(trace.lengths.max() >= length and trace.num_experts > 1)
    check(
        lambda: lrc.balance(trace, level=level, segment_length=length),
        plain_global(trace, level, length),
    )


@given(traces(datasets=True, min_length=4, max_tokens=12), st.sampled_from([None, 4]))
def test_datasets_are_measured_by_themselves(trace, window):
    assume(trace.num_experts > 1 and (trace.experts >= 0).all())
    found = lrc.balance(trace, window, by_dataset=True)
    assert list(found) == ["dataset", "layer", *MEASURES]
    for name in trace.dataset_names:
        own = found[found["dataset"] == name].drop(columns="dataset").reset_index(drop=True)
        alone = lrc.balance(trace.select(datasets=name), window)
        pd.testing.assert_frame_equal(own, alone, check_exact=True)


@given(small, st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_order_of_sequences_does_not_change_a_bit(trace, random, window):
    assume(trace.num_experts > 1 and (trace.experts[:, 0] >= 0).all())
    assume(trace.lengths.max() >= window)
    order = list(range(trace.num_sequences))
    random.shuffle(order)
    shuffled = trace.select(order)
    for width in (None, window):
        expected = lrc.balance(trace, width)
        pd.testing.assert_frame_equal(lrc.balance(shuffled, width), expected, check_exact=True)


def test_blocks_of_sequences_add_up(monkeypatch):
    rng = np.random.default_rng(0)
    experts = rng.random((7, 20, 2, 6)).argsort(axis=-1)[..., :2]
    experts[rng.random(experts.shape) < 0.1] = -1
    trace = lrc.Trace(experts, 6)
    expected = lrc.balance(trace, 4)
    monkeypatch.setattr(import_module("lrc.balance"), "_BLOCK", 2)
    pd.testing.assert_frame_equal(lrc.balance(trace, 4), expected, check_exact=True)


def test_worked_example():
    # Four tokens, top-1 of 2 experts: 0 0 1 0 (rates 3/4 and 1/4).
    trace = lrc.Trace([[[[0]], [[0]], [[1]], [[0]]]], num_experts=2)
    whole = lrc.balance(trace).loc[0]
    assert whole["activation_sd"] == pytest.approx(math.sqrt(2 * 0.25**2))
    assert whole["load_cv"] == pytest.approx(math.sqrt(2 * 0.25**2) / 0.5)
    assert whole["entropy"] == pytest.approx(-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25))
    # Windows of two: 00 (rates 1 and 0), 01 and 10 (even).
    local = lrc.balance(trace, 2).loc[0]
    assert local["activation_sd"] == pytest.approx(math.sqrt(0.5) / 3)
    assert local["load_cv"] == pytest.approx(math.sqrt(0.5) / 0.5 / 3)
    assert local["entropy"] == pytest.approx(2 / 3)


def test_global_balance_can_hide_local_imbalance():
    # Each half of the text uses one expert: balanced as a whole, one-sided in every short window.
    trace = lrc.Trace(np.repeat([0, 1], 32)[None, :, None, None], num_experts=2)
    assert lrc.balance(trace).loc[0, MEASURES].tolist() == [0, 0, 1]
    assert lrc.balance(trace, 4).loc[0, "entropy"] < 0.1


def test_level_model_pools_the_experts_of_all_layers():
    # Even within each layer, but the layers differ in top-k because of dropped slots.
    experts = np.array([[[[0, 1], [0, -1]], [[1, 0], [1, -1]]]])
    trace = lrc.Trace(experts, num_experts=2)
    assert lrc.balance(trace)["activation_sd"].tolist() == [0, 0]
    pooled = lrc.balance(trace, level="model")
    assert list(pooled) == MEASURES
    assert pooled.loc[0, "activation_sd"] == pytest.approx(stdev([1, 1, 0.5, 0.5]))


def test_weighted_as_srp_equals_the_deviation_of_its_rates(shared):
    with np.load(shared / "golden" / "top8_of_64" / "trace.npz", allow_pickle=False) as data:
        trace = lrc.Trace(data["experts"], int(data["num_experts"]))
    golden = pd.read_csv(shared / "golden" / "top8_of_64" / "srp.csv")
    for length in (4, 16):
        rows = golden.query("level == 'expert' and segment_length == @length and dataset.isna()")
        found = lrc.balance(trace, level="model", segment_length=length)
        assert found.loc[0, "activation_sd"] == pytest.approx(rows["activation_rate"].std())


def test_published_table_2_comes_out_of_the_published_rates():
    """The table's own definition: sample deviation over the experts of all layers."""
    rates = lrc.published.table("experts").groupby(["model", "is_decoder"])["act_freq"].std()
    table = lrc.published.table("load_balance").query("family == 'REAL'")
    table = table.set_index(["model", "is_decoder"])["act_freq_sd_figure"]
    assert len(table) == 22
    assert (rates - table).abs().max() < 2e-4  # both are read from figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "expert"}, "level is 'expert'"),
        ({"window": 0}, "window is 0"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": True}, "window is True"),
        ({"segment_length": 0}, "segment_length is 0"),
        ({"window": 2, "segment_length": 16}, "global balance only"),
        ({"window": 5}, r"no sequence of 5 tokens \(the longest has 4\)"),
        ({"by_dataset": True}, "no labels"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    trace = lrc.Trace([[[[0]], [[0]], [[1]], [[0]]]], num_experts=2)
    with pytest.raises(lrc.LrcError, match=message):
        lrc.balance(trace, **arguments)


def test_nothing_to_measure_is_explained():
    with pytest.raises(lrc.LrcError, match="there is only one"):
        lrc.balance(lrc.Trace([[[[0]]]], num_experts=1))
    silent = lrc.Trace([[[[0], [-1]]]], num_experts=2)
    for window in (None, 1):
        with pytest.raises(lrc.LrcError, match="layer 1: no expert is ever active"):
            lrc.balance(silent, window)
    with pytest.raises(lrc.LrcError, match="no sequence of 1 tokens"):
        lrc.balance(lrc.Trace(np.empty((0, 4, 1, 1), int), num_experts=2))
    labelled = lrc.Trace([[[[0]], [[1]]]] * 2, 2, datasets=["a", "b"], lengths=[2, 1])
    with pytest.raises(lrc.LrcError, match="dataset 'b' has no sequence of 2 tokens"):
        lrc.balance(labelled, 2, by_dataset=True)
