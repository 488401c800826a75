"""`lrc.size_cache`: what it recommends is what the replay then finds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.sizing import size_cache
from lrc.throughput import Device


@settings(max_examples=40, deadline=None)
@given(
    traces(max_layers=2, min_length=2, max_tokens=12),
    st.sampled_from(["lru", "lfu", "belady"]),
    st.sampled_from(["model", "layer"]),
)
def test_the_curve_is_that_of_single_replays(trace, policy, level):
    if not (trace.experts >= 0).any():
        return
    found = size_cache(trace, policy, cache_size=trace.num_layers * trace.num_experts,
                       level=level, bootstrap=0)  # fmt: skip
    caches = trace.num_layers if level == "layer" else 1
    for row in found.curve.itertuples():
        single = lrc.replay(trace, policy, cache_size=row.cache_size // caches, level=level)
        assert row.hit_rate == pytest.approx(single.hit_rate, abs=1e-12)
        assert row.cache_ratio * trace.top_k * trace.num_layers == pytest.approx(row.cache_size)
    assert found.hit_rate == found.curve["hit_rate"].iloc[-1]


TOY = lrc.toys.load_trace("baseline", 0).select(slice(0, 12))


def test_the_smallest_cache_that_reaches_a_target():
    found = size_cache(TOY, target=0.6)
    rates = found.curve.set_index("cache_size")["hit_rate"]
    assert rates[found.slots] >= 0.6 > rates[found.slots - 1]
    assert found.interval[0] < found.hit_rate < found.interval[1]
    assert "a hit rate of 60%" in found.sentence()


def test_the_largest_cache_within_a_budget():
    expert = TOY.meta["expert_bytes"]
    found = size_cache(TOY, budget_bytes=70 * expert + 1, bootstrap=0)
    assert (found.slots, found.num_bytes, found.interval) == (70, 70 * expert, None)
    layered = size_cache(TOY, budget_bytes=70 * expert, level="layer", bootstrap=0)
    assert layered.slots == 68  # 17 in each of 4 layers


def test_a_division_of_the_budget_hits_what_its_replay_finds():
    found = size_cache(TOY, cache_size=100, bootstrap=0)
    for division in ("even", "best"):
        single = lrc.replay(TOY, cache_size=found.split[division].tolist(), level="layer")
        assert single.hit_rate == pytest.approx(found.split_rates[division], abs=1e-12)
    rates = found.split_rates
    assert rates["even"] <= rates["best"] <= rates["bound"] + 1e-12
    assert rates["shared"] == lrc.replay(TOY, cache_size=100).hit_rate
    assert found.split[["even", "best"]].sum().tolist() == [100, 100]


def test_speed_is_that_of_the_replay_on_the_device():
    device = Device(compute_ms=20, bandwidth=1e8, latency_ms=0.1)
    found = size_cache(TOY, cache_size=64, device=device, bootstrap=0)
    expected = device.tokens_per_second(lrc.replay(TOY, cache_size=64))
    assert found.tokens_per_second == expected
    assert "tokens a second" in found.sentence()


@pytest.mark.parametrize("together", [{"batch_size": 3}, {"draft_tokens": 4}])
def test_several_tokens_a_step_are_replayed_as_their_unions(together):
    device = Device(compute_ms=20, bandwidth=1e8)
    found = size_cache(TOY, cache_size=128, device=device, bootstrap=20, **together)
    joined = lrc.unions.join_steps(TOY, **together)
    single = lrc.replay(joined, cache_size=128)
    assert found.hit_rate == pytest.approx(single.hit_rate, abs=1e-12)
    tokens = TOY.num_tokens / joined.lengths.sum()
    expected = tokens * np.array(device.tokens_per_second(single))
    assert found.tokens_per_second == pytest.approx(expected)
    assert found.curve["cache_ratio"].iloc[-1] == 8
    alone = size_cache(TOY, cache_size=128, device=device, bootstrap=0)
    assert found.tokens_per_second[1] > alone.tokens_per_second[1]


def test_json_says_the_same():
    found = size_cache(TOY, cache_size=64, bootstrap=20)
    plain = json.loads(found.to_json())
    assert plain["slots"] == 64
    assert plain["sentence"] == repr(found)
    assert [row["cache_size"] for row in plain["curve"]] == list(range(1, 257))


def test_the_knee_is_where_more_slots_add_little():
    found = size_cache(TOY, gain=0.2, bootstrap=50)
    knee = found.knee.set_index("criterion")
    ratio = knee.loc["gain", "cache_ratio"]
    assert knee.loc["gain", "low"] <= ratio <= knee.loc["gain", "high"]
    assert found.slots == round(ratio * TOY.top_k * TOY.num_layers)
    assert found.reason == "the knee of the curve"
    curve = found.curve
    more = np.interp(ratio + 1, curve["cache_ratio"], curve["hit_rate"])
    assert more - np.interp(ratio, curve["cache_ratio"], curve["hit_rate"]) < 0.2


def test_a_single_text_has_no_interval():
    found = size_cache(TOY.select(slice(0, 1)), cache_size=64)
    assert found.interval is None
    assert "ci_low" not in found.curve


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget_bytes": 100}, "the 8 experts of one token in one layer already take"),
        ({"budget_bytes": 300_000, "level": "layer"}, "one token in every layer already take"),
        ({"budget_bytes": -1}, "budget_bytes is -1"),
        ({"budget_bytes": 1.5}, "budget_bytes is 1.5"),
        ({"budget_bytes": 10**12}, "no cache is needed"),
        ({"cache_size": 3}, "cache_size is 3"),
        ({"cache_size": 10**6}, "more than all 256 experts"),
        ({"target": 2}, "target is 2"),
        ({"target": 1.0}, "the rest are first uses"),
        ({"target": 0.5, "cache_size": 64}, "give one of target"),
        ({"policy": "sieve"}, "lrc.replay"),
        ({"batch_size": 13}, "only 12 texts"),
        ({"draft_tokens": 0}, "draft_tokens is 0"),
        ({"level": "expert"}, "level is 'expert'"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, says):
    with pytest.raises(lrc.LrcError, match=says) as caught:
        size_cache(TOY, **arguments)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_known_are_asked_for():
    bare = lrc.Trace(TOY.experts, TOY.num_experts, lengths=TOY.lengths)
    for arguments in ({"budget_bytes": 10**6}, {"cache_size": 64, "device": Device(1, 1)}):
        with pytest.raises(lrc.LrcError, match="give expert_bytes"):
            size_cache(bare, bootstrap=0, **arguments)
