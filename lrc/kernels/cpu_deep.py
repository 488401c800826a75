"""One stack after the other, each use by itself: for stacks too deep or too few for `cpu_lanes`.

The work of a use grows with the depth at which its expert is found, less what can be skipped.
"""

import numpy as np
from numba import njit

from lrc.kernels.cpu_best_sets import count_best_sets
from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD, LRU

# Keys of one block of a stack share a lower bound, so that a walk can pass whole blocks.
BLOCK_BITS = 5
BLOCK = 1 << BLOCK_BITS
HIGHEST = np.iinfo(np.int64).max


@njit(cache=True, nogil=True)
def replay(
    policy,
    segment_length,
    experts,
    lengths,
    sequences,
    first_layers,
    layers_a_cache,
    num_experts,
    new_hits,
):
    num_ids = layers_a_cache * num_experts
    ids = np.empty(experts.shape[1] * layers_a_cache * experts.shape[3], np.int32)
    starts = np.empty(experts.shape[1] + 1, np.int64)
    for job in range(len(sequences)):
        i, first = sequences[job], first_layers[job]
        length = lengths[i]
        part = experts[i, :length, first : first + layers_a_cache]
        uses = _flatten(part, num_experts, ids, starts)
        if uses == 0:
            continue
        if policy == LRU:
            _lru(ids[:uses], starts[: length + 1], num_ids, new_hits[job])
        elif policy == LFU:
            _lfu(ids[:uses], starts[: length + 1], num_ids, new_hits[job])
        elif policy == BELADY:
            _belady(ids[:uses], starts[: length + 1], num_ids, new_hits[job])
        elif policy == LOOKAHEAD:
            _lookahead(ids[:uses], starts[: length + 1], num_ids, new_hits[job], segment_length)
        elif length >= segment_length:
            count_best_sets(
                ids[:uses], starts[: length + 1], num_ids, new_hits[job], segment_length
            )


@njit(cache=True, nogil=True)
def _flatten(experts, num_experts, ids, starts):
    """List the uses of one sequence: token t uses ``ids[starts[t] : starts[t + 1]]``.

    Layer and expert become one id; slots without an expert are left out.
    """
    num_tokens, num_layers, top_k = experts.shape
    n = 0
    starts[0] = 0
    for t in range(num_tokens):
        for j in range(num_layers):
            for k in range(top_k):
                e = experts[t, j, k]
                if e >= 0:
                    ids[n] = j * num_experts + e
                    n += 1
        starts[t + 1] = n
    return n


@njit(cache=True, nogil=True)
def _lru(ids, starts, num_ids, new_hits):
    # The stack is the experts by last use, so no priority need be compared. Kept with its top at
    # the end: one forward pass a token finds every depth and closes the gaps.
    stack = np.empty(num_ids, np.int32)
    last_token = np.full(num_ids, -1, np.int32)
    height = 0
    for t in range(len(starts) - 1):
        first_uses = 0
        for i in range(starts[t], starts[t + 1]):
            if last_token[ids[i]] < 0:
                new_hits[height + first_uses] += 1
                first_uses += 1
            last_token[ids[i]] = t
        kept = 0
        for place in range(height):
            x = stack[place]
            if last_token[x] == t:
                new_hits[height - 1 - place] += 1
            else:
                stack[kept] = x
                kept += 1
        for i in range(starts[t], starts[t + 1]):
            stack[kept] = ids[i]
            kept += 1
        height = kept


