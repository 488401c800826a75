"""One cache, one size, any policy: replay the requests and say of every use whether it hit.

Policies rank residents by a key and evict the lowest, ties going to the one used longest ago;
`SIEVE` and `RANDOM` choose in their own way, `FIXED` never changes what it holds. See
`lrc.cache_replay` for what the contracts mean.
"""

import numpy as np
from numba import njit

LRU, FIFO, LFU, LFU_CACHED, SCORE, LFRU, BELADY, RANDOM, SIEVE, FIXED = range(10)
NEVER = np.iinfo(np.int64).max

# What becomes of a prefetched expert.
NOT_LOADED, USEFUL, WASTED = range(3)


# What the cache as a whole remembers: residents, capacity in use, ends and hand of SIEVE's queue.
HEIGHT, FILLED, NEWEST, OLDEST, HAND, RANDOM_STATE = range(6)


@njit(cache=True, nogil=True)
def replay(
    ids,
    gains,
    starts,
    clocks,
    resets,
    sizes,
    capacity,
    policy,
    decay,
    seed,
    pinned,
    together,
    predicted,
    predicted_starts,
    hits,
    fate,
):
    """Replay requests on one cache.

    Parameters
    ----------
    ids : int32 array [uses]
        Experts by request; within a request each once.
    gains : float64 array [uses]
        What a use adds to its expert's score (`SCORE` only).
    starts : int64 array [requests + 1]
    clocks : int64 array [requests]
        Step of each request, never falling; scores decay by `decay` a step.
    resets : bool array [requests]
        Whether the cache is empty, and everything forgotten, before a request.
    sizes : int64 array [ids]
        What an expert takes of the capacity.
    capacity : int
    policy : int
    decay : float
        Of scores, a step.
    seed : int
        Of `RANDOM`.
    pinned : bool array [ids]
        Resident from the start and never evicted (`FIXED`: nothing else is ever resident).
    together : bool
        True for the contract "engine": the experts of a request are protected from each other,
        and every first use misses. False for "paper": looked up together, taken one by one, and
        first uses hit until the cache is full (sizes must be 1).
    predicted, predicted_starts : int32 array, int64 array [requests + 1]
        Experts to load before each request, where they are not resident and fit beside what is
        protected; none: an empty array and zeros.
    hits : bool array [uses]
        Filled.
    fate : int8 array [predicted]
        Filled: `NOT_LOADED`, `USEFUL` or `WASTED`.
    """
    num_ids = len(sizes)
    num_requests = len(starts) - 1
    next_use = _next_uses(ids, starts, resets, num_ids, together, policy == BELADY)

    resident = np.empty(num_ids, np.int64)
    place = np.empty(num_ids, np.int64)
    count = np.empty(num_ids, np.int64)
    last = np.empty(num_ids, np.int64)
    since = np.empty(num_ids, np.int64)
    score = np.empty(num_ids, np.float64)
    stamp = np.empty(num_ids, np.int64)
    future = np.empty(num_ids, np.int64)
    # SIEVE's queue: newer and older neighbour of each resident, and whether it was used again.
    newer = np.empty(num_ids, np.int64)
    older = np.empty(num_ids, np.int64)
    visited = np.zeros(num_ids, np.bool_)
    protected = np.full(num_ids, -2, np.int64)  # the last request that protected it
    state = np.zeros(6, np.int64)

    for r in range(num_requests):
        if resets[r] or r == 0:
            for x in range(num_ids):
                place[x] = -1
                count[x] = 0
                last[x] = -1
                score[x] = 0.0
                stamp[x] = 0
            state[HEIGHT] = state[FILLED] = 0
            state[NEWEST] = state[OLDEST] = state[HAND] = -1
            if r == 0:
                state[RANDOM_STATE] = seed
            for x in range(num_ids):
                if pinned[x]:
                    _insert(x, -1, resident, place, since, newer, older, visited, state, sizes)
        start, stop = starts[r], starts[r + 1]
        now = start

        # Prefetch: into room that needs no eviction of what the prediction itself wants.
        # Protected from each other alone: the request itself may evict what it does not need.
        ahead = -3 - r
        first, end = predicted_starts[r], predicted_starts[r + 1]
        for i in range(first, end):
            if place[predicted[i]] >= 0:
                protected[predicted[i]] = ahead
        for i in range(first, end):
            x = predicted[i]
            fate[i] = NOT_LOADED
            if place[x] < 0 and policy != FIXED:
                fits = _make_room(
                    sizes[x], ahead, now, clocks[r], capacity, policy, decay, pinned, protected,
                    resident, place, count, last, since, score, stamp, future,
                    newer, older, visited, state, sizes,
                )  # fmt: skip
                if fits:
                    _insert(x, now, resident, place, since, newer, older, visited, state, sizes)
                    future[x] = r
                    protected[x] = ahead
                    fate[i] = WASTED
        for i in range(first, end):
            if fate[i] == WASTED:
                for j in range(start, stop):
                    if ids[j] == predicted[i]:
                        fate[i] = USEFUL

        # Look up all experts of the request against the cache as it stands.
        needed = 0
        first_uses = 0
        for i in range(start, stop):
            x = ids[i]
            hits[i] = place[x] >= 0
            if not hits[i]:
                needed += sizes[x]
                if not together and last[x] < 0 and policy != FIXED:
                    hits[i] = state[HEIGHT] + first_uses < capacity
                    first_uses += 1
        if policy == FIXED:
            continue
        if together:
            for i in range(start, stop):
                protected[ids[i]] = r
            _make_room(
                needed, r, now, clocks[r], capacity, policy, decay, pinned, protected,
                resident, place, count, last, since, score, stamp, future,
                newer, older, visited, state, sizes,
            )  # fmt: skip
        for i in range(start, stop):
            x = ids[i]
            there = place[x] >= 0
            if not there and not together:
                protected[x] = NEVER - i  # nothing is protected but what is taken just now
                _make_room(
                    sizes[x], NEVER - i, i, clocks[r], capacity, policy, decay, pinned, protected,
                    resident, place, count, last, since, score, stamp, future,
                    newer, older, visited, state, sizes,
                )  # fmt: skip
            if there:
                visited[x] = True
            else:
                if policy == LFU_CACHED:
                    count[x] = 0
                _insert(x, i, resident, place, since, newer, older, visited, state, sizes)
            count[x] += 1
            score[x] = score[x] * decay ** (clocks[r] - stamp[x]) + gains[i]
            stamp[x] = clocks[r]
            last[x] = i
            future[x] = next_use[i]
        # A request larger than the cache passes through it; what ranks highest stays.
        while state[FILLED] > capacity:
            x = _victim(
                -1, stop, clocks[r], policy, decay, pinned, protected,
                resident, count, last, since, score, stamp, future,
                newer, older, visited, state,
            )  # fmt: skip
            if x < 0:
                break
            _remove(x, resident, place, newer, older, state, sizes)


