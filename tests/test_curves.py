"""Reading hit-rate curves, against plain loops over sizes and curves worked by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import traces

import lrc
from lrc import curves


def curve(*rates, k=1, **more):
    """A curve with caches of 1, 2, … slots, at k active experts."""
    sizes = np.arange(1, len(rates) + 1)
    table = {"cache_size": sizes, "cache_ratio": sizes / k, "hit_rate": rates}
    return pd.DataFrame(more | table)


BENT = curve(0.5, 0.8, 0.9, 0.95, 0.98, 1.0)


@st.composite
def rising(draw):
    """Random rising curve of ratios 1/k, 2/k, … that ends at 1, as a table."""
    k = draw(st.integers(1, 5))
    steps = draw(st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(sum))
    return curve(*(np.cumsum(steps) / sum(steps)), k=k)


def plain_rate(table, ratio):
    """Value of the polyline from (0, 0) through the table's points, level after the last."""
    points = [(0, 0), *zip(table["cache_ratio"], table["hit_rate"], strict=True)]
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= ratio <= right:
            return low + (high - low) * (ratio - left) / (right - left)
    return points[-1][1]


class TestCompare:
    @pytest.mark.parametrize("level", ["model", "layer"])
    def test_holds_what_the_measures_give(self, level):
        experts = np.random.default_rng(0).permuted(np.tile(np.arange(6), (4, 9, 2, 1)), axis=-1)
        trace = lrc.Trace(experts[..., :2], 6)
        table = curves.compare(trace, ("sch", "lru", "static"), segment_length=3, level=level)
        assert table["policy"].unique().tolist() == ["sch", "lru", "static"]
        parts = {
            "lru": lrc.hit_rates(trace, "lru", level=level),
            "sch": lrc.sch(trace, 3, level=level),
            "static": lrc.sch(trace, 3, level=level, definition="static"),
        }
        for policy, part in parts.items():
            mine = table[table["policy"] == policy].drop(columns="policy")
            theirs = part.drop(columns=["policy", "segment_length"], errors="ignore")
            pd.testing.assert_frame_equal(mine.reset_index(drop=True), theirs)

    def test_has_no_rows_for_what_cannot_be_measured(self):
        table = curves.compare(lrc.Trace([[[[0]], [[1]]]], 2), ("static", "lru"), segment_length=3)
        assert table["policy"].unique().tolist() == ["lru"]

    def test_names_an_unknown_policy(self):
        with pytest.raises(lrc.LrcError, match="'fifo' is unknown"):
            curves.compare(lrc.Trace([[[[0]]]], 2), ["fifo"])


class TestOfPublishedModels:
    def test_holds_the_published_points(self):
        table = curves.of_published_models(64)
        assert table["policy"].unique().tolist() == ["sch", "lru", "lfu", "belady"]
        assert table["model"].nunique() == 22  # 20 models, two of them with two parts
        sch = lrc.published.table("sch_model", vintage="HEAD").query("seg_len == 64")
        lru = lrc.published.table("chr_model", vintage="HEAD").query("policy == 'LRU'")
        for policy, value, source in (("sch", "sch", sch), ("lru", "hit_rate", lru)):
            for model, name, decoder in (("olmoe", "olmoe", 1), ("nllb", "nllb encoder", 0)):
                rows = source[(source["model"] == model) & (source["is_decoder"] == decoder)]
                mine = table[(table["model"] == name) & (table["policy"] == policy)]
                mine = mine[mine["cache_ratio"] <= 4].sort_values("cache_ratio")
                assert mine["cache_ratio"].tolist() == rows.sort_values("rho")["rho"].tolist()
                assert mine["hit_rate"].tolist() == rows.sort_values("rho")[value].tolist()

    def test_ends_where_every_expert_has_a_slot(self):
        table = curves.of_published_models()
        last = table.sort_values("cache_ratio").groupby(["model", "policy"]).last()
        assert (last["hit_rate"] == 1).all()
        assert last.loc[("jetmoe", "lru"), "cache_ratio"] == 4
        assert last.loc[("switch decoder", "sch"), "cache_ratio"] == 128
        assert not table.duplicated(["model", "policy", "cache_ratio"]).any()

    def test_is_of_one_vintage(self):
        table = curves.at_ratios(curves.of_published_models(), 2)
        mixtral = table[(table["model"] == "mixtral") & (table["policy"] == "sch")]
        ends = lrc.published.table("sch_rho2_ci", vintage="HEAD")
        [end] = ends.query("model == 'mixtral' and seg_len == 16").to_dict("records")
        assert end["ci_lo"] <= mixtral["hit_rate"].item() <= end["ci_hi"]

    def test_names_the_segment_lengths_there_are(self):
        with pytest.raises(lrc.LrcError, match=r"\[4, 16, 64, 256\]"):
            curves.of_published_models(10)


