"""How evenly the experts share the work: over a whole corpus, or within short windows."""

from typing import Any

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.errors import LrcError
from lrc.kernels.cpu_balance import window_loads
from lrc.trace import Trace

__all__ = ["balance"]

# Sequences that are measured at a time: bounds the memory for per-window numbers.
_BLOCK = 1024


def balance(
    trace: Trace,
    window: int | None = None,
    *,
    level: str = "layer",
    by_dataset: bool = False,
    segment_length: int = 1,
) -> pd.DataFrame:
    r"""Load balance of the experts.

    Parameters
    ----------
    trace : Trace
    window : int, optional
        Measure within each window of this many tokens (every start position, never across the
        end of a sequence) and average over windows: LOCAL balance. Default: over all tokens at
        once, GLOBAL balance.
    level : {"layer", "model"}, default "layer"
        Experts of one layer, or the experts of all layers pooled as if they were one layer's.
    by_dataset : bool, default False
        Measure each dataset on its own.
    segment_length : int, default 1
        Only global: count a token once for every window of this length it lies in, as activation
        rates in `lrc.srp` do. With 16 and ``level="model"``, ``activation_sd`` is the paper's
        Table 2 to the last digit; 1 counts every token once.

    Returns
    -------
    DataFrame
        dataset and layer where they apply, then

        - activation_sd: standard deviation over experts of the activation rate (0 = balanced);
        - load_cv: the same divided by the mean rate, which does not depend on top-k;
        - entropy: of the distribution of activations over experts, divided by the logarithm of
          the number of experts (1 = balanced, 0 = one expert does all). A window with fewer
          activations than experts cannot reach 1.

    Raises
    ------
    LrcError
        Nothing to measure: no tokens, no sequence as long as the window, an expert group of one,
        or a group without any activation.

    Notes
    -----
    With :math:`f_e` the activations of expert e among n tokens and E experts,

    .. math::

        \mathrm{sd} = \sqrt{\tfrac{1}{E-1} \sum_e \left(\tfrac{f_e}{n} - \bar r\right)^2},
        \quad \mathrm{cv} = \frac{\mathrm{sd}}{\bar r},
        \quad \mathrm{entropy} = -\frac{1}{\ln E} \sum_e \frac{f_e}{\sum f} \ln \frac{f_e}{\sum f},

    with :math:`\bar r` the mean of :math:`f_e / n`. The sample deviation (E - 1) over the experts
    of all layers is what the paper's Table 2 prints. Windows without any activation (all dropped)
    count for ``activation_sd``, where they are 0, and not for the other two. Windows are summed as
    integer histograms, so the order of sequences does not change a bit of the result.
    """
    _check(trace, window, level, by_dataset, segment_length)
    parts: dict[str | None, Trace] = {None: trace}
    if by_dataset:
        parts = {name: trace.select(datasets=name) for name in trace.dataset_names}
    rows = []
    for name, part in parts.items():
        if window is None:
            measured = _global(part, level, segment_length)
        else:
            measured = _local(part, level, window)
        for group, values in enumerate(measured):
            place: dict[str, Any] = {"dataset": name} if by_dataset else {}
            place |= {"layer": group} if level == "layer" else {}
            if np.isnan(values).any():
                where = ", ".join(f"{key} {value}" for key, value in place.items()) or "the model"
                raise LrcError(f"{where}: no expert is ever active, so there is no load to balance")
            rows.append(place | dict(zip(_MEASURES, values, strict=True)))
    return pd.DataFrame(rows)


_MEASURES = ("activation_sd", "load_cv", "entropy")


def _check(trace, window, level, by_dataset, segment_length):
    check_trace(trace)
    if level not in ("layer", "model"):
        raise LrcError(f"level is {level!r}, but must be 'layer' or 'model'")
    if by_dataset and trace.datasets is None:
        raise LrcError("by_dataset needs a trace with datasets, but this one has no labels")
    if window is not None and segment_length != 1:
        raise LrcError("segment_length weighs global balance only: leave out window or it")
    name, length = ("window", window) if window is not None else ("segment_length", segment_length)
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise LrcError(f"{name} is {length!r}, but must be a number of tokens, 1 or more")
    pooled = trace.num_experts * (trace.num_layers if level == "model" else 1)
    if pooled < 2:
        raise LrcError("balance compares experts, but there is only one")
    longest = {None: trace.lengths.max(initial=0)}
    if by_dataset:
        for dataset in trace.dataset_names:
            longest[dataset] = trace.lengths[trace.datasets == dataset].max()
    for dataset, tokens in longest.items():
        if tokens < length:
            where = "the trace" if dataset is None else f"dataset {dataset!r}"
            raise LrcError(
                f"{where} has no sequence of {length} tokens (the longest has {tokens}), so there "
                f"is nothing to measure: choose a smaller {name}"
            )


