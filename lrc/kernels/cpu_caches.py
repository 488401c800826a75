"""Caches of every size in one pass: the priority stacks of Mattson et al. (1970).

A policy that always keeps the experts of highest priority obeys inclusion: what a cache of C
slots holds, one of C + 1 slots holds too. So one stack describes the caches of all sizes (the C
experts on top are the cache of C slots), and an expert found at depth d is a hit in every cache
of more than d slots. Taking an expert puts it on top; what was there goes down, and at each
level the lower priority of the carried and the resident moves on (the running minimum of
priority), until the place that the expert left is filled.

Replay contract "paper": the experts of one token are all looked up first, then taken one after the
other. The n-th distinct expert (from 0) is charged to depth n at its first use: a hit in every
cache that is not full by then.

Everything is an integer: `new_hits[..., d]` counts the uses found at depth d, so histograms of
sequences add up.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config

from lrc.errors import LrcError
from lrc.kernels import cpu_best_sets, cpu_deep, cpu_lanes, cpu_ranks
from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD, LRU, STATIC

__all__ = ["BELADY", "LFU", "LOOKAHEAD", "LRU", "STATIC", "count_new_hits"]

# Lanes walk to the bottom of every stack, and cost the same when they are empty: they are for
# small stacks, and several of them.
DEEPEST_LANES = 512
FEWEST_LANES = 4
# Uses for each expert up to which ranks are counted instead: every token passes over a bit of each
# use, where a stack has a place of each expert.
MOST_RANKED = {LRU: 128, LFU: 256}


def count_new_hits(policy, segment_length, experts, lengths, sequences, num_experts, shared):
    """Replay sequences, each from an empty cache, and count the uses by depth.

    Parameters
    ----------
    policy : int
        `LRU`, `LFU`, `BELADY`, `LOOKAHEAD`, or `STATIC` (the best set of each window).
    segment_length : int
        Tokens of the window, of `LOOKAHEAD` and `STATIC`.
    experts : int16 array [sequences, tokens, layers, top_k]
        Valid ids; -1 counts as no use.
    lengths : int64 array [sequences]
    sequences : int64 array
        Which sequences to replay, in which order.
    num_experts : int
        Experts of one layer.
    shared : bool
        One cache for all layers (layer 0 first within a token), or one for each layer.

    Returns
    -------
    int64 array [sequences, caches, sizes]
        Uses that hit from ``size + 1`` slots on: every use is in it once, for `STATIC` once a
        window that covers it. One cache and ``layers * experts`` sizes if shared, else as many
        caches as layers and as many sizes as experts.
    """
    num_layers, top_k = experts.shape[2:]
    num_caches, layers_a_cache = (1, num_layers) if shared else (num_layers, 1)
    num_ids = layers_a_cache * num_experts
    longest = int(lengths[sequences].max(initial=0))
    uses = longest * layers_a_cache * top_k
    if policy == LOOKAHEAD:
        segment_length = min(segment_length, longest)
        if sum(int(n).bit_length() for n in (segment_length, uses)) > 62:
            raise LrcError(
                f"a sequence of {longest} tokens is too long to look {segment_length} tokens "
                "ahead: split it"
            )
    # Sequence and cache as one axis, dealt out in parts: more than threads, for even loads.
    new_hits = np.zeros((len(sequences) * num_caches, num_ids), np.int64)
    threads = max(1, config.NUMBA_NUM_THREADS)
    replay, step = cpu_deep.replay, 1
    if policy == STATIC:
        replay = cpu_best_sets.replay
    elif len(new_hits) >= FEWEST_LANES and num_ids <= DEEPEST_LANES:
        key_type, _ = cpu_lanes.keys_that_hold(policy, segment_length, longest, uses)
        if key_type is not None:
            replay, step = cpu_lanes.replay, cpu_lanes.LANES
    if replay is cpu_deep.replay and uses <= MOST_RANKED.get(policy, -1) * num_ids:
        replay = cpu_ranks.replay
    groups = -(-len(new_hits) // step)
    bounds = np.linspace(0, groups, min(8 * threads, groups) + 1).astype(int) * step

    def work(start, stop):
        caches = np.arange(start, min(stop, len(new_hits)))
        replay(
            *(policy, segment_length, experts, lengths, sequences[caches // num_caches]),
            *(caches % num_caches * layers_a_cache, layers_a_cache, num_experts),
            new_hits[start : start + len(caches)],
        )

    if threads == 1:
        work(0, len(new_hits))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, bounds[:-1].tolist(), bounds[1:].tolist()))
    return new_hits.reshape(len(sequences), num_caches, num_ids)
