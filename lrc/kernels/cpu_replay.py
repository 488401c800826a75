"""One cache, one size, any policy: serve requests and say of every use whether it hit.

Policies rank residents by a key and evict the lowest, ties going to the one used longest ago;
`SIEVE` and `RANDOM` choose in their own way, `FIXED` never changes what it holds. See
`lrc.cache_replay` for what the contracts mean.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

LRU, FIFO, LFU, LFU_CACHED, SCORE, LFRU, BELADY, RANDOM, SIEVE, FIXED = range(10)
NEVER = np.iinfo(np.int64).max

# What becomes of a prefetched expert.
NOT_LOADED, USEFUL, WASTED = range(3)

# What the cache as a whole remembers: residents, capacity in use, ends and hand of SIEVE's queue,
# uses and requests served.
HEIGHT, FILLED, NEWEST, OLDEST, HAND, RANDOM_STATE, USES, REQUESTS = range(8)

# Marks of what may not be evicted: the last request that protected an expert, or one of these.
NOBODY, NOT_PROTECTED = -1, -2


class Rules(NamedTuple):
    """What a cache is told once.

    Attributes
    ----------
    policy : int
    capacity : int
    decay : float
        Of scores, a step (`SCORE` only).
    together : bool
        True for the contract "engine": the experts of a request are protected from each other,
        and every first use misses. False for "paper": looked up together, taken one by one, and
        first uses hit until the cache is full (sizes must be 1).
    sizes : int64 array [ids]
        What an expert takes of the capacity.
    pinned : bool array [ids]
        Resident from the start and never evicted (`FIXED`: nothing else is ever resident).
    """

    policy: int
    capacity: int
    decay: float
    together: bool
    sizes: np.ndarray
    pinned: np.ndarray


class Cache(NamedTuple):
    """What a cache remembers, by expert.

    Attributes
    ----------
    resident : int64 array [ids]
        The residents, in no order that means anything.
    place : int64 array [ids]
        Where among them an expert is; -1 if it is not.
    count, last, since : int64 array [ids]
        Uses; the last of them; the use before which it was loaded.
    score, stamp : float64, int64 array [ids]
        Score, and the step when it was right.
    future : int64 array [ids]
        The next request ("engine") or use ("paper") that needs it, for `BELADY`.
    newer, older, visited : int64, int64, bool array [ids]
        SIEVE's queue.
    protected : int64 array [ids]
    whole : int64 array [8]
    """

    resident: np.ndarray
    place: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    last: np.ndarray
    since: np.ndarray
    score: np.ndarray
    stamp: np.ndarray
    future: np.ndarray
    newer: np.ndarray
    older: np.ndarray
    visited: np.ndarray
    protected: np.ndarray
    whole: np.ndarray


@njit(cache=True, nogil=True)
def empty_cache(rules, seed):
    """A cache that holds what is pinned; `seed` is that of `RANDOM`."""
    n = len(rules.sizes)
    cache = Cache(
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.float64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.empty(n, np.bool_),
        np.full(n, NOT_PROTECTED, np.int64),
        np.zeros(8, np.int64),
    )
    cache.whole[RANDOM_STATE] = seed
    forget(rules, cache)
    return cache


@njit(cache=True, nogil=True)
def forget(rules, cache):
    """Empty the cache, but for what is pinned; chance goes on where it was."""
    cache.place[:] = -1
    cache.count[:] = 0
    cache.last[:] = -1
    cache.score[:] = 0.0
    cache.stamp[:] = 0
    cache.future[:] = NEVER
    cache.whole[HEIGHT] = cache.whole[FILLED] = 0
    cache.whole[NEWEST] = cache.whole[OLDEST] = cache.whole[HAND] = -1
    for x in range(len(rules.sizes)):
        if rules.pinned[x]:
            _insert(x, -1, rules, cache)


@njit(cache=True, nogil=True)
def replay(
    ids, gains, starts, clocks, resets, rules, seed, predicted, predicted_starts, hits, fate
):
    """Serve requests one after the other.

    Parameters
    ----------
    ids : int32 array [uses]
        Experts by request; within a request each once.
    gains : float64 array [uses]
        What a use adds to its expert's score (`SCORE` only).
    starts : int64 array [requests + 1]
    clocks : int64 array [requests]
        Step of each request, never falling.
    resets : bool array [requests]
        Whether the cache is empty, and everything forgotten, before a request.
    rules : Rules
    seed : int
    predicted, predicted_starts : int32 array, int64 array [requests + 1]
        Experts to load before each request; none: an empty array and zeros.
    hits : bool array [uses]
        Filled.
    fate : int8 array [predicted]
        Filled: `NOT_LOADED`, `USEFUL` or `WASTED`.
    """
    next_use = _next_uses(ids, starts, resets, rules)
    cache = empty_cache(rules, seed)
    for r in range(len(starts) - 1):
        if resets[r]:
            forget(rules, cache)
        uses = slice(starts[r], starts[r + 1])
        ahead = slice(predicted_starts[r], predicted_starts[r + 1])
        prefetch(predicted[ahead], ids[uses], clocks[r], rules, cache, fate[ahead])
        serve(ids[uses], gains[uses], next_use[uses], clocks[r], rules, cache, hits[uses])


@njit(cache=True, nogil=True)
def prefetch(predicted, ids, clock, rules, cache, fate):
    """Load what is predicted and not there, where it fits without evicting what is predicted."""
    # Protected from each other alone: the request itself may evict what it does not need.
    mark = -3 - cache.whole[REQUESTS]
    for x in predicted:
        if cache.place[x] >= 0:
            cache.protected[x] = mark
    now = cache.whole[USES]
    for i in range(len(predicted)):
        x = predicted[i]
        fate[i] = NOT_LOADED
        if (
            cache.place[x] < 0
            and rules.policy != FIXED
            and _make_room(rules.sizes[x], mark, now, clock, rules, cache)
        ):
            _insert(x, now, rules, cache)
            cache.protected[x] = mark
            fate[i] = WASTED
            for y in ids:
                if y == x:
                    fate[i] = USEFUL


@njit(cache=True, nogil=True)
def serve(ids, gains, next_use, clock, rules, cache, hits):
    """Serve one request: say what hits, load what misses, evict what the policy ranks lowest.

    Parameters
    ----------
    ids, gains : int32, float64 array [uses]
    next_use : int64 array [uses]
        For `BELADY`; else anything.
    clock : int
        The step.
    rules : Rules
    cache : Cache
        Changed.
    hits : bool array [uses]
        Filled.
    """
    request, now = cache.whole[REQUESTS], cache.whole[USES]
    cache.whole[REQUESTS] += 1
    # Look up all experts of the request against the cache as it stands.
    needed = 0
    first_uses = 0
    for i in range(len(ids)):
        x = ids[i]
        hits[i] = cache.place[x] >= 0
        if not hits[i]:
            needed += rules.sizes[x]
            if not rules.together and cache.last[x] < 0 and rules.policy != FIXED:
                hits[i] = cache.whole[HEIGHT] + first_uses < rules.capacity
                first_uses += 1
    cache.whole[USES] += len(ids)
    if rules.policy == FIXED:
        return
    if rules.together:
        for x in ids:
            cache.protected[x] = request
        _make_room(needed, request, now, clock, rules, cache)
    for i in range(len(ids)):
        x = ids[i]
        if cache.place[x] >= 0:
            cache.visited[x] = True
        else:
            if not rules.together:
                # Nothing is protected but what is taken just now.
                cache.protected[x] = NEVER - now - i
                _make_room(rules.sizes[x], NEVER - now - i, now + i, clock, rules, cache)
            if rules.policy == LFU_CACHED:
                cache.count[x] = 0
            _insert(x, now + i, rules, cache)
        cache.count[x] += 1
        passed = clock - cache.stamp[x]
        cache.score[x] = cache.score[x] * rules.decay**passed + gains[i]
        cache.stamp[x] = clock
        cache.last[x] = now + i
        cache.future[x] = next_use[i]
    # A request larger than the cache passes through it; what ranks highest stays.
    while cache.whole[FILLED] > rules.capacity:
        x = _victim(NOBODY, now + len(ids), clock, rules, cache)
        if x < 0:
            break
        _remove(x, rules, cache)


@njit(cache=True, nogil=True)
def _next_uses(ids, starts, resets, rules):
    """When each use's expert is needed next: its request ("engine") or its use ("paper")."""
    next_use = np.full(len(ids), NEVER, np.int64)
    if rules.policy != BELADY:
        return next_use
    coming = np.full(len(rules.sizes), NEVER, np.int64)
    for r in range(len(starts) - 2, -1, -1):
        for i in range(starts[r + 1] - 1, starts[r] - 1, -1):
            next_use[i] = coming[ids[i]]
            coming[ids[i]] = r if rules.together else i
        if resets[r]:
            coming[:] = NEVER
    return next_use


