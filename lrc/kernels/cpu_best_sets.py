"""The best set of experts of every window, for caches of every size."""

import numpy as np
from numba import njit


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
    """Count the hits of the best sets; see `cpu_caches`."""
    for job in range(len(sequences)):
        length, first = lengths[sequences[job]], first_layers[job]
        if length >= segment_length:
            part = experts[sequences[job], :length, first : first + layers_a_cache]
            _count(part, num_experts, segment_length, new_hits[job])


@njit(cache=True, nogil=True)
def _count(experts, num_experts, segment_length, new_hits):
    # A cache of c slots holds the c most used experts of the window, so its slot r (from 0) adds
    # the r-th largest frequency: the number of v >= 1 with more than r experts used v times or
    # more. Those numbers change by one a use as the window slides, and no sorting is needed.
    num_tokens, num_layers, top_k = experts.shape
    frequency = np.zeros(num_layers * num_experts, np.int64)
    at_least = np.zeros(segment_length + 2, np.int64)
    ends_at = np.zeros(len(frequency) + 1, np.int64)
    for t in range(num_tokens):
        for layer in range(num_layers):
            for k in range(top_k):
                if experts[t, layer, k] >= 0:
                    x = layer * num_experts + experts[t, layer, k]
                    frequency[x] += 1
                    at_least[frequency[x]] += 1
                if t >= segment_length and experts[t - segment_length, layer, k] >= 0:
                    x = layer * num_experts + experts[t - segment_length, layer, k]
                    at_least[frequency[x]] -= 1
                    frequency[x] -= 1
        if t >= segment_length - 1:
            for v in range(1, segment_length + 1):
                if at_least[v] == 0:
                    break
                ends_at[at_least[v]] += 1
    beyond = 0
    for slot in range(len(frequency) - 1, -1, -1):
        beyond += ends_at[slot + 1]
        new_hits[slot] += beyond
