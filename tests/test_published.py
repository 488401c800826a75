"""The published tables: complete, equal to their transcription, and never mixed in silence."""

import pandas as pd
import pytest
from carry_published import TABLES, read_csv

import lrc
from lrc import published


def test_every_table_is_there_and_says_where_it_comes_from():
    assert published.names() == sorted(TABLES)
    for name in published.names():
        frame = published.table(name, vintage="all")
        assert len(frame)
        assert frame.attrs["source"].startswith("github.com/ljcleo/moe-lrc: ")
        assert frame.attrs["about"].endswith(".")
        assert "2505.16056" in frame.attrs["paper"]
        assert set(frame.attrs["vintages"]) <= {"pre-1.0", "v1.0", "HEAD"}
        assert frame.attrs["vintages"]
        if "vintage" in frame:
            assert set(frame["vintage"]) == set(frame.attrs["vintages"])


@pytest.mark.parametrize("name", sorted(TABLES))
def test_equals_the_transcription(shared, name):
    expected = read_csv(shared / "published" / f"{name}.csv")
    pd.testing.assert_frame_equal(
        published.table(name, vintage="all"), expected, check_exact=True, check_dtype=True
    )


def test_every_transcribed_table_is_carried(shared):
    assert {path.stem for path in (shared / "published").glob("*.csv")} == set(TABLES)


@pytest.mark.parametrize("name", ["sch_model", "sch_rho2_ci", "chr_model", "correlations"])
def test_vintages_of_cache_figures_are_never_mixed_in_silence(name):
    with pytest.raises(lrc.LrcError, match=r"several vintages.*vintage="):
        published.table(name)
    parts = [
        published.table(name, vintage=v)
        for v in ("pre-1.0", "v1.0", "HEAD")
        if v in published.table(name, vintage="all").attrs["vintages"]
    ]
    assert all(len(part["vintage"].unique()) == 1 for part in parts)
    assert all(part.attrs["vintages"] == part["vintage"].unique().tolist() for part in parts)
    assert sum(map(len, parts)) == len(published.table(name, vintage="all"))


def test_definitions_differ_between_vintages():
    definitions = {
        vintage: published.table("sch_model", vintage=vintage)["definition"].unique().tolist()
        for vintage in ("v1.0", "HEAD")
    }
    assert definitions == {"v1.0": ["segment_static_optimal"], "HEAD": ["future_window_cache"]}


def test_srp_defaults_to_the_vintage_of_the_paper():
    frame = published.table("srp_model")
    assert frame.attrs["vintages"] == ["v1.0"]
    row = frame.query("model == 'qwen3' and seg_len == 16")
    assert row["srp"].round(4).tolist() == [0.5414]  # Table 1 of the paper


def test_all_keys_are_explained_by_the_models_and_datasets_tables():
    models = published.table("models").set_index("key")
    assert models["main"].sum() == 20
    assert models["name"].notna().all()
    datasets = set(published.table("datasets")["key"])
    assert len(datasets) == 11
    for name in ("srp_model", "experts", "specialization", "layer", "position", "domain_corr"):
        assert set(published.table(name)["model"]) <= set(models.index)
    assert set(published.table("srp_model_dataset")["dataset"]) == datasets


def test_a_table_is_a_copy():
    frame = published.table("models")
    frame["name"] = "changed"
    frame.attrs["vintages"].append("changed")
    assert (published.table("models")["name"] != "changed").all()
    assert published.table("models").attrs["vintages"] == ["HEAD"]


def test_unknown_names_are_explained():
    with pytest.raises(lrc.LrcError, match=r"no published table 'srp': there are .*srp_model"):
        published.table("srp")
    with pytest.raises(lrc.LrcError, match=r"no vintage 'v2': it holds HEAD, v1.0"):
        published.table("sch_model", vintage="v2")
    with pytest.raises(lrc.LrcError, match=r"no vintage 'HEAD': it holds v1.0"):
        published.table("experts", vintage="HEAD")


def test_path_tricks_find_no_file():
    with pytest.raises(lrc.LrcError, match="no published table"):
        published.table("../published/models")


def test_tables_agree_with_each_other():
    """Per-model means and correlations come out of the table of single experts."""
    experts = published.table("experts")
    summary = published.table("specialization").set_index(["model", "is_decoder"])
    for key, group in experts.groupby(["model", "is_decoder"]):
        expected = summary.loc[key]
        assert group["act_freq"].mean() == pytest.approx(expected["mean_act_freq"], abs=1e-4)
        for measure in ("domain_spec", "in_vocab_spec", "pred_vocab_spec"):
            if group[measure].notna().any():
                correlation = group["srp16"].corr(group[measure])
                assert group[measure].mean() == pytest.approx(expected[f"{measure}_mean"], abs=1e-4)
                assert correlation == pytest.approx(expected[f"{measure}_corr"], abs=1e-4)
            else:
                assert pd.isna(expected[f"{measure}_mean"])
