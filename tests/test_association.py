"""Correlations over experts against their definition, and what holding a column fixed does."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import lrc


def plain_correlation(rows, within=False, given=False, stratum=8, ranks=False):
    """The definition, in lists of exact fractions: rows are (x, y, layer, rate)."""
    x, y = [Fraction(row[0]) for row in rows], [Fraction(row[1]) for row in rows]
    rates = [Fraction(row[3]) for row in rows]
    if within:
        layers = [row[2] for row in rows]
        x, y, rates = less_mean(x, layers), less_mean(y, layers), less_mean(rates, layers)
    strata = [0] * len(rows)
    if given:
        count = max(len(rows) // stratum, 1)
        for place, row in enumerate(sorted(range(len(rows)), key=rates.__getitem__)):
            strata[row] = place * count // len(rows)
    if ranks:
        x, y = ranked(x, strata), ranked(y, strata)
    x, y = less_mean(x, strata), less_mean(y, strata)
    spread = sum(a * a for a in x) * sum(b * b for b in y)
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(spread) if spread else None


def less_mean(values, labels):
    groups = {}
    for value, label in zip(values, labels, strict=True):
        groups.setdefault(label, []).append(value)
    return [
        value - sum(groups[label]) / len(groups[label])
        for value, label in zip(values, labels, strict=True)
    ]


def ranked(values, labels):
    pairs = list(zip(values, labels, strict=True))
    return [
        sum(b < a for b, other in pairs if other == label)
        + Fraction(sum(b == a for b, other in pairs if other == label), 2)
        for a, label in pairs
    ]


ROWS = st.lists(
    st.tuples(
        st.integers(0, 50), st.integers(0, 50), st.sampled_from([0, 1, 3]), st.integers(0, 9)
    ),
    min_size=3,
    max_size=40,
)


def frame(rows):
    return pd.DataFrame(rows, columns=["x", "srp", "layer", "rate"])


@given(ROWS, st.booleans(), st.booleans(), st.integers(2, 9), st.booleans())
def test_equals_the_definition(rows, within, given, stratum, ranks):
    expected = plain_correlation(rows, within, given, stratum, ranks)
    found = lrc.correlation(
        frame(rows),
        "x",
        within="layer" if within else None,
        given="rate" if given else None,
        stratum=stratum,
        ranks=ranks,
    )
    if expected is None:
        assert found.empty
        assert found.attrs["undefined"] == [{"measure": "x"}]
    else:
        assert found["correlation"].item() == pytest.approx(expected, abs=1e-9)
        assert found["experts"].item() == len(rows)


def test_without_options_it_is_the_usual_one():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(50, 2)), columns=["x", "srp"])
    table["x"] += table["srp"]
    assert lrc.correlation(table, "x")["correlation"].item() == pytest.approx(
        stats.pearsonr(table["x"], table["srp"]).statistic
    )
    assert lrc.correlation(table, "x", ranks=True)["correlation"].item() == pytest.approx(
        stats.spearmanr(table["x"], table["srp"]).statistic
    )


def confounded(number=800):
    """The rate raises SRP and lowers x; rate held fixed, x raises SRP."""
    random = np.random.default_rng(1)
    rate = random.random(number)
    x = random.normal(size=number) - 20 * rate
    srp = np.exp(3 * rate) * 10 + x + 0.3 * random.normal(size=number)
    return pd.DataFrame({"x": x, "srp": srp, "rate": rate, "noise": random.normal(size=number)})


@pytest.mark.parametrize("ranks", [False, True])
def test_holding_the_common_cause_fixed_uncovers_the_sign(ranks):
    table = confounded()
    assert lrc.correlation(table, "x", ranks=ranks)["correlation"].item() < -0.9
    held = lrc.correlation(table, "x", given="rate", ranks=ranks, bootstrap=200)
    assert held["correlation"].item() > 0.6
    assert 0.5 < held["ci_low"].item() < held["correlation"].item() < held["ci_high"].item() <= 1


def test_within_compares_with_the_mean_of_the_layer_only():
    table = pd.DataFrame({"layer": np.repeat([0, 1], 4), "x": [1, 2, 3, 4, 51, 52, 53, 54]})
    table["srp"] = [14.0, 13, 12, 11, 94, 93, 92, 91]
    assert lrc.correlation(table, "x")["correlation"].item() > 0.9
    assert lrc.correlation(table, "x", within="layer")["correlation"].item() == pytest.approx(-1)


@pytest.mark.parametrize("given", [None, "rate"])
def test_interval_covers_the_absence_of_a_correlation_as_often_as_it_says(given):
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        table = pd.DataFrame(random.normal(size=(160, 3)), columns=["x", "srp", "rate"])
        found = lrc.correlation(table, "x", given=given, bootstrap=200, seed=seed).iloc[0]
        covered += found["ci_low"] <= 0 <= found["ci_high"]
    assert 86 <= covered <= 100


def test_groups_measures_and_empty_cells():
    table = confounded(60)
    table.loc[:9, "noise"] = np.nan
    table["model"] = np.repeat(["b", "a"], 30)
    found = lrc.correlation(table, ["x", "noise"], by="model", bootstrap=50)
    assert list(found) == ["model", "measure", "correlation", "ci_low", "ci_high", "experts"]
    assert found.dtypes.astype(str).tolist()[2:] == ["float64"] * 3 + ["int64"]
    assert found[["model", "measure", "experts"]].to_numpy().tolist() == [
        ["b", "x", 30],
        ["b", "noise", 20],
        ["a", "x", 30],
        ["a", "noise", 30],
    ]
    alone = lrc.correlation(table[table["model"] == "a"], "noise", bootstrap=50)
    assert alone.iloc[0, 1:].tolist() == found.iloc[3, 2:].tolist()


def test_what_is_not_defined_has_no_row():
    table = pd.DataFrame({"x": [0.1] * 5, "few": [1, 2, *[np.nan] * 3], "srp": [1, 2, 3, 4, 5.0]})
    found = lrc.correlation(table, ["x", "few"], bootstrap=10)
    assert found.empty
    assert found["correlation"].dtype == "float64"
    assert found.attrs["undefined"] == [{"measure": "x"}, {"measure": "few"}]


def test_a_single_stratum_has_no_interval():
    found = lrc.correlation(confounded(10), "x", given="rate", bootstrap=10)
    assert found["correlation"].notna().all()
    assert found[["ci_low", "ci_high"]].isna().all(axis=None)


def test_bad_requests_say_what_is_wrong():
    table = confounded(10)
    with pytest.raises(lrc.LrcError, match="no column 'layer'; it has x, srp, rate, noise"):
        lrc.correlation(table, "x", within="layer")
    with pytest.raises(lrc.LrcError, match="stratum is 1"):
        lrc.correlation(table, "x", given="rate", stratum=1)
    with pytest.raises(lrc.LrcError, match="bootstrap is -1"):
        lrc.correlation(table, "x", bootstrap=-1)
