"""Experts that two tokens have in common, for all pairs of tokens of a text.

A token's experts are the bits of a few words, so that what two tokens share is counted in one
instruction a word.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic


@intrinsic
def popcount(typing_context, word):
    """Bits of a word that are set."""

    def emit(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), emit


def count_pairs(experts, lengths, token_ids, num_experts, distances):
    """Count experts that the tokens of a pair share, by sequence, layer and distance.

    Parameters
    ----------
    experts : int16 array [sequences, tokens, layers, top_k]
    lengths : int64 array [sequences]
    token_ids : int32 array [sequences, tokens]
        Pairs of equal ids are counted apart; -1 is equal to nothing.
    num_experts : int
    distances : int64 array [distances]
        At least 1 each.

    Returns
    -------
    shared, uses : int64 array [sequences, layers, distances + 1, 2]
        Experts that both tokens use, and those that the one uses plus those that the other does.
        Last of the distances: all of them together, also those not asked for. On the last axis
        pairs of different and of equal ids.
    pairs : int64 array [sequences, distances + 1, 2]
    """
    num_sequences, num_tokens, num_layers, _ = experts.shape
    # Where each distance is counted: those not asked for go straight to where all are.
    place = np.full(num_tokens + 1, len(distances), np.int64)
    near = distances <= num_tokens
    place[distances[near]] = np.flatnonzero(near)
    shared = np.zeros((num_sequences, num_layers, len(distances) + 1, 2), np.int64)
    uses = np.zeros_like(shared)
    pairs = np.zeros((num_sequences, len(distances) + 1, 2), np.int64)
    words = -(-num_experts // 64)
    threads = max(1, min(config.NUMBA_NUM_THREADS, num_sequences))

    def work(first):
        # Every so many-th sequence: neighbours are often of one length.
        mine = slice(first, None, threads)
        _count(
            experts[mine],
            lengths[mine],
            token_ids[mine],
            words,
            place,
            shared[mine],
            uses[mine],
            pairs[mine],
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    for counts in (shared, uses, pairs):
        counts[..., -1, :] = counts.sum(axis=-2)
    return shared, uses, pairs


@njit(cache=True, nogil=True)
def _count(experts, lengths, token_ids, words, place, shared, uses, pairs):
    num_sequences, num_tokens, num_layers, top_k = experts.shape
    sets = np.empty((words, num_tokens), np.uint64)
    sizes = np.empty(num_tokens, np.int64)
    for i in range(num_sequences):
        length = lengths[i]
        ids = token_ids[i]
        for j in range(num_layers):
            sets[:] = 0
            sizes[:] = 0
            for t in range(length):
                for k in range(top_k):
                    e = experts[i, t, j, k]
                    if e >= 0:
                        sets[e >> 6, t] |= np.uint64(1) << np.uint64(e & 63)
                        sizes[t] += 1
            for d in range(1, length):
                both = np.uint64(0)
                both_same = np.uint64(0)
                for w in range(words):
                    row = sets[w]
                    for t in range(length - d):
                        common = popcount(row[t] & row[t + d])
                        both += common
                        if ids[t] == ids[t + d]:
                            both_same += common if ids[t] >= 0 else np.uint64(0)
                used = 0
                used_same = 0
                same = 0
                for t in range(length - d):
                    size = sizes[t] + sizes[t + d]
                    used += size
                    equal = ids[t] == ids[t + d] and ids[t] >= 0
                    same += equal
                    used_same += size if equal else 0
                p = place[d]
                shared[i, j, p, 0] += np.int64(both - both_same)
                shared[i, j, p, 1] += np.int64(both_same)
                uses[i, j, p, 0] += used - used_same
                uses[i, j, p, 1] += used_same
                if j == 0:
                    pairs[i, p, 0] += length - d - same
                    pairs[i, p, 1] += same
