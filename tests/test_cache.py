"""SCH and cache policies against plain replays, others' numbers and their own invariants."""

import doctest
import itertools
import sys
from functools import cache, reduce
from operator import add
from unittest.mock import patch

import libcachesim
import numpy as np
import pandas as pd
import plain
import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import hit_counts, kernels
from lrc.bootstrap import mirrored_interval, resample_weights
from lrc.cache import policy_counts, sch_counts
from lrc.kernels import cpu_caches, cpu_deep, cpu_lanes

cache_module = sys.modules["lrc.cache"]
LEVELS = ["model", "layer"]
POLICIES = ["lru", "lfu", "belady"]
GOLDEN = ["top1_of_32", "top2_of_8", "top8_of_64"]


# --- The definition ---------------------------------------------------------------------------


def groups_of(trace, level, by_dataset):
    """Keys of the rows, sequences and layers of every cache that a table tells of."""
    everything = range(trace.num_sequences)
    members = [({}, list(everything))]
    if by_dataset:
        members = [
            ({"dataset": d}, [i for i in everything if trace.datasets[i] == d])
            for d in sorted(set(trace.datasets.tolist()))
        ]
    layers = [({}, list(range(trace.num_layers)))]
    if level == "layer":
        layers = [({"layer": i}, [i]) for i in range(trace.num_layers)]
    for (dataset, sequences), (layer, shared) in itertools.product(members, layers):
        yield dataset | layer, [plain.uses(trace, i, shared) for i in sequences], len(shared)


def plain_table(trace, column, variants, level, by_dataset, replay):
    """Rows of a table; ``replay(tokens, cache_size, variant)`` gives hits and uses."""
    rows = []
    for keys, sequences, layers in groups_of(trace, level, by_dataset):
        for variant in variants:
            for size in range(1, trace.num_experts * layers + 1):
                counted = [replay(tokens, size, variant) for tokens in sequences]
                hits, total = map(sum, zip(*counted, strict=True)) if counted else (0, 0)
                if total:
                    ratio = size / (trace.top_k * layers)
                    found = {"cache_size": size, "cache_ratio": ratio, "hit_rate": hits / total}
                    rows.append(keys | {column: variant} | found)
    return rows


def replay_policy(tokens, size, policy):
    return plain.hits_of_replay(tokens, size, policy), sum(map(len, tokens))


def replay_lookahead(tokens, size, m):
    return plain.hits_of_replay(tokens, size, "lookahead", m), sum(map(len, tokens))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_hit_rates_equal_their_definition(data):
    level, by_dataset = data.draw(st.sampled_from(LEVELS)), data.draw(st.booleans())
    trace = data.draw(traces(datasets=True if by_dataset else None, max_tokens=16))
    policies = data.draw(st.lists(st.sampled_from(POLICIES), min_size=1, unique=True))
    table = lrc.hit_rates(trace, policies, level=level, by_dataset=by_dataset)
    # Floats with == : one division of whole numbers, rounded once on either side.
    assert table.to_dict("records") == plain_table(
        trace, "policy", policies, level, by_dataset, replay_policy
    )


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_sch_equals_its_definition(data):
    level, by_dataset = data.draw(st.sampled_from(LEVELS)), data.draw(st.booleans())
    trace = data.draw(traces(datasets=True if by_dataset else None, max_tokens=16))
    lengths = data.draw(st.lists(st.integers(1, 18), min_size=1, max_size=2, unique=True))
    definition = data.draw(st.sampled_from(["lookahead", "static"]))
    replay = {"lookahead": replay_lookahead, "static": plain.hits_of_best_sets}[definition]
    table = lrc.sch(trace, lengths, level=level, by_dataset=by_dataset, definition=definition)
    assert table.to_dict("records") == plain_table(
        trace, "segment_length", lengths, level, by_dataset, replay
    )


def ranked_up_to(uses):
    return dict.fromkeys(cpu_caches.MOST_RANKED, uses)


