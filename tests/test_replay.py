"""`lrc.replay`: both contracts, every policy, against plain caches, other simulators and phones."""

import numpy as np
import pandas as pd
import plain_replay
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.cache_replay import CONTRACTS, LEVELS, POLICIES, replay
from lrc.kernels import cpu_request_stacks as stacks
from lrc.requests import requests

OPTIONS = {
    "lfu_decay": {"half_life": 1.5},
    "score": {"alpha": 0.3},
    "random": {"seed": 7},
    "pinned_lru": {"share": 0.4},
}


# --- Requests -----------------------------------------------------------------------------------


@given(traces(), st.data())
def test_requests_are_the_sets_of_experts_that_are_needed_together(trace, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    found = requests(trace, prompts)
    wanted = plain_replay.requests(trace, prompts)
    assert found.num_requests == len(wanted)
    for r, (sequence, step, layer, weights) in enumerate(wanted):
        part = slice(found.starts[r], found.starts[r + 1])
        ids = [layer * trace.num_experts + e for _, e in weights]
        assert found.ids[part].tolist() == ids
        assert found.weights[part] == pytest.approx(list(weights.values()))
        assert (found.sequences[r], found.steps[r], found.layers[r]) == (sequence, step, layer)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (3, "sequence 0 is 3, but the sequence has 2"),
        (-1, "sequence 0 is -1"),
        ([1, 1], "2 numbers for 1"),
        (0.5, "whole number"),
        ([[1]], "whole number"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts, says):
    with pytest.raises(lrc.LrcError, match=says):
        requests(lrc.Trace([[[[0]], [[1]]]], 2), prompts)


# --- Policies -----------------------------------------------------------------------------------


@st.composite
def cases(draw):
    trace = draw(traces(max_sequences=3, max_tokens=14, max_layers=2, max_experts=6, weights=True))
    level = draw(st.sampled_from(LEVELS))
    contract = draw(st.sampled_from(CONTRACTS))
    engine = contract == "engine"
    in_bytes = engine and draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 3), min_size=trace.num_layers, max_size=trace.num_layers))
    prompts = [draw(st.integers(0, n)) if engine else 0 for n in trace.lengths.tolist()]
    capacity = draw(st.integers(3, 14) if in_bytes else st.integers(1, 14))
    return trace, level, contract, in_bytes, sizes, prompts, capacity, draw(st.booleans())


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_use_hits_as_in_a_plain_cache(policy, case):
    trace, level, contract, in_bytes, sizes, prompts, capacity, carry_over = case
    options = {**OPTIONS.get(policy, {})}
    fit = trace.select(slice(0, 1)) if "fit" in POLICIES[policy].options else None
    layers_of = [list(range(trace.num_layers))]
    capacities = capacity
    if level == "layer":
        layers_of = [[layer] for layer in range(trace.num_layers)]
        capacities = [capacity] * trace.num_layers
    found = replay(
        trace,
        policy,
        **{"budget_bytes" if in_bytes else "cache_size": capacities},
        level=level,
        replay=contract,
        prompt_tokens=prompts if contract == "engine" else None,
        expert_bytes=sizes,
        carry_over=carry_over,
        **options,
        **({} if fit is None else {"fit": fit}),
    )
    wanted = plain_replay.requests(trace, prompts)
    hits = {}
    for layers in layers_of:
        own = [request for request in wanted if request[2] in layers]
        if contract == "paper":  # a token's experts of all layers are looked up together
            tokens = {}
            for sequence, step, _, weights in own:
                tokens.setdefault((sequence, step), {}).update(weights)
            own = [(*key, None, weights) for key, weights in tokens.items()]
        taken = sizes if in_bytes else [1] * trace.num_layers
        held = ()
        if fit is not None:
            room = int(options.get("share", 1.0) * capacity)
            held = plain_replay.most_used(fit, layers, room, taken)
        cache = plain_replay.Cache(policy, capacity, taken, contract, held, **options)
        for (sequence, step, _, weights), answer in zip(
            own, cache.run(own, carry_over), strict=True
        ):
            for x, hit in zip(weights, answer, strict=True):
                hits[sequence, step, x] = hit
    flat = [hits[s, step, x] for s, step, _, weights in wanted for x in weights]
    assert found.hits.tolist() == flat
    assert found.loads == len(flat) - sum(flat)
    by_layer = found.by_layer().set_index("layer")
    for layer in range(trace.num_layers):
        own = [hit for (_, _, x), hit in hits.items() if x[0] == layer]
        if own:
            row = by_layer.loc[layer]
            assert (row["uses"], row["hits"]) == (len(own), sum(own))
            assert row["bytes"] == sizes[layer] * (len(own) - sum(own))
    assert found.by_step()["hits"].sum() == sum(flat)
    assert found.bytes == by_layer["bytes"].sum()


