"""The plan of a recording: computed from measured rates, and the same in the book."""

from math import log2

import pytest
from checkout import ROOT

import lrc
from lrc import planning


def amount(plan, what):
    return plan.loc[plan["what"] == what, "amount"].item()


def test_what_follows_from_the_shape():
    plan = lrc.plan_recording(1000, num_layers=3, num_experts=16, top_k=2)
    assert amount(plan, "expert ids") == 0.006
    assert amount(plan, "expert ids of a token, in memory") == 12
    assert amount(plan, "the whole trace, in memory") == 12e-6
    low, high = (
        amount(plan, f"expert ids of a token, in the file, at {end}") for end in ("least", "most")
    )
    assert 0 < low < high < 2 * 6 * log2(16) / 8


def test_everything_grows_with_the_ids_but_memory():
    small = lrc.plan_recording(10**7, 10, 64, 4)
    large = lrc.plan_recording(10**7, 20, 64, 8)
    times = small["unit"] == "min"
    assert times.sum() == 7
    ratio = large["amount"][times] / small["amount"][times]
    assert ratio.to_list() == pytest.approx([4] * 7)
    memory = "memory beside the model"
    assert amount(small, memory) == amount(large, memory) < amount(small, "the file, at least") * 2


@pytest.mark.parametrize("shape", [(0, 1, 4, 1), (1, 0, 4, 1), (1, 1, 4, 0), (1, 1, 4, 5)])
def test_shapes_that_cannot_be(shape):
    with pytest.raises(lrc.LrcError, match="cannot plan"):
        lrc.plan_recording(*shape)


def test_the_book_shows_what_is_computed():
    for name, table in planning.tables().items():
        text = (ROOT / "book" / "tables" / f"{name}.csv").read_text(encoding="utf-8")
        assert text == table.to_csv(index=False, lineterminator="\n"), "planning.write_tables"
