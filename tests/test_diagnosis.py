"""`lrc.diagnose`: the parts add up, and each is what its name says."""

import re

import plain_replay
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.diagnosis import PARTS, diagnose


@settings(max_examples=40, deadline=None)
@given(
    traces(max_sequences=2, max_tokens=7, max_layers=2, max_experts=5, min_length=1),
    st.sampled_from(["lru", "fifo", "lfu"]),
    st.sampled_from(["model", "layer"]),
    st.integers(1, 6),
    st.data(),
)
def test_parts_are_those_of_plain_counting(trace, policy, level, size, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    found = diagnose(trace, policy, cache_size=size, level=level, prompt_tokens=prompts)
    uses = dict(zip(found.parts["part"], found.parts["uses"], strict=True))
    assert list(uses) == list(PARTS)

    asked = plain_replay.requests(trace, prompts)
    layers_of = [range(trace.num_layers)]
    if level == "layer":
        layers_of = [[layer] for layer in range(trace.num_layers)]
    compulsory = forced = fewest = misses = 0
    for layers in layers_of:
        for s in range(trace.num_sequences):
            own = [request for request in asked if request[0] == s and request[2] in layers]
            seen = set()
            for request in own:
                first = set(request[3]) - seen
                compulsory += len(first)
                forced += max(len(request[3]) - len(first) - size, 0)
                seen |= set(request[3])
            fewest += plain_replay.fewest_misses([request[3] for request in own], size)
            cache = plain_replay.Cache(policy, size, [1] * trace.num_layers, "engine")
            misses += sum(not hit for answer in cache.run(own) for hit in answer)
    assert uses["compulsory"] == compulsory
    assert uses["forced"] == forced
    assert uses["capacity"] == fewest - compulsory - forced >= 0
    assert uses["policy"] == misses - fewest >= 0
    assert sum(uses.values()) == found.replayed.uses
    assert found.exact


def test_several_sizes_in_one_cache_leave_the_optimum_bounded():
    trace = lrc.Trace([[[[0], [0]], [[1], [1]], [[0], [0]]]], 2)
    found = diagnose(trace, budget_bytes=5, expert_bytes=[2, 3])
    assert not found.exact
    assert found.parts["share"].sum() == pytest.approx(1)
    assert "bounded" in repr(found)
    assert diagnose(trace, budget_bytes=6, expert_bytes=3).exact


def test_orders_add_up_to_the_hit_rate():
    trace = lrc.toys.load_trace("baseline", 0).select(slice(0, 8))
    found = diagnose(trace, cache_size=64)
    assert found.orders["gain"].sum() == pytest.approx(found.replayed.hit_rate)
    assert found.orders["hit_rate"].is_monotonic_increasing


def tokens(*experts):
    return lrc.Trace([[[list(token)] for token in experts]], 8)


@pytest.mark.parametrize(
    ("trace", "size", "says"),
    [
        (tokens((0,), (0,), (0,)), 1, "first uses, which no cache avoids"),
        (tokens(*[(t % 3,) for t in range(60)]), 2, "lfu|lfru|sieve|none of the policies"),
        (tokens(*[(0, 1, 2), (0, 1, 2)] * 9), 1, "at least 3 slots a layer"),
        (tokens(*[(t * t % 7,) for t in range(90)]), 1, "only a larger cache"),
    ],
)
def test_the_advice_follows_from_the_largest_part(trace, size, says):
    advice = diagnose(trace, cache_size=size).advice
    assert re.search(says, advice), advice
    assert "\n" not in advice


def test_nothing_missed():
    trace = tokens((0,), (0,))
    found = diagnose(trace, cache_size=1, carry_over=True)
    assert found.parts["uses"].tolist() == [1, 0, 0, 0, 1]
