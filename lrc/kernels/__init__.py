"""The inner loops: one interface, an implementation per kind of hardware.

Where a trace's experts lie says what runs: a numpy array is counted by numba on all CPU threads, a
torch tensor by Triton on its GPU. Both give the same integers. Torch and Triton are loaded only
when a tensor comes.

Counts stay where the experts are; `host` brings them home. Lengths, groups, layers and weights are
numpy arrays in any case: they are small, and the host plans with them.
"""

from importlib import import_module
from math import prod

import numpy as np

from lrc.kernels import cpu_caches, cpu_checks, cpu_quantiles, cpu_windows
from lrc.kernels.cpu_caches import BELADY, LFU, LOOKAHEAD, LRU, STATIC
from lrc.kernels.cpu_quantiles import quantiles_of_rates
from lrc.kernels.cpu_resamples import best_of_sequences, best_resampled, panels_of
from lrc.kernels.cpu_windows import bin_slices
from lrc.kernels.threads import in_slices

__all__ = [
    "BELADY",
    "LFU",
    "LOOKAHEAD",
    "LRU",
    "STATIC",
    "best_of_sequences",
    "best_resampled",
    "best_thresholds",
    "bin_slices",
    "block_bytes",
    "count_columns",
    "count_new_hits",
    "count_windows",
    "count_windows_by_position",
    "host",
    "in_slices",
    "on_host",
    "panels_of",
    "quantiles",
    "quantiles_of_rates",
    "used_layers",
    "weighted_sums",
]

# Size of the histograms of single sequences that are in memory at a time.
BLOCK_BYTES = 1 << 26
# Rows of quantiles that a thread works on.
QUANTILE_ROWS = 64


def _gpu(name):
    return import_module(f"lrc.kernels.gpu_{name}")


def on_host(array) -> bool:
    """Whether the CPU kernels are to be used for an array."""
    return isinstance(array, np.ndarray)


def block_bytes(experts) -> int:
    """Size of the histograms of single sequences that may be held at a time, in bytes."""
    return BLOCK_BYTES if on_host(experts) else _gpu("arrays").block_bytes(experts)


def host(counts) -> np.ndarray:
    """Counts as a numpy array: int64 if they are integers."""
    return counts if on_host(counts) else _gpu("arrays").host(counts)


def count_windows(experts, lengths, groups, num_groups, layers, expert_rows, segment_lengths):
    """See `lrc.kernels.cpu_windows.count_windows`."""
    windows = cpu_windows if on_host(experts) else _gpu("windows")
    return windows.count_windows(
        experts, lengths, groups, num_groups, layers, expert_rows, segment_lengths
    )


def count_windows_by_position(
    experts, lengths, groups, num_groups, layers, num_experts, segment_length
):
    """See `lrc.kernels.cpu_windows.count_windows_by_position`."""
    windows = cpu_windows if on_host(experts) else _gpu("windows")
    return windows.count_windows_by_position(
        experts, lengths, groups, num_groups, layers, num_experts, segment_length
    )


def count_new_hits(policy, segment_length, experts, lengths, sequences, num_experts, shared):
    """See `lrc.kernels.cpu_caches.count_new_hits`."""
    caches = cpu_caches if on_host(experts) else _gpu("caches")
    return caches.count_new_hits(
        policy, segment_length, experts, lengths, sequences, num_experts, shared
    )


def count_columns(experts, lengths, sequences, layers, segment_lengths, plan, dtype):
    """See `lrc.kernels.cpu_windows.count_columns`."""
    columns = cpu_windows if on_host(experts) else _gpu("columns")
    return columns.count_columns(experts, lengths, sequences, layers, segment_lengths, plan, dtype)


def best_thresholds(histograms):
    """See `lrc.kernels.cpu_windows.best_thresholds`: a numpy array, wherever they lie."""
    if on_host(histograms):
        return cpu_windows.best_thresholds(np.ascontiguousarray(histograms))
    return _gpu("bootstrap").best_thresholds(histograms)


def quantiles(values, probabilities):
    """See `lrc.kernels.cpu_quantiles.quantiles`: rows are dealt out to all threads."""
    found = np.empty((len(probabilities), len(values)))

    def work(rows):
        found[:, rows] = cpu_quantiles.quantiles(values[rows], probabilities)

    in_slices(work, len(values), QUANTILE_ROWS)
    return found


def weighted_sums(weights, counts):
    """Sums of the sequences' counts, each sequence as often as a resample drew it.

    Parameters
    ----------
    weights : int array [bootstrap, sequences]
        On the host.
    counts : int array [sequences, ...]

    Returns
    -------
    float64 array [bootstrap, ...]
        Whole numbers, which are exact below 2**53, whatever the order of summation.
    """
    if on_host(counts):
        flat = counts.reshape(len(counts), prod(counts.shape[1:])).astype(np.float64)
        return (weights.astype(np.float64, copy=False) @ flat).reshape(
            len(weights), *counts.shape[1:]
        )
    return _gpu("bootstrap").weighted_sums(weights, counts)


def used_layers(experts) -> np.ndarray:
    """Which sequences use an expert in which layer: bool [sequences, layers], on the host."""
    if on_host(experts):
        return cpu_checks.used_layers(experts)
    return _gpu("arrays").used_layers(experts)
