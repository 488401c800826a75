"""The table of claims: complete, in known words, and with no link that leads nowhere."""

import re
from pathlib import Path

import nbformat
import pytest

from lrc.claims import VERDICTS, claims, linked

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def table():
    return claims()


def targets():
    """Names that the book's pages and figures can be cited by."""
    named = set()
    for path in (ROOT / "book").glob("*.md"):
        named |= set(re.findall(r"^\(([\w-]+)\)=$", path.read_text(encoding="utf-8"), re.MULTILINE))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            named |= set(re.findall(r"^\(([\w-]+)\)=$", cell.source, re.MULTILINE))
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            named |= {figure["name"]} if figure else set()
    return named


def test_every_claim_is_there_once(table):
    assert table["claim"].tolist() == list(range(1, 43))
    assert table["statement"].is_unique
    assert table["statement"].str.len().max() < 110


@pytest.mark.parametrize("column", ["published", "toys", "real", "beyond_chance"])
def test_verdicts_are_those_that_the_page_explains(table, column):
    assert set(table[column]) <= set(VERDICTS)


def test_every_link_leads_somewhere(table):
    known = targets()
    for row in table.itertuples():
        assert set(row.where) <= known, f"claim {row.claim}"
        looked_at = {row.published, row.toys, row.real} & {"yes", "partly", "no"}
        assert row.where or not looked_at, f"claim {row.claim} has a verdict and no link"


def test_numbers_are_computed_and_whole(table):
    decided = table["published"].isin(["yes", "partly", "no"])
    assert table.loc[decided, "numbers"].str.contains(r"\d").all()
    assert not table["numbers"].str.contains(r"nan|np\.|\binf\b").any()


def test_known_verdicts(table):
    published = table.set_index("claim")["published"]
    assert published[12] == published[19] == published[29] == "yes"
    assert published[4] == "no"
    assert published[28] == published[31] == published[11] == "partly"


def test_links_are_those_of_the_book(table):
    row = linked(table).set_index("no.")["claim"]
    assert row[38].endswith("({numref}`fig-srp-sch`, {numref}`fig-forecast-layers`)")
    assert row[19].endswith("not alike ([page](domains-and-consistency))")
    assert row[5] == table["statement"][4]
