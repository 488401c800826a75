"""What foretells hit rates: the tables are those of one vintage, and the correlations plain."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lrc
from lrc import forecasts, published


@pytest.fixture(scope="module")
def levels():
    return forecasts.chance_levels(16, (1.0, 2.0), sequences=1)


def test_without_memory_models_are_below_themselves(levels):
    table = forecasts.over_models(16, (1.0, 2.0), levels=levels)
    assert table.groupby("cache_ratio").size().to_dict() == {1.0: 22, 2.0: 22}
    assert levels["hit_rate"].between(0, 1).all()
    # Half of 8 experts, used evenly and at random, are in the cache half of the time.
    row = levels.query("model == 'jetmoe' and policy == 'lru' and cache_ratio == 2")
    assert row["hit_rate"].item() == pytest.approx(0.5, abs=0.02)
    two = table.query("cache_ratio == 2").set_index("model")
    assert two.loc[two["lru_excess"] < 0].index.tolist() == ["llamamoe"]
    level = levels.query("model == 'qwen3' and policy == 'sch' and cache_ratio == 2")
    level = level["hit_rate"].item()
    assert two["sch_excess"]["qwen3"] == pytest.approx((two["sch"]["qwen3"] - level) / (1 - level))


def test_models_are_those_of_the_published_curves():
    table = forecasts.over_models(64, (2.0,)).set_index("model")
    known = published.table("sch_model", "HEAD").query("seg_len == 64 and rho == 2")
    known = known[known["model"] == "grin"]["sch"].item()
    assert table["sch"]["grin"] == pytest.approx(known)


def test_related_is_pearson_and_a_permutation_test():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"cache_ratio": 2.0, "srp": rng.normal(size=12)})
    table["lru"] = table["srp"] + rng.normal(size=12)
    row = forecasts.related(table, ["srp"], ["lru"], bootstrap=50).iloc[0]
    assert row["correlation"] == pytest.approx(stats.pearsonr(table["srp"], table["lru"]).statistic)
    rank = stats.spearmanr(table["srp"], table["lru"])
    assert row["rank_correlation"] == pytest.approx(rank.statistic)
    assert row["p"] == pytest.approx(rank.pvalue, abs=0.05)
    assert row["ci_low"] <= row["correlation"] <= row["ci_high"]
    assert row["models"] == 12


def test_pooling_adds_correlation_for_free():
    for vintage in ("v1.0", "HEAD"):
        table = forecasts.pooling(vintage, repeats=20)
        assert (table["wrong"] > 0.3).all()
        assert (table["wrong_2"].abs() < 0.25).all()
        assert (table["fixed_2"] > 0.9).all()
    with pytest.raises(lrc.LrcError, match=r"'v1\.0' and 'HEAD'"):
        forecasts.pooling("v2")


def test_toys_at_both_levels():
    whole, layers = (forecasts.toy_caches(16, (2,), level=level) for level in ("model", "layer"))
    assert len(whole) == len(lrc.toys.shipped())
    row = whole.query("model == 'baseline' and seed == 0").iloc[0]
    trace = lrc.toys.load_trace("baseline")
    assert row["srp"] == lrc.srp(trace, 16)["srp"].item()
    rates = lrc.hit_rates(trace, "lru")
    assert row["lru"] == pytest.approx(rates.query("cache_ratio == 2")["hit_rate"].item())
    assert set(layers.query("model == 'dense_half'")["layer"]) == {0, 1}
