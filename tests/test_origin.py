"""Traces whose consistency has one known origin, and the sum of all parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import origin

SHAPE = {"sequences": 48, "tokens": 512, "num_experts": 16, "top_k": 4}


def routed(preference, seed=0):
    """Tokens routed independently, with the odds `preference` [sequences, tokens, experts]."""
    random = np.random.default_rng(seed)
    noise = random.gumbel(size=(SHAPE["sequences"], SHAPE["tokens"], SHAPE["num_experts"]))
    chosen = np.argsort(-(preference + noise), axis=-1)[..., : SHAPE["top_k"]]
    datasets = np.arange(SHAPE["sequences"]) % 4
    return lrc.Trace(chosen[:, :, None], SHAPE["num_experts"], datasets=datasets.astype(str))


def preference(kind):
    random = np.random.default_rng(1)
    experts, sequences, tokens = (SHAPE[name] for name in ("num_experts", "sequences", "tokens"))
    if kind == "popularity":
        return np.broadcast_to(2 * random.normal(size=experts), (sequences, tokens, experts))
    if kind == "domain":
        taste = 2 * random.normal(size=(4, 1, experts))[np.arange(sequences) % 4]
    elif kind == "text":
        taste = 2 * random.normal(size=(sequences, 1, experts))
    else:  # Other experts every 16 tokens.
        taste = np.repeat(2 * random.normal(size=(sequences, tokens // 16, experts)), 16, axis=1)
    return np.broadcast_to(taste, (sequences, tokens, experts))


@pytest.mark.parametrize("kind", ["domain", "text", "order"])
def test_finds_where_consistency_comes_from(kind):
    found = origin.decompose(routed(preference(kind))).set_index("source")["share"]
    assert found[kind] > 0.85
    assert found.drop(kind).abs().max() < 0.15


def test_popular_experts_are_no_memory():
    found = origin.decompose(routed(preference("popularity"))).set_index("source")["gain"]
    assert found["popularity"] > 0.5
    assert found.drop("popularity").abs().max() < 0.01


@settings(max_examples=20)
@given(traces())
def test_parts_add_up_to_srp(trace):
    for level in ("model", "layer"):
        found = origin.decompose(trace, (1, 3), level=level, repeats=1)
        expected = lrc.srp(trace, (1, 3), level=level)
        keys = [name for name in ("layer", "segment_length") if name in expected]
        gains = found.groupby(keys)["gain"].sum() if len(found) else found["gain"]
        assert np.allclose(gains, expected["srp"], atol=1e-12)
        shares = found.dropna(subset="share").groupby(keys)["share"].sum()
        assert np.allclose(shares, 1)
        several = trace.datasets is not None and len(trace.dataset_names) > 1
        assert ("domain" in set(found["source"])) == (several and len(expected) > 0)


def test_labels_are_dealt_out_anew_and_nothing_else_changes():
    trace = routed(preference("domain"))
    dealt = lrc.shuffle_labels(trace, seed=3)
    assert (dealt.experts == trace.experts).all()
    assert sorted(dealt.datasets) == sorted(trace.datasets)
    assert list(dealt.datasets) != list(trace.datasets)
    assert dealt.equals(lrc.shuffle_labels(trace, seed=3))
    with pytest.raises(lrc.LrcError, match="no labels to shuffle"):
        lrc.shuffle_labels(lrc.Trace([[[[0]]]], 2))


@settings(max_examples=20)
@given(traces(datasets=True, max_tokens=8), st.sampled_from(["srp", "sch", "hit_rates"]))
def test_rungs_are_the_measure_of_shuffled_traces(trace, measure):
    options = {"level": "layer"} | ({} if measure == "hit_rates" else {"segment_lengths": (1, 3)})
    found = lrc.ladder(trace, (1, 3), measure=measure, level="layer", repeats=2, seed=4)
    value = "srp" if measure == "srp" else "hit_rate"
    pools = {"popularity": "all", "domain": "domain", "text": "sequence"}
    if trace.num_sequences == 1:
        del pools["popularity"]
    if len(trace.dataset_names) < 2:
        del pools["domain"]
    for rung, pool in pools.items():
        tables = [
            getattr(lrc, measure)(lrc.shuffle(trace, pool, seed=s), **options) for s in (4, 5)
        ]
        here = found[found["rung"] == rung]
        values = np.array([table[value] for table in tables])
        assert np.allclose(here[value], values.mean(axis=0), atol=1e-12)
        assert np.allclose(here["sd"], values.std(axis=0, ddof=1), atol=1e-12)
    top = found[found["rung"] == "order"].drop(columns=["rung", "sd"]).reset_index(drop=True)
    assert top.equals(getattr(lrc, measure)(trace, **options))
    assert list(found["rung"].unique()) == [*pools, "order"] * (len(top) > 0)


def test_intervals_of_rungs():
    trace = routed(preference("text"))
    plain, found = lrc.ladder(trace, 16, repeats=3), lrc.ladder(trace, 16, repeats=3, bootstrap=50)
    assert found[list(plain)].equals(plain)
    top = lrc.srp(trace, 16, bootstrap=50)
    assert found[["ci_low", "ci_high"]].iloc[-1].equals(top[["ci_low", "ci_high"]].iloc[0])
    lower = found.iloc[:-1]
    error = 1.96 * lower["sd"] / np.sqrt(3)
    assert np.allclose(lower["srp"] - lower["ci_low"], error)
    assert np.allclose(lower["ci_high"] - lower["srp"], error)


def test_rungs_and_parts_agree():
    trace = routed(preference("text"))
    rungs = lrc.ladder(trace, 16).set_index("rung")["srp"]
    parts = lrc.decompose(trace, 16).set_index("source")["gain"]
    assert parts["popularity"] == pytest.approx(rungs["popularity"])
    assert parts["order"] == pytest.approx(rungs["order"] - rungs["text"])
    assert parts["domain"] + parts["text"] == pytest.approx(rungs["text"] - rungs["popularity"])


def test_wants_a_shuffle():
    trace = lrc.Trace([[[[0]], [[1]]]], num_experts=2)
    with pytest.raises(lrc.LrcError, match="repeats is 0"):
        lrc.decompose(trace, 2, repeats=0)
    with pytest.raises(lrc.LrcError, match="repeats is 0"):
        lrc.ladder(trace, 2, repeats=0)
    with pytest.raises(lrc.LrcError, match="measure is 'x', but must be one of srp, sch"):
        lrc.ladder(trace, 2, measure="x")
