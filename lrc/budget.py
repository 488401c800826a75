"""Divide a memory budget over the caches of a model's layers."""

from itertools import pairwise

import numpy as np

from lrc.errors import LrcError

# Units of memory that the exact division counts in, at most; beyond, sizes are rounded up.
MOST_UNITS = 200_000


def best_split(hits, budget: int, sizes=None, least: int = 1) -> np.ndarray:
    """Slots for each layer that together hit most, found by dynamic programming.

    Parameters
    ----------
    hits : int array [layers, slots]
        ``hits[j, c - 1]``: uses of layer j that a cache of c slots hits. Need not be concave.
    budget : int
        Slots, or bytes if `sizes` are given, of all layers together.
    sizes : int array [layers], optional
        Bytes of one slot of each layer.
    least : int
        Slots that every layer gets (its top-k, so that a token's experts fit).

    Returns
    -------
    int64 array [layers]
        Of equal divisions the one that leaves most of the budget unused. Exact where the budget
        is at most `MOST_UNITS` times the greatest common divisor of the sizes; else sizes are
        rounded up to a coarser unit, which keeps within the budget and may miss the best
        division by less than one part in `MOST_UNITS` a slot.

    Raises
    ------
    LrcError
        A budget too small for `least` slots in each layer.
    """
    hits = np.asarray(hits, np.int64)
    num_layers, most = hits.shape
    sizes = np.ones(num_layers, np.int64) if sizes is None else np.asarray(sizes, np.int64)
    least = min(least, most)
    needed = int(least * sizes.sum())
    if budget < needed:
        raise LrcError(
            f"a budget of {budget:,} is too small: {least} slots in each of {num_layers} layers "
            f"take {needed:,}"
        )
    budget = min(int(budget), int(most * sizes.sum()))
    unit = int(np.gcd.reduce(sizes))
    if budget // unit > MOST_UNITS:
        unit = -(-budget // MOST_UNITS)
    units = -(-sizes // unit)
    # What every layer gets is no choice; divide the rest.
    rest = budget // unit - int(least * units.sum())
    while rest < 0:  # rounding up took more than there is
        unit = -(-unit // 2)
        units = -(-sizes // unit)
        rest = budget // unit - int(least * units.sum())
    best = np.zeros(rest + 1, np.int64)
    chosen = np.zeros((num_layers, rest + 1), np.int32)
    for j in range(num_layers):
        after = best + hits[j, least - 1]
        for more in range(1, most - least + 1):
            cost = more * units[j]
            if cost > rest:
                break
            gained = best[: rest + 1 - cost] + hits[j, least - 1 + more]
            better = gained > after[cost:]
            after[cost:][better] = gained[better]
            chosen[j, cost:][better] = more
        best = after
    slots = np.empty(num_layers, np.int64)
    left = int(best.argmax())
    for j in range(num_layers - 1, -1, -1):
        slots[j] = least + chosen[j, left]
        left -= int(chosen[j, left]) * int(units[j])
    return slots


def hull_bound(hits, budget: int, sizes=None) -> float:
    """Hits that no division of a budget exceeds: slots in fractions, on the concave hulls.

    Parameters
    ----------
    hits, budget, sizes
        As in `best_split`.

    Returns
    -------
    float
        Equal to the best division's hits where all curves are concave and the budget comes out
        even.
    """
    hits = np.asarray(hits, np.int64)
    sizes = np.ones(len(hits), np.int64) if sizes is None else np.asarray(sizes, np.int64)
    steps = []
    for curve, size in zip(hits.tolist(), sizes.tolist(), strict=True):
        points = [(0, 0)]
        for slots, height in enumerate(curve, 1):
            # Drop points below the line from the one before them to the new one.
            while len(points) > 1 and (
                (points[-1][1] - points[-2][1]) * (slots - points[-2][0])
                <= (height - points[-2][1]) * (points[-1][0] - points[-2][0])
            ):
                points.pop()
            points.append((slots, height))
        for (x, low), (y, high) in pairwise(points):
            steps.append(((high - low) / ((y - x) * size), (y - x) * size))
    total = 0.0
    for worth, room in sorted(steps, reverse=True):
        taken = min(room, budget)
        total += worth * taken
        budget -= taken
    return total


def even_split(budget: int, num_layers: int, sizes=None, most: int | None = None) -> np.ndarray:
    """Slots for each layer when all get the same share of the budget: int64 array [layers].

    Slots that are left over go to the first layers, one each.
    """
    if sizes is None:
        slots = np.full(num_layers, budget // num_layers, np.int64)
        slots[: budget % num_layers] += 1
    else:
        slots = (budget // num_layers) // np.asarray(sizes, np.int64)
    return slots if most is None else np.minimum(slots, most)