@pytest.mark.parametrize(
    ("key_type", "most_ranked"), [(np.int32, 0), (np.int64, 0), (np.int32, 10**6)]
)
@pytest.mark.parametrize("seed", range(4))
def test_stacks_of_many_blocks(seed, key_type, most_ranked):
    """Stacks deep enough for walks that pass blocks by, which small random traces never see."""
    rng = np.random.default_rng(seed)
    shapes = [(90, 3, 50, 1), (50, 3, 50, 3), (30, 2, 70, 7), (40, 3, 150, 5)]
    tokens, layers, num_experts, top_k = shapes[seed]
    # Popular experts and slow drift, so that hits happen at every depth.
    scores = rng.normal(size=(layers, num_experts)).cumsum(axis=1) / 8
    drift = rng.normal(size=(tokens, layers, num_experts)).cumsum(axis=0) / 4
    noise = rng.gumbel(size=(tokens, layers, num_experts))
    experts = (-(scores + drift + noise)).argsort(axis=-1)[None, ..., :top_k]
    trace = lrc.Trace(np.where(rng.random(experts.shape) < 0.05, -1, experts), num_experts)
    stream = plain.uses(trace, 0, range(layers))
    sizes = [2, 15, 17, 33, 64, 97, 127, 129, *range(200, layers * num_experts, 80)]
    for policy, m in [*((p, 0) for p in POLICIES), *(("lookahead", m) for m in (1, 5, 20))]:
        with (
            patch.object(cpu_deep, "KEY_TYPES", (key_type,)),
            patch.dict(cpu_caches.MOST_RANKED, ranked_up_to(most_ranked)),
        ):
            counts = policy_counts(trace, policy) if not m else sch_counts(trace, m)
        hits = counts.new_hits[0, 0, 0].cumsum()
        for size in sizes:
            expected = plain.hits_of_replay(stream, size, policy, m)
            assert hits[size - 1] == expected, (policy, m, size)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_stacks_side_by_side_are_those_one_by_one(data):
    """In several groups of lanes, the last of them not full, of unequal length, with any keys."""
    trace = data.draw(traces(max_sequences=40, max_tokens=40))
    level, m = data.draw(st.sampled_from(LEVELS)), data.draw(st.integers(1, 41))
    deep = data.draw(st.sampled_from([np.int32, np.int64]))
    with (
        patch.object(cpu_caches, "DEEPEST_LANES", 0),
        patch.dict(cpu_caches.MOST_RANKED, ranked_up_to(data.draw(st.sampled_from([0, 10**6])))),
        patch.object(cpu_deep, "KEY_TYPES", (deep,)),
    ):
        expected = all_counts(trace, level, m)
    key_types = data.draw(st.sampled_from([(np.int16, np.int32), (np.int32,), ()]))
    with (
        patch.object(cpu_caches, "FEWEST_LANES", 1),
        patch.object(cpu_lanes, "KEY_TYPES", key_types),
    ):
        assert (all_counts(trace, level, m) == expected).all()


def test_worked_example_by_hand():
    """Two slots, experts a b | c a | b c: what each policy holds after each token."""
    a, b, c = range(3)
    trace = lrc.Trace([[[[a, b]], [[c, a]], [[b, c]]]], num_experts=3)
    # First uses of a and b are free. Token 2: a is there, c is not. LRU takes c for a (used
    # before b), then a for b: c and a are held, and token 3 finds c alone: 4 of 6. So does LFU.
    # Belady gives b for c, for a is needed at once, and holds a and c as well: c is found.
    table = lrc.hit_rates(trace).query("cache_size == 2")
    assert table.hit_rate.tolist() == [4 / 6, 4 / 6, 4 / 6]
    # Of each window of two tokens the two most used experts: a b c a -> 2 + 1, c a b c -> 2 + 1.
    table = lrc.sch(trace, 2, definition="static").query("cache_size == 2")
    assert table.hit_rate.tolist() == [6 / 8]


