"""`lrc.compare_policies`: each number is that of a replay, each interval that of its resamples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.bootstrap import resample_weights
from lrc.optimum import one_by_one
from lrc.policy_comparison import (
    compare_contracts,
    compare_on_toys,
    compare_policies,
    compare_prefetching,
    usable_policies,
)


@settings(max_examples=25, deadline=None)
@given(traces(max_layers=2, min_length=1), st.sampled_from(["model", "layer"]), st.data())
def test_every_row_is_a_replay(trace, level, data):
    fit = data.draw(st.sampled_from([None, trace]))
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    common = {"level": level, "prompt_tokens": prompts}
    table = compare_policies(trace, cache_ratios=(0.5, 2), fit=fit, **common)
    policies = usable_policies(trace, fit)
    assert table["policy"].tolist() == policies * 2
    assert ("score" in policies) == (trace.weights is not None)
    assert ("static" in policies) == (fit is not None)
    per_token = trace.top_k * (trace.num_layers if level == "model" else 1)
    for row in table.itertuples():
        options = {"fit": fit} if row.policy in ("static", "pinned_lru") else {}
        found = lrc.replay(trace, row.policy, cache_size=row.cache_size, **common, **options)
        best = lrc.replay(trace, "belady", cache_size=row.cache_size, **common)
        assert row.hit_rate == pytest.approx(found.hit_rate, abs=1e-12)
        assert row.to_optimum == pytest.approx(best.hit_rate - found.hit_rate, abs=1e-12)
        assert row.cache_ratio == row.cache_size / per_token
        waits = sum(
            not found.hits[a:b].all()
            for a, b in zip(found.requests.starts[:-1], found.requests.starts[1:], strict=True)
        )
        assert row.waiting == waits / found.requests.num_requests


def test_intervals_are_over_sequences_within_domains():
    trace = lrc.toys.load_trace("baseline").select(slice(0, 30, 3))
    row = compare_policies(trace, ("fifo",), (2,), bootstrap=50, seed=3).iloc[0]
    own, best = (
        [lrc.replay(trace.select(slice(s, s + 1)), policy, cache_size=64).hits for s in range(10)]
        for policy in ("fifo", "belady")
    )
    weights = resample_weights(trace.datasets, 50, 3)
    uses = np.array([len(hits) for hits in own])
    hits, more = (np.array([hits.sum() for hits in several]) for several in (own, best))
    for name, low, high, values in (
        ("hit_rate", "ci_low", "ci_high", hits),
        ("to_optimum", "to_optimum_low", "to_optimum_high", more - hits),
    ):
        drawn = (weights @ values) / (weights @ uses)
        below, above = np.quantile(drawn, [0.025, 0.975])
        assert row[name] == pytest.approx(values.sum() / uses.sum())
        assert [row[low], row[high]] == pytest.approx(
            [2 * row[name] - above, 2 * row[name] - below]
        )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"policies": ()}, "at least one policy"),
        ({"cache_ratios": (0,)}, "cache ratios above 0"),
        ({"policies": ("mru",)}, "policy is 'mru'"),
        ({"policies": ("static",)}, "needs fit="),
        ({"level": "expert"}, "level is"),
        ({"bootstrap": -1}, "bootstrap is"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, says):
    with pytest.raises(lrc.LrcError, match=says):
        compare_policies(lrc.Trace([[[[0]], [[1]]]], 2), **arguments)


def test_contracts_stand_beside_each_other():
    trace = lrc.toys.load_trace("fewer_active").select(slice(0, 96, 24))
    table = compare_contracts(trace, ("lru", "belady"), (1, 2)).set_index(["policy", "cache_ratio"])
    for ratio in (1, 2):
        single = lrc.replay(one_by_one(trace), "belady", cache_size=8 * ratio)
        assert table.loc[("belady, one by one", ratio), "engine"] == single.hit_rate
        for policy in ("lru", "belady"):
            for contract in ("engine", "paper"):
                found = lrc.replay(trace, policy, cache_size=8 * ratio, replay=contract)
                assert table.loc[(policy, ratio), contract] == found.hit_rate
        assert single.hit_rate >= table.loc[("belady", ratio), "engine"]


def test_prefetching_is_counted_a_token():
    trace = lrc.toys.load_trace("fewer_active").select(slice(0, 96, 24))
    predictors = {"none": None, "before": lrc.prefetch.previous_token()}
    table = compare_prefetching(trace, predictors, (0.5,)).set_index("predictor")
    for name, predictor in predictors.items():
        found = lrc.replay(trace, cache_size=4, prefetch=predictor)
        row = table.loc[name]
        assert row["hit_rate"] == found.hit_rate
        assert row["misses"] * trace.num_tokens == pytest.approx(found.loads)
        assert row["ahead"] * trace.num_tokens == pytest.approx(found.prefetched)
        assert row["loads"] == row["misses"] + row["ahead"]
        assert row["wasted"] * found.prefetched == pytest.approx(found.wasted)


def test_toys_are_compared_with_their_own_lru():
    table = compare_on_toys(step=48)
    assert set(table["model"]) == set(lrc.toys.VARIANTS)
    assert (table.loc[table["policy"] == "lru", "gain"] == 0).all()
    assert table["mean_gain"].is_monotonic_decreasing
    assert table["policy"].iloc[0] == "belady"
    row = table[(table["model"] == "two_shared") & (table["policy"] == "static")].iloc[0]
    toy = lrc.toys.load_trace("two_shared")
    fit, judged = (toy.select(slice(begin, None, 48)) for begin in (0, 1))
    assert row["hit_rate"] == lrc.replay(judged, "static", cache_size=48, fit=fit).hit_rate
