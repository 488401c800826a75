"""Quantiles of many rows, to the last bit those of numpy, without sorting or moving the rows.

Of a row of resamples a few order statistics are asked for. The bits of floats, read as whole
numbers, are in the order of the floats (of negative ones, once their lower bits are flipped). So
the first bits of what a number is above the lowest one say to which bucket it belongs, and only
the buckets of the order statistics are looked into.
"""

import numpy as np
from numba import njit

BUCKETS = 256
# So few are sorted.
FEW = 32
# What infinity is as a whole number; what is beyond, or below minus infinity, is no number.
INFINITY = int(np.array(np.inf).view(np.int64))
LOWER_BITS = (1 << 63) - 1
# Numbers that are compared at a time.
CHUNK = 16


def quantiles(values, probabilities) -> np.ndarray:
    """Quantiles of each row.

    Parameters
    ----------
    values : float64 array [rows, n]
    probabilities : sequence of float

    Returns
    -------
    float64 array [probabilities, rows]
        As ``np.quantile(values, probabilities, axis=1)``.
    """
    found = np.empty((len(probabilities), len(values)))
    _quantiles(np.ascontiguousarray(values), _places(values.shape[1], probabilities), found)
    return found


def quantiles_of_rates(new_hits, hits, uses, probabilities) -> np.ndarray:
    """Quantiles of the hit rates of caches, each of which has a slot more than the one before.

    Parameters
    ----------
    new_hits : float array [sizes, resamples]
        What each cache hits more than the one before.
    hits : float64 array [resamples]
        Hits of the cache before the first.
    uses : float64 array [resamples]
        Above 0.
    probabilities : sequence of float

    Returns
    -------
    float64 array [probabilities, sizes]
    """
    found = np.empty((len(probabilities), len(new_hits)))
    places = _places(new_hits.shape[1], probabilities)
    _quantiles_of_rates(new_hits, hits.copy(), uses, places, found)
    return found


def _places(n, probabilities):
    """Where quantiles lie among n sorted values, counted from 0: as numpy has it, also between."""
    return (n - 1) * np.asarray(probabilities, np.float64)


@njit(cache=True, nogil=True)
def _quantiles(values, places, found):
    room = _room(values.shape[1])
    for row in range(len(values)):
        _quantiles_of_row(values[row], places, room, found[:, row])


@njit(cache=True, nogil=True, error_model="numpy")
def _quantiles_of_rates(new_hits, hits, uses, places, found):
    num_sizes, n = new_hits.shape
    room = _room(n)
    rates = np.empty(n)
    for size in range(num_sizes):
        more = False
        for i in range(n):
            more |= new_hits[size, i] > 0
        if size > 0 and not more:
            found[:, size] = found[:, size - 1]
            continue
        for i in range(n):
            hits[i] += new_hits[size, i]
            rates[i] = hits[i] / uses[i]
        _quantiles_of_row(rates, places, room, found[:, size])


@njit(cache=True, nogil=True)
def _room(n):
    """Arrays that are used for one row after the other."""
    # A whole number of chunks; what is beyond the row is in no bucket.
    buckets = np.full((2, -(-n // CHUNK) * CHUNK), -1, np.int32)
    sizes = np.empty((2, BUCKETS), np.int64)
    return np.empty(n, np.int64), np.empty(n + 1, np.int64), buckets, sizes, np.empty(2, np.int64)


@njit(cache=True, nogil=True)
def _quantiles_of_row(values, places, room, found):
    keys, near, buckets, sizes, pair = room
    n = len(values)
    _flip(values.view(np.int64), keys)
    lowest, highest = _fill(keys, buckets[0], sizes[0])
    for q in range(len(places)):
        low = min(int(places[q]), n - 1)
        high = min(low + 1, n - 1)
        count, before = _collect(keys, buckets[0], sizes[0], low, high, near)
        _find(near, count, buckets[1], sizes[1], low - before, high - before, pair)
        _flip(pair, pair)
        a, b = pair.view(np.float64)
        # As numpy interpolates.
        share = places[q] - low
        found[q] = a + (b - a) * share if share < 0.5 else b - (b - a) * (1 - share)
        if highest > INFINITY or lowest < ~INFINITY:
            found[q] = np.nan


@njit(cache=True, nogil=True)
def _flip(bits, keys):
    """Bits of floats to whole numbers in their order, or back."""
    for i in range(len(bits)):
        keys[i] = bits[i] ^ ((bits[i] >> 63) & LOWER_BITS)


@njit(cache=True, nogil=True)
def _fill(keys, buckets, sizes):
    """Put each key into a bucket; returns the lowest and the highest key."""
    lowest = highest = keys[0]
    for key in keys:
        lowest = min(lowest, key)
        highest = max(highest, key)
    shift = np.uint64(0)
    while (np.uint64(highest) - np.uint64(lowest)) >> shift >= np.uint64(BUCKETS):
        shift += np.uint64(1)
    sizes[:] = 0
    for i in range(np.uintp(len(keys))):
        bucket = (np.uint64(keys[i]) - np.uint64(lowest)) >> shift
        buckets[i] = bucket
        sizes[bucket] += 1
    return lowest, highest


@njit(cache=True, nogil=True)
def _collect(keys, buckets, sizes, low, high, near):
    """Copy the buckets that hold the keys of two ranks; how many these are, and how many lower."""
    first, before = 0, 0
    while before + sizes[first] <= low:
        before += sizes[first]
        first += 1
    last, upto = first, before + sizes[first]
    while upto <= high:
        last += 1
        upto += sizes[last]
    first, span = np.uint32(first), np.uint32(last - first)
    count = 0
    for start in range(np.uintp(0), np.uintp(len(keys)), np.uintp(CHUNK)):
        # Few chunks hold any.
        some = False
        for i in range(start, start + np.uintp(CHUNK)):
            some |= np.uint32(buckets[i]) - first <= span
        if some:
            for i in range(start, min(start + np.uintp(CHUNK), np.uintp(len(keys)))):
                # The next overwrites what does not belong.
                near[count] = keys[i]
                count += np.uint32(buckets[i]) - first <= span
    return count, before


@njit(cache=True, nogil=True)
def _find(keys, count, buckets, sizes, low, high, pair):
    """Keys of two ranks among the first of `keys`, which lose their order."""
    while count > FEW:
        lowest, highest = _fill(keys[:count], buckets, sizes)
        if lowest == highest:
            break
        fewer, before = _collect(keys[:count], buckets, sizes, low, high, keys)
        if fewer == count:
            keys[:count].sort()
            break
        count, low, high = fewer, low - before, high - before
    else:
        for i in range(1, count):
            key, j = keys[i], i
            while j > 0 and keys[j - 1] > key:
                keys[j] = keys[j - 1]
                j -= 1
            keys[j] = key
    pair[0], pair[1] = keys[low], keys[high]