# --- Numbers of others ------------------------------------------------------------------------


def golden_trace(name):
    return lrc.load_trace(ROOT / "tests" / "golden" / name / "trace.parquet")


def check_golden(trace, golden, column):
    """Every row of a table of the published scripts, as a count: the very same integer."""
    definition = "static" if column == "segment_length" else "lookahead"

    @cache
    def count(variant, level):
        if variant in POLICIES:
            return policy_counts(trace, variant, level=level, by_dataset=True)
        length = int(str(variant).removeprefix("sch"))
        return sch_counts(trace, length, level=level, by_dataset=True, definition=definition)

    checked = 0
    for (dataset, layer, variant), part in golden.groupby(["dataset", "layer", column]):
        counts = count(variant, "model" if layer == "all" else "layer")
        row = counts.datasets.index(dataset)
        hits = counts.new_hits[row, 0, 0 if layer == "all" else int(layer)].cumsum()
        truth = part.hit_rate.to_numpy() * hits[-1]
        # The scripts divide in float32, so a count comes back to within a fraction of one.
        assert (abs(truth - truth.round()) < 0.3).all()
        assert truth.round().astype(int).tolist() == hits[part.cache_size - 1].tolist()
        checked += len(part)
    assert checked == len(golden) > 0


def golden_table(path):
    return pd.read_csv(path, dtype={"dataset": "str", "layer": "str"})


def first_of_each_dataset(trace, number):
    rows = [np.flatnonzero(trace.datasets == name)[:number] for name in trace.dataset_names]
    return trace.select(np.concatenate(rows))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_fixtures(name):
    folder, trace = ROOT / "tests" / "golden" / name, golden_trace(name)
    check_golden(first_of_each_dataset(trace, 8), golden_table(folder / "cache.csv"), "policy")
    check_golden(trace, golden_table(folder / "sch_static.csv"), "segment_length")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_in_full(shared, name):
    folder = shared / "golden" / name
    with np.load(folder / "trace.npz", allow_pickle=False) as file:
        trace = lrc.Trace(
            file["experts"], file["num_experts"].item(), datasets=file["dataset"].astype(str)
        )
    check_golden(first_of_each_dataset(trace, 16), golden_table(folder / "cache.csv"), "policy")
    check_golden(trace, golden_table(folder / "sch_static.csv"), "segment_length")


@pytest.mark.parametrize(
    ("policy", "simulator"), [("belady", libcachesim.Belady), ("lru", libcachesim.LRU)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_libcachesim_finds_the_same_hits(policy, simulator, seed):
    """One expert a token: then the contracts differ in the free first uses alone."""
    rng = np.random.default_rng(seed)
    num_experts = 12
    stream = np.minimum(rng.zipf(1.3, 400) - 1, num_experts - 1).tolist()
    trace = lrc.Trace(np.array(stream)[None, :, None, None], num_experts)
    hits = policy_counts(trace, policy).new_hits[0, 0, 0].cumsum()
    never = np.iinfo(np.int64).max
    requests = [
        libcachesim.Request(
            obj_id=x,
            op=libcachesim.ReqOp.OP_GET,
            next_access_vtime=i + 1 + stream[i + 1 :].index(x) if x in stream[i + 1 :] else never,
            clock_time=i,
        )
        for i, x in enumerate(stream)
    ]
    for size in range(1, num_experts + 1):
        cache = simulator(size, hashpower=8)
        free = min(size, len(set(stream)))
        assert hits[size - 1] == sum(map(cache.get, requests)) + free


# --- Invariants -------------------------------------------------------------------------------


def all_counts(trace, level, m=3):
    """Counts of every policy and of both definitions of SCH, on one axis."""
    parts = [policy_counts(trace, level=level), sch_counts(trace, m, level=level)]
    parts.append(sch_counts(trace, m, level=level, definition="static"))
    return np.concatenate([part.new_hits for part in parts], axis=1)


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from(LEVELS), st.integers(1, 12))
def test_larger_caches_never_hit_less_and_a_full_one_always_hits(trace, level, m):
    tables = [lrc.hit_rates(trace, level=level), lrc.sch(trace, m, level=level)]
    tables.append(lrc.sch(trace, m, level=level, definition="static"))
    for table in tables:
        keys = [c for c in table if c in ("layer", "policy", "segment_length")]
        for _, rows in table.groupby(keys):
            assert rows.hit_rate.is_monotonic_increasing
            assert rows.hit_rate.iloc[-1] == 1


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_names_of_experts_do_not_matter(trace, m, random):
    names = list(range(trace.num_experts))
    random.shuffle(names)
    other = lrc.Trace(np.append(names, -1)[trace.experts], trace.num_experts, lengths=trace.lengths)
    for level in LEVELS:
        assert (all_counts(trace, level, m) == all_counts(other, level, m)).all()


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 12))
def test_a_layer_alone_is_a_model_of_one_layer(trace, m):
    counts = all_counts(trace, "layer", m)
    for layer in range(trace.num_layers):
        alone = trace.select(layers=[layer])
        assert (all_counts(alone, "model", m)[:, :, 0] == counts[:, :, layer]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 8))