@njit(cache=True, nogil=True)
def _next_uses(ids, starts, resets, num_ids, together, wanted):
    """When each use's expert is needed next: its request ("engine") or its use ("paper")."""
    next_use = np.full(len(ids) if wanted else 1, NEVER, np.int64)
    if not wanted:
        return np.full(len(ids), NEVER, np.int64)
    coming = np.full(num_ids, NEVER, np.int64)
    for r in range(len(starts) - 2, -1, -1):
        for i in range(starts[r + 1] - 1, starts[r] - 1, -1):
            next_use[i] = coming[ids[i]]
            coming[ids[i]] = r if together else i
        if resets[r]:
            coming[:] = NEVER
    return next_use


@njit(cache=True, nogil=True)
def _insert(x, now, resident, place, since, newer, older, visited, state, sizes):
    place[x] = state[HEIGHT]
    resident[state[HEIGHT]] = x
    state[HEIGHT] += 1
    state[FILLED] += sizes[x]
    since[x] = now
    visited[x] = False
    newer[x] = -1
    older[x] = state[NEWEST]
    if state[NEWEST] >= 0:
        newer[state[NEWEST]] = x
    else:
        state[OLDEST] = x
    state[NEWEST] = x


@njit(cache=True, nogil=True)
def _remove(x, resident, place, newer, older, state, sizes):
    state[HEIGHT] -= 1
    moved = resident[state[HEIGHT]]
    resident[place[x]] = moved
    place[moved] = place[x]
    place[x] = -1
    state[FILLED] -= sizes[x]
    if newer[x] >= 0:
        older[newer[x]] = older[x]
    else:
        state[NEWEST] = older[x]
    if older[x] >= 0:
        newer[older[x]] = newer[x]
    else:
        state[OLDEST] = newer[x]
    if state[HAND] == x:
        state[HAND] = newer[x]


@njit(cache=True, nogil=True)
def _make_room(
    needed, request, now, clock, capacity, policy, decay, pinned, protected,
    resident, place, count, last, since, score, stamp, future,
    newer, older, visited, state, sizes,
):  # fmt: skip
    """Evict until `needed` fits; False if it does not once all that may go has gone."""
    while state[FILLED] + needed > capacity:
        x = _victim(
            request, now, clock, policy, decay, pinned, protected,
            resident, count, last, since, score, stamp, future,
            newer, older, visited, state,
        )  # fmt: skip
        if x < 0:
            return False
        _remove(x, resident, place, newer, older, state, sizes)
    return True


@njit(cache=True, nogil=True)
def _victim(
    request, now, clock, policy, decay, pinned, protected,
    resident, count, last, since, score, stamp, future,
    newer, older, visited, state,
):  # fmt: skip
    """The resident to evict, neither pinned nor protected by the request; -1 if there is none."""
    candidates = 0
    for i in range(state[HEIGHT]):
        x = resident[i]
        candidates += not pinned[x] and protected[x] != request
    if candidates == 0:
        return -1
    if policy == RANDOM:
        state[RANDOM_STATE] = (state[RANDOM_STATE] * 1103515245 + 12345) & 0x7FFFFFFF
        skip = (state[RANDOM_STATE] >> 8) % candidates
        for i in range(state[HEIGHT]):
            x = resident[i]
            if not pinned[x] and protected[x] != request:
                if skip == 0:
                    return x
                skip -= 1
    if policy == SIEVE:
        x = state[HAND] if state[HAND] >= 0 else state[OLDEST]
        while True:
            free = not pinned[x] and protected[x] != request
            if free and not visited[x]:
                state[HAND] = x  # removing it moves the hand on
                return x
            if free:
                visited[x] = False
            x = newer[x] if newer[x] >= 0 else state[OLDEST]
    best = np.int64(-1)
    best_key = 0.0
    for i in range(state[HEIGHT]):
        x = resident[i]
        if pinned[x] or protected[x] == request:
            continue
        if policy == FIFO:
            key = float(since[x])
        elif policy in (LFU, LFU_CACHED):
            key = float(count[x])
        elif policy == LFRU:
            key = count[x] / (now - last[x] + 1)
        elif policy == SCORE:
            key = score[x] * decay ** (clock - stamp[x])
        elif policy == BELADY:
            key = -float(future[x])
        else:
            key = 0.0
        if best < 0 or key < best_key or (key == best_key and last[x] < last[best]):
            best = x
            best_key = key
    return best
