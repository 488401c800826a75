"""`lrc.optimum`: what trying everything finds, and how far Belady's choice is from it."""

import plain_replay
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.optimum import GOALS, one_by_one, optimum


@pytest.mark.parametrize("goal", GOALS)
@settings(max_examples=30, deadline=None)
@given(
    trace=traces(max_sequences=2, max_tokens=7, max_layers=2, max_experts=5, min_length=1),
    level=st.sampled_from(["model", "layer"]),
    capacity=st.integers(3, 8),
    in_bytes=st.booleans(),
    data=st.data(),
)
def test_nothing_is_better_and_something_is_as_good(goal, trace, level, capacity, in_bytes, data):
    sizes = data.draw(
        st.lists(st.integers(1, 3), min_size=trace.num_layers, max_size=trace.num_layers)
    )
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    capacities = capacity if level == "model" else [capacity] * trace.num_layers
    given_size = {"budget_bytes" if in_bytes else "cache_size": capacities}
    common = {"level": level, "prompt_tokens": prompts, "expert_bytes": sizes, **given_size}
    found = optimum(trace, goal, **common)
    asked = plain_replay.requests(trace, prompts)
    every = [(layer, e) for layer in range(trace.num_layers) for e in range(trace.num_experts)]
    taken = {x: sizes[x[0]] if in_bytes else 1 for x in every}
    groups = [range(trace.num_layers)]
    if level == "layer":
        groups = [[layer] for layer in range(trace.num_layers)]
    wanted = 0
    for layers in groups:
        for s in range(trace.num_sequences):
            own = [list(r[3]) for r in asked if r[0] == s and r[2] in layers]
            wanted += least_worth(own, capacity, goal, taken, sizes)
    assert found.least == found.bound == wanted
    bound = optimum(trace, goal, **common, exact=False)
    assert bound.least is None
    assert bound.bound <= wanted + 1e-6
    belady = lrc.replay(trace, "belady", **common)
    assert {"loads": belady.loads, "bytes": belady.bytes, "waits": belady.waits}[goal] >= wanted
    if goal == "loads" and not in_bytes:
        assert belady.loads == wanted


def least_worth(own, capacity, goal, taken, sizes):
    """Bytes loaded are those of the experts, whatever a slot takes."""
    if goal != "bytes":
        return plain_replay.least(own, capacity, goal, taken)
    return plain_replay.least(own, capacity, goal, taken, {x: sizes[x[0]] for x in taken})


def test_belady_waits_more_than_needed():
    """The example of the documentation: five requests, three slots."""
    trace = lrc.Trace([[[[1, 3]], [[4, -1]], [[0, 2]], [[1, 3]], [[4, -1]]]], 5)
    belady = lrc.replay(trace, "belady", cache_size=3)
    assert (belady.loads, belady.waits) == (7, 5)
    assert optimum(trace, "loads", cache_size=3).least == 7
    assert optimum(trace, "waits", cache_size=3).least == 4


def test_belady_loads_more_bytes_than_needed_where_sizes_differ():
    """The example of the documentation: experts of one and of two bytes, room for three."""
    trace = lrc.Trace([[[[1], [-1]], [[-1], [0]], [[0], [-1]], [[1], [-1]], [[-1], [0]]]], 2)
    settings = {"budget_bytes": 3, "expert_bytes": [1, 2]}
    assert lrc.replay(trace, "belady", **settings).bytes == 6
    assert optimum(trace, "bytes", **settings).least == 5


@settings(max_examples=60, deadline=None)
@given(
    trace=traces(max_sequences=2, max_tokens=12, max_layers=2, max_experts=6, min_length=1),
    more=st.integers(0, 6),
)
def test_belady_of_single_uses_promises_what_no_engine_keeps(trace, more):
    """Uses taken one by one, as if a token's experts need not be there together: a bound."""
    size = trace.top_k + more
    loads = lrc.replay(one_by_one(trace), "belady", cache_size=size).loads
    assert loads <= lrc.replay(trace, "belady", cache_size=size).loads


@settings(max_examples=60, deadline=None)
@given(
    trace=traces(max_sequences=1, max_tokens=12, max_layers=2, max_experts=6, min_length=1),
    size=st.integers(1, 12),
)
def test_by_uses_or_by_requests_is_the_same_once_a_request_is_protected(trace, size):
    asked = plain_replay.requests(trace, [0])
    loads = []
    for contract in ("engine", "paper"):
        cache = plain_replay.Cache("belady", size, [1] * trace.num_layers, "engine")
        cache.ranked_as = contract  # in what "again last" is counted
        loads.append(sum(not hit for answer in cache.run(asked) for hit in answer))
    assert loads[0] == loads[1]


@pytest.mark.parametrize(
    ("goal", "size", "says"),
    [
        ("hits", {"cache_size": 2}, "goal is 'hits', but must be one of loads, bytes, waits"),
        ("bytes", {"cache_size": 2}, "needs the bytes of one expert"),
        ("loads", {"cache_size": 0}, "holds not one expert"),
        ("loads", {}, "give either cache_size"),
    ],
)
def test_wrong_arguments_end_in_one_line(goal, size, says):
    with pytest.raises(lrc.LrcError, match=says):
        optimum(lrc.Trace([[[[0, 1]]]], 3), goal, **size)


def test_nothing_to_keep_and_nothing_at_all():
    once = lrc.Trace([[[[0, 1]], [[2, 3]]]], 4)
    assert optimum(once, cache_size=2).least == 4
    assert optimum(once, "waits", cache_size=2).rate == 0
    empty = lrc.Trace([[[[-1]]]], 1)
    assert optimum(empty, "waits", cache_size=1).total == 0