@njit(cache=True, nogil=True)
def _lfu(ids, starts, num_ids, new_hits):
    # `ranking` is all experts seen, by count and then recency. The stack equals it but for a few
    # disjoint runs whose last expert stands before the others: an expert just taken is on top
    # whatever its count, and what it displaced may stop above its rank. Runs are kept with the
    # one nearest the top last. Counts only grow by one, so that an expert moves to the front of
    # the next count's group: `at_least[c]` (experts used c times or more) tells where that is.
    ranking = np.empty(num_ids + 1, np.int32)
    count = np.zeros(num_ids, np.int32)
    last_use = np.zeros(num_ids, np.int64)
    at_least = np.zeros(len(starts) + 2, np.int64)
    rank_of = np.empty(num_ids, np.int32)
    run_first = np.empty(num_ids + 1, np.int64)
    run_last = np.empty(num_ids + 1, np.int64)
    runs = 0
    height = 0
    for t in range(len(starts) - 1):
        first_uses = 0
        for place in range(height):
            rank_of[ranking[place]] = place
        for i in range(starts[t], starts[t + 1]):
            x = ids[i]
            if count[x] == 0:
                new_hits[height + first_uses] += 1
                first_uses += 1
                continue
            rank = rank_of[x]
            # The last run that ends at the rank or below it is the only one that can hold it.
            lo, hi = 0, runs
            while lo < hi:
                mid = (lo + hi) // 2
                if run_last[mid] >= rank:
                    lo = mid + 1
                else:
                    hi = mid
            run = lo - 1
            depth = rank
            if run >= 0 and run_first[run] <= rank:
                depth = run_first[run] if run_last[run] == rank else rank + 1
            new_hits[depth] += 1
        for i in range(starts[t], starts[t + 1]):
            x = ids[i]
            if count[x] == 0:
                rank = height
                height += 1
            else:
                # Those before it in this token may have moved past it; bisect by recency.
                rank = max(rank_of[x], at_least[count[x] + 1])
                beyond = min(rank_of[x] + i - starts[t] + 1, at_least[count[x]])
                while beyond - rank > 1:
                    middle = (rank + beyond) // 2
                    if last_use[ranking[middle]] >= last_use[x]:
                        rank = middle
                    else:
                        beyond = middle
            # What is displaced sorts itself on its way down to the place that x leaves.
            while runs and run_last[runs - 1] <= rank:
                runs -= 1
            if runs and run_first[runs - 1] <= rank:
                run_first[runs - 1] = rank + 1
                if run_last[runs - 1] == rank + 1:
                    runs -= 1
            count[x] += 1
            last_use[x] = i
            at_least[count[x]] += 1
            new_rank = at_least[count[x] + 1]
            for place in range(rank, new_rank, -1):
                ranking[place] = ranking[place - 1]
            ranking[new_rank] = x
            if new_rank > 0:
                run_first[runs] = 0
                run_last[runs] = new_rank
                runs += 1


@njit(cache=True, nogil=True)
def _belady(ids, starts, num_ids, new_hits):
    num_uses = len(ids)
    id_bits = _bits(num_ids)
    # Sooner is higher. Experts without another use are all alike: which goes first changes no hit.
    key_after = np.empty(num_uses, np.int64)
    key_before = np.empty(num_uses, np.int64)
    next_use = np.full(num_ids, num_uses, np.int64)
    for i in range(num_uses - 1, -1, -1):
        x = ids[i]
        key_after[i] = (num_uses - next_use[x]) << id_bits | x
        key_before[i] = (num_uses - i) << id_bits | x
        next_use[x] = i
    keys, bound, depth = _empty_stack(num_ids)
    height = 0
    for t in range(len(starts) - 1):
        start, stop = starts[t], starts[t + 1]
        _look_up(ids, start, stop, depth, height, new_hits)
        height = _take(ids, start, stop, key_before, key_after, id_bits, height, keys, bound, depth)