def test_one_expert_a_token(stream, m):
    """Belady is the optimum, and a cache that knows the current token only is LRU."""
    trace = lrc.Trace(np.array(stream)[None, :, None, None], 7)
    lru, lfu, belady = policy_counts(trace).new_hits[0, :, 0].cumsum(axis=-1)
    for other in (lru, lfu, *sch_counts(trace, (m, 40)).new_hits[0, :, 0].cumsum(axis=-1)):
        assert (belady >= other).all()
    assert (sch_counts(trace, 1).new_hits[0, 0, 0].cumsum() == lru).all()


def test_belady_is_no_bound_where_a_token_uses_several():
    """Looked up together, expert 0 of token 3 has had its hit before the cache takes 2.

    Belady still keeps it for its use "at once" and gives up 1; LFU gives up 0, takes it back
    for 2, and holds what the last token needs.
    """
    trace = lrc.Trace([[[[0, 1]], [[0, 1]], [[2, 0]], [[0, 1]]]], num_experts=3)
    table = lrc.hit_rates(trace, ["lfu", "belady"]).query("cache_size == 2")
    assert table.hit_rate.tolist() == [7 / 8, 6 / 8]


@settings(max_examples=40, deadline=None)
@given(traces(max_tokens=12), st.integers(1, 3))
def test_a_window_of_one_token_needs_as_many_slots_as_the_token(trace, size):
    counts = sch_counts(trace, 1, level="layer", definition="static")
    per_token = (trace.experts >= 0).sum(axis=3)
    hits = counts.new_hits[0, 0, :, :size].sum(axis=-1)
    assert (hits == np.minimum(per_token, size).sum(axis=(0, 1))).all()


# --- Parts ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counts_of_shards_add_up_in_any_order(data):
    trace = data.draw(traces(datasets=True))
    order = data.draw(st.permutations(range(trace.num_sequences)))
    cut = data.draw(st.integers(0, trace.num_sequences))
    shards = [trace.select(part) for part in (order[:cut], order[cut:])]
    options = {"level": data.draw(st.sampled_from(LEVELS)), "by_dataset": True}
    for table, count in [
        (lrc.hit_rates(trace, **options), lambda s: policy_counts(s, **options)),
        (lrc.sch(trace, (1, 5), **options), lambda s: sch_counts(s, (1, 5), **options)),
    ]:
        joined = reduce(add, map(count, shards))
        pd.testing.assert_frame_equal(joined.table(), table, check_exact=True)


def test_counts_of_different_kinds_do_not_add():
    trace = golden_trace("top2_of_8")
    with pytest.raises(lrc.LrcError, match="different kinds"):
        sch_counts(trace, 4) + sch_counts(trace, 16)
    with pytest.raises(lrc.LrcError, match="different kinds"):
        policy_counts(trace) + policy_counts(trace.select(layers=[0]))