@settings(max_examples=60, deadline=None)
@given(traces(min_length=1), st.sampled_from(LEVELS), st.integers(1, 20))
def test_the_contract_of_the_paper_is_that_of_hit_rates(trace, level, size):
    for policy in ("lru", "lfu", "belady"):
        found = replay(trace, policy, cache_size=size, level=level, replay="paper")
        counts = lrc.cache.policy_counts(trace, policy, level=level).new_hits[0, 0]
        assert found.hits.sum() == counts[:, :size].sum()


@settings(max_examples=60, deadline=None)
@given(
    traces(max_sequences=1, max_tokens=8, max_layers=2, max_experts=5, min_length=1),
    st.integers(1, 6),
    st.data(),
)
def test_belady_of_requests_loads_as_little_as_any_cache_can(trace, size, data):
    """With slots of one size, "needed again last" is the optimum of the contract "engine"."""
    prompt = data.draw(st.integers(0, int(trace.lengths[0])))
    found = replay(trace, "belady", cache_size=size, prompt_tokens=prompt)
    asked = [request[3] for request in plain_replay.requests(trace, [prompt])]
    assert found.loads == plain_replay.fewest_misses(asked, size)


def test_protecting_a_tokens_experts_changes_what_hits():
    """The example of the documentation: experts (0, 1), then (2, 0), two slots."""
    trace = lrc.Trace([[[[0, 1]], [[2, 0]]]], 3)
    engine, paper = (replay(trace, cache_size=2, replay=contract) for contract in CONTRACTS)
    assert engine.hits.tolist() == [False, False, False, True]
    assert paper.hits.tolist() == [True, True, False, True]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("lru", "LRU"),
        ("fifo", "FIFO"),
        ("lfu_cached", "LFU"),  # theirs forgets what it evicts
        ("sieve", "Sieve"),
        ("belady", "Belady"),
    ],
)
def test_libcachesim_finds_the_same_hits_of_single_experts(policy, name, size):
    libcachesim = pytest.importorskip("libcachesim")
    rng = np.random.default_rng(size)
    stream = np.minimum(rng.zipf(1.3, 600) - 1, 14).tolist()
    cache = getattr(libcachesim, name)(size, hashpower=8)
    hits = []
    for i, x in enumerate(stream):
        later = stream[i + 1 :]
        again = i + 1 + later.index(x) if x in later else np.iinfo(np.int64).max
        request = libcachesim.Request(
            obj_id=x, op=libcachesim.ReqOp.OP_GET, next_access_vtime=again, clock_time=i
        )
        hits.append(bool(cache.get(request)))
    trace = lrc.Trace(np.array(stream)[None, :, None, None], 15)
    assert replay(trace, policy, cache_size=size).hits.tolist() == hits


# --- Prefetching --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "sieve", "score", "random", "lfru"])
@settings(max_examples=40, deadline=None)
@given(case=cases(), ahead=st.sampled_from(["previous_token", "next_layer"]))
def test_prefetched_experts_and_the_wasted_among_them_are_counted(policy, case, ahead):
    trace, _, _, in_bytes, sizes, prompts, capacity, carry_over = case
    wanted = plain_replay.requests(trace, [min(p, 1) for p in prompts])
    if ahead == "previous_token":
        predictor = lrc.prefetch.previous_token()
        predicted = plain_replay.predicted_by_previous(wanted, trace.num_layers)
    else:
        predictor = lrc.prefetch.next_layer(trace, 1)
        predicted = plain_replay.predicted_by_next_layer(wanted, trace, 1)
    options = OPTIONS.get(policy, {})
    found = replay(
        trace,
        policy,
        **{"budget_bytes" if in_bytes else "cache_size": capacity},
        prompt_tokens=[min(p, 1) for p in prompts],
        expert_bytes=sizes,
        carry_over=carry_over,
        prefetch=predictor,
        **options,
    )
    taken = sizes if in_bytes else [1] * trace.num_layers
    cache = plain_replay.Cache(policy, capacity, taken, "engine", **options)
    answers = cache.run(wanted, carry_over, predicted)
    assert found.hits.tolist() == [hit for answer in answers for hit in answer]
    assert (found.prefetched, found.wasted) == (cache.prefetched, cache.wasted)


def test_a_perfect_predictor_hits_always_and_wastes_nothing():
    trace = lrc.Trace([[[[0], [1]], [[1], [0]], [[0], [1]]]], num_experts=2)
    found = replay(trace, cache_size=2, prefetch=lambda asked: (asked.ids, asked.starts))
    assert found.hit_rate == 1
    assert (found.loads, found.wasted) == (0, 0)
    assert found.prefetched > 0
    assert found.bytes == found.prefetched