@njit(cache=True, nogil=True)
def _lookahead(ids, starts, num_ids, new_hits, segment_length):
    num_tokens = len(starts) - 1
    num_uses = len(ids)
    id_bits = _bits(num_ids)
    moment_bits = _bits(num_uses)
    one_ahead = np.int64(1) << (id_bits + moment_bits)
    key = np.arange(num_ids)
    for x in ids[: starts[min(segment_length, num_tokens)]]:
        key[x] += one_ahead
    key_before = np.empty(num_uses, np.int64)
    key_after = np.empty(num_uses, np.int64)
    keys, bound, depth = _empty_stack(num_ids)
    height = 0
    for t in range(num_tokens):
        start, stop = starts[t], starts[t + 1]
        _look_up(ids, start, stop, depth, height, new_hits)
        for i in range(start, stop):
            # Once taken, an expert has this use no longer ahead.
            x = ids[i]
            key_before[i] = key[x]
            ahead = (key[x] >> (id_bits + moment_bits)) - 1
            key[x] = (ahead << moment_bits | i) << id_bits | x
            key_after[i] = key[x]
        height = _take(ids, start, stop, key_before, key_after, id_bits, height, keys, bound, depth)
        if t + segment_length < num_tokens:
            for i in range(starts[t + segment_length], starts[t + segment_length + 1]):
                x = ids[i]
                key[x] += one_ahead
                if depth[x] >= 0:
                    keys[depth[x]] = key[x]


@njit(cache=True, nogil=True)
def _bits(count):
    """Bits that hold the numbers below `count`."""
    bits = 0
    while (count - 1) >> bits:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _empty_stack(num_ids):
    """Keys by depth, lower bound of the keys by block, depth by expert (-1 = never used)."""
    keys = np.empty(num_ids, np.int64)
    bound = np.full(num_ids // BLOCK + 1, HIGHEST, np.int64)
    depth = np.full(num_ids, -1, np.int32)
    return keys, bound, depth


@njit(cache=True, nogil=True)
def _look_up(ids, start, stop, depth, height, new_hits):
    """Count the hits of one token, the uses from start to stop, before any is taken."""
    first_uses = 0
    for i in range(start, stop):
        x = ids[i]
        if depth[x] >= 0:
            new_hits[depth[x]] += 1
        else:
            new_hits[height + first_uses] += 1
            first_uses += 1


@njit(cache=True, nogil=True)
def _take(ids, start, stop, before, after, id_bits, height, keys, bound, depth):
    """Take the uses from start to stop one after the other; return the new height of the stack.

    The stack holds keys, priority above and expert (`id_bits`) below, so that one minimum moves
    both; `before` and `after` are the keys of the experts taken. Depths are set right at the end.
    """
    touched = 0
    for j in range(start, stop):
        hole = depth[ids[j]]
        if hole < 0:
            hole = height
            height += 1
        else:
            # It may have sunk since the token began.
            while keys[hole] != before[j]:
                hole += 1
        if hole > 0:
            carried = _sink(keys, bound, hole)
            keys[hole] = carried
            bound[hole >> BLOCK_BITS] = min(bound[hole >> BLOCK_BITS], carried)
        keys[0] = after[j]
        touched = max(touched, hole + 1)
    mask = (np.int64(1) << id_bits) - 1
    for place in range(touched):
        depth[keys[place] & mask] = place
    return height


@njit(cache=True, nogil=True)
def _sink(keys, bound, hole):
    """Carry the top down to a hole, the lower key moving on at each place; return what arrives.

    `bound` holds a lower bound for each block (of the first one, but for the top). Keys that stay
    in place only grow, so a bound may lag behind but never lies; blocks that cannot hold a key
    lower than the carried are passed by.
    """
    carried = keys[0]
    place = 1
    for block in range(hole >> BLOCK_BITS):
        end = (block + 1) << BLOCK_BITS
        if bound[block] < carried:
            lowest = HIGHEST
            for i in range(place, end):
                resident = keys[i]
                stays = max(resident, carried)
                carried = min(resident, carried)
                keys[i] = stays
                lowest = min(lowest, stays)
            bound[block] = lowest
        place = end
    if bound[hole >> BLOCK_BITS] < carried:
        for i in range(place, hole):
            resident = keys[i]
            keys[i] = max(resident, carried)
            carried = min(resident, carried)
    return carried
