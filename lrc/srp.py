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

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from lrc.arguments import (
    check_level,
    check_trace,
    checked_segment_lengths,
    dataset_groups,
    dataset_labels,
    once,
)
from lrc.bootstrap import check_bootstrap
from lrc.errors import LrcError
from lrc.kernels import count_windows_by_position, host
from lrc.shards import Corpus
from lrc.srp_bootstrap import srp_intervals
from lrc.trace import Trace
from lrc.window_counts import LEVELS, SEGMENT_LENGTHS, best_router, count_corpus


def srp(
    source: Trace | str | PathLike | list,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str | tuple[str, ...] = "model",
    by_dataset: bool | tuple[bool, ...] = False,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Segment routing best performance of a model, its layers or its experts.

    Parameters
    ----------
    source : Trace or path or list of these
        A trace, the path of one that was saved, a pattern for paths such as ``"shards/*.parquet"``,
        or a list: the sequences of all together. Files are read a row group at a time, so they may
        be larger than memory, and shared out among processes or machines: see :doc:`scale`.
    segment_lengths : int or sequence of int
        Window lengths m in tokens, each at least 1.
    level : {"model", "layer", "expert"}
        Which experts share one threshold: those of all layers, of a layer, or each its own. Or
        several of these, which takes little longer than the finest of them: the table then has a
        column ``level`` first, and no layer or expert (``<NA>``) where they are pooled.
    by_dataset : bool
        Measure each dataset by itself rather than all sequences pooled. Or ``(False, True)``: both,
        from one count of the windows; the dataset of what is pooled is ``<NA>``.
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
        out of range, shards of different models, a file that is missing or damaged.

    Examples
    --------
    >>> trace = Trace([[[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]]]], num_experts=4)
    >>> lrc.srp(trace, 2)[["segment_length", "srp", "size_ratio", "windows"]]
       segment_length  srp  size_ratio  windows
    0               2  0.8         1.5        3
    """
    check_bootstrap(bootstrap, confidence)
    levels = (level,) if isinstance(level, str) else once(list(level), "level")
    for name in levels or (level,):
        check_level(name, LEVELS)
    groupings: tuple = (by_dataset,)
    if several := isinstance(by_dataset, tuple | list):
        groupings = once(list(by_dataset), "by_dataset")
    if several and not (groupings and {False, True}.issuperset(groupings)):
        raise LrcError(f"by_dataset is {by_dataset!r}, but must be False, True, or (False, True)")
    segment_lengths = checked_segment_lengths(segment_lengths)
    tables = {}
    with Corpus(source) as corpus:
        finest = max(levels, key=LEVELS.index)
        labels = dataset_labels(corpus, any(groupings))
        counted = count_corpus(corpus, segment_lengths, finest, labels)
        for grouping in groupings:
            grouped = counted if grouping else counted.pooled()
            counts = [grouped.at(name) for name in levels]
            intervals: Sequence[np.ndarray | None] = [None] * len(levels)
            if bootstrap:
                intervals = srp_intervals(corpus, counts, bootstrap, confidence, seed)
            for name, c, ends in zip(levels, counts, intervals, strict=True):
                tables[grouping, name] = c.table(ends)
    if not several and isinstance(level, str):
        return tables[by_dataset, level]
    table = _stacked(tables)
    return table.drop(columns="level") if isinstance(level, str) else table


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
            histograms: Iterable = (
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
                keys: dict[str, Any] = {"dataset": dataset} if by_dataset else {}
                keys |= {"layer": layer} if level == "layer" else {}
                keys |= {"segment_length": m, "start": np.arange(len(score))}
                frames[g, layer, i] = pd.DataFrame(keys | {"srp": score, "size_ratio": size_ratio})
    return pd.concat([frames[key] for key in sorted(frames)], ignore_index=True)


def _stacked(tables):
    """Tables by dataset or not and by level as one, with the columns of the finest."""
    finest = max(tables, key=lambda key: (key[0], LEVELS.index(key[1])))
    columns = tables[finest].columns
    stacked = pd.concat([table.assign(level=level) for (_, level), table in tables.items()])
    kinds = {name: "Int64" for name in ("layer", "expert") if name in columns}
    return stacked[["level", *columns]].astype({"level": "str"} | kinds).reset_index(drop=True)