class TestOverLayers:
    def test_adds_slots_and_averages_rates(self):
        low, high = curve(0.2, 1.0, layer=0, policy="lru"), curve(0.6, 1.0, layer=1, policy="lru")
        mean = curves.over_layers(pd.concat([low, high]))
        assert list(mean) == ["policy", "cache_size", "cache_ratio", "hit_rate"]
        assert mean["cache_size"].tolist() == [2, 4]
        assert mean["cache_ratio"].tolist() == [1, 2]
        assert mean["hit_rate"].tolist() == pytest.approx([0.4, 1.0])

    def test_leaves_a_shared_cache_alone(self):
        assert curves.over_layers(BENT) is BENT

    @given(traces())
    def test_one_layer_is_its_own_mean(self, trace):
        trace = trace.select(layers=[0])
        layer, model = (curves.compare(trace, ("lru", "sch"), level=v) for v in ("layer", "model"))
        pd.testing.assert_frame_equal(curves.over_layers(layer), model)

    @given(traces())
    def test_is_the_mean_of_each_layer_by_itself(self, trace):
        rows = curves.compare(trace, "lru", level="layer")
        for _, row in curves.over_layers(rows).iterrows():
            alike = rows[rows["cache_ratio"] == row["cache_ratio"]]
            assert row["cache_size"] == sum(alike["cache_size"])
            assert row["hit_rate"] == pytest.approx(sum(alike["hit_rate"]) / len(alike))


class TestAtRatios:
    def test_is_exact_at_sizes_straight_between_and_level_beyond(self):
        found = curves.at_ratios(BENT, (0.5, 1, 1.5, 2, 6, 9))
        assert found["hit_rate"].tolist() == pytest.approx([0.25, 0.5, 0.65, 0.8, 1, 1])

    @given(rising(), st.lists(st.floats(0, 15), min_size=1, max_size=4))
    def test_agrees_with_the_polyline(self, table, ratios):
        found = curves.at_ratios(table, ratios)
        assert found["hit_rate"].tolist() == pytest.approx([plain_rate(table, r) for r in ratios])

    def test_keeps_curves_apart_and_carries_intervals(self):
        table = pd.concat([BENT.assign(policy="lru"), curve(0.1, 0.2, policy="lfu")])
        table["ci_low"] = table["hit_rate"] - 0.1
        found = curves.at_ratios(table, 2)
        assert found["policy"].tolist() == ["lru", "lfu"]
        assert found["hit_rate"].tolist() == [0.8, 0.2]
        assert found["ci_low"].tolist() == pytest.approx([0.7, 0.1])


class TestSmallest:
    def test_finds_the_size_and_those_not_excluded(self):
        table = BENT.assign(ci_low=BENT["hit_rate"] - 0.15, ci_high=BENT["hit_rate"] + 0.15)
        [row] = curves.smallest(table, 0.9).to_dict("records")
        assert (row["size_low"], row["cache_size"]) == (2, 3)
        assert pd.isna(row["size_high"])
        assert row["ratio_low"] == 2
        assert math.isnan(row["ratio_high"])

    def test_says_so_when_a_curve_stays_below(self):
        [row] = curves.smallest(curve(0.1, 0.3), 0.5).to_dict("records")
        assert pd.isna(row["cache_size"])
        assert math.isnan(row["cache_ratio"])

    def test_needs_no_sizes(self):
        found = curves.smallest(BENT.drop(columns="cache_size"), 0.9)
        assert found.to_dict("records") == [{"cache_ratio": 3}]

    @given(traces(), st.floats(0.01, 1))
    def test_is_the_first_that_reaches_the_target(self, trace, target):
        table = curves.compare(trace, ("lru", "sch"))
        if table.empty:
            return
        for _, row in curves.smallest(table, target).iterrows():
            rates = table.loc[table["policy"] == row["policy"], "hit_rate"].tolist()
            first = next(size for size, rate in enumerate(rates, 1) if rate >= target)
            assert row["cache_size"] == first

    @pytest.mark.parametrize("target", [0, 1.2, -1, math.nan])
    def test_refuses_what_is_no_hit_rate(self, target):
        with pytest.raises(lrc.LrcError, match="hit rate above 0"):
            curves.smallest(BENT, target)