def _groups(experts, num_experts, level):
    """Ids [sequences, tokens, groups, slots] and experts per group at a level."""
    if level == "layer":
        return experts, num_experts
    num_layers = experts.shape[2]
    offset = (np.arange(num_layers, dtype=np.int32) * num_experts)[:, None]
    ids = np.where(experts >= 0, experts + offset, -1)
    return ids.reshape(*experts.shape[:2], 1, -1), num_experts * num_layers


def _global(trace, level, segment_length):
    """Measures [groups, 3] over all tokens at once."""
    experts, num_experts = _groups(trace.experts, trace.num_experts, level)
    position = np.arange(trace.shape[1])
    windows = trace.lengths[:, None] - segment_length + 1
    weight = np.minimum(position + 1, trace.lengths[:, None] - position)
    weight = np.minimum(weight, np.minimum(windows, segment_length)).clip(min=0)
    loads = np.empty((experts.shape[2], num_experts), np.int64)
    for group in range(experts.shape[2]):
        # Sums of integers below 2**53: exact in the float64 that bincount adds up in.
        slots = [experts[:, :, group, k] for k in range(experts.shape[3])]
        loads[group] = sum(
            np.bincount(ids[ids >= 0], weight[ids >= 0], minlength=num_experts) for ids in slots
        )
    rates = loads / weight.sum()
    deviation = rates.std(axis=1, ddof=1)
    with np.errstate(invalid="ignore"):  # a group without activations: NaN, reported above
        share = loads / loads.sum(axis=1, keepdims=True)
        entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(axis=1)
        entropy = np.where(loads.any(axis=1), (entropy / np.log(num_experts)).clip(0, 1), np.nan)
        return np.stack([deviation, deviation / rates.mean(axis=1), entropy], axis=1)


def _local(trace, level, window):
    """Measures [groups, 3], averaged over windows."""
    num_groups = trace.num_layers if level == "layer" else 1
    pairs = [{} for _ in range(num_groups)]
    histograms = [{} for _ in range(num_groups)]
    for start in range(0, trace.num_sequences, _BLOCK):
        block = slice(start, start + _BLOCK)
        experts, num_experts = _groups(trace.experts[block], trace.num_experts, level)
        lengths = trace.lengths[block]
        for group in range(num_groups):
            ids = np.ascontiguousarray(experts[:, :, group])
            totals, index = np.unique(_totals(ids, lengths, window), return_inverse=True)
            squares, histogram = window_loads(ids, lengths, num_experts, window, index, len(totals))
            pair, count = np.unique(
                np.stack([totals[index], squares], axis=1), axis=0, return_counts=True
            )
            _add(pairs[group], map(tuple, pair.tolist()), count.tolist())
            _add(histograms[group], totals.tolist(), histogram)
    return [
        _mean_over_windows(pair, histogram, num_experts, window)
        for pair, histogram in zip(pairs, histograms, strict=True)
    ]


def _totals(ids, lengths, window):
    """Activations of each window, [windows]."""
    running = np.zeros((len(lengths), ids.shape[1] + 1), np.int64)
    np.cumsum((ids >= 0).sum(axis=2), axis=1, out=running[:, 1:])
    starts = np.arange(max(0, ids.shape[1] - window + 1))
    totals = running[:, starts + window] - running[:, starts]
    return totals[starts + window <= lengths[:, None]]


def _add(sums, keys, values):
    for key, value in zip(keys, values, strict=True):
        sums[key] = sums.get(key, 0) + value


def _mean_over_windows(pairs, histograms, num_experts, window):
    """Means of the three measures, from integer counts of windows and of loads."""
    total, square = np.array(sorted(pairs), np.int64).T
    count = np.array([pairs[pair] for pair in sorted(pairs)])
    variance = (num_experts * square - total**2) / (num_experts * (num_experts - 1))
    deviation = np.sqrt(variance) / window
    active = total > 0
    if not active.any():
        return np.array([0.0, np.nan, np.nan])
    mean = total[active] / (num_experts * window)
    entropy = 0.0
    for activations in sorted(histograms):
        if activations:
            load = np.arange(2, window + 1)
            spread = histograms[activations][2:] @ (load * np.log(load)) / activations
            windows = histograms[activations].sum() // num_experts
            entropy += windows * np.log(activations) - spread
    active_windows = count[active].sum()
    return np.array(
        [
            deviation @ count / count.sum(),
            (deviation[active] / mean) @ count[active] / active_windows,
            # Rounding may leave [0, 1] by the last bit.
            np.clip(entropy / np.log(num_experts) / active_windows, 0, 1),
        ]
    )
