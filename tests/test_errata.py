"""The errata: printed numbers are as printed, found ones follow from the published files."""

import pandas as pd
import plain
import pytest

import lrc
from lrc import errata, published


@pytest.fixture(scope="module")
def baseline():
    return lrc.toys.load_trace("baseline")


def test_printed_numbers_name_their_place():
    table = errata.printed()
    assert table["place"].str.match(r"v[24] |config\.json @").all()
    assert not table.duplicated(["place", "quantity", "key", "segment_length"]).any()
    assert table["value"].notna().all()
    with pytest.raises(lrc.LrcError, match=r"nothing printed is called 'srp'"):
        errata.printed("srp")


@pytest.mark.parametrize("segment_length", [4, 16, 64, 256])
def test_rows_hold_the_values_of_exactly_one_model(segment_length):
    table = errata.relabelled(segment_length).set_index("printed_as")
    assert table["values_of"].to_dict() == {
        "llamamoes": "llamamoes",
        "olmoesft": "olmoedpo",
        "olmoedpo": "olmoeins",
        "olmoeins": "olmoesft",
        "jetmoesft": "jetmoechat",
        "jetmoechat": "jetmoesft",
    }
    # What a row prints is what the model has that it was found to belong to.
    theirs = table["notebook"].loc[table["values_of"]].to_numpy()
    assert table["printed"].to_numpy() == pytest.approx(theirs, abs=0.000051)


def test_rows_of_other_lengths_are_not_printed():
    with pytest.raises(lrc.LrcError, match="not of 8"):
        errata.relabelled(8)


def test_the_figure_shows_predicted_tokens():
    table = errata.repeated_figure()
    assert len(table) == 18  # decoder-only models
    assert (table["plotted"] - table["predicted"]).abs().max() < 1e-4
    assert (table["plotted"] - table["ground_truth"]).abs().max() > 0.1


def test_table_3_is_that_of_the_older_definitions():
    table = errata.cache_correlations().dropna(subset="printed")
    assert len(table) == 12
    assert (table["printed"] - table["v1"]).abs().max() < 0.00006
    lru = errata.cache_correlations(1.0).set_index(["segment_length", "policy"]).loc[(16, "LRU")]
    sch, policy = published.table("sch_model", "HEAD"), published.table("chr_model", "HEAD")
    both = sch[(sch["seg_len"] == 16) & (sch["rho"] == 1)].merge(
        policy[(policy["policy"] == "LRU") & (policy["rho"] == 1)], on=["model", "is_decoder"]
    )
    assert len(both) == 22
    assert lru["head_fixed"] == pytest.approx(both["sch"].corr(both["hit_rate"]))


def test_table_7_of_v2_comes_out_again():
    table = errata.srp_correlations()
    assert (table["printed_v2"] - table["models_v1"]).abs().max() < 0.001
    with pytest.raises(lrc.LrcError, match="cache ratio 7"):
        errata.srp_correlations(7)


def test_thresholds(baseline):
    cut = lrc.Trace(baseline.experts[:3, :40], baseline.num_experts)
    table = errata.thresholds(cut, (4, 16))
    for row in table.itertuples():
        f = plain.segments(cut, row.segment_length)
        score, *_ = plain.srp(f, row.segment_length)
        assert row.srp == row.f1_best == row.f1_with_factor == float(score)
        assert row.printed == 1
        assert row.f1_printed == float(plain.f1([int(n >= 1) for n in f], f, row.segment_length))
        assert row.f1_printed < row.srp


def test_overview_has_two_numbers_in_each_row(baseline):
    table = errata.overview(baseline)
    assert len(table) > 20
    assert table.map(lambda cell: isinstance(cell, str) and bool(cell)).all(axis=None)
    assert (table["printed"] != table["found"]).all()
    assert not table["what"].duplicated().any()
    assert table["printed"].str.contains(r"\d|Java|one of").all()
    assert not table.map(lambda cell: "nan" in cell.split()).any(axis=None)


def test_tables_of_prose_are_whole():
    table = pd.DataFrame({"a": ["x | y", None], "b": [1, 2]})
    text = lrc.notebook.prose_table(table).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x \\| y | 1 |", "|  | 2 |"]
