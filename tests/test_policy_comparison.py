"""`lrc.compare_policies`: each number is that of a replay, each interval that of its resamples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.bootstrap import resample_weights
from lrc.policy_comparison import compare_policies, usable_policies


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