class TestBends:
    def test_chord_by_hand(self):
        # Line to (4, 0.95): heights 0.2625, 0.325, 0.1875 at 1, 2, 3.
        [row] = curves.bends(BENT).to_dict("records")
        assert row == {"cache_ratio": 2, "hit_rate": 0.8, "height": pytest.approx(0.325)}

    def test_gain_by_hand(self):
        # One more unit adds 0.5, 0.3, 0.1, 0.05 from 0, 1, 2, 3.
        assert curves.bends(BENT, "gain")["cache_ratio"].tolist() == [3]
        assert curves.bends(BENT, "gain", gain=0.2)["cache_ratio"].tolist() == [2]
        assert curves.bends(BENT, "gain", gain=0.6)["cache_ratio"].tolist() == [0]
        assert math.isnan(curves.bends(BENT, "gain", gain=0.04)["cache_ratio"].item())

    def test_the_bend_of_a_chord_moves_with_its_reach(self):
        # To (2, 0.8): 0.1 at 1. To (6, 1): 0.467, 0.4 at 2, 3.
        smooth = curve(*(1 - np.exp(-0.7 * np.arange(1, 25) / 4)), k=4)
        found = [curves.bends(smooth, reach=r)["cache_ratio"].item() for r in (2, 3, 4, 6)]
        assert found == sorted(found)
        assert found[0] < found[-1]

    def test_a_straight_line_has_no_height(self):
        [row] = curves.bends(curve(0.25, 0.5, 0.75, 1)).to_dict("records")
        assert row == {"cache_ratio": 0, "hit_rate": 0, "height": 0}

    @given(rising(), st.floats(1.5, 6))
    def test_chord_agrees_with_a_plain_search(self, table, reach):
        [row] = curves.bends(table, reach=reach).to_dict("records")
        places = [0, *(x for x in table["cache_ratio"] if x < reach), reach]
        end = plain_rate(table, reach)
        heights = [plain_rate(table, x) - x * end / reach for x in places]
        assert row["height"] == pytest.approx(max(heights), abs=1e-9)
        assert row["hit_rate"] == pytest.approx(plain_rate(table, row["cache_ratio"]))

    @given(rising(), st.floats(1.5, 6), st.sampled_from([0.05, 0.1, 0.3]))
    def test_gain_agrees_with_a_plain_search(self, table, reach, gain):
        [row] = curves.bends(table, "gain", reach=reach, gain=gain).to_dict("records")
        places = [0, *(x for x in table["cache_ratio"] if x < reach - 1), reach - 1]
        gains = [plain_rate(table, x + 1) - plain_rate(table, x) for x in places]
        worth = [round(more, 12) >= gain for more in gains]
        if worth[-1]:
            assert math.isnan(row["cache_ratio"])
        else:
            first = next(i for i in range(len(places)) if not any(worth[i:]))
            assert row["cache_ratio"] == places[first]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"criterion": "eye"}, "'chord' or 'gain'"), ({"reach": 1}, "above 1")],
    )
    def test_refuses_what_it_does_not_know(self, options, message):
        with pytest.raises(lrc.LrcError, match=message):
            curves.bends(BENT, **options)


def test_says_which_column_is_missing():
    with pytest.raises(lrc.LrcError, match="no column 'hit_rate'"):
        curves.at_ratios(BENT.drop(columns="hit_rate"))


def test_says_that_there_is_nothing_to_read():
    with pytest.raises(lrc.LrcError, match="no curve"):
        curves.smallest(BENT.assign(policy="lru").head(0), 0.5)


def test_beyond_chance_is_compared_with_shuffled_tokens():
    trace = lrc.Trace((np.arange(48) // 4 % 3).reshape(2, 24, 1, 1), num_experts=4)
    found = curves.beyond_chance(trace, ("lru", "sch"), segment_length=4, repeats=2, seed=3)
    plain = curves.compare(trace, ("lru", "sch"), segment_length=4)
    assert found["hit_rate"].equals(plain["hit_rate"])
    lru = lrc.chance(trace, measure="hit_rates", policies="lru", repeats=2, seed=3)["hit_rate"]
    sch = lrc.chance(trace, 4, measure="sch", repeats=2, seed=3)["hit_rate"]
    assert found["chance"].tolist() == [*lru, *sch]
    assert found.loc[0, "excess"] > 0.2
    with pytest.raises(lrc.LrcError, match="repeats is 0"):
        curves.beyond_chance(trace, repeats=0)
