"""Published models against chance: the numbers that lead the book."""

import numpy as np
import pandas as pd
import pytest

import lrc
from lrc.architectures import chance_from_spread, published_models, published_toys
from lrc.errors import LrcError


def test_twenty_models_or_their_parts():
    whole, parts = published_models(), published_models(parts=True)
    assert len(whole) == 20
    assert len(parts) == 22
    assert {"switch encoder", "switch decoder", "nllb encoder"} <= set(parts["model"])
    both = parts[parts["model"].str.startswith("nllb")]
    for value in ("srp", "chance", "excess", "activation_sd"):
        assert whole.set_index("model")[value]["nllb"] == pytest.approx(both[value].mean())
    assert sorted(whole["srp_rank"]) == list(range(1, 21))
    assert whole["srp_rank"].is_monotonic_increasing
    assert whole.set_index("model")["excess_rank"].idxmin() == "qwen3"


def test_known_chance_levels():
    """A first computation, done outside this project, printed three digits."""
    known = {
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
    table = published_models().set_index("model")
    for model, expected in known.items():
        measured = table.loc[model, ["srp", "chance"]].to_numpy(float)
        np.testing.assert_allclose(measured, expected, atol=6e-4, err_msg=model)


def test_spread_of_rates_is_the_paper_s():
    """Two figures of the paper, read independently: rates of experts, and their deviation."""
    paper = lrc.published.table("load_balance").query("family == 'REAL' and is_decoder == 1")
    paper = paper.set_index("model")["act_freq_sd_figure"]
    ours = published_models(parts=True).assign(
        model=lambda table: table["model"].str.removesuffix(" decoder")
    )
    ours = ours.set_index("model")["activation_sd"].loc[paper.index]
    np.testing.assert_allclose(ours, paper, atol=2e-4)


def test_designs_are_those_the_paper_names():
    table = published_models()
    assert table["moe_everywhere"].sum() == 14
    assert table["no_shared"].sum() == 14
    # "All of the first two groups have both", the paper says of its eleven best models.
    assert (table["moe_everywhere"] & table["no_shared"])[:11].all()
    assert not (table["moe_everywhere"] & table["no_shared"])[11:].any()
    np.testing.assert_allclose(table["active_share"], table["top_k"] / table["experts"], atol=1e-6)


def test_published_intervals_hold_the_values():
    parts, whole = published_models(parts=True), published_models()
    for table in (parts, whole):
        assert (table["srp_low"] < table["srp"]).all()
        assert (table["srp"] < table["srp_high"]).all()
    assert whole.set_index("model").loc["qwen3", ["srp_low", "srp_high"]].round(4).tolist() == [
        0.5410,
        0.5419,
    ]
    assert published_models(64)[["srp_low", "srp_high"]].isna().all(axis=None)


def test_other_segment_lengths():
    assert published_models(4)["srp"].min() > published_models(64)["srp"].min()
    assert len(published_models(256, parts=True)) == 21  # The Switch decoder is too short.
    with pytest.raises(LrcError, match="4, 16, 64, 256 tokens, not of 8"):
        published_models(8)
    with pytest.raises(LrcError, match="4, 16, 64, 256 tokens, not of 8"):
        published_toys(8)


def test_chance_from_spread_finds_the_chance_level_of_known_rates():
    rates = lrc.published.table("experts").rename(columns={"act_freq": "activation_rate"})
    errors = []
    for _, part in rates.groupby(["model", "is_decoder"]):
        exact = lrc.chance(part, (16,))["srp"].item()
        mean, spread = part["activation_rate"].mean(), part["activation_rate"].std()
        errors.append(abs(chance_from_spread(1, mean, spread) - exact))
    assert len(errors) == 22
    assert max(errors) < 0.012
    assert np.median(errors) < 0.001


def test_chance_from_no_spread_is_that_of_equal_experts():
    assert chance_from_spread(32, 4, 0.0, 64) == pytest.approx(
        lrc.chance((32, 4), (64,))["srp"].item()
    )
    with pytest.raises(LrcError, match=r"no activation rates have mean 0\.125"):
        chance_from_spread(64, 8, 0.4)
    with pytest.raises(LrcError, match="no activation rates"):
        chance_from_spread(64, 8, -0.1)


def test_published_toys_bear_our_names():
    table = published_toys()
    assert table["model"].tolist() == list(lrc.toys.VARIANTS)
    raw = lrc.published.table("toy_srp").set_index("name")
    labels = [variant.label for variant in lrc.toys.VARIANTS.values()]
    assert table["srp"].tolist() == raw["srp16"].loc[labels].tolist()
    assert table["loss"].tolist() == raw["log_ppl"].loc[labels].tolist()
    expected = (table["srp"] - table["chance"]) / (1 - table["chance"])
    pd.testing.assert_series_equal(table["excess"], expected, check_names=False)
    assert published_toys(64)["srp"].isna().sum() == 3
