"""F1 of the best segment router in every resample, from the columns of `cpu_windows`.

The best threshold is the first whole number from F1 * m / 2 on: a window with fewer activations
adds to the sizes of both sets more than to twice their overlap. So thresholds are lowered as long
as that is a gain, and the best of some neighbouring thresholds is the best of all if that number is
among them.

What sequences add up to in a resample is a product of whole numbers. It is made a few columns at a
time, which stay in the processor's cache until they have been boiled down. Sums below 2**24 are
exact in float32, so they are taken over few sequences and then added up in float64.

numba does not see changes of other files when it looks for compiled code on disk, so what a
kernel calls is in its file.
"""

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lrc.kernels import simd

# Resamples and columns that are multiplied at a time: their sums fill the registers.
LANES, ROWS = 16, 6
# Sequences between two sums in float64, and columns between two looks for the best threshold.
SEQUENCES, COLUMNS = 128, 48


def best_resampled(totals, first, low, high, lengths):
    """F1 of the best router of some groups of experts in each resample, and whether it is certain.

    Parameters
    ----------
    totals : float array [columns, bootstrap]
        Sums of what `count_columns` counts.
    first, low, high, lengths : int64 arrays [groups]
        As in `count_columns`; m of each group.

    Returns
    -------
    float64 array [groups, bootstrap]
        F1.
    bool array [groups]
        False where a threshold out of the range may be better.
    """
    best, sure = np.empty((len(first), totals.shape[1])), np.ones(len(first), np.bool_)
    _best_resampled(totals, first, low, high, lengths, best, sure)
    return best, sure


def best_of_sequences(counted, panels, draws, bootstrap, first, low, high, lengths):
    """As `best_resampled`, from the columns of single sequences.

    Parameters
    ----------
    counted : float array [sequences, columns]
    panels : float32 array [panels, sequences, LANES]
        How often each sequence is drawn, see `panels_of`.
    draws : float32 array
        How many a resample draws at most, of each `SEQUENCES` sequences.
    bootstrap : int
    first, low, high, lengths : int64 arrays [groups]
        Columns of one group follow those of the one before.
    """
    best, sure = np.empty((len(first), bootstrap)), np.ones(len(first), np.bool_)
    _best_of_sequences(counted, panels, draws, first, low, high, lengths, best, sure)
    return best, sure