@njit(cache=True, nogil=True)
def _insert(x, now, rules, cache):
    whole = cache.whole
    cache.place[x] = whole[HEIGHT]
    cache.resident[whole[HEIGHT]] = x
    whole[HEIGHT] += 1
    whole[FILLED] += rules.sizes[x]
    cache.since[x] = now
    cache.visited[x] = False
    cache.newer[x] = -1
    cache.older[x] = whole[NEWEST]
    if whole[NEWEST] >= 0:
        cache.newer[whole[NEWEST]] = x
    else:
        whole[OLDEST] = x
    whole[NEWEST] = x


@njit(cache=True, nogil=True)
def _remove(x, rules, cache):
    whole = cache.whole
    whole[HEIGHT] -= 1
    moved = cache.resident[whole[HEIGHT]]
    cache.resident[cache.place[x]] = moved
    cache.place[moved] = cache.place[x]
    cache.place[x] = -1
    whole[FILLED] -= rules.sizes[x]
    newer, older = cache.newer[x], cache.older[x]
    if newer >= 0:
        cache.older[newer] = older
    else:
        whole[NEWEST] = older
    if older >= 0:
        cache.newer[older] = newer
    else:
        whole[OLDEST] = newer
    if whole[HAND] == x:
        whole[HAND] = newer


