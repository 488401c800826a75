"""Chance levels and shuffled traces: plain sums, published models, real traces."""

from collections import Counter
from fractions import Fraction
from itertools import permutations, product
from math import comb

import numpy as np
import pandas as pd
import plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom
from strategies import traces

import lrc


def plain_chance(rates, m):
    """Best F1 over thresholds of binomial counts, in exact fractions."""
    rates = [Fraction(rate) for rate in rates]
    histogram = [
        sum(comb(m, f) * rate**f * (1 - rate) ** (m - f) for rate in rates) for f in range(m + 1)
    ]
    total = m * sum(rates)
    if not total:
        return 0.0
    scores = []
    for a in range(m + 1):
        matched = sum(f * histogram[f] for f in range(a, m + 1))
        predicted = m * sum(histogram[a:])
        scores.append(2 * matched / (predicted + total))
    return float(max(scores))


some_rates = st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=1, max_size=5)


@given(some_rates, st.integers(1, 8))
def test_equals_exact_fractions(rates, m):
    table = pd.DataFrame({"layer": 0, "expert": range(len(rates)), "activation_rate": rates})
    found = lrc.chance(table, m)
    assert found["srp"].tolist() == pytest.approx([plain_chance(rates, m)], abs=1e-12)
    assert found["activation_rate"].tolist() == pytest.approx([np.mean(rates)])
    alone = lrc.chance(table, m, level="expert")
    assert alone["srp"].tolist() == pytest.approx([plain_chance([r], m) for r in rates], abs=1e-12)


def test_is_the_srp_of_all_possible_texts():
    """Every text of two tokens, weighed by its probability, top-1 of 3 experts."""
    probabilities = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
    texts = []
    for pair in product(range(3), repeat=2):
        times = probabilities[pair[0]] * probabilities[pair[1]] * 36
        texts += [[[[e]] for e in pair]] * int(times)
    trace = lrc.Trace(np.array(texts), num_experts=3)
    measured, expected = lrc.srp(trace, 2), lrc.chance(trace, 2)
    columns = ["srp", "size_ratio", "activation_rate"]
    np.testing.assert_allclose(expected[columns], measured[columns], rtol=1e-12)


@given(traces(datasets=True, max_tokens=10), st.sampled_from(["model", "layer", "expert"]))
def test_rows_and_rates_are_those_of_srp(trace, level):
    for by_dataset in (False, True):
        observed = lrc.srp(trace, (2, 5), level=level, by_dataset=by_dataset)
        expected = lrc.chance(trace, (2, 5), level=level, by_dataset=by_dataset)
        keys = [name for name in observed if name in expected]
        assert list(expected) == keys
        keys = [key for key in keys if key not in ("srp", "size_ratio", "activation_rate")]
        assert expected[keys].to_numpy().tolist() == observed[keys].to_numpy().tolist()
        np.testing.assert_allclose(
            expected["activation_rate"], observed["activation_rate"], atol=1e-12
        )
        both = lrc.excess(observed, expected)
        assert list(both) == [*observed, "chance", "excess"]
        room = 1 - both["chance"]
        np.testing.assert_allclose(
            both["excess"] * room, (both["srp"] - both["chance"]) * (room > 1e-12), atol=1e-12
        )


def test_uniform_experts():
    found = lrc.chance((64, 8), (4, 16))
    assert found["segment_length"].tolist() == [4, 16]
    assert found["srp"].tolist() == pytest.approx(
        [plain_chance([8 / 64], 4), plain_chance([8 / 64], 16)]
    )
    assert lrc.chance((4, 4), 16)["srp"].tolist() == [1.0]
    assert lrc.chance((8, 2), 16, level="expert")["expert"].tolist() == list(range(8))


def test_excess_of_perfect_and_of_always_on_experts():
    steady = lrc.Trace(np.zeros((1, 8, 1, 1), int) + np.array([0]), num_experts=2)
    assert lrc.excess(lrc.srp(steady, 4), lrc.chance((2, 1), 4))["excess"].tolist() == [1.0]
    always = lrc.Trace(np.tile([0, 1], (1, 8, 1, 1)), num_experts=2)
    assert lrc.excess(lrc.srp(always, 4), lrc.chance(always, 4))["excess"].tolist() == [0.0]


def test_alternating_experts_stay_below_chance():
    trace = lrc.Trace((np.arange(64) % 4).reshape(1, 64, 1, 1), num_experts=4)
    assert lrc.excess(lrc.srp(trace, 4), lrc.chance(trace, 4)).loc[0, "excess"] < 0


