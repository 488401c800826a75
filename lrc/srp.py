"""Segment routing best performance (SRP): could one choice of experts serve a whole segment?

A segment router switches each expert on or off for m tokens at once. Scored by F1 against the
token router's own choices, the best one switches on, in every window, the experts that are
active there at least a times; a is one threshold for the whole group of experts. SRP is its F1:

    SRP(E, m) = max over a of  2 * sum of f  /  (m * #{f >= a} + total f),    sum over f >= a,

f being the activations of an expert in a window of m tokens; all windows of all sequences and
all experts of the group E are pooled (Liang et al., "Not All Models Suit Expert Offloading",
Section 2.2; every start position counts, no window crosses a sequence's end).

All of it follows from a histogram of f, in integers: see `lrc.window_counts`, also for corpora
that are measured in parts.
"""

import numpy as np
import pandas as pd

from lrc.arguments import (
    check_level,
    check_trace,
    checked_segment_lengths,
    dataset_groups,
    dataset_labels,
)
from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.kernels import (
    block_bytes,
    count_windows,
    count_windows_by_position,
    host,
    weighted_sums,
)
from lrc.trace import Trace
from lrc.window_counts import (
    LEVELS,
    SEGMENT_LENGTHS,
    best_router,
    window_counts,
)


def srp(
    trace: Trace,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str = "model",
    by_dataset: bool = False,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Segment routing best performance of a model, its layers or its experts.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int
        Window lengths m in tokens, each at least 1.
    level : {"model", "layer", "expert"}
        Which experts share one threshold: those of all layers, of a layer, or each its own.
    by_dataset : bool
        Measure each dataset by itself rather than all sequences pooled.
    bootstrap : int
        Resamples of the sequences, drawn within each dataset (0 = no interval).
    confidence : float
        Coverage of the interval, between 0 and 1.
    seed : int
        Of the resampling; the same seed gives the same interval.

    Returns
    -------
    DataFrame
        A row per dataset, layer, expert (as far as asked for) and segment length:

        - ``srp``: F1 of the best segment router, 0 to 1; 0 for experts that are never active;
        - ``ci_low``, ``ci_high``: bootstrap interval, mirrored about the estimate;
        - ``size_ratio``: the paper's rho-hat, experts the best router keeps on over experts
          really active, both as means per token (so -1 slots do not count); on equal F1 the
          lowest threshold, hence the larger ratio, is meant;
        - ``activation_rate``: share of (expert, token in a window) pairs that are active;
        - ``windows``: segments pooled, int64.

        A segment length that no sequence reaches has no row.

    Raises
    ------
    LrcError
        A segment length below 1, an unknown level, `by_dataset` without labels, a confidence
        out of range.

    Examples
    --------
    >>> trace = Trace([[[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]]]], num_experts=4)
    >>> lrc.srp(trace, 2)[["segment_length", "srp", "size_ratio", "windows"]]
       segment_length  srp  size_ratio  windows
    0               2  0.8         1.5        3
    """
    check_bootstrap(bootstrap, confidence)
    counts = window_counts(trace, segment_lengths, level=level, by_dataset=by_dataset)
    if not bootstrap:
        return counts.table()
    shape = (*counts.counts.shape[:3], len(counts.segment_lengths))
    intervals = np.full((2, *shape), np.nan)
    groups = dataset_groups(trace, counts.datasets)
    for g, i in np.argwhere(counts.windows).tolist():
        m = counts.segment_lengths[i]
        members = np.flatnonzero((groups == g) & (trace.lengths >= m))
        estimate, _, _ = best_router(counts.histogram(i)[g])
        weights = resample_weights(_strata(trace)[members], bootstrap, seed)
        for layers, experts, resampled in _resampled_srp(trace, m, level, members, weights):
            intervals[:, g, layers, experts, i] = mirrored_interval(
                estimate[layers, experts], resampled, confidence
            )
    return counts.table(intervals)


def srp_by_position(
    trace: Trace,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str = "model",
    by_dataset: bool = False,
) -> pd.DataFrame:
    """SRP of the windows that start at one position, for every position.

    Each position has a best segment router (a threshold) of its own.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int
        Window lengths m in tokens, each at least 1.
    level : {"model", "layer"}
        Pool the experts of all layers, or of each.
    by_dataset : bool
        Measure each dataset by itself.

    Returns
    -------
    DataFrame
        ``segment_length``, ``start`` (0-based token), ``srp`` and ``size_ratio`` as in `srp`,
        before them ``dataset`` and ``layer`` as far as asked for. With ragged sequences fewer
        and fewer windows stand behind a late start.

    Raises
    ------
    LrcError
        As `srp`.
    """
    check_trace(trace, anywhere=True)
    check_level(level, LEVELS[:2])
    segment_lengths = checked_segment_lengths(segment_lengths)
    datasets = dataset_labels(trace, by_dataset)
    groups = dataset_groups(trace, datasets)
    frames = {}
    for g, dataset in enumerate(datasets or ("",)):
        only = np.where(groups == g, 0, -1)
        for i, m in enumerate(segment_lengths):
            histograms = (
                host(
                    count_windows_by_position(
                        trace.experts, trace.lengths, only, 1, layers, trace.num_experts, m
                    )
                )[0, 0]
                for layers in np.arange(trace.num_layers)[:, None]
            )
            if level == "model":
                histograms = [sum(histograms)]
            for layer, histogram in enumerate(histograms):
                score, size_ratio, _ = best_router(histogram)
                keys = {"dataset": dataset} if by_dataset else {}
                keys |= {"layer": layer} if level == "layer" else {}
                keys |= {"segment_length": m, "start": np.arange(len(score))}
                frames[g, layer, i] = pd.DataFrame(keys | {"srp": score, "size_ratio": size_ratio})
    return pd.concat([frames[key] for key in sorted(frames)], ignore_index=True)


def _resampled_srp(trace, m, level, members, weights):
    """SRP of every resample, in blocks of layers and experts that fit into memory.

    Yields slices of layers and of experts, and [bootstrap, layers, experts].
    """
    block = max(1, block_bytes(trace.experts) // (8 * len(weights) * (m + 1)))
    everything = np.arange(trace.num_layers)
    pooled = np.zeros(trace.num_experts, np.int64)
    if level == "model":
        blocks = [(everything, pooled, slice(0, 1), slice(0, 1))]
    elif level == "layer":
        blocks = [
            (everything[start : start + block], pooled, slice(start, start + block), slice(0, 1))
            for start in range(0, trace.num_layers, block)
        ]
    else:
        ids = np.arange(trace.num_experts)
        blocks = [
            (
                everything[layer : layer + 1],
                np.where((ids >= start) & (ids < start + block), ids - start, -1),
                slice(layer, layer + 1),
                slice(start, start + block),
            )
            for layer in range(trace.num_layers)
            for start in range(0, trace.num_experts, block)
        ]
    for layers, expert_rows, layer_part, expert_part in blocks:
        histogram = _resampled_histogram(
            trace, m, members, weights, layers, expert_rows, level == "model"
        )
        yield layer_part, expert_part, best_router(histogram)[0]


def _resampled_histogram(trace, m, members, weights, layers, expert_rows, pool_layers):
    """Histogram of every resample, [bootstrap, layers, experts, m + 1].

    A matrix product of weights and the sequences' own histograms: whole numbers below 2**53,
    so exact in float64.
    """
    num_rows = int(expert_rows.max()) + 1
    step = max(1, block_bytes(trace.experts) // (8 * len(layers) * num_rows * (m + 1)))
    total = 0.0
    for start in range(0, len(members), step):
        chunk = members[start : start + step]
        groups = np.full(trace.num_sequences, -1)
        groups[chunk] = np.arange(len(chunk))
        histograms = count_windows(
            trace.experts, trace.lengths, groups, len(chunk), layers, expert_rows, (m,)
        )
        if pool_layers:
            histograms = histograms.sum(axis=1, keepdims=True)
        total = total + weighted_sums(weights[:, start : start + step], histograms)
    return total


def _strata(trace):
    return np.zeros(trace.num_sequences) if trace.datasets is None else trace.datasets