@njit(cache=True, nogil=True)
def _make_room(needed, mark, now, clock, rules, cache):
    """Evict until `needed` fits; False if it does not once all that may go has gone."""
    while cache.whole[FILLED] + needed > rules.capacity:
        x = _victim(mark, now, clock, rules, cache)
        if x < 0:
            return False
        _remove(x, rules, cache)
    return True


@njit(cache=True, nogil=True)
def _victim(mark, now, clock, rules, cache):
    """The resident to evict, neither pinned nor protected by the mark; -1 if there is none."""
    # Arrays by name: to hand the whole cache on for each resident takes longer than to look at it.
    policy, whole, pinned, protected = rules.policy, cache.whole, rules.pinned, cache.protected
    if policy == SIEVE:
        return _sieved(mark, rules, cache)
    if policy == RANDOM:
        return _drawn(mark, rules, cache)
    resident, last, count, stamp = cache.resident, cache.last, cache.count, cache.stamp
    since, score, future = cache.since, cache.score, cache.future
    best = np.int64(-1)
    best_key = 0.0
    for i in range(whole[HEIGHT]):
        x = resident[i]
        if pinned[x] or protected[x] == mark:
            continue
        if policy == FIFO:
            key = float(since[x])
        elif policy in (LFU, LFU_CACHED):
            key = float(count[x])
        elif policy == LFRU:
            key = count[x] / (now - last[x] + 1)
        elif policy == SCORE:
            key = score[x] * rules.decay ** (clock - stamp[x])
        elif policy == BELADY:
            key = -float(future[x])
        else:
            key = 0.0
        if best < 0 or key < best_key or (key == best_key and last[x] < last[best]):
            best = x
            best_key = key
    return best


@njit(cache=True, nogil=True)
def _drawn(mark, rules, cache):
    """One of those that may go, each as likely."""
    whole, resident, pinned, protected = cache.whole, cache.resident, rules.pinned, cache.protected
    candidates = 0
    for i in range(whole[HEIGHT]):
        x = resident[i]
        candidates += not pinned[x] and protected[x] != mark
    if candidates == 0:
        return np.int64(-1)
    whole[RANDOM_STATE] = (whole[RANDOM_STATE] * 1103515245 + 12345) & 0x7FFFFFFF
    skip = (whole[RANDOM_STATE] >> 8) % candidates
    for i in range(whole[HEIGHT]):
        x = resident[i]
        if not pinned[x] and protected[x] != mark:
            if skip == 0:
                return x
            skip -= 1
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _sieved(mark, rules, cache):
    """The next, from the hand on, that was not used since the hand passed."""
    whole, pinned, protected = cache.whole, rules.pinned, cache.protected
    newer, visited = cache.newer, cache.visited
    x = whole[HAND] if whole[HAND] >= 0 else whole[OLDEST]
    # In the second round nothing that may go is marked as used any more.
    for _ in range(2 * whole[HEIGHT]):
        if not pinned[x] and protected[x] != mark:
            if not visited[x]:
                whole[HAND] = x  # removing it moves the hand on
                return x
            visited[x] = False
        x = newer[x] if newer[x] >= 0 else whole[OLDEST]
    return np.int64(-1)