def panels_of(weights) -> tuple[np.ndarray, np.ndarray]:
    """Weights [bootstrap, sequences] as `best_of_sequences` takes them: `panels`, `draws`."""
    bootstrap, sequences = weights.shape
    panels = np.zeros((-(-bootstrap // LANES), sequences, LANES), np.float32)
    for panel, start in zip(panels, range(0, bootstrap, LANES), strict=True):
        some = weights[start : start + LANES]
        panel[:, : len(some)] = some.T
    draws = np.add.reduceat(weights, np.arange(0, sequences, SEQUENCES), axis=1)
    return panels, draws.max(axis=0)


@intrinsic
def _multiply(typingctx, counts, weights, num_sequences, sums):
    """Sums of the products of counts [sequences, ROWS] and weights [sequences, LANES]."""

    def code(context, builder, signature, args):
        counts = context.make_array(signature.args[0])(context, builder, args[0]).data
        weights, sums = (simd.rows(context, builder, signature, args, i, LANES) for i in (1, 3))
        vector = weights.type.pointee
        so_far = [cgutils.alloca_once(builder, vector) for _ in range(ROWS)]
        for slot in so_far:
            builder.store(simd.constant(vector, 0.0), slot)
        with cgutils.for_range(builder, args[2]) as sequence:
            weight = simd.load(builder, weights, sequence.index)
            first = builder.mul(sequence.index, simd.index(ROWS))
            for i, slot in enumerate(so_far):
                count = builder.load(builder.gep(counts, [builder.add(first, simd.index(i))]))
                # Exact either way, so it may be rounded once for both.
                product = builder.fmul(
                    simd.splat(builder, count, vector), weight, flags=["contract"]
                )
                builder.store(builder.fadd(builder.load(slot), product, flags=["contract"]), slot)
        for i, slot in enumerate(so_far):
            simd.store(builder, builder.load(slot), sums, simd.index(i))
        return context.get_dummy_value()

    return types.void(counts, weights, types.intp, sums), code


@njit(cache=True, nogil=True, error_model="numpy")
def _best_of_sequences(counted, panels, draws, first, low, high, lengths, best, sure):
    widths = 3 + high - low
    most = max(COLUMNS, widths.max())
    totals = np.empty((most + ROWS, len(panels) * LANES))
    packed = np.empty(((most + ROWS) // ROWS, SEQUENCES, ROWS), np.float32)
    sums = np.empty((ROWS, LANES), np.float32)
    start = 0
    while start < len(first):
        stop, columns = start + 1, widths[start]
        while stop < len(first) and columns + widths[stop] <= most:
            columns += widths[stop]
            stop += 1
        part = counted[:, first[start] : first[start] + columns]
        totals[:] = 0
        for s in range(0, len(counted), SEQUENCES):
            some = part[s : s + SEQUENCES]
            if draws[s // SEQUENCES] * some.max() < 1 << 24:
                _pack(some, packed)
                for p in range(len(panels)):
                    for block in range(-(-columns // ROWS)):
                        _multiply(packed[block], panels[p, s:], len(some), sums)
                        for i in range(ROWS):
                            for b in range(LANES):
                                totals[block * ROWS + i, p * LANES + b] += sums[i, b]
            else:
                _add_products(some, panels, s, totals)
        rows = slice(start, stop)
        _best_resampled(
            *(totals, first[rows] - first[start], low[rows], high[rows], lengths[rows]),
            *(best[rows], sure[rows]),
        )
        start = stop


@njit(cache=True, nogil=True)
def _pack(counted, packed):
    """Lay columns out some at a time; beyond the last there are any, which are not looked at."""
    sequences, columns = counted.shape
    for c in range(columns):
        block, i = divmod(c, ROWS)
        for s in range(sequences):
            packed[block, s, i] = counted[s, c]
    for i in range(columns % ROWS, ROWS if columns % ROWS else 0):
        packed[columns // ROWS, :sequences, i] = 0


@njit(cache=True, nogil=True)
def _add_products(counted, panels, start, totals):
    """Add products that may be too large for float32."""
    for c in range(counted.shape[1]):
        for p in range(len(panels)):
            total = totals[c, p * LANES : (p + 1) * LANES]
            for s in range(len(counted)):
                count = np.float64(counted[s, c])
                for b in range(LANES):
                    total[b] += count * panels[p, start + s, b]


@njit(cache=True, nogil=True, error_model="numpy")
def _best_resampled(totals, first, low, high, lengths, best, sure):
    bootstrap = best.shape[1]
    sizes, matches = np.empty(bootstrap), np.empty(bootstrap)
    for group in range(len(first)):
        c, m = first[group], lengths[group]
        lowest, highest = low[group], high[group]
        activations, windows, above = totals[c], totals[c + 1], totals[c + 2]
        for b in range(bootstrap):
            sizes[b] = m * windows[b] + activations[b]
            matches[b] = above[b]
        for a in range(highest - 1, lowest - 1, -1):
            # F1 is 2 matches / sizes. Each of these windows adds 2 a to the one and m to the other;
            # where that is no gain, none is in windows with fewer activations.
            exactly = totals[c + 3 + a - lowest]
            for b in range(bootstrap):
                more = exactly[b] if a * sizes[b] > m * matches[b] else 0.0
                sizes[b] += m * more
                matches[b] += a * more
        f1 = best[group]
        for b in range(bootstrap):
            # Nothing to find where nothing is active: 0 of 1.
            f1[b] = 2 * matches[b] / max(sizes[b], 1.0)
        # A hair wider than rounding. No threshold above m / 2 is ever the best alone.
        if lowest > 1:
            sure[group] = f1.min() * m / 2 > lowest - 1 + 1e-9 * m
        if 2 * highest < m:
            sure[group] &= f1.max() * m / 2 < highest - 1e-9 * m
