"""Parts of the published models: equal to the published tables, and chance as by definition."""

import pandas as pd
import pytest

import lrc
from lrc import anatomy, published


def test_layers_of_the_published_models():
    table = anatomy.layers()
    assert table["model"].nunique() == 22
    assert not table.duplicated(["model", "layer"]).any()
    assert not table.isna().any(axis=None)
    ends = table.groupby("model")["depth"].agg(["min", "max"])
    assert (ends["min"] == 0).all()
    assert (ends["max"] == 1).all()
    # A layer's level is that of its own experts.
    rates = published.table("experts").query("model == 'qwen2' and layer == 2")
    rates = rates.rename(columns={"act_freq": "activation_rate"})[["expert", "activation_rate"]]
    row = table.query("model == 'qwen2' and layer == 2").iloc[0]
    assert row["chance"] == pytest.approx(lrc.chance(rates, (16,))["srp"].item())
    assert row["excess"] == pytest.approx((row["srp"] - row["chance"]) / (1 - row["chance"]))


def test_layers_hold_what_the_figure_shows():
    table = anatomy.layers(64).query("model == 'powermoe'")
    known = published.table("layer").query("model == 'powermoe' and seg_len == 64")
    assert table["layer"].tolist() == known["layer"].tolist()
    for ours, theirs in {"srp": "srp", "sch_1": "sch_head_rho1", "sch_2": "sch_head_rho2"}.items():
        assert table[ours].tolist() == known[theirs].tolist()
    assert len(anatomy.layers(256)) == len(anatomy.layers(64)) - 6  # Switch's decoder


@pytest.mark.parametrize("call", [anatomy.layers, anatomy.positions, anatomy.starts])
def test_other_segment_lengths_were_not_published(call):
    with pytest.raises(lrc.LrcError, match="4, 16, 64, 256 tokens, not of 8"):
        call(8)


def test_peaks_and_thirds_by_hand():
    depth = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    table = pd.DataFrame(
        {
            "model": "a",
            "layer": range(2, 8),
            "depth": depth,
            "srp": [0.9, 0.3, 0.5, 0.7, 0.4, 0.5],
            "chance": [0.89, 0.3011, 0.25, 0.4, 0.4, 0.5],
        }
    )
    table["excess"] = (table["srp"] - table["chance"]) / (1 - table["chance"])
    row = anatomy.peaks(table).loc["a"]
    assert row[["layers", "highest_srp", "highest_excess", "below_chance"]].tolist() == [6, 2, 5, 1]
    assert row["chance_there"] == 0.89
    assert anatomy.middle(table).empty
    row = anatomy.middle(table, least_layers=6).iloc[0]
    assert row["SRP, less first third"] == pytest.approx((0.5 + 0.7) / 2 - (0.9 + 0.3) / 2)
    assert row["SRP, less last third"] == pytest.approx((0.5 + 0.7) / 2 - (0.4 + 0.5) / 2)


def test_positions_are_relative_to_later_ones():
    table = anatomy.positions(16)
    later = table[table["start"] >= 32].groupby("model")["relative"].mean()
    assert later.abs().max() < 1e-12
    assert len(later) == 22
    known = published.table("position").query("seg_len == 16 and model == 'jamba'")
    assert table.query("model == 'jamba'")["srp"].tolist() == known["srp"].tolist()
    first = table.query("start == 0").set_index("model")["relative"]
    pd.testing.assert_series_equal(
        anatomy.starts()["first"].sort_index(), first.sort_index(), check_names=False
    )


def test_post_training_is_the_difference_to_the_base():
    table = anatomy.post_training()
    assert table["model"].nunique() == 6
    known = published.table("posttrain").set_index(["model", "seg_len", "dataset"])["srp"]
    row = table.query("model == 'OLMoE-SFT' and segment_length == 64").iloc[0]
    gain = known["olmoesft", 64, "all"] - known["olmoe", 64, "all"]
    assert row["change"] == pytest.approx(100 * gain)
    assert set(anatomy.post_training("all")["dataset"]) == {"all"}
    each = anatomy.post_training("each")
    assert each["dataset"].nunique() == 11
    assert each.groupby("model")["above"].mean().abs().max() < 1e-12