@given(
    traces(token_ids=True, weights=True, datasets=True),
    st.sampled_from(["all", "domain", "sequence", "token"]),
    st.integers(0, 3),
)
def test_shuffling_moves_whole_tokens_within_their_pool(trace, level, seed):
    shuffled = lrc.shuffle(trace, level, seed=seed)

    def pools(some):
        found = {}
        for i, length in enumerate(some.lengths.tolist()):
            pool = {"all": 0, "domain": str(some.datasets[i]), "sequence": i}.get(level)
            for t in range(length):
                if level == "token":
                    pool = int(some.token_ids[i, t])
                token = (
                    some.experts[i, t].tobytes(),
                    some.weights[i, t].tobytes(),
                    int(some.token_ids[i, t]),
                    int(some.predicted_ids[i, t]),
                )
                found.setdefault(pool, Counter())[token] += 1
        return found

    assert pools(shuffled) == pools(trace)
    assert shuffled.lengths.tolist() == trace.lengths.tolist()
    assert shuffled.datasets.tolist() == trace.datasets.tolist()
    assert shuffled.meta == trace.meta
    if level == "token":
        assert shuffled.token_ids.tolist() == trace.token_ids.tolist()
    assert shuffled.equals(lrc.shuffle(trace, level, seed=seed))


def test_every_order_of_a_sequence_is_equally_likely():
    trace = lrc.Trace(np.arange(3).reshape(1, 3, 1, 1), num_experts=3)
    orders = Counter(
        tuple(lrc.shuffle(trace, "sequence", seed=seed).experts.ravel()) for seed in range(1200)
    )
    assert len(orders) == 6
    assert min(orders.values()) > 150  # 200 each; 150 is four deviations away


def test_shuffled_tokens_meet_the_binomial_level():
    """A trace with topics, in sequences of one length: nothing but popularity survives."""
    rng = np.random.default_rng(3)
    topics = np.repeat([0, 1], 30)
    experts = np.where(
        rng.random((60, 200)) < 0.7,
        4 * topics[:, None] + rng.integers(0, 2, (60, 200)),
        rng.integers(0, 8, (60, 200)),
    )
    trace = lrc.Trace(experts[:, :, None, None], 8, datasets=topics.astype(str))
    expected = lrc.chance(trace, (4, 16))["srp"]
    found = lrc.srp(lrc.shuffle(trace), (4, 16))["srp"]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=0.004)
    assert (lrc.srp(trace, (4, 16))["srp"] > expected + 0.1).all()
    within = lrc.srp(lrc.shuffle(trace, "domain"), (4, 16), by_dataset=True)["srp"]
    level = lrc.chance(trace, (4, 16), by_dataset=True)["srp"]
    assert within.tolist() == pytest.approx(level.tolist(), abs=0.01)


# SRP at m = 16 and its chance level, computed once from the published rates outside this package.
PUBLISHED = {
    "llamamoe": (0.453, 0.455),
    "mixtral": (0.494, 0.455),
    "jetmoe": (0.475, 0.453),
    "minicpm": (0.489, 0.455),
    "qwen2": (0.367, 0.354),
    "qwen3": (0.541, 0.258),
    "phi": (0.520, 0.343),
    "grin": (0.504, 0.336),
    "olmoe": (0.509, 0.359),
    "deepseek2": (0.379, 0.290),
    "xverse": (0.386, 0.293),
}


def test_published_models():
    experts = lrc.published.table("experts").rename(columns={"act_freq": "activation_rate"})
    scores = lrc.published.table("srp_model").query("seg_len == 16 and is_decoder == 1")
    scores = scores.set_index("model")["srp"]
    for model, (score, level) in PUBLISHED.items():
        rates = experts[experts["model"] == model]
        assert lrc.chance(rates, 16)["srp"].tolist() == pytest.approx([level], abs=6e-4)
        assert scores[model] == pytest.approx(score, abs=6e-4)


def read_npz(path):
    """A public trace in the layout of shared/traces."""
    with np.load(path, allow_pickle=False) as data:
        lengths = np.diff(data["offsets"])
        ids = data["expert_ids"]
        experts = np.full((len(lengths), lengths.max(), *ids.shape[1:]), -1, np.int16)
        experts[np.arange(lengths.max()) < lengths[:, None]] = ids
        return lrc.Trace(
            experts, int(data["num_experts"]), lengths=lengths, datasets=data["dataset"].tolist()
        )