# --- Phones -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phone", "mebibytes", "measured"),
    [("qwen", 4000, 74.9), ("gemma", 4000, 76.8), ("gptoss", 3000, 32.4)],
)
def test_phones_measured_the_same_hit_rates(shared, phone, mebibytes, measured):
    """One LRU cache in bytes, the prompt in one step: what three phones measured, in per cent."""
    trace = lrc.load_routes(shared / "traces" / "phone" / f"{phone}.route.csv")
    found = replay(trace, "lru", budget_bytes=mebibytes << 20)
    assert 100 * found.hit_rate == pytest.approx(measured, abs=0.1)
    steps = found.by_step()
    so_far = 100 * (steps["hits"].cumsum() / steps["uses"].cumsum())
    log = pd.read_csv(shared / "traces" / "phone" / f"{phone}.metrics").dropna()
    assert so_far[1:].tolist() == pytest.approx(log["cache_hit_pct"].tolist(), abs=0.2)


# --- Wrong input --------------------------------------------------------------------------------

TRACE = lrc.Trace([[[[0, 1]], [[2, 0]]]], 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"policy": "mru", "cache_size": 2}, "policy is 'mru', but must be one of lru, fifo"),
        ({"cache_size": 2, "half_life": 3}, "'lru' has no parameter 'half_life'"),
        ({"policy": "lfu_decay", "cache_size": 2, "alpha": 3}, "it takes half_life"),
        ({"policy": "lfu_decay", "cache_size": 2, "half_life": 0}, "half_life is 0"),
        ({"policy": "pinned_lru", "cache_size": 2}, "needs fit="),
        ({"policy": "static", "cache_size": 2, "fit": "x"}, "expected a lrc.Trace"),
        ({"policy": "score", "cache_size": 2}, "the trace has none"),
        ({}, "give either cache_size"),
        ({"cache_size": 1, "budget_bytes": 1}, "give either cache_size"),
        ({"cache_size": 0}, "holds not one expert"),
        ({"cache_size": -4}, "holds not one expert"),
        ({"cache_size": 1.5}, "whole number"),
        ({"cache_size": [1, 2]}, "one for each of 1 caches"),
        ({"budget_bytes": 9}, "needs the bytes of one expert"),
        ({"budget_bytes": 9, "expert_bytes": 10}, "not one expert of 10 bytes"),
        ({"budget_bytes": 9, "expert_bytes": [1, 2]}, "one for each of 1 layers"),
        ({"budget_bytes": 9, "expert_bytes": 0}, "at least one byte"),
        ({"cache_size": 2, "level": "expert"}, "level is 'expert'"),
        ({"cache_size": 2, "replay": "phone"}, "replay is 'phone'"),
        ({"budget_bytes": 9, "expert_bytes": 1, "replay": "paper"}, "knows no bytes"),
        ({"cache_size": 2, "prompt_tokens": 1, "replay": "paper"}, "knows no bytes, prompts"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, says):
    with pytest.raises(lrc.LrcError, match=says) as caught:
        replay(TRACE, **arguments)
    assert "\n" not in str(caught.value)


# --- Every size at once -------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(traces(max_layers=2), st.sampled_from(["lru", "lfu", "belady"]), st.data())
def test_request_stacks_hold_what_caches_of_every_size_hold(trace, policy, data):
    prompts = [data.draw(st.integers(0, n)) for n in trace.lengths.tolist()]
    asked = requests(trace, prompts)
    num_ids = trace.num_layers * trace.num_experts
    depths = np.zeros((trace.num_sequences, num_ids + 1), np.int64)
    rule = {"lru": stacks.LRU, "lfu": stacks.LFU, "belady": stacks.BELADY}[policy]
    stacks.count_depths(
        rule, asked.ids, asked.starts, asked.sequences.astype(np.int64), num_ids, depths
    )
    assert depths.sum() == len(asked.ids)
    owners = np.repeat(asked.sequences, np.diff(asked.starts))
    for size in range(1, num_ids + 1):
        found = replay(trace, policy, cache_size=size, prompt_tokens=prompts)
        hits = np.bincount(owners, found.hits, trace.num_sequences)
        assert depths[:, :size].sum(axis=1).tolist() == hits.tolist()


@settings(max_examples=40, deadline=None)
@given(traces(max_layers=2, min_length=1), st.sampled_from(LEVELS), st.booleans())
def test_the_table_of_hit_rates_is_that_of_single_replays(trace, level, by_dataset):
    by_dataset = by_dataset and trace.datasets is not None
    table = lrc.hit_rates(trace, replay="engine", level=level, by_dataset=by_dataset, bootstrap=3)
    keys = [*(["dataset"] if by_dataset else []), *(["layer"] if level == "layer" else [])]
    expected = [*keys, "policy", "cache_size", "cache_ratio", "hit_rate", "ci_low", "ci_high"]
    assert list(table) == expected
    for row in table[table["cache_size"].isin([1, 3])].itertuples():
        part = trace.select(datasets=row.dataset) if by_dataset else trace
        found = replay(part, row.policy, cache_size=row.cache_size, level=level)
        hits = found.hits
        if level == "layer":
            hits = hits[found.requests.ids // trace.num_experts == row.layer]
        assert row.hit_rate == pytest.approx(hits.mean(), abs=1e-12)
