"""What the rule of two costs: against single replays, and on curves whose answer is known."""

import numpy as np
import pandas as pd
import pytest

import lrc
from lrc import rule_of_two

TOY = lrc.toys.load_trace("baseline").select(slice(0, None, 8))


def straight(slope):
    """A curve whose hit rate is `slope` times the ratio, up to ratio 8."""
    ratios = np.linspace(0.1, 8, 80)
    return pd.DataFrame({"cache_ratio": ratios, "hit_rate": slope * ratios})


def test_losses_of_a_straight_curve():
    table = rule_of_two.losses({"a": straight(0.1)}, (0.125, 0.5), (0, 4))
    small, large = table.to_dict("records")
    assert (small["best_ratio"], small["best"]) == (1, pytest.approx(0.1))
    assert np.isnan([small["two"], small["lost"], small["slower_4"]]).all()
    assert large["lost"] == pytest.approx(0.4 - 0.2)
    assert large["slower_0"] == 0
    # Steps of 1 + 4 * 0.6 and 1 + 4 * 0.8 times the computing.
    assert large["slower_4"] == pytest.approx(1 - 3.4 / 4.2)


def test_losses_of_a_trace_are_those_of_its_replays():
    table = rule_of_two.losses({"toy": lrc.size_cache(TOY, bootstrap=0).curve}, (0.5,))
    best, two = (lrc.replay(TOY, cache_size=size).hit_rate for size in (128, 64))
    row = table.iloc[0]
    assert (row["best"], row["two"]) == (pytest.approx(best), pytest.approx(two))


@pytest.mark.parametrize("arguments", [{"shares": (0,)}, {"shares": (1.1,)}, {"waits": (-1,)}])
def test_devices_that_cannot_be(arguments):
    with pytest.raises(lrc.LrcError, match=r"shares .* must be above 0"):
        rule_of_two.losses({}, **arguments)


def test_the_knees_of_several():
    sizings = {"toy": lrc.size_cache(TOY, bootstrap=40), "qwen3": lrc.size_cache("qwen3")}
    table = rule_of_two.knee_table(sizings)
    assert table["model"].tolist() == ["toy", "toy", "qwen3", "qwen3"]
    assert table["criterion"].tolist() == ["gain", "chord"] * 2
    known = table.dropna()
    assert (
        (known["ci_low"] <= known["cache_ratio"]) & (known["cache_ratio"] <= known["ci_high"])
    ).all()


def test_bends_of_published_curves_move_with_the_error_of_reading():
    curves = lrc.curves.of_published_models()
    curves = curves[
        curves["model"].isin(["qwen3", "jamba"]) & curves["policy"].isin(["sch", "lru"])
    ]
    for criterion in ("chord", "gain"):
        table = rule_of_two.read_bends(curves, criterion, draws=40)
        plain = lrc.curves.bends(curves, criterion)
        pd.testing.assert_frame_equal(table[list(plain)], plain)
        known = table.dropna(subset=["cache_ratio", "ci_low", "ci_high"])
        assert len(known) >= 2
        assert (known["ci_low"] <= known["cache_ratio"]).all()
        assert (known["cache_ratio"] <= known["ci_high"]).all()
        assert (known["ci_low"] < known["ci_high"]).any()


def test_divisions_are_judged_on_other_texts():
    table = rule_of_two.divisions(TOY, (0.5, 1, 2, 3, 9)).set_index("cache_ratio")
    assert table.index.tolist() == [1, 2, 3]
    judged, fitted = TOY.select(slice(1, None, 2)), TOY.select(slice(0, None, 2))
    assert table.loc[2, "shared"] == lrc.replay(judged, cache_size=64).hit_rate
    even = lrc.replay(judged, cache_size=16, level="layer")
    assert table.loc[2, "even"] == even.hit_rate
    split = lrc.size_cache(fitted, cache_size=64, bootstrap=0).split["best"].tolist()
    best = lrc.replay(judged, cache_size=split, level="layer")
    assert table.loc[2, "best"] == best.hit_rate
    assert (table["best_fitted"] <= table["bound"] + 1e-12).all()
    assert table.loc[1, "best"] == table.loc[1, "even"]  # a token's experts leave no choice


def test_a_single_text_is_cut_in_two():
    one = TOY.select([0])
    table = rule_of_two.divisions(one, (2,))
    later = lrc.Trace(one.experts[:, 256:], one.num_experts)
    assert table["shared"].item() == lrc.replay(later, cache_size=64).hit_rate


def test_a_single_layer_has_nothing_to_divide():
    with pytest.raises(lrc.LrcError, match="nothing to divide"):
        rule_of_two.divisions(TOY.select(layers=[0]))


def test_costs_of_the_toys_are_means_over_seeds():
    parts = []
    for seed, scale in ((0, 0.1), (1, 0.12)):
        parts.append(straight(scale).assign(model="no_balance", seed=seed, policy="lru"))
    row = rule_of_two.toy_costs(pd.concat(parts), (2,)).loc["no_balance"]
    assert row["two"] == pytest.approx(0.22)
    assert row["lost"] == pytest.approx(0.22)
    few = rule_of_two.divisions(lrc.toys.load_trace("no_balance").select(slice(0, None, 3)), (2,))
    assert row["even_2"] == few["even"].item()
    assert row["even_2"] + row["by_need_2"] == pytest.approx(few["best"].item())
    assert row["even_2"] + row["shared_2"] == pytest.approx(few["shared"].item())
