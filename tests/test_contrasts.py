"""Exact tests of few models, against plain enumeration and SciPy."""

from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from lrc.contrasts import contrast, paired, rank_correlation
from lrc.errors import LrcError

values = st.lists(st.integers(-20, 20), min_size=4, max_size=8)


def plain_p(inside, outside):
    """Twice the smaller share of splits that are as extreme as the observed one."""
    pooled = [*inside, *outside]
    total, size, rest = sum(pooled), len(inside), len(outside)

    def difference(group):  # times size * rest, hence exact
        return sum(group) * rest - (total - sum(group)) * size

    seen = difference(inside)
    every = [
        difference([pooled[i] for i in pick]) for pick in combinations(range(len(pooled)), size)
    ]
    as_large = sum(d >= seen for d in every)
    as_small = sum(d <= seen for d in every)
    return min(1, 2 * min(as_large, as_small) / len(every))


def models(numbers, size):
    return pd.DataFrame({"has": np.arange(len(numbers)) < size, "value": np.array(numbers, float)})


def assert_not_rejected_inside(row, confidence, p):
    """Hold an interval against the test behind it; p(delta) is its p for a difference of delta."""
    for edge, outward in ((row["ci_low"], -1), (row["ci_high"], 1)):
        if np.isinf(edge):
            assert p(outward * 1e6) > 1 - confidence
        else:
            assert p(edge + outward * 1e-3) <= 1 - confidence + 1e-9
            assert p((edge + row["difference"]) / 2) > 1 - confidence - 1e-9
    assert row["ci_low"] - 1e-9 <= row["difference"] <= row["ci_high"] + 1e-9


@given(values, st.integers(1, 3))
@example([3, 3, 3, 3, 3], 3)
def test_contrast_is_the_plain_enumeration(numbers, size):
    row = contrast(models(numbers, size), "has", ["value"]).iloc[0]
    assert row["difference"] == pytest.approx(np.mean(numbers[:size]) - np.mean(numbers[size:]))
    assert row["p"] == pytest.approx(plain_p(numbers[:size], numbers[size:]), abs=1e-12)
    assert row["models_with"] == size
    assert row["models_without"] == len(numbers) - size


@given(values, st.integers(1, 3), st.sampled_from([0.5, 0.8, 0.95]))
def test_interval_holds_what_the_test_does_not_reject(numbers, size, confidence):
    row = contrast(models(numbers, size), "has", ["value"], confidence=confidence).iloc[0]
    inside, outside = np.array(numbers[:size], float), numbers[size:]

    def p(delta):
        shifted = models([*(inside - delta), *outside], size)
        return contrast(shifted, "has", ["value"])["p"].item()

    assert_not_rejected_inside(row, confidence, p)


def test_contrast_agrees_with_scipy():
    rng = np.random.default_rng(0)
    table = models(rng.normal(size=13), 5)
    row = contrast(table, "has", ["value"]).iloc[0]
    theirs = stats.permutation_test(
        (table.loc[table["has"], "value"], table.loc[~table["has"], "value"]),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        vectorized=True,
        n_resamples=np.inf,
    )
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert row["difference"] == pytest.approx(theirs.statistic)


def test_smallest_p_is_that_of_groups_apart():
    table = models([9, 8, 7, 1, 2, 3, 4], 3)
    row = contrast(table, "has", ["value"]).iloc[0]
    assert row["p"] == row["smallest_p"] == 2 / 35


def signs_p(numbers):
    """Twice the smaller share of choices of signs that are as extreme as the observed one."""
    every = [
        sum(s * n for s, n in zip(signs, numbers, strict=True))
        for signs in product((1, -1), repeat=len(numbers))
    ]
    as_large = sum(total >= sum(numbers) for total in every)
    as_small = sum(total <= sum(numbers) for total in every)
    return min(1, 2 * min(as_large, as_small) / len(every))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8))
def test_paired_is_the_plain_enumeration(numbers):
    row = paired(pd.DataFrame({"gain": np.array(numbers, float)}), ["gain"]).iloc[0]
    assert row["difference"] == pytest.approx(np.mean(numbers))
    assert row["p"] == pytest.approx(signs_p(numbers), abs=1e-12)
    assert row["pairs"] == len(numbers)
    assert row["smallest_p"] == min(1, 2 / 2 ** len(numbers)) <= row["p"]


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7), st.sampled_from([0.5, 0.8, 0.95]))
def test_paired_interval_holds_what_the_test_does_not_reject(numbers, confidence):
    values = np.array(numbers, float)
    row = paired(pd.DataFrame({"gain": values}), ["gain"], confidence=confidence).iloc[0]

    def p(delta):
        return paired(pd.DataFrame({"gain": values - delta}), ["gain"])["p"].item()

    assert_not_rejected_inside(row, confidence, p)


def test_paired_agrees_with_scipy():
    table = pd.DataFrame({"gain": np.random.default_rng(2).normal(0.4, size=11)})
    theirs = stats.permutation_test(
        (table["gain"],),
        lambda a, axis: a.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert paired(table, ["gain"])["p"].item() == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize(("rows", "message"), [(0, "0 pairs"), (18, "takes 1 to 17")])
def test_paired_takes_few_pairs(rows, message):
    with pytest.raises(LrcError, match=message):
        paired(pd.DataFrame({"gain": np.ones(rows)}), ["gain"])


@given(st.lists(st.integers(0, 5), min_size=4, max_size=6), st.randoms(use_true_random=False))
def test_rank_correlation_is_the_plain_enumeration(numbers, random):
    other = list(range(len(numbers)))
    random.shuffle(other)
    table = pd.DataFrame({"x": numbers, "y": other})
    if len(set(numbers)) == 1:
        with pytest.raises(LrcError, match="same for all"):
            rank_correlation(table, "x", ["y"])
        return
    row = rank_correlation(table, "x", ["y"]).iloc[0]
    assert row["correlation"] == pytest.approx(stats.spearmanr(numbers, other).statistic)
    x, y = stats.rankdata(numbers), stats.rankdata(other)
    every = np.array([np.dot(order, y) for order in permutations(x)])
    seen = np.dot(x, y)
    p = 2 * min((every >= seen - 1e-9).mean(), (every <= seen + 1e-9).mean())
    assert row["p"] == pytest.approx(min(1, p))


def test_rank_correlation_of_many_models_repeats():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"x": rng.normal(size=20), "y": rng.normal(size=20)})
    table["z"] = table["x"] + 0.1 * table["y"]
    first, second = (rank_correlation(table, "x", ["y", "z"]) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first["measure"].tolist() == ["y", "z"]
    assert first["models"].tolist() == [20, 20]
    assert first["p"][0] > 0.05 > first["p"][1] >= 1e-4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (models([1, 2, 3], 0), "0 of 3 models have 'has'"),
        (models([1, 2, 3], 3), "3 of 3 models have 'has'"),
        (models(range(40), 20), "too many to try"),
        (models([1, np.nan, 3], 1), "'value' holds a NaN"),
        (pd.DataFrame({"has": [True, False]}), "no column 'value'"),
    ],
)
def test_contrast_says_what_is_wrong(table, message):
    with pytest.raises(LrcError, match=message):
        contrast(table, "has", ["value"])


def test_rank_correlation_needs_three_models():
    with pytest.raises(LrcError, match="at least 3 models, not 2"):
        rank_correlation(pd.DataFrame({"x": [1, 2], "y": [1, 2]}), "x", ["y"])