@settings(max_examples=30, deadline=None)
@given(traces(), st.sampled_from(LEVELS), st.sampled_from([1, 2000]))
def test_sequences_are_counted_each_by_itself(trace, level, block_bytes):
    counted = {}
    with patch.object(kernels, "BLOCK_BYTES", block_bytes):
        for part, counts in hit_counts.sequence_counts(trace, "lfu", level=level):
            counted |= dict(enumerate(counts, part.start))
    assert list(counted) == list(range(trace.num_sequences))
    for i, counts in counted.items():
        assert (counts == policy_counts(trace.select([i]), "lfu", level=level).new_hits[0, 0]).all()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_a_count(threads):
    trace = golden_trace("top2_of_8")
    for level in LEVELS:
        expected = all_counts(trace, level)
        with patch.object(cpu_caches.config, "NUMBA_NUM_THREADS", threads):
            assert (all_counts(trace, level) == expected).all()


# --- Bootstrap --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_interval_is_that_of_literal_resampling(data):
    level, by_dataset = data.draw(st.sampled_from(LEVELS)), data.draw(st.booleans())
    trace = data.draw(traces(datasets=True if by_dataset else None, max_tokens=12))
    seed, m = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 8))
    call, variants = data.draw(
        st.sampled_from(
            [
                (lrc.hit_rates, {"policies": "lfu"}),
                (lrc.sch, {"segment_lengths": m}),
                (lrc.sch, {"segment_lengths": m, "definition": "static"}),
            ]
        )
    )
    options = {"level": level, "by_dataset": by_dataset, **variants}
    # Small blocks, so that sequences are worked off in several steps.
    with patch.object(kernels, "BLOCK_BYTES", data.draw(st.sampled_from([1, 2000, 1 << 26]))):
        table = call(trace, **options, bootstrap=9, confidence=0.8, seed=seed)
    without = call(trace, **options)
    pd.testing.assert_frame_equal(table[without.columns], without, check_exact=True)
    keys = ["dataset"] * by_dataset + ["layer"] * (level == "layer")
    for key, rows in table.groupby(keys) if keys else [((), table)]:
        place = dict(zip(keys, key, strict=True))
        group = trace.select(layers=[place["layer"]]) if "layer" in place else trace
        group = group.select(datasets=place["dataset"]) if by_dataset else group
        # Only sequences that use the cache (in a window, if it has windows) are drawn.
        used = (group.experts >= 0).any(axis=(1, 2, 3))
        if "definition" in variants:
            used &= group.lengths >= m
        group = group.select(used)
        strata = np.zeros(group.num_sequences) if group.datasets is None else group.datasets
        resampled = [
            call(group.select(np.repeat(np.arange(len(row)), row)), **variants).hit_rate
            for row in resample_weights(strata, 9, seed)
        ]
        low, high = mirrored_interval(rows.hit_rate, np.array(resampled), 0.8)
        assert rows.ci_low.tolist() == low.tolist()
        assert rows.ci_high.tolist() == high.tolist()


def test_intervals_narrow_with_more_sequences():
    trace = golden_trace("top1_of_32")
    options = {"policies": "lru", "bootstrap": 200}
    many = lrc.hit_rates(trace, **options)
    few = lrc.hit_rates(trace.select(slice(12)), **options)
    assert (few.ci_high - few.ci_low).mean() > 2 * (many.ci_high - many.ci_low).mean()
    assert many.hit_rate.between(many.ci_low, many.ci_high).mean() > 0.95