@pytest.mark.parametrize(
    ("name", "ladder"),
    [
        ("deepseek-v2-lite", (0.316, 0.361, 0.364, 0.416)),
        ("gpt-oss-20b", (0.403, 0.423, 0.489, 0.536)),
    ],
)
def test_ladder_of_real_traces(shared, name, ladder):
    trace = read_npz(shared / "traces" / name / f"{name}.npz")
    steps = [lrc.shuffle(trace, level) for level in ("all", "domain", "sequence")] + [trace]
    found = [lrc.srp(step, 16).loc[0, "srp"] for step in steps]
    assert found == pytest.approx(list(ladder), abs=1.5e-3)
    # The binomial level at the rates of all tokens is that of tokens shuffled everywhere.
    rates = lrc.srp(trace, 1, level="expert").drop(columns="segment_length")
    assert lrc.chance(rates, 16).loc[0, "srp"] == pytest.approx(found[0], abs=6e-4)


def test_bad_arguments_are_explained():
    trace = lrc.Trace([[[[0]], [[1]]]], num_experts=2)
    rates = pd.DataFrame({"expert": [0, 1], "activation_rate": [0.5, 0.5]})
    for arguments, message in [
        ({"measure": "hits"}, "measure is .hits."),
        ({"level": "token"}, "level is 'token'"),
        ({"segment_lengths": (0,)}, "segment_lengths is"),
        ({"segment_lengths": 2.5}, "segment_lengths is 2.5"),
    ]:
        with pytest.raises(lrc.LrcError, match=message):
            lrc.chance(trace, **arguments)
    for source, message in [
        (rates.drop(columns="activation_rate"), "need 'activation_rate'"),
        (rates.assign(activation_rate=1.5), "an activation rate is 1.5"),
        (rates.assign(activation_rate=np.nan), "an activation rate is nan"),
        (64, r"\(num_experts, top_k\), but got int"),
        ((64, 8, 2), "but got tuple"),
        ((8, 64), "an activation rate is 8.0"),
        ((64.0, 8), "num_experts is 64.0"),
        ((0, 1), "num_experts is 0"),
    ]:
        with pytest.raises(lrc.LrcError, match=message):
            lrc.chance(source)
    with pytest.raises(lrc.LrcError, match="no column 'layer', which level='layer' needs"):
        lrc.chance(rates, level="layer")
    with pytest.raises(lrc.LrcError, match="no labels"):
        lrc.shuffle(trace, "domain")
    with pytest.raises(lrc.LrcError, match="needs a trace with token_ids"):
        lrc.shuffle(trace, "token")
    with pytest.raises(lrc.LrcError, match="level is 'text'"):
        lrc.shuffle(trace, "text")


def test_excess_wants_one_level_for_each_row():
    observed = pd.DataFrame({"layer": [0, 1], "segment_length": [4, 4], "srp": [0.5, 0.6]})
    expected = observed.assign(srp=0.2)
    both = lrc.excess(observed, expected)
    assert both["excess"].tolist() == pytest.approx([0.375, 0.5])
    pd.testing.assert_frame_equal(lrc.excess(both, expected), both)
    models = [observed.assign(model="a"), observed.assign(model="b", srp=[0.7, 0.8])]
    levels = [expected.assign(model="b", srp=0.6), expected.assign(model="a")]
    found = lrc.excess(pd.concat(models), pd.concat(levels))
    assert found["excess"].tolist() == pytest.approx([0.375, 0.5, 0.25, 0.5])
    with pytest.raises(lrc.LrcError, match=r"no chance level for .*'layer': 1"):
        lrc.excess(observed, expected[:1])
    with pytest.raises(lrc.LrcError, match="column 'layer' must be in both"):
        lrc.excess(observed, expected.drop(columns="layer"))
    with pytest.raises(lrc.LrcError, match="column 'segment_length' must be in both"):
        lrc.excess(observed[["srp"]], expected[["srp"]])
    with pytest.raises(lrc.LrcError, match="several chance levels"):
        lrc.excess(observed, pd.concat([expected, expected]))


def test_nothing_to_measure_gives_an_empty_table():
    trace = lrc.Trace([[[[0]], [[1]]]], num_experts=2)
    assert lrc.srp(trace, 16).empty
    found = lrc.chance(trace, 16)
    assert found.empty
    assert list(found) == ["segment_length", "srp", "size_ratio", "activation_rate"]


# --- Without replacement, and caches: what shuffled tokens give --------------------------------


