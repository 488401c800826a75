"""Traces whose consistency has one known origin, and the sum of all parts."""

import numpy as np
import pytest
from hypothesis import given, settings
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


def test_wants_a_shuffle():
    trace = lrc.Trace([[[[0]], [[1]]]], num_experts=2)
    with pytest.raises(lrc.LrcError, match="repeats is 0"):
        lrc.decompose(trace, 2, repeats=0)
