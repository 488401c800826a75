"""Hits of caches of every size under the contract "engine": integers by sequence, which add up."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import config

from lrc.errors import LrcError
from lrc.kernels import cpu_request_stacks
from lrc.requests import Requests

POLICIES = {
    "lru": cpu_request_stacks.LRU,
    "lfu": cpu_request_stacks.LFU,
    "belady": cpu_request_stacks.BELADY,
}


def request_counts(asked: Requests, policy: str, level: str, num_sequences: int) -> np.ndarray:
    """Uses by the depth at which they are found, of each sequence from an empty cache.

    Parameters
    ----------
    asked : Requests
    policy : {"lru", "lfu", "belady"}
    level : {"model", "layer"}
    num_sequences : int

    Returns
    -------
    int64 array [sequences, caches, sizes + 1]
        Uses that hit from ``size + 1`` slots on; the last bin holds first uses, which never hit.
    """
    if policy not in POLICIES:
        raise LrcError(f"policy is {policy!r}, but must be one of {', '.join(POLICIES)}")
    parts = [asked] if level == "model" else [asked.of_layer(j) for j in range(asked.num_layers)]
    num_ids = asked.num_experts * (asked.num_layers if level == "model" else 1)
    depths = np.zeros((len(parts), num_sequences, num_ids + 1), np.int64)

    def work(cache, sequences):
        part = parts[cache]
        first, last = np.searchsorted(part.sequences, [sequences.start, sequences.stop])
        starts = part.starts[first : last + 1]
        cpu_request_stacks.count_depths(
            *(POLICIES[policy], part.ids[starts[0] : starts[-1]], starts - starts[0]),
            *(part.sequences[first:last].astype(np.int64), num_ids, depths[cache]),
        )

    threads = max(1, config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    pieces = min(num_sequences, -(-4 * threads // len(parts)))
    bounds = np.linspace(0, num_sequences, pieces + 1).astype(int).tolist()
    jobs = [
        (cache, range(start, stop))
        for cache in range(len(parts))
        for start, stop in pairwise(bounds)
        if start < stop
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: work(*job), jobs))
    return depths.swapaxes(0, 1)