def orders(trace):
    """The trace with its tokens in every order, each as a trace."""
    places = [(i, t) for i, n in enumerate(trace.lengths.tolist()) for t in range(n)]
    tokens = [trace.experts[place].copy() for place in places]
    for order in permutations(range(len(places))):
        experts = trace.experts.copy()
        for place, chosen in zip(places, order, strict=True):
            experts[place] = tokens[chosen]
        yield lrc.Trace(experts, trace.num_experts, lengths=trace.lengths, datasets=trace.datasets)


TOYS = 1.5e-3
few_tokens = traces(max_sequences=2, max_tokens=2, max_layers=2, max_experts=4)


@given(few_tokens, st.integers(1, 3))
def test_without_replacement_counts_are_those_of_all_orders(trace, m):
    found = lrc.chance(trace, m, replacement=False)
    counts = Counter()
    for one in orders(trace):
        counts.update(plain.segments(one, m))
    assert len(found) == (m <= trace.lengths.max())
    if len(found):
        pooled = list(counts.elements())
        srp, _, rate = plain.srp(pooled, m)
        assert found.loc[0, "srp"] == pytest.approx(float(srp), abs=1e-9)
        assert found.loc[0, "activation_rate"] == pytest.approx(float(rate), abs=1e-9)


@given(traces(datasets=True, max_tokens=8), st.sampled_from(["model", "layer", "expert"]))
def test_without_replacement_there_are_the_rows_of_srp(trace, level):
    for by_dataset in (False, True):
        observed = lrc.srp(trace, (2, 5), level=level, by_dataset=by_dataset)
        options = {"level": level, "by_dataset": by_dataset, "replacement": False}
        assert len(lrc.excess(observed, lrc.chance(trace, (2, 5), **options))) == len(observed)


@pytest.mark.parametrize("toy", ["baseline", "no_balance", "fewer_active"])
def test_shuffled_toys_meet_both_formulas(toy):
    """Of each segment length; over 100,000 tokens nearly nothing depends on replacement."""
    trace = lrc.resolve_trace(f"toy:{toy}")
    lengths = (4, 16, 64, 256)
    shuffled = lrc.srp(lrc.shuffle(trace), lengths)["srp"]
    rates = lrc.srp(trace, 1, level="expert").drop(columns="segment_length")
    for expected in (lrc.chance(rates, lengths), lrc.chance(trace, lengths, replacement=False)):
        assert shuffled.to_numpy() == pytest.approx(expected["srp"].to_numpy(), abs=TOYS)


@pytest.mark.parametrize("measure", ["sch", "static", "hit_rates"])
def test_caches_are_averaged_over_shuffles(measure):
    """The mean over many shuffles is that over every order, by the plain replay."""
    trace = lrc.Trace([[[[0, 1]], [[0, 2]], [[3, 0]]], [[[1, 2]], [[1, 0]], [[-1, -1]]]], 4)
    trace = lrc.Trace(trace.experts, 4, lengths=[3, 2])
    options = {"measure": measure, "policies": ["lru", "belady"], "repeats": 400}
    if measure == "static":
        options |= {"measure": "sch", "definition": "static"}
    found = lrc.chance(trace, (2,), **options)
    keys = ["segment_length"] if "segment_length" in found else ["policy"]
    assert list(found) == [*keys, "cache_size", "cache_ratio", "hit_rate", "sd"]
    for row in found.to_dict("records"):
        hits = uses = 0
        for one in orders(trace):
            for i in range(2):
                tokens = plain.uses(one, i, [0])
                if measure == "static":
                    more = plain.hits_of_best_sets(tokens, row["cache_size"], 2)
                else:
                    policy = row.get("policy", "lookahead")
                    more = plain.hits_of_replay(tokens, row["cache_size"], policy, 2)
                    more = more, sum(map(len, tokens))
                hits, uses = hits + more[0], uses + more[1]
        assert row["hit_rate"] == pytest.approx(hits / uses, abs=0.25 * row["sd"] + 1e-12)


