"""Loads of experts in sliding windows."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def window_loads(experts, lengths, num_experts, window, total_index, num_totals):
    """Squares and histogram of expert loads over all windows of one group of experts.

    Parameters
    ----------
    experts : int array [sequences, tokens, slots]
        Ids from 0 to ``num_experts - 1``; -1 = no expert.
    lengths : int64 array [sequences]
    num_experts, window : int
    total_index : int64 array [windows]
        Class of each window (windows with the same number of activations share one).
    num_totals : int
        Number of classes.

    Returns
    -------
    squares : int64 array [windows]
        Sum over experts of the squared load.
    histogram : int64 array [classes, window + 1]
        How many (window, expert) pairs of a class have each load.
    """
    num_sequences, _, num_slots = experts.shape
    squares = np.zeros(len(total_index), np.int64)
    histogram = np.zeros((num_totals, window + 1), np.int64)
    load = np.empty(num_experts, np.int64)
    w = 0
    for i in range(num_sequences):
        load[:] = 0
        for t in range(lengths[i]):
            for k in range(num_slots):
                if experts[i, t, k] >= 0:
                    load[experts[i, t, k]] += 1
                if t >= window and experts[i, t - window, k] >= 0:
                    load[experts[i, t - window, k]] -= 1
            if t >= window - 1:
                total = 0
                for e in range(num_experts):
                    total += load[e] * load[e]
                    histogram[total_index[w], load[e]] += 1
                squares[w] = total
                w += 1
    return squares, histogram
