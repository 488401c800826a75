"""Segment routing best performance (SRP): could one choice of experts serve a whole segment?

A segment router switches each expert on or off for m tokens at once. Scored by F1 against the
token router's own choices, the best one switches on, in every window, the experts that are
active there at least a times; a is one threshold for the whole group of experts. SRP is its F1:

    SRP(E, m) = max over a of  2 * sum of f  /  (m * #{f >= a} + total f),    sum over f >= a,

f being the activations of an expert in a window of m tokens; all windows of all sequences and
all experts of the group E are pooled (Liu et al., "Not All Models Suit Expert Offloading",
Section 2.2; every start position counts, no window crosses a sequence's end).

All of it follows from a histogram of f, in integers. Histograms of shards add up, so a corpus
may be measured in parts, in any order, on any machine, to the same last bit: `window_counts`
on each, the sum, then `WindowCounts.table`.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.errors import LrcError
from lrc.kernels.cpu_windows import (
    best_thresholds,
    bin_slices,
    count_windows,
    count_windows_by_position,
)
from lrc.trace import Trace

SEGMENT_LENGTHS = (4, 16, 64, 256)
LEVELS = ("model", "layer", "expert")
# Size of the arrays of a bootstrap's step: resampled histograms, histograms of sequences.
BLOCK_BYTES = 1 << 26


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
    groups = _dataset_groups(trace, counts.datasets)
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
    segment_lengths = _checked(trace, segment_lengths, level, LEVELS[:2])
    datasets = _dataset_labels(trace, by_dataset)
    groups = _dataset_groups(trace, datasets)
    frames = []
    for g, dataset in enumerate(datasets):
        only = np.where(groups == g, 0, -1)
        for m in segment_lengths:
            histograms = (
                count_windows_by_position(
                    trace.experts, trace.lengths, only, 1, layers, trace.num_experts, m
                )[0, 0]
                for layers in np.arange(trace.num_layers)[:, None]
            )
            if level == "model":
                histograms = [sum(histograms)]
            for layer, histogram in enumerate(histograms):
                score, size_ratio, _ = best_router(histogram)
                frames.append(
                    pd.DataFrame(
                        {
                            "dataset": dataset,
                            "layer": layer,
                            "segment_length": m,
                            "start": np.arange(len(score)),
                            "srp": score,
                            "size_ratio": size_ratio,
                        }
                    )
                )
    table = pd.concat(frames, ignore_index=True)
    keys = ["dataset"] * by_dataset + ["layer"] * (level == "layer")
    columns = [*keys, "segment_length", "start", "srp", "size_ratio"]
    return table.sort_values([*keys, "segment_length", "start"], ignore_index=True)[columns]


@dataclass(frozen=True)
class WindowCounts:
    """Everything SRP needs to know of a trace, in integers that add up over shards.

    Attributes
    ----------
    counts : int64 array [datasets, layers, experts, bins]
        Windows in which an expert is active 0 ... m times, one segment length after the other.
        Pooled axes have length 1, as `level` says.
    windows : int64 array [datasets, segment_lengths]
        Segments: pairs of a sequence and a start position.
    datasets : tuple of str
        Sorted; ``("",)`` when pooled.
    segment_lengths : tuple of int
    level : str
    model : tuple of int
        Layers and experts of the model: only counts of equal ones may be added.
    """

    counts: np.ndarray
    windows: np.ndarray
    datasets: tuple[str, ...]
    segment_lengths: tuple[int, ...]
    level: str
    model: tuple[int, int]

    def __add__(self, other: "WindowCounts") -> "WindowCounts":
        kinds = [(c.segment_lengths, c.level, c.model) for c in (self, other)]
        if kinds[0] != kinds[1]:
            raise LrcError(
                "window counts of different kinds cannot be added (segment lengths, level, "
                f"layers and experts): {kinds[0]} and {kinds[1]}"
            )
        datasets = tuple(sorted({*self.datasets, *other.datasets}))
        counts = np.zeros((len(datasets), *self.counts.shape[1:]), np.int64)
        windows = np.zeros((len(datasets), len(self.segment_lengths)), np.int64)
        for part in (self, other):
            rows = [datasets.index(label) for label in part.datasets]
            counts[rows] += part.counts
            windows[rows] += part.windows
        return replace(self, counts=counts, windows=windows, datasets=datasets)

    def histogram(self, i: int) -> np.ndarray:
        """Bins of the i-th segment length: [datasets, layers, experts, m + 1]."""
        return self.counts[..., bin_slices(self.segment_lengths)[i]]

    def table(self, intervals=None) -> pd.DataFrame:
        """Table that `srp` returns.

        Parameters
        ----------
        intervals : float array [2, datasets, layers, experts, segment_lengths], optional
            Lower and upper ends, from a bootstrap.
        """
        scores = [best_router(self.histogram(i)) for i in range(len(self.segment_lengths))]
        # [datasets, layers, experts, segment_lengths] each; rows of the table in that order.
        score, size_ratio, activation_rate = (
            np.stack(column, axis=-1) for column in zip(*scores, strict=True)
        )
        there = np.broadcast_to(self.windows[:, None, None] > 0, score.shape)
        g, layer, expert, i = np.nonzero(there)
        columns = {
            "dataset": np.array(self.datasets, dtype=object)[g],
            "layer": layer,
            "expert": expert,
            "segment_length": np.array(self.segment_lengths)[i],
            "srp": score[there],
            "ci_low": None if intervals is None else intervals[0][there],
            "ci_high": None if intervals is None else intervals[1][there],
            "size_ratio": size_ratio[there],
            "activation_rate": activation_rate[there],
            "windows": self.windows[g, i],
        }
        absent = {"dataset"} if self.datasets in (("",), ()) else set()
        absent |= {"layer", "expert"} if self.level == "model" else set()
        absent |= {"expert"} if self.level == "layer" else set()
        absent |= {"ci_low", "ci_high"} if intervals is None else set()
        table = pd.DataFrame({k: v for k, v in columns.items() if k not in absent})
        return table.astype({"dataset": "str"}) if "dataset" in table else table


def window_counts(
    trace: Trace, segment_lengths=SEGMENT_LENGTHS, *, level: str = "model", by_dataset: bool = False
) -> WindowCounts:
    """Partial statistics of `srp` for one shard of a corpus (parameters as there).

    Examples
    --------
    >>> parts = [window_counts(shard, level="layer") for shard in shards]  # doctest: +SKIP
    >>> sum(parts[1:], parts[0]).table()  # doctest: +SKIP
    """
    segment_lengths = _checked(trace, segment_lengths, level, LEVELS)
    datasets = _dataset_labels(trace, by_dataset)
    groups = _dataset_groups(trace, datasets)
    counts = count_windows(
        trace.experts,
        trace.lengths,
        groups,
        len(datasets),
        np.arange(trace.num_layers),
        np.arange(trace.num_experts) * (level == "expert"),
        segment_lengths,
    )
    if level == "model":
        counts = counts.sum(axis=1, keepdims=True)
    windows = np.zeros((len(datasets), len(segment_lengths)), np.int64)
    for i, m in enumerate(segment_lengths):
        np.add.at(windows[:, i], groups, np.maximum(trace.lengths - m + 1, 0))
    model = (trace.num_layers, trace.num_experts)
    return WindowCounts(counts, windows, datasets, segment_lengths, level, model)


def best_router(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, size ratio and activation rate of the best segment router.

    Parameters
    ----------
    histogram : int array [..., m + 1]
        Windows of one expert with 0, 1, ... m activations. Floats do if they are whole.

    Returns
    -------
    tuple of float64 arrays [...]
        SRP, size ratio (slots switched on over activations) and activation rate; all 0 where
        there are no activations.
    """
    shape = histogram.shape[:-1]
    best = best_thresholds(np.ascontiguousarray(histogram).reshape(-1, histogram.shape[-1]))
    score, size_ratio, activation_rate = best.T.reshape(3, *shape)
    return score, size_ratio, activation_rate


