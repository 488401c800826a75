"""Partial statistics of SRP: in how many windows each expert is active how often.

The histograms are integers and add up. So a corpus may be measured in parts, in any order, on any
machine, to the same last bit: `window_counts` of each part, their sum, `WindowCounts.table`.
"""

from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add

import numpy as np
import pandas as pd

from lrc.arguments import (
    check_level,
    checked_segment_lengths,
    dataset_groups,
    dataset_labels,
)
from lrc.errors import LrcError
from lrc.kernels import best_thresholds, bin_slices, count_windows, host
from lrc.shards import Corpus

SEGMENT_LENGTHS = (4, 16, 64, 256)
LEVELS = ("model", "layer", "expert")


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

    def at(self, level: str) -> "WindowCounts":
        """The same at a coarser level, or at this one."""
        counts = self.counts
        if level != "expert":
            counts = counts.sum(axis=2, keepdims=True)
        if level == "model":
            counts = counts.sum(axis=1, keepdims=True)
        return replace(self, counts=counts, level=level)

    def pooled(self) -> "WindowCounts":
        """The same of all sequences."""
        counts = self.counts.sum(axis=0, keepdims=True)
        windows = self.windows.sum(axis=0, keepdims=True)
        return replace(self, counts=counts, windows=windows, datasets=("",))

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
    source, segment_lengths=SEGMENT_LENGTHS, *, level: str = "model", by_dataset: bool = False
) -> WindowCounts:
    """Partial statistics of `srp` for one shard of a corpus (parameters as there).

    Examples
    --------
    >>> parts = [window_counts(shard, level="layer") for shard in shards]  # doctest: +SKIP
    >>> sum(parts[1:], parts[0]).table()  # doctest: +SKIP
    """
    check_level(level, LEVELS)
    segment_lengths = checked_segment_lengths(segment_lengths)
    with Corpus(source) as corpus:
        return count_corpus(corpus, segment_lengths, level, dataset_labels(corpus, by_dataset))


def count_corpus(corpus: Corpus, segment_lengths, level, datasets) -> WindowCounts:
    """As `window_counts`, of a corpus that is open, for sorted labels (``("",)`` = all pooled)."""
    arguments = (segment_lengths, level, datasets)
    return corpus.add_up(corpus.parts, _count, [arguments] * len(corpus.parts))


def _count(traces, segment_lengths, level, datasets):
    # By map, for a loop would keep a trace while the next is read.
    return reduce(add, map(partial(_count_trace, segment_lengths, level, datasets), traces))


def _count_trace(segment_lengths, level, datasets, trace):
    groups = dataset_groups(trace, datasets)
    counts = count_windows(
        trace.experts,
        trace.lengths,
        groups,
        len(datasets),
        np.arange(trace.num_layers),
        np.arange(trace.num_experts) * (level == "expert"),
        segment_lengths,
    )
    counts = host(counts)
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
        Windows of one expert with 0, 1, ... m activations. Floats do if they are whole. On a
        GPU it is evaluated there.

    Returns
    -------
    tuple of float64 arrays [...]
        SRP, size ratio (slots switched on over activations) and activation rate; all 0 where
        there are no activations.
    """
    shape = histogram.shape[:-1]
    best = best_thresholds(histogram.reshape(-1, histogram.shape[-1]))
    score, size_ratio, activation_rate = best.T.reshape(3, *shape)
    return score, size_ratio, activation_rate