@given(traces(datasets=True, max_tokens=8), st.booleans(), st.sampled_from(["model", "layer"]))
@settings(max_examples=30)
def test_rows_and_columns_are_those_of_caches(trace, by_dataset, level):
    where = {"by_dataset": by_dataset, "level": level}
    for observed, options in [
        (lrc.sch(trace, (2, 5), **where), {"measure": "sch"}),
        (lrc.sch(trace, 2, definition="static", **where), {"definition": "static"}),
        (lrc.hit_rates(trace, "lfu", **where), {"measure": "hit_rates", "policies": "lfu"}),
    ]:
        lengths = 2 if "definition" in options else (2, 5)
        options = {"measure": "sch", "repeats": 2, **options}
        expected = lrc.chance(trace, lengths, **where, **options)
        assert [name for name in expected if name != "sd"] == list(observed)
        assert len(observed) == len(expected)
        both = lrc.excess(observed, expected)
        assert list(both) == [*observed, "chance", "excess"]
        room = 1 - both["chance"]
        gain = (both["hit_rate"] - both["chance"]) * (room > 1e-12)
        np.testing.assert_allclose(both["excess"] * room, gain, atol=1e-12)


def independent(sequences=40, tokens=300, experts=24, top_k=3):
    """Tokens routed independently by a router that likes some experts better."""
    random = np.random.default_rng(5)
    noise = random.gumbel(size=(sequences, tokens, experts)) + np.linspace(0, 3, experts)
    return lrc.Trace(np.argsort(-noise, axis=-1)[:, :, None, :top_k], experts)


def test_a_router_without_memory_has_no_excess():
    trace = independent()
    for observed, options in [
        (lrc.sch(trace, 16), {"measure": "sch"}),
        (lrc.sch(trace, 16, definition="static"), {"measure": "sch", "definition": "static"}),
        (lrc.hit_rates(trace), {"measure": "hit_rates"}),
    ]:
        expected = lrc.chance(trace, 16, **options)
        # Where chance leaves nearly no room, excess is a ratio of two small differences.
        assert lrc.excess(observed, expected).query("chance < 0.95")["excess"].abs().max() < 0.02
        assert expected["sd"].max() < 0.005


def test_static_sch_by_chance_lies_between_its_bounds():
    """A window's best set hits what the most popular experts do, or more; and less than if slots
    could be moved between windows, which the pooled histogram tells."""
    trace, m = independent(), 16
    found = lrc.chance(trace, m, measure="sch", definition="static")["hit_rate"].to_numpy()
    rates = lrc.srp(trace, 1, level="expert")["activation_rate"].to_numpy()
    popular = np.sort(rates)[::-1].cumsum() / rates.sum()
    count = np.arange(m + 1)
    histogram = binom.pmf(count, m, rates[:, None]).sum(axis=0)
    counts, sizes = np.repeat(count[::-1], 1), histogram[::-1].cumsum()
    gained = (histogram[::-1] * counts).cumsum()
    best = np.interp(np.arange(1, len(rates) + 1), np.append(0, sizes), np.append(0, gained))
    assert (found >= popular - 0.002).all()
    assert (found <= best / (m * rates.sum()) + 0.002).all()
    assert found[5] > popular[5] + 0.02


def test_lru_by_chance_is_near_ches_approximation():
    """An expert is in the cache if it was used within the time that fills the cache."""
    trace = independent()
    found = lrc.chance(trace, measure="hit_rates", policies="lru")["hit_rate"].to_numpy()
    rates = lrc.srp(trace, 1, level="expert")["activation_rate"].to_numpy()
    for size in (6, 12, 18):
        time = brentq(lambda t, size=size: (1 - (1 - rates) ** t).sum() - size, 1e-6, 1e6)
        expected = (rates * (1 - (1 - rates) ** time)).sum() / rates.sum()
        assert found[size - 1] == pytest.approx(expected, abs=0.02)


def test_bad_arguments_of_caches_are_explained():
    trace = lrc.Trace([[[[0]], [[1]]]], num_experts=2)
    for source, arguments, message in [
        (trace, {"measure": "sch", "level": "expert"}, "for sch it must be 'model' or 'layer'"),
        ((8, 2), {"measure": "hit_rates"}, "no formula that needs rates only: give the trace"),
        (trace, {"measure": "sch", "repeats": 0}, "repeats is 0"),
        ((8, 2), {"replacement": False}, "expected a lrc.Trace"),
    ]:
        with pytest.raises(lrc.LrcError, match=message):
            lrc.chance(source, **arguments)
    with pytest.raises(lrc.LrcError, match="both tables must have a column 'srp'"):
        lrc.excess(lrc.srp(trace, 2), lrc.srp(trace, 2).drop(columns="srp"))
    with pytest.raises(lrc.LrcError, match="column 'segment_length' must be in both"):
        lrc.excess(lrc.sch(trace, 2), lrc.hit_rates(trace))