def _resampled_srp(trace, m, level, members, weights):
    """SRP of every resample, in blocks of layers and experts that fit into memory.

    Yields slices of layers and of experts, and [bootstrap, layers, experts].
    """
    block = max(1, BLOCK_BYTES // (8 * len(weights) * (m + 1)))
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
    step = max(1, BLOCK_BYTES // (8 * len(layers) * num_rows * (m + 1)))
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
        shape = histograms.shape[1:]
        flat = histograms.reshape(len(chunk), -1).astype(np.float64)
        total = total + weights[:, start : start + step].astype(np.float64) @ flat
    return total.reshape(len(weights), *shape)


def _checked(trace, segment_lengths, level, levels):
    """Segment lengths as a tuple, once all arguments are known to be right."""
    if not isinstance(trace, Trace):
        hint = "lrc.load_trace reads a file; of a dict of stacks take one, as trace['decoder']"
        raise LrcError(f"expected a lrc.Trace, not {type(trace).__name__} ({hint})")
    if level not in levels:
        raise LrcError(f"level is {level!r}, but must be one of {', '.join(map(repr, levels))}")
    lengths = np.atleast_1d(np.asarray(segment_lengths))
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or not lengths.size or lengths.min() < 1:
        raise LrcError(
            f"segment_lengths is {segment_lengths!r}, but must hold whole numbers of tokens, "
            "each at least 1, such as (4, 16)"
        )
    if len(set(lengths.tolist())) < len(lengths):
        raise LrcError(f"segment_lengths is {segment_lengths!r}: give each length once")
    return tuple(lengths.tolist())


def _dataset_labels(trace, by_dataset):
    """Sorted labels, or one empty label for all sequences pooled."""
    if not by_dataset:
        return ("",)
    if trace.datasets is None:
        raise LrcError("by_dataset needs labels: build the trace with datasets=[...]")
    return tuple(trace.dataset_names)


def _dataset_groups(trace, datasets):
    """Number of each sequence's dataset among `datasets`: int64 array [sequences]."""
    if datasets == ("",):
        return np.zeros(trace.num_sequences, np.int64)
    return np.searchsorted(np.array(datasets), trace.datasets)


def _strata(trace):
    return np.zeros(trace.num_sequences) if trace.datasets is None else trace.datasets
