"""Overlap of expert sets by distance: counts and levels against loops over pairs of tokens."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pandas as pd
import plain
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc.bootstrap import resample_weights
from lrc.pair_counts import pair_counts

small = {"max_sequences": 4, "max_tokens": 9, "max_layers": 2, "max_experts": 6}


def experts_of(trace, i, t, layer):
    return set(trace.experts[i, t, layer].tolist()) - {-1}


def compared(trace, layer, one, other):
    """Experts that two tokens (sequence, place) share, and uses of both."""
    a, b = experts_of(trace, *one, layer), experts_of(trace, *other, layer)
    return np.array([len(a & b), len(a) + len(b)])


def same_id(trace, i, t, d):
    if trace.token_ids is None:
        return False
    first, second = trace.token_ids[i, t], trace.token_ids[i, t + d]
    return bool(first == second >= 0)


def pairs_of(trace, i, d):
    return [(t, t + d) for t in range(trace.lengths[i] - d)]


def plain_counts(trace, distances):
    """[sequences][layers][distances + 1][2] sums of shared and uses; last distance: all of them."""
    every = range(1, trace.shape[1])
    shape = (trace.num_sequences, trace.num_layers, len(distances) + 1, 2)
    sums, pairs = np.zeros((2, *shape), int), np.zeros((shape[0], *shape[2:]), int)
    for i in range(shape[0]):
        for p, some in enumerate([*([d] for d in distances), every]):
            for d in some:
                for t, u in pairs_of(trace, i, d):
                    same = int(same_id(trace, i, t, d))
                    pairs[i, p, same] += 1
                    for layer in range(shape[1]):
                        sums[:, i, layer, p, same] += compared(trace, layer, (i, t), (i, u))
    return *sums, pairs


def plain_levels(trace, d, layers):
    """Overlap, chance, domain and text at one distance, None where there is none, exactly."""
    lengths = trace.lengths.tolist()
    number = [max(n - d, 0) for n in lengths]
    here = sum(
        compared(trace, layer, (i, t), (i, u))
        for layer in layers
        for i in range(len(lengths))
        for t, u in pairs_of(trace, i, d)
    )
    weight = [
        Fraction(count, n) if n else Fraction(0) for count, n in zip(number, lengths, strict=True)
    ]
    tokens = [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    text = sum(
        Fraction(number[i], n * (n - 1) // 2) * compared(trace, layer, (i, t), (i, u))
        for layer in layers
        for i, n in enumerate(lengths)
        for gap in range(1, n)
        for t, u in pairs_of(trace, i, gap)
    )
    return {
        "overlap": ratio(here),
        "chance": ratio(mean_pair(trace, layers, weight, tokens, lambda one, other: True)),
        "domain": ratio(plain_domain(trace, layers, weight, tokens)),
        "text": ratio(text),
    }


def mean_pair(trace, layers, weight, tokens, allowed):
    """Weighted mean over pairs of tokens that are allowed, summed over layers; 0 without any."""
    pairs = [(one, other) for one in tokens for other in tokens if allowed(one, other)]
    total = sum(weight[one[0]] * weight[other[0]] for one, other in pairs)
    if not total:
        return np.array([0, 0])
    sums = sum(
        weight[one[0]] * weight[other[0]] * compared(trace, layer, one, other)
        for layer in layers
        for one, other in pairs
    )
    return sums / total


def plain_domain(trace, layers, weight, tokens):
    total = np.array([0, 0])
    for name in trace.dataset_names:
        here = [(i, t) for i, t in tokens if trace.datasets[i] == name]
        mean = mean_pair(trace, layers, weight, here, lambda one, other: one[0] != other[0])
        total = total + sum(weight[i] for i, _ in here) * mean
    return total


def ratio(sums):
    shared, uses = sums if np.ndim(sums) else (0, 0)
    return 2 * shared / Fraction(uses) if uses else None


@given(traces(**small), st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True))
def test_counts_are_those_of_all_pairs(trace, distances):
    found = pair_counts(trace, distances)
    shared, uses, pairs = plain_counts(trace, distances)
    assert found.shared.tolist() == shared.tolist()
    assert found.uses.tolist() == uses.tolist()
    assert found.pairs.tolist() == pairs.tolist()
    for layer in range(trace.num_layers):
        active = [
            [sum(row) for row in plain.activity(trace, i, layer)]
            for i in range(trace.num_sequences)
        ]
        assert found.active[:, layer].tolist() == active


@given(traces(**small), st.integers(0, 4))
def test_counts_of_shards_add_up(trace, cut):
    cut = min(cut, trace.num_sequences)
    parts = [
        pair_counts(trace.select(range(*part)), (1, 3))
        for part in ((0, cut), (cut, trace.num_sequences))
    ]
    both, whole = parts[0] + parts[1], pair_counts(trace, (1, 3))
    for name in ("shared", "uses", "pairs", "active", "lengths"):
        assert getattr(both, name).tolist() == getattr(whole, name).tolist()
    if trace.datasets is not None:
        assert both.datasets.tolist() == whole.datasets.tolist()
    with pytest.raises(lrc.LrcError, match="cannot be added"):
        whole + pair_counts(trace, (1, 2))


@given(traces(**small), st.sampled_from(["model", "layer"]))
def test_levels_equal_plain_loops_over_pairs(trace, level):
    assume((trace.experts >= 0).any() and trace.lengths.max() > 1)
    found = lrc.overlap_by_distance(trace, (1, 2, 5), level=level)
    groups = (
        [range(trace.num_layers)] if level == "model" else [[j] for j in range(trace.num_layers)]
    )
    expected = []
    for layers in groups:
        for d in (1, 2, 5):
            levels = plain_levels(trace, d, layers)
            if levels["overlap"] is not None:
                pairs = sum(len(pairs_of(trace, i, d)) for i in range(trace.num_sequences))
                key = {"layer": layers[0]} if level == "layer" else {}
                expected.append(key | {"distance": d} | levels | {"pairs": pairs})
    domains = [row["domain"] for row in expected]
    if len(trace.dataset_names) < 2 or None in domains:
        assert "domain" not in found
        expected = [{k: v for k, v in row.items() if k != "domain"} for row in expected]
    assert len(found) == len(expected)
    if expected:
        assert list(found) == list(expected[0])
        wanted = np.array([list(map(float, row.values())) for row in expected])
        np.testing.assert_allclose(found.to_numpy(float), wanted, rtol=1e-12, atol=1e-12)


@given(traces(**small, token_ids=True))
def test_pairs_of_equal_and_of_different_ids_make_up_all(trace):
    assume((trace.experts >= 0).any() and trace.lengths.max() > 2)
    apart = lrc.overlap_by_distance(trace, (1, 2), by_token=True)
    whole = lrc.overlap_by_distance(trace, (1, 2)).set_index("distance")
    for d, rows in apart.groupby("distance"):
        assert rows["pairs"].sum() <= whole.loc[d, "pairs"]
        assert (rows["share"] @ rows["overlap"]) == pytest.approx(whole.loc[d, "overlap"])
        for same in rows["same_token"]:
            pairs = [
                compared(trace, layer, (i, t), (i, u))
                for i in range(trace.num_sequences)
                for t, u in pairs_of(trace, i, d)
                for layer in range(trace.num_layers)
                if same_id(trace, i, t, d) == same
            ]
            row = rows[rows["same_token"] == same]
            assert row["overlap"].item() == float(ratio(sum(pairs)))
            assert row["pairs"].item() == len(pairs) // trace.num_layers


def test_text_is_the_mean_over_all_orders_of_a_sequence():
    rng = np.random.default_rng(0)
    experts = rng.random((1, 4, 1, 5)).argsort(axis=-1)[..., :2]
    orders = experts[0][np.array(list(permutations(range(4))))]
    shuffled = lrc.overlap_by_distance(lrc.Trace(orders, 5), (1, 3))
    levels = lrc.overlap_by_distance(lrc.Trace(experts, 5), (1, 3))
    np.testing.assert_allclose(shuffled["overlap"], levels["text"], rtol=1e-12)


def test_independent_tokens_meet_chance_and_labels_without_a_meaning_add_nothing():
    rng = np.random.default_rng(1)
    experts = rng.random((40, 300, 1, 8)) ** [[[[1, 1, 1, 1, 2, 2, 3, 4]]]]
    trace = lrc.Trace(
        experts.argsort(axis=-1)[..., :2], 8, datasets=rng.choice(["a", "b"], 40).tolist()
    )
    rates = lrc.srp(trace, 1, level="expert")["activation_rate"]
    found = lrc.overlap_by_distance(trace, (1, 10))
    assert found["chance"].tolist() == pytest.approx([(rates**2).sum() / rates.sum()] * 2)
    for name in ("overlap", "domain", "text"):
        assert found[name].tolist() == pytest.approx(found["chance"].tolist(), abs=0.01)


# Counts in segments and overlaps at distances -----------------------------------------------------


@given(traces(**small))
def test_squared_counts_are_sums_of_shared_experts_over_distances(trace):
    """Sum of f^2 = uses + 2 * shared experts of all distances, for segments of whole texts."""
    m = int(trace.lengths.max())
    whole = trace.select(np.flatnonzero(trace.lengths == m))
    distances = range(1, m) or [1]
    counts = pair_counts(whole, distances)
    assert counts.shared[:, :, -1].tolist() == counts.shared[:, :, :-1].sum(axis=2).tolist()
    squares = sum(f**2 for f in plain.segments(whole, m)) if m else 0
    assert squares == counts.active.sum() + 2 * counts.shared[:, :, :-1].sum()


@given(traces(**small), st.integers(1, 6), st.sampled_from(["model", "layer", "expert"]))
def test_srp_lies_between_the_overlap_of_a_segment_and_its_root(trace, m, level):
    found = lrc.segment_overlap(trace, (m,), level=level)
    expected = lrc.srp(trace, (m,), level=level)
    keys = [name for name in ("layer", "expert", "segment_length") if name in expected]
    pd.testing.assert_frame_equal(found[[*keys, "srp"]], expected[[*keys, "srp"]])
    assert (found["overlap"] <= found["srp"] + 1e-12).all()
    assert (found["srp"] <= found["bound"] + 1e-12).all()
    if level == "model" and len(found):
        f = plain.segments(trace, m)
        wanted = Fraction(sum(n * n for n in f), m * sum(f)) if sum(f) else Fraction(0)
        assert found["overlap"].tolist() == [float(wanted)]


@pytest.mark.parametrize(("always", "m"), [(1, 8), (2, 4), (3, 20)])
def test_the_lower_bound_is_reached(always, m):
    """Counts of m, and of half q * m, in the proportion that makes every threshold equal."""
    # q = 1/2: the share q / (2 - q) = 1/3 of activations in experts that are always on, the rest in
    # experts that are on in a quarter of the tokens.
    counts = [m] * always + [m // 4] * (8 * always)
    found = lrc.segment_overlap(trace_of_counts(counts, m), m).iloc[0]
    assert found["overlap"] == found["srp"] == 0.5


def test_the_upper_bound_is_approached():
    """One expert is on in half of the tokens, ever more are on in one."""
    gaps = []
    for m in (8, 64, 512):
        found = lrc.segment_overlap(trace_of_counts([m // 2] + [1] * (m // 2), m), m).iloc[0]
        assert found["srp"] == 0.5
        gaps.append(found["bound"] - 0.5)
    assert gaps[0] > 10 * gaps[2] > 0


def trace_of_counts(counts, m):
    """One segment in which experts are on so many times, each in the first tokens."""
    experts = np.full((1, m, 1, len(counts)), -1)
    for e, count in enumerate(counts):
        experts[0, :count, 0, e] = e
    return lrc.Trace(experts, len(counts))


# Sources and half-lives ---------------------------------------------------------------------------


@given(traces(**small), st.sampled_from(["model", "layer"]))
def test_sources_add_up_to_the_overlap_of_a_segment(trace, level):
    assume((trace.experts >= 0).all() and trace.lengths.max() > 2)
    m = int(trace.lengths.max())
    found = lrc.overlap_sources(trace, (m, 2), level=level)
    profile = lrc.overlap_by_distance(trace, range(1, m), level=level)
    kinds = {"popularity", "text", "order"}
    kinds |= {"domain"} if "domain" in profile else set()
    kinds |= {"repeats"} if trace.token_ids is not None else set()
    assert set(found["source"]) == kinds
    keys = (["layer"] if level == "layer" else []) + ["segment_length"]
    for key, rows in found.groupby(keys):
        length = key[-1]
        here = profile[profile["distance"] < length]
        if level == "layer":
            here = here[here["layer"] == key[0]]
        weight = length - here["distance"]
        assert rows["gain"].sum() == pytest.approx((here["overlap"] @ weight) / weight.sum())
        shares = rows.loc[rows["source"] != "popularity", "share"]
        assert shares.isna().all() or shares.sum() == pytest.approx(1)
        gain = rows.set_index("source")["gain"]
        parts = {name: (here[name] @ weight) / weight.sum() for name in ("chance", "text")}
        assert gain["popularity"] == pytest.approx(parts["chance"])
        near = gain["order"] + gain.get("repeats", 0)
        assert near == pytest.approx(rows["gain"].sum() - parts["text"], abs=1e-12)


def test_each_source_is_found_where_it_was_put():
    """Texts with experts of their own, then domains, then words, then memory."""
    rng = np.random.default_rng(2)
    shape, labels = (24, 200), np.repeat(["a", "b"], 12)

    def sources(experts, ids=None):
        trace = lrc.Trace(experts[..., None, None], 8, datasets=labels.tolist(), token_ids=ids)
        table = lrc.overlap_sources(trace, 16)
        return table.set_index("source")["share"].drop("popularity")

    own = rng.integers(0, 8, (24, 1))
    share = sources(np.where(rng.random(shape) < 0.6, own, rng.integers(0, 8, shape)))
    assert share["text"] > 0.9
    topic = np.where(labels == "a", 1, 5)[:, None]
    share = sources(np.where(rng.random(shape) < 0.6, topic, rng.integers(0, 8, shape)))
    assert share["domain"] > 0.9
    # Words that come in runs, each with its expert: they repeat more within reach.
    ids = np.repeat(rng.integers(0, 8, (24, 40)), 5, axis=1)
    share = sources(ids, ids)
    assert share["repeats"] > 0.85
    # The same runs of experts, with words that tell nothing of them.
    share = sources(ids, rng.integers(0, 8, shape))
    assert share["order"] > 0.85


def plain_half_life(trace, longest):
    """Octaves of the profile, one by one."""
    order = {}
    for start in (2**j for j in range(10)):
        distances = [d for d in range(start, 2 * start) if d <= longest and d < trace.shape[1]]
        if distances:
            rows = lrc.overlap_by_distance(trace, distances)
            middle = (distances[0] * distances[-1]) ** 0.5
            order[middle] = np.average(rows["overlap"] - rows["text"], weights=rows["pairs"])
    places = list(order)
    half = order[1.0] / 2
    if half <= 0:
        return None
    last = max(place for place in places if order[place] > half)
    if last == places[-1]:
        return float("inf")
    after = places[places.index(last) + 1]
    return np.exp(np.interp(-half, [-order[last], -order[after]], np.log([last, after])))


@given(st.integers(0, 20), st.sampled_from([5, 64, 100]), st.sampled_from([0.3, 0.7, 0.9]))
def test_half_life_equals_plain_steps(seed, longest, stay):
    rng = np.random.default_rng(seed)
    experts = rng.integers(0, 6, (5, 80))
    for t in range(1, 80):
        kept = rng.random(5) < stay
        experts[kept, t] = experts[kept, t - 1]
    trace = lrc.Trace(experts[..., None, None], 6)
    found = lrc.overlap_half_life(trace, longest).iloc[0]
    first = lrc.overlap_by_distance(trace, 1).iloc[0]
    assert found["order"] == pytest.approx(first["overlap"] - first["text"])
    expected = plain_half_life(trace, longest)
    assert found["half_life"] == pytest.approx(expected, nan_ok=True) or expected is None


def test_half_life_of_a_memory_that_fades():
    """A router that keeps its expert with probability p has overlap p^d above chance."""
    rng = np.random.default_rng(5)
    experts = rng.integers(0, 16, (60, 1000))
    for t in range(1, 1000):
        kept = rng.random(60) < 0.9
        experts[kept, t] = experts[kept, t - 1]
    trace = lrc.Trace(experts[..., None, None], 16)
    found = lrc.overlap_half_life(trace, bootstrap=200).iloc[0]
    # Half of 0.9^1 after log(1/2) / log(0.9) = 6.6 tokens more; octaves are coarse.
    assert found["ci_low"] < found["half_life"] < found["ci_high"]
    assert 5.5 < found["half_life"] < 9
    left = 0.9 ** np.arange(1, 1000)
    order = 15 / 16 * (0.9 - np.average(left, weights=np.arange(999, 0, -1)))
    assert found["order_low"] < order < found["order_high"]


def test_no_order_has_no_half_life():
    alternating = lrc.Trace((np.arange(64) % 2).reshape(1, 64, 1, 1), 2)
    found = lrc.overlap_half_life(alternating, bootstrap=9).iloc[0]
    assert found["order"] < 0
    assert np.isnan(found["half_life"])
    blocks = lrc.Trace((np.arange(64) // 32).reshape(1, 64, 1, 1), 2)
    assert lrc.overlap_half_life(blocks, 8)["half_life"].tolist() == [np.inf]


# Intervals and errors -----------------------------------------------------------------------------


def test_intervals_are_those_of_traces_with_sequences_drawn_anew():
    rng = np.random.default_rng(7)
    own = rng.integers(0, 6, (8, 1, 2, 1))
    experts = np.where(rng.random((8, 40, 2, 1)) < 0.5, own, rng.integers(0, 6, (8, 40, 2, 1)))
    trace = lrc.Trace(experts, 6, datasets=["a", "b"] * 4, lengths=[40, 30, 20, 40, 25, 40, 33, 12])
    arguments = {"bootstrap": 30, "confidence": 0.8, "seed": 3}
    found = lrc.overlap_by_distance(trace, (1, 9), level="layer", **arguments)
    halves = lrc.overlap_half_life(trace, 8, **arguments)
    weights = resample_weights(trace.datasets, 30, 3)
    again = [trace.select(np.repeat(np.arange(8), row)) for row in weights]
    drawn = np.array(
        [lrc.overlap_by_distance(one, (1, 9), level="layer")["overlap"] for one in again]
    )
    lower, upper = np.quantile(drawn, [0.1, 0.9], axis=0)
    np.testing.assert_allclose(found["ci_low"], 2 * found["overlap"] - upper, rtol=1e-12)
    np.testing.assert_allclose(found["ci_high"], 2 * found["overlap"] - lower, rtol=1e-12)
    order = [lrc.overlap_half_life(one, 8)["order"].item() for one in again]
    lower, upper = np.quantile(order, [0.1, 0.9])
    assert halves["order_low"].item() == pytest.approx(2 * halves["order"].item() - upper)
    sources = lrc.overlap_sources(trace, 8, **arguments).set_index("source")
    assert sources.notna().drop(columns="share").all(axis=None)
    # A sequence that was drawn twice is not another text of its domain.
    assert (sources["ci_low"] <= sources["ci_high"]).all()


def test_resamples_without_such_pairs_are_left_out():
    """Only one sequence is long enough for the distance; many resamples lack it."""
    rng = np.random.default_rng(0)
    trace = lrc.Trace(rng.integers(0, 4, (3, 30, 1, 1)), 4, lengths=[30, 5, 5])
    found = lrc.overlap_by_distance(trace, (1, 20), bootstrap=50)
    assert found.notna().all(axis=None)
    assert found.loc[1, ["ci_low", "ci_high"]].tolist() == [found.loc[1, "overlap"]] * 2


def test_a_distance_no_sequence_is_longer_than_has_no_row():
    trace = lrc.Trace(np.zeros((1, 4, 1, 1), int), 2)
    assert lrc.overlap_by_distance(trace, (1, 3, 4, 9))["distance"].tolist() == [1, 3]


def test_bad_arguments_are_explained():
    trace = lrc.Trace(np.zeros((1, 4, 1, 1), int), 2)
    nobody = lrc.Trace(np.full((1, 4, 1, 1), -1), 2)
    for call, message in [
        (lambda: lrc.overlap_by_distance(trace, (0,)), "distances are"),
        (lambda: lrc.overlap_by_distance(trace, (1.5,)), "distances are"),
        (lambda: lrc.overlap_by_distance(trace, (1, 1)), "give each once"),
        (lambda: lrc.overlap_by_distance(trace, (9,)), "no sequence is longer"),
        (lambda: lrc.overlap_by_distance(trace, level="expert"), "level is 'expert'"),
        (lambda: lrc.overlap_by_distance(trace, by_token=True), "needs a trace with token_ids"),
        (lambda: lrc.overlap_by_distance(trace, bootstrap=-1), "bootstrap is -1"),
        (lambda: lrc.overlap_by_distance(nobody), "no token uses any expert"),
        (lambda: lrc.overlap_by_distance("trace.parquet"), "expected a lrc.Trace"),
        (lambda: lrc.overlap_sources("trace.parquet"), "expected a lrc.Trace"),
        (lambda: lrc.overlap_sources(trace, 1), "holds no pair of tokens"),
        (lambda: lrc.overlap_sources(trace, 5), "no sequence has the 5 tokens"),
        (lambda: lrc.overlap_half_life(trace, 0), "longest is 0"),
        (lambda: lrc.segment_overlap(trace, 0), "segment_lengths is 0"),
    ]:
        with pytest.raises(lrc.LrcError, match=message):
            call()


# What is shipped ----------------------------------------------------------------------------------


def test_shipped_tables_are_those_of_the_public_traces(shared, monkeypatch):
    monkeypatch.setenv("LRC_TRACES", str(shared / "traces"))
    for model in ("deepseek-v2-lite", "gpt-oss-20b"):
        trace = lrc.public_traces.load(model)
        found = {
            "by_distance": lrc.overlap_by_distance(trace),
            "half_life": lrc.overlap_half_life(trace, level="layer"),
            "sources": lrc.overlap_sources(trace, (4, 16, 64)),
        }
        for kind, table in found.items():
            shipped = lrc.public_overlaps(kind).query("model == @model").reset_index(drop=True)
            shipped = shipped[shipped["layer"] != "all"] if kind == "half_life" else shipped
            for name in table.columns.difference(["source", "layer"]):
                wanted = shipped[name].to_numpy()
                np.testing.assert_allclose(table[name], wanted, atol=1e-6, err_msg=name)


def test_other_shipped_tables_are_named():
    with pytest.raises(lrc.LrcError, match="by_distance, by_domain, half_life, sources"):
        lrc.public_overlaps("layers")


def test_token_ids_of_the_toys_are_those_that_were_counted():
    """Shipped counts are of more text, the trace's among it."""
    trace = lrc.toys.with_token_ids(lrc.toys.load_trace("baseline"))
    keys = ["kind", "layer", "token_id", "expert"]
    shipped = lrc.toys.load_counts("baseline")
    mine = lrc.token_counts(trace).table.set_index(keys)["count"]
    theirs = shipped.table.set_index(keys)["count"]
    both = pd.concat([mine, theirs], axis=1, keys=["mine", "theirs"]).dropna()
    assert (both["mine"] <= both["theirs"]).all()
    assert len(both) > 0.9 * len(theirs) / 3
    with pytest.raises(lrc.LrcError, match="cannot be made"):
        lrc.toys.with_token_ids(trace.select(range(0, 96, 2)))