# --- Edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trace",
    [
        lrc.Trace(np.full((2, 3, 1, 2), -1), 4),
        lrc.Trace(np.zeros((0, 4, 2, 1), int), 3),
        lrc.Trace(np.zeros((2, 4, 2, 1), int), 3, lengths=[0, 0]),
    ],
    ids=["no expert", "no sequence", "no token"],
)
def test_nothing_to_replay_gives_no_rows(trace):
    for level in LEVELS:
        for bootstrap in (0, 3):
            options = {"level": level, "bootstrap": bootstrap}
            full = lrc.hit_rates(golden_trace("top2_of_8"), **options)
            empty = lrc.hit_rates(trace, **options)
            assert len(empty) == 0
            assert empty.dtypes.to_dict() == full.dtypes.to_dict()
            for definition in ("lookahead", "static"):
                assert len(lrc.sch(trace, definition=definition, **options)) == 0


def test_a_window_longer_than_all_sequences():
    trace = golden_trace("top2_of_8")
    assert len(lrc.sch(trace, 81, definition="static")) == 0
    assert len(lrc.sch(trace, (80, 81), definition="static")) == 24
    # A look-ahead past the end sees all that is left.
    far = lrc.sch(trace, (80, 10**9))
    assert far.hit_rate[:24].tolist() == far.hit_rate[24:].tolist()


def test_columns_are_those_of_the_contract():
    trace = golden_trace("top2_of_8")
    options = {"level": "layer", "by_dataset": True, "bootstrap": 2}
    assert ",".join(lrc.sch(trace, **options)) == (
        "dataset,layer,segment_length,cache_size,cache_ratio,hit_rate,ci_low,ci_high"
    )
    table = lrc.hit_rates(trace, **options)
    assert ",".join(table) == (
        "dataset,layer,policy,cache_size,cache_ratio,hit_rate,ci_low,ci_high"
    )
    assert table.policy[:24:8].tolist() == POLICIES
    assert table.cache_ratio[:8].tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert lrc.hit_rates(trace, "lru").cache_ratio.iloc[-1] == 24 / (2 * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: lrc.hit_rates(t, "fifo"), "policy 'fifo' is unknown: choose from 'lru'"),
        (lambda t: lrc.hit_rates(t, []), "policies is empty"),
        (lambda t: lrc.hit_rates(t, ["lru", "lru"]), "give each once"),
        (lambda t: lrc.hit_rates(t, replay="phone"), "replay is 'phone', but must be 'paper', or"),
        (lambda t: lrc.hit_rates("x.parquet", replay="engine"), "x.parquet"),
        (lambda t: lrc.hit_rates(t, level="expert"), "level is 'expert'"),
        (lambda t: lrc.hit_rates(t.experts), "expected a lrc.Trace, .* not ndarray"),
        (lambda t: lrc.hit_rates(t, by_dataset=True), "by_dataset needs labels"),
        (lambda t: lrc.hit_rates(t, bootstrap=-1), "bootstrap is -1"),
        (lambda t: lrc.hit_rates(t, bootstrap=2, confidence=95), "confidence is 95"),
        (lambda t: lrc.sch(t, 0), "segment_lengths is 0"),
        (lambda t: lrc.sch(t, [4, 4]), "give each once"),
        (lambda t: lrc.sch(t, 2.5), "segment_lengths is 2.5"),
        (lambda t: lrc.sch(t, []), r"segment_lengths is \[\]"),
        (lambda t: lrc.sch(t, definition="best"), "definition is 'best'"),
    ],
)
def test_wrong_arguments_end_in_one_line(call, message):
    with pytest.raises(lrc.LrcError, match=message) as caught:
        call(lrc.Trace([[[[0]]]], 1))
    assert "\n" not in str(caught.value)


def test_a_sequence_too_long_for_the_keys_is_refused():
    tokens = 1 << 33
    experts = np.broadcast_to(np.int16(0), (1, tokens, 64, 1))
    with pytest.raises(lrc.LrcError, match="too long to look"):
        cpu_caches.count_new_hits(
            cpu_caches.LOOKAHEAD, tokens, experts, np.array([tokens]), np.array([0]), 1000, True
        )


def test_examples_in_docstrings():
    names = {"Trace": lrc.Trace, "lrc": lrc}
    assert doctest.testmod(cache_module, extraglobs=names).failed == 0
