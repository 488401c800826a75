"""Caches of every size in one pass, under the contract "engine".

Requests are sets of experts that must all be resident together, so a policy ranks only the others:
after a request S a cache of C slots holds S and, of what it held besides, the C - |S| of highest
priority. Larger caches hold what smaller ones do (by induction over requests), so the stack of
Mattson et al. (1970) describes all of them, and its update carries |S| residents at once: walking
down from the top, each place takes the highest of what is carried and what it holds, and one less
is carried below each place that the request leaves empty.

A request larger than a cache keeps those of its own experts that rank highest.
"""

import numpy as np
from numba import njit

LRU, LFU, BELADY = range(3)
NEVER = np.iinfo(np.int64).max


@njit(cache=True, nogil=True)
def count_depths(policy, ids, starts, owners, num_ids, depths):
    """Count uses by the depth at which they are found, each owner from an empty cache.

    Parameters
    ----------
    policy : int
        `LRU`, `LFU` (all uses since the start count; ties go by recency), or `BELADY` (the next
        request that needs the expert).
    ids : int32 array [uses]
    starts : int64 array [requests + 1]
    owners : int64 array [requests]
        Row of `depths`, such as the sequence; a new owner begins with an empty cache.
    num_ids : int
    depths : int64 array [owners, num_ids + 1]
        Added to. A use found at depth d hits from d + 1 slots on; the last bin holds first uses.
    """
    num_requests = len(starts) - 1
    next_request = np.empty(len(ids) if policy == BELADY else 0, np.int64)
    if policy == BELADY:
        coming = np.full(num_ids, NEVER, np.int64)
        for r in range(num_requests - 1, -1, -1):
            if r < num_requests - 1 and owners[r] != owners[r + 1]:
                coming[:] = NEVER
            for i in range(starts[r], starts[r + 1]):
                next_request[i] = coming[ids[i]]
            for i in range(starts[r], starts[r + 1]):
                coming[ids[i]] = r

    stack = np.empty(num_ids, np.int64)
    depth = np.full(num_ids, -1, np.int64)
    # What is higher stays; recency decides between equals.
    priority = np.zeros(num_ids, np.int64)
    last = np.zeros(num_ids, np.int64)
    carried = np.empty(num_ids, np.int64)
    height = 0
    for r in range(num_requests):
        if r and owners[r] != owners[r - 1]:
            for place in range(height):
                depth[stack[place]] = -1
                priority[stack[place]] = 0
            height = 0
        start, stop = starts[r], starts[r + 1]
        deepest = -1
        new = 0
        for i in range(start, stop):
            x = ids[i]
            if depth[x] < 0:
                depths[owners[r], num_ids] += 1
                new += 1
            else:
                depths[owners[r], depth[x]] += 1
                deepest = max(deepest, depth[x])
            depth[x] = NEVER  # marks what the request takes
        for i in range(start, stop):
            x = ids[i]
            last[x] = i
            if policy == LFU:
                priority[x] += 1
            elif policy == BELADY:
                priority[x] = -next_request[i]
        # The request's own experts come first, highest priority on top.
        num_carried = 0
        place = 0
        for i in range(start, stop):
            hole = place
            resident = stack[place] if place < height else -1
            while hole > 0 and _above(ids[i], stack[hole - 1], priority, last):
                stack[hole] = stack[hole - 1]
                hole -= 1
            stack[hole] = ids[i]
            if resident >= 0 and depth[resident] != NEVER:
                num_carried = _carry(resident, carried, num_carried, priority, last)
            place += 1
        bottom = max(deepest + 1, height if new else 0)
        while place < bottom or num_carried > 0:
            if place < height and depth[stack[place]] != NEVER:
                num_carried = _carry(stack[place], carried, num_carried, priority, last)
            num_carried -= 1
            stack[place] = carried[num_carried]
            place += 1
        height += new
        for p in range(place):
            depth[stack[p]] = p


@njit(cache=True, nogil=True)
def _above(x, y, priority, last):
    """Whether x ranks above y."""
    return priority[x] > priority[y] or (priority[x] == priority[y] and last[x] > last[y])


@njit(cache=True, nogil=True)
def _carry(x, carried, num_carried, priority, last):
    """Put x among what is carried, kept with the highest last; return how many there are."""
    hole = num_carried
    while hole > 0 and _above(carried[hole - 1], x, priority, last):
        carried[hole] = carried[hole - 1]
        hole -= 1
    carried[hole] = x
    return num_carried + 1
