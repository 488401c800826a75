"""Division of a budget over layers, against every division there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrc
from lrc import budget
from lrc.budget import best_split, even_split, hull_bound


@st.composite
def curves(draw):
    num_layers, most = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    gains = draw(
        st.lists(
            st.lists(st.integers(0, 9), min_size=most, max_size=most),
            min_size=num_layers,
            max_size=num_layers,
        )
    )
    sizes = draw(st.lists(st.integers(1, 5), min_size=num_layers, max_size=num_layers))
    return np.cumsum(gains, axis=1), sizes


def taken(slots, sizes):
    return sum(c * size for c, size in zip(slots, sizes, strict=True))


def hits_of(hits, slots):
    return sum(int(hits[j, c - 1]) if c else 0 for j, c in enumerate(slots))


@given(curves(), st.integers(1, 60), st.integers(0, 2))
def test_no_other_division_hits_more(case, room, least):
    hits, sizes = case
    least = min(least, hits.shape[1])
    if not least or room < least * sum(sizes):
        return
    found = best_split(hits, room, sizes, least)
    options = product(range(least, hits.shape[1] + 1), repeat=len(sizes))
    possible = [slots for slots in options if taken(slots, sizes) <= room]
    assert taken(found, sizes) <= room
    assert hits_of(hits, found) == max(hits_of(hits, slots) for slots in possible)
    assert hits_of(hits, found) <= hull_bound(hits, room, sizes) + 1e-9


@given(curves(), st.integers(1, 60))
def test_coarse_units_stay_within_the_budget(case, room):
    hits, sizes = case
    sizes = [size * 1_000_003 + 1 for size in sizes]
    room = room * 1_000_000
    if room >= sum(sizes):
        before, budget.MOST_UNITS = budget.MOST_UNITS, 7
        try:
            found = best_split(hits, room, sizes)
        finally:
            budget.MOST_UNITS = before
        assert taken(found, sizes) <= room
        assert (found >= 1).all()


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=3))
def test_of_concave_curves_the_hull_is_reached(gains):
    hits = np.cumsum([sorted(row, reverse=True) for row in gains], axis=1)
    for room in range(len(hits), hits.size + 1):
        best = [
            hits_of(hits, slots)
            for slots in product(range(4), repeat=len(hits))
            if sum(slots) <= room
        ]
        assert hull_bound(hits, room) == pytest.approx(max(best))


def test_even_shares():
    assert even_split(11, 4).tolist() == [3, 3, 3, 2]
    assert even_split(11, 4, most=2).tolist() == [2, 2, 2, 2]
    assert even_split(100, 2, [10, 20]).tolist() == [5, 2]


def test_a_budget_below_one_slot_a_layer_is_refused():
    with pytest.raises(lrc.LrcError, match="2 slots in each of 3 layers take 6"):
        best_split(np.ones((3, 4), int), 5, least=2)
