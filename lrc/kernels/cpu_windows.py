"""Histograms of how often an expert is active in a window of consecutive tokens.

A window that moves on by one token gains that token's experts and loses those of the token it
leaves behind. An expert that enters lifts its count in this window and in all that follow, until
it leaves: so each entry adds the number of windows from there on to those "with more than so many
activations", and each exit takes it away again. The work per token grows with top_k, not with the
number of experts or the segment length. Everything is an integer; histograms of parts of a trace
add up to that of the whole.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit

from lrc.kernels.threads import in_slices


def bin_slices(segment_lengths) -> list[slice]:
    """Where the bins 0 ... m of each segment length m lie along the last axis."""
    stops = np.cumsum([m + 1 for m in segment_lengths]).tolist()
    return [slice(stop - m - 1, stop) for m, stop in zip(segment_lengths, stops, strict=True)]


def count_windows(experts, lengths, groups, num_groups, layers, expert_rows, segment_lengths):
    """Histogram of activations per window, for every segment length.

    Parameters
    ----------
    experts : int16 array [sequences, tokens, layers, top_k]
        Valid ids; -1 counts as no activation.
    lengths : int64 array [sequences]
    groups : int64 array [sequences]
        Row of the result that a sequence is counted in; -1 = leave it out.
    num_groups : int
    layers : int64 array
        Layers to count, each in a row of its own.
    expert_rows : int64 array [experts]
        Row of the result that an expert is counted in; -1 = leave it out.
    segment_lengths : sequence of int

    Returns
    -------
    int64 array [groups, layers, expert rows, bins]
        Windows with 0, 1, ... m activations, for the first segment length m, then for the
        second ..., see `bin_slices`. A sequence shorter than m has none.
    """
    bins = bin_slices(segment_lengths)
    first_bins = np.array([part.start for part in bins], np.int64)
    lengths_of_bins = np.asarray(segment_lengths, np.int64)
    shape = (num_groups, len(layers), int(expert_rows.max()) + 1, bins[-1].stop)

    def work(sequences, rows, tails):
        _count_windows(
            *(experts, lengths, groups, sequences, layers, rows),
            *(expert_rows, lengths_of_bins, first_bins, tails),
        )

    tails = _in_threads(work, groups, shape)
    for part in bins:
        tails[..., part.start : part.stop - 1] -= tails[..., part.start + 1 : part.stop]
    return tails


def count_windows_by_position(
    experts, lengths, groups, num_groups, layers, num_experts, segment_length
):
    """Histogram of activations per window, over all experts, at every start position.

    Parameters
    ----------
    experts, lengths, groups, num_groups, layers
        As in `count_windows`.
    num_experts : int
    segment_length : int

    Returns
    -------
    int64 array [groups, layers, starts, segment_length + 1]
        Windows of one expert with 0, 1, ... m activations; as many starts as the longest
        sequence has.
    """
    longest = int(lengths[groups >= 0].max(initial=0))
    starts = max(longest - segment_length + 1, 0)

    def work(sequences, rows, change):
        _count_changes(
            *(experts, lengths, groups, sequences, layers, rows),
            *(num_experts, segment_length, change),
        )

    # One start more: where the last window of the longest sequence ends.
    shape = (num_groups, len(layers), starts + 1, segment_length + 1)
    change = _in_threads(work, groups, shape)
    return np.cumsum(change, axis=2, out=change)[:, :, :-1]


def count_columns(experts, lengths, sequences, layers, segment_lengths, plan, dtype):
    """What each sequence adds to the F1 of some groups of experts, at some thresholds.

    Parameters
    ----------
    experts, lengths, segment_lengths
        As in `count_windows`.
    sequences : int64 array
    layers : int64 array
        Layers to count.
    plan : tuple of int64 arrays [3, segment_lengths, layers, experts]
        First column of a group (-1 = leave it out), its lowest threshold, its highest. A group is
        all layers counted, at [0, :, 0, 0]; a layer, at [1, :, layer, 0]; or an expert, at
        [2, :, layer, expert].
    dtype : dtype

    Returns
    -------
    array [sequences, columns]
        For each group the activations in all windows; of the windows with at least as many as the
        highest threshold, their number and the activations in them; then the windows with
        exactly the lowest threshold, and so on up to below the highest.
    """
    first, low, high = plan
    columns = int((first + 3 + high - low)[first >= 0].max(initial=0))
    segment_lengths = np.asarray(segment_lengths, np.int64)
    counted = np.zeros((len(sequences), columns), dtype)

    def work(part):
        _count_columns(
            *(experts, lengths, sequences[part], layers, segment_lengths),
            *(first, low, high, counted[part]),
        )

    in_slices(work, len(sequences), 8)
    return counted


@njit(cache=True, nogil=True)
def _count_columns(experts, lengths, sequences, layers, segment_lengths, first, low, high, counted):
    top_k = experts.shape[3]
    num_lengths, num_experts = first.shape[1], first.shape[3]
    longest = segment_lengths.max() + 1
    rows = np.arange(num_experts)
    ids = np.empty(experts.shape[1] * top_k, np.int64)
    place = np.empty(num_experts, np.uint64)
    # No window is counted twice, so 32 bits are enough for what one sequence has.
    tails_of_all = np.empty(num_experts * longest, np.int32)
    of_layer = np.empty(longest, np.int64)
    of_model = np.empty((num_lengths, longest), np.int64)
    for s in range(len(sequences)):
        length = lengths[sequences[s]]
        of_model[:] = 0
        for j in range(len(layers)):
            pooled = first[0].max() >= 0 or first[1, :, j].max() >= 0
            for e in range(num_experts):
                rows[e] = e if pooled or first[2, :, j, e].max() >= 0 else -1
            _copy_ids(experts, sequences[s], length, layers[j], rows, ids)
            for i in range(num_lengths):
                m = segment_lengths[i]
                tails = tails_of_all[: num_experts * (m + 1)].reshape(num_experts, m + 1)
                tails[:] = 0
                of_layer[: m + 1] = 0
                _count_tails(ids, length, top_k, rows, m, 0, place, tails)
                for e in rows[rows >= 0]:
                    place_of = (first[2, i, j, e], low[2, i, j, e], high[2, i, j, e])
                    _write_columns(tails[e], place_of, counted[s])
                    for a in range(m + 1):
                        of_layer[a] += tails[e, a]
                place_of = (first[1, i, j, 0], low[1, i, j, 0], high[1, i, j, 0])
                _write_columns(of_layer[: m + 1], place_of, counted[s])
                of_model[i, : m + 1] += of_layer[: m + 1]
        for i in range(num_lengths):
            place_of = (first[0, i, 0, 0], low[0, i, 0, 0], high[0, i, 0, 0])
            _write_columns(of_model[i, : segment_lengths[i] + 1], place_of, counted[s])


@njit(cache=True, nogil=True)
def _write_columns(tails, place_of, counted):
    c, lowest, highest = place_of
    if c < 0:
        return
    above = 0
    for a in range(highest + 1, len(tails)):
        above += tails[a]
    below = 0
    for a in range(1, highest + 1):
        below += tails[a]
    counted[c] = below + above
    counted[c + 1] = tails[highest]
    counted[c + 2] = highest * tails[highest] + above
    for a in range(lowest, highest):
        counted[c + 3 + a - lowest] = tails[a] - tails[a + 1]


def _in_threads(work, groups, shape):
    """Let threads fill one histogram, each its own layers and sequences.

    Layers have rows of their own. Where they are too few for all threads, sequences are dealt
    out as well: by group, or else each thread gets a copy, and the copies are added.
    """
    num_groups, num_layers = shape[:2]
    threads = max(1, config.NUMBA_NUM_THREADS)
    layer_parts = min(threads, num_layers)
    sequence_parts = -(-threads // max(1, layer_parts))
    counted = np.flatnonzero(groups >= 0)
    by_group = num_groups >= sequence_parts
    deal = groups[counted] if by_group else np.arange(len(counted))
    histograms = np.zeros((1 if by_group else sequence_parts, *shape), np.int64)
    jobs = [
        (
            counted[deal % sequence_parts == part],
            np.arange(start, num_layers, layer_parts),
            histograms[0 if by_group else part],
        )
        for part in range(sequence_parts)
        for start in range(layer_parts)
    ]
    if len(jobs) == 1:
        work(*jobs[0])
    else:
        with ThreadPoolExecutor(len(jobs)) as pool:
            for done in [pool.submit(work, *job) for job in jobs]:
                done.result()
    return histograms[0] if by_group else histograms.sum(axis=0)


@njit(cache=True, nogil=True)
def _count_windows(
    experts,
    lengths,
    groups,
    sequences,
    layers,
    rows,
    expert_rows,
    segment_lengths,
    first_bins,
    tails,
):
    top_k = experts.shape[3]
    ids = np.empty(experts.shape[1] * top_k, np.int64)
    place = np.empty(len(expert_rows), np.uint64)
    for sequence in sequences:
        for row in rows:
            length = lengths[sequence]
            _copy_ids(experts, sequence, length, layers[row], expert_rows, ids)
            booked = tails[groups[sequence], row]
            for i in range(len(segment_lengths)):
                _count_tails(
                    ids,
                    length,
                    top_k,
                    expert_rows,
                    segment_lengths[i],
                    first_bins[i],
                    place,
                    booked,
                )


@njit(cache=True, nogil=True)
def _copy_ids(experts, sequence, length, layer, expert_rows, ids):
    """Experts of one sequence and layer, one after the other; -1 for those without a row."""
    top_k = experts.shape[3]
    for t in range(length):
        for k in range(top_k):
            e = experts[sequence, t, layer, k]
            ids[t * top_k + k] = e if e >= 0 and expert_rows[e] >= 0 else -1


@njit(cache=True, nogil=True)
def _count_tails(ids, length, top_k, expert_rows, m, zero, place, tails):
    """Add the windows in which an expert is active a times or more to ``tails[row, zero + a]``.

    `place` is room for where the expert's count in the current window lies: tails is contiguous.
    """
    num_windows = length - m + 1
    if num_windows < 1:
        return
    width = tails.shape[1]
    flat = tails.reshape(-1)
    one = np.uint64(1)
    for e in range(len(expert_rows)):
        if expert_rows[e] >= 0:
            place[e] = expert_rows[e] * width + zero
            flat[place[e]] += num_windows
    # The first window fills up, ...
    for i in range(m * top_k):
        e = ids[i]
        if e >= 0:
            here = place[e] + one
            place[e] = here
            flat[here] += num_windows
    # ... then for each token that leaves another one enters.
    for window in range(1, num_windows):
        left = num_windows - window
        for k in range(top_k):
            e = ids[(window - 1) * top_k + k]
            if e >= 0:
                here = place[e]
                flat[here] -= left
                place[e] = here - one
        for k in range(top_k):
            e = ids[(window + m - 1) * top_k + k]
            if e >= 0:
                here = place[e] + one
                place[e] = here
                flat[here] += left


@njit(cache=True, nogil=True)
def _count_changes(
    experts, lengths, groups, sequences, layers, rows, num_experts, segment_length, change
):
    """How each window's histogram differs from that of the window before."""
    top_k = experts.shape[3]
    m = segment_length
    active = np.zeros(num_experts, np.int64)
    for sequence in sequences:
        length = lengths[sequence]
        num_windows = length - m + 1
        if num_windows < 1:
            continue
        for row in rows:
            layer = layers[row]
            booked = change[groups[sequence], row]
            booked[0, 0] += num_experts
            for t in range(length):
                window = max(t - m + 1, 0)
                if t >= m:
                    for k in range(top_k):
                        e = experts[sequence, t - m, layer, k]
                        if e >= 0:
                            booked[window, active[e]] -= 1
                            active[e] -= 1
                            booked[window, active[e]] += 1
                for k in range(top_k):
                    e = experts[sequence, t, layer, k]
                    if e >= 0:
                        booked[window, active[e]] -= 1
                        active[e] += 1
                        booked[window, active[e]] += 1
            for e in range(num_experts):
                booked[num_windows, active[e]] -= 1
                active[e] = 0


@njit(cache=True, nogil=True)
def best_thresholds(histograms):
    """F1, size ratio and activation rate at the best threshold of each histogram.

    Parameters
    ----------
    histograms : int64 or (whole) float64 array [groups, m + 1]

    Returns
    -------
    float64 array [groups, 3]
        On equal F1 the lowest threshold counts; all 0 without activations.
    """
    num_groups, num_bins = histograms.shape
    m = num_bins - 1
    best = np.zeros((num_groups, 3))
    for group in range(num_groups):
        activations = 0.0
        for a in range(num_bins):
            activations += a * histograms[group, a]
        if activations == 0:
            continue
        windows = 0.0  # those with f >= a, then their activations
        matches = 0.0
        for a in range(m, -1, -1):
            windows += histograms[group, a]
            matches += a * histograms[group, a]
            f1 = 2 * matches / (m * windows + activations)
            if f1 >= best[group, 0]:
                best[group, 0] = f1
                best[group, 1] = m * windows / activations
        best[group, 2] = activations / (m * windows)
    return best
