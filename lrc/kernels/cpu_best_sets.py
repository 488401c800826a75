"""The best set of experts of every window, for caches of every size."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def count_best_sets(ids, starts, num_ids, new_hits, segment_length):
    # A cache of c slots holds the c most used experts of the window, so its slot r (from 0) adds
    # the r-th largest frequency: the number of v >= 1 with more than r experts used v times or
    # more. Those numbers change by one a use as the window slides, and no sorting is needed.
    num_tokens = len(starts) - 1
    frequency = np.zeros(num_ids, np.int64)
    at_least = np.zeros(segment_length + 2, np.int64)
    ends_at = np.zeros(num_ids + 1, np.int64)
    for t in range(num_tokens):
        for i in range(starts[t], starts[t + 1]):
            frequency[ids[i]] += 1
            at_least[frequency[ids[i]]] += 1
        if t >= segment_length:
            for i in range(starts[t - segment_length], starts[t - segment_length + 1]):
                at_least[frequency[ids[i]]] -= 1
                frequency[ids[i]] -= 1
        if t >= segment_length - 1:
            for v in range(1, segment_length + 1):
                if at_least[v] == 0:
                    break
                ends_at[at_least[v]] += 1
    beyond = 0
    for slot in range(num_ids - 1, -1, -1):
        beyond += ends_at[slot + 1]
        new_hits[slot] += beyond
