"""Checks of a trace that would take many passes in numpy, in one pass."""

import numpy as np
from numba import njit

OUT_OF_RANGE = 1
REPEATED = 2


@njit(cache=True, nogil=True)
def first_fault(experts, lengths, num_experts):
    """First slot that breaks a trace, in reading order.

    Parameters
    ----------
    experts : int16 array [sequences, tokens, layers, top_k]
    lengths : int64 array [sequences]
    num_experts : int

    Returns
    -------
    tuple of int
        Fault (0 = none, `OUT_OF_RANGE`, `REPEATED`), sequence, token, layer, slot.
    """
    num_sequences, _, num_layers, top_k = experts.shape
    # The last token that used an expert: telling repeats needs no clearing between tokens.
    last_seen = np.full(num_experts, -1, np.int64)
    stamp = 0
    for i in range(num_sequences):
        for t in range(lengths[i]):
            for j in range(num_layers):
                stamp += 1
                for k in range(top_k):
                    e = experts[i, t, j, k]
                    if e == -1:
                        continue
                    if e < 0 or e >= num_experts:
                        return OUT_OF_RANGE, i, t, j, k
                    if last_seen[e] == stamp:
                        return REPEATED, i, t, j, k
                    last_seen[e] = stamp
    return 0, 0, 0, 0, 0


@njit(cache=True, nogil=True)
def used_layers(experts):
    """Which sequences use an expert in which layer: bool [sequences, layers].

    Nearly always the first token tells.
    """
    num_sequences, num_tokens, num_layers, top_k = experts.shape
    used = np.zeros((num_sequences, num_layers), np.bool_)
    for i in range(num_sequences):
        for j in range(num_layers):
            t = 0
            while t < num_tokens and not used[i, j]:
                for k in range(top_k):
                    used[i, j] |= experts[i, t, j, k] >= 0
                t += 1
    return used
