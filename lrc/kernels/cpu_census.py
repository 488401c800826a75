"""What the trace doctor looks at, each taken in one pass over all slots."""

import numpy as np
from numba import njit

LONGEST_LAG = 32
"""Tokens: a lag is one of the low bits of a word."""

LAST = (1 << LONGEST_LAG) - 1


@njit(cache=True, nogil=True)
def census(experts, lengths, names, signatures, uses, empty, slots, blank, zero):
    """Count uses, rows and tokens without an expert, and sign each token's routing.

    Parameters
    ----------
    experts : int16 array [sequences, tokens, layers, top_k]
    lengths : int64 array [sequences]
    names : uint64 array [layers, experts]
        A random number for each expert; a token's signature is the sum of its experts' numbers,
        whatever the order of slots.
    signatures : uint64 array [sequences, tokens]
        Filled, as are all below.
    uses : int64 array [layers, experts]
    empty : int64 array [layers]
        Tokens without an expert in the layer.
    slots : int64 array [top_k]
        How often a slot held an expert.
    blank, zero : bool array [sequences, tokens]
        Tokens without an expert in any layer; tokens that use expert 0 alone in every layer.
    """
    num_sequences, _, num_layers, top_k = experts.shape
    for i in range(num_sequences):
        for t in range(lengths[i]):
            total = np.uint64(0)
            silent = 0
            zeros = 0
            for j in range(num_layers):
                used = 0
                largest = -1
                for k in range(top_k):
                    e = experts[i, t, j, k]
                    if e >= 0:
                        used += 1
                        largest = max(largest, e)
                        slots[k] += 1
                        uses[j, e] += 1
                        total += names[j, e]
                if used == 0:
                    empty[j] += 1
                    silent += 1
                elif largest == 0:
                    zeros += 1
            signatures[i, t] = total
            blank[i, t] = silent == num_layers
            zero[i, t] = zeros == num_layers


@njit(cache=True, nogil=True)
def overlaps(experts, lengths, layers, num_experts, shared, pairs):
    """Experts that tokens have in common with those some tokens earlier.

    Parameters
    ----------
    experts, lengths
        As above.
    layers : int64 array
        Layers to look at.
    shared, pairs : int64 array [sequences, LONGEST_LAG + 1]
        Filled by lag: uses of an expert that the token that many places earlier used too, and all
        uses by tokens that have such an earlier token.
    """
    num_sequences, _, _, top_k = experts.shape
    # Which of the last tokens used an expert: bit l - 1 for the token l places earlier.
    history = np.zeros(num_experts, np.int64)
    updated = np.zeros(num_experts, np.int64)
    for i in range(num_sequences):
        for j in layers:
            history[:] = 0
            updated[:] = 0
            for t in range(lengths[i]):
                used = 0
                for k in range(top_k):
                    e = experts[i, t, j, k]
                    if e < 0:
                        continue
                    used += 1
                    gap = t - updated[e]
                    bits = (history[e] << gap) & LAST if gap < LONGEST_LAG else 0
                    rest = bits
                    lag = 1
                    while rest:
                        shared[i, lag] += rest & 1
                        rest >>= 1
                        lag += 1
                    # Seen from the next token on, this use is one place earlier.
                    history[e] = (bits << 1 | 1) & LAST
                    updated[e] = t + 1
                for lag in range(1, min(t, LONGEST_LAG) + 1):
                    pairs[i, lag] += used