def test_yardsticks_and_profiles_are_those_of_the_tables():
    sizes = anatomy.yardsticks()
    known = published.table("srp_model").query("model == 'olmoe' and seg_len == 16").iloc[0]
    width = 100 * (known["ci_hi"] - known["ci_lo"])
    assert sizes.loc["OLMoE-SFT", "reach"] == pytest.approx(width / 2**0.5)
    assert (sizes["seeds"] > 0).all()
    profiles = anatomy.domain_profiles()
    each = anatomy.post_training("each")
    means = each.groupby("model")["change"].mean()
    assert profiles["change"].to_dict() == pytest.approx(means.to_dict())
    assert (profiles["p"] >= 2 / 2**11).all()


def test_toy_layers_are_those_of_srp():
    table = anatomy.toy_layers()
    row = table.query("model == 'baseline' and seed == 0")
    expected = lrc.srp(lrc.toys.load_trace("baseline"), 16, level="layer")
    assert row["srp"].tolist() == expected["srp"].tolist()


def test_domains_are_relative_to_the_whole_corpus():
    table = anatomy.domains()
    assert table.groupby("model").size().unique().tolist() == [11]
    assert table.groupby("model")["technical"].sum().unique().tolist() == [5]
    known = published.table("srp_model").query("seg_len == 16 and model == 'phi'")["srp"].item()
    row = table.query("model == 'phi' and dataset == 'GitHub'").iloc[0]
    assert row["difference"] == pytest.approx(row["srp"] / known - 1, abs=1e-4)
    assert anatomy.domains(toy=True)["model"].nunique() == 10


def test_domains_of_toys_have_their_own_chance_level():
    table = anatomy.toy_domains(16)
    trace = lrc.toys.load_trace("baseline")
    row = table.query("model == 'baseline' and run == 0 and dataset == 'python'").iloc[0]
    keep = trace.datasets == "python"
    alone = lrc.Trace(trace.experts[keep], trace.num_experts, lengths=trace.lengths[keep])
    assert row["srp"] == lrc.srp(alone, 16)["srp"].item()
    assert row["chance"] == pytest.approx(lrc.chance(alone, (16,))["srp"].item())
    assert row["whole"] == lrc.srp(trace, 16)["srp"].item()


def test_alike_is_a_correlation_over_experts():
    trace = lrc.toys.load_trace("baseline")
    table = anatomy.alike(trace, 16)
    assert len(table) == 8 * 7 // 2
    row = table.query("first == 'cpp' and second == 'python'").iloc[0]
    values = {}
    for name in ("cpp", "python"):
        keep = trace.datasets == name
        alone = lrc.Trace(trace.experts[keep], trace.num_experts, lengths=trace.lengths[keep])
        measured = lrc.srp(alone, 16, level="expert").set_index(["layer", "expert"])
        values[name] = measured[measured["activation_rate"] > 0]
    for column in ("activation_rate", "srp"):
        pair = pd.concat([part[column] for part in values.values()], axis=1).dropna()
        assert row[column] == pytest.approx(pair.corr().iloc[0, 1])


def test_technical_text_is_set_against_the_rest():
    table = anatomy.technical(anatomy.domains())
    known = anatomy.domains().query("model == 'grin'")
    means = known.groupby("technical")["difference"].mean()
    row = table.set_index("model").loc["grin"]
    assert row["difference"] == pytest.approx(means[True] - means[False])
    assert (row["technical"], row["others"], row["highest"]) == (5, 6, "GitHub")
    assert row["smallest_p"] == pytest.approx(2 / 462)
