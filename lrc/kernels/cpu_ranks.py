"""LRU and LFU stacks without the stacks: how deep an expert lies, by counting.

Under LRU and LFU an expert's priority changes only when it is used, and then rises. So all
priorities of a sequence can be put in order beforehand: each use gives its expert a position, the
higher the more uses are behind it (LFU), then the later it is. The positions that experts have now
are set bits, and the bits set above an expert's are its rank.

Its depth is its rank, but for detours. A use puts its expert on top, whatever its priority, and
the later ones carry it down: to its rank, or to the place that an expert they take leaves on the
way. So some expert lies higher than its rank, and those that it has yet to pass lie one deeper
than theirs. Such a detour is told by two positions: the expert's (`detours`), and that of the last
one it has passed, whose successor's rank is where it lies (`passed`). Detours never overlap. Taking
an expert ends those above its position, and moves the one that it lies in on to there.
"""

import numpy as np
from numba import njit

from lrc.kernels.cpu_deep import flatten
from lrc.kernels.cpu_pairs import popcount
from lrc.kernels.rules import LFU

WORD_BITS = 6
WORD = 1 << WORD_BITS


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
    """Replay caches, each from empty, and count the uses by depth; see `cpu_caches`."""
    longest = int(lengths[sequences].max(initial=0))
    ids = np.empty(longest * layers_a_cache * experts.shape[3], np.int32)
    starts = np.empty(longest + 1, np.int64)
    for job, (i, first) in enumerate(zip(sequences, first_layers, strict=True)):
        part = experts[i, : lengths[i], first : first + layers_a_cache]
        num_uses = flatten(part, num_experts, ids, starts)
        _count(ids[:num_uses], starts[: lengths[i] + 1], policy == LFU, new_hits[job])


@njit(cache=True, nogil=True)
def _count(ids, starts, by_uses, new_hits):
    """Count the uses of one cache by depth.

    Parameters
    ----------
    ids : int32 array [uses]
        Experts as they are used.
    starts : int64 array [tokens + 1]
        Token t uses ``ids[starts[t] : starts[t + 1]]``.
    by_uses : bool
        Priority is the number of uses, then the last use; else the last use alone.
    new_hits : int64 array [places]
        Uses by depth, to be added to.
    """
    num_uses, num_ids = len(ids), len(new_hits)
    # Positions that the expert of each use has before and after it; -1 = never used.
    before, after = np.empty(num_uses, np.int32), np.empty(num_uses, np.int32)
    _order(ids, by_uses, num_ids, before, after)
    live = np.zeros((num_uses >> WORD_BITS) + 1, np.uint64)
    # How many live positions are above each word.
    above = np.zeros(len(live), np.int32)
    # From the bottom up; at most one an expert.
    detours, passed = np.empty(num_ids + 1, np.int32), np.empty(num_ids + 1, np.int32)
    height = num_detours = highest = 0
    one = np.uint64(1)
    for t in range(len(starts) - 1):
        count = np.int32(0)
        for word in range(highest, -1, -1):
            above[word] = count
            count += np.int32(popcount(live[word]))
        for i in range(starts[t], starts[t + 1]):
            position = before[i]
            if position < 0:
                # The n-th distinct expert is charged to depth n.
                new_hits[height] += 1
                height += 1
                continue
            last, deeper = _last_up_to(detours, num_detours, position), 0
            if last >= 0 and detours[last] == position:
                position = passed[last]
            elif last >= 0 and position < passed[last]:
                deeper = 1
            new_hits[_rank(live, above, position) + deeper] += 1
        for i in range(starts[t], starts[t + 1]):
            position = before[i]
            while num_detours and detours[num_detours - 1] >= position:
                num_detours -= 1
            if num_detours:
                passed[num_detours - 1] = min(passed[num_detours - 1], position)
            detours[num_detours] = after[i]
            # None yet: a position above all.
            passed[num_detours] = num_uses
            num_detours += 1
            if position >= 0:
                live[position >> WORD_BITS] ^= one << np.uint64(position & (WORD - 1))
            position = after[i]
            live[position >> WORD_BITS] ^= one << np.uint64(position & (WORD - 1))
            highest = max(highest, position >> WORD_BITS)


@njit(cache=True, nogil=True)
def _order(ids, by_uses, num_ids, before, after):
    """Put the priorities that experts get by their uses in order."""
    if by_uses:
        # Sorted by counting: the first uses, then the second, and so on.
        uses = np.zeros(num_ids, np.int32)
        for x in ids:
            uses[x] += 1
        first = np.zeros(uses.max() + 1, np.int32)
        for n in uses:
            for earlier in range(n):
                first[earlier + 1] += 1
        for n in range(1, len(first)):
            first[n] += first[n - 1]
        uses[:] = 0
    position = np.full(num_ids, -1, np.int32)
    for i in range(len(ids)):
        x = np.uintp(ids[i])
        before[i] = position[x]
        if by_uses:
            n = np.uintp(uses[x])
            uses[x] += 1
            position[x] = first[n]
            first[n] += 1
        else:
            position[x] = i
        after[i] = position[x]


@njit(cache=True, nogil=True)
def _last_up_to(numbers, count, bound):
    """Place of the last of so many rising numbers that is not above a bound, or -1."""
    low, size = 0, count
    while size > 0:
        half = (size + 1) >> 1
        low += half if numbers[low + half - 1] <= bound else 0
        size -= half
    return low - 1


@njit(cache=True, nogil=True)
def _rank(live, above, position):
    """How many live positions are above one."""
    word = np.uintp(position >> WORD_BITS)
    # In two steps: all bits of a word cannot be shifted out in one.
    higher = live[word] >> np.uint64(position & (WORD - 1)) >> np.uint64(1)
    return np.intp(above[word]) + np.intp(popcount(higher))
