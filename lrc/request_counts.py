"""Hit rates of caches of every size under the contract "engine".

The partial statistics behind ``lrc.hit_rates(trace, replay="engine")``: integers by sequence, which
add up, and intervals from resampling the sequences.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pandas as pd
from numba import config

from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.errors import LrcError
from lrc.kernels import cpu_request_stacks
from lrc.requests import Requests
from lrc.trace import Trace

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


def hit_rate_table(
    trace: Trace, asked: Requests, policies, level, datasets, bootstrap, confidence, seed
) -> pd.DataFrame:
    """Table of ``lrc.hit_rates(replay="engine")``; arguments are checked by the caller."""
    check_bootstrap(bootstrap, confidence)
    per_use = trace.top_k * (trace.num_layers if level == "model" else 1)
    tables = []
    counts = {p: request_counts(asked, p, level, trace.num_sequences) for p in policies}
    for label in datasets:
        inside = np.ones(trace.num_sequences, bool) if label == "" else trace.datasets == label
        for policy in policies:
            own = counts[policy][inside]
            total = own.sum(axis=0)
            uses = total.sum(axis=-1, keepdims=True)
            hits = total.cumsum(axis=-1)[:, :-1]
            cache, size = np.nonzero(np.broadcast_to(uses > 0, hits.shape))
            columns = {"dataset": label} if label else {}
            columns |= {"layer": cache} if level == "layer" else {}
            columns |= {
                "policy": policy,
                "cache_size": size + 1,
                "cache_ratio": (size + 1) / per_use,
                "hit_rate": (hits / np.maximum(uses, 1))[cache, size],
            }
            if bootstrap:
                strata = np.zeros(inside.sum()) if trace.datasets is None else trace.datasets
                strata = strata if trace.datasets is None else strata[inside]
                weights = resample_weights(strata, bootstrap, seed).astype(np.float64)
                drawn = (weights @ own.reshape(len(own), -1)).reshape(bootstrap, *total.shape)
                rates = drawn.cumsum(axis=-1)[..., :-1]
                rates = rates / np.maximum(drawn.sum(axis=-1, keepdims=True), 1)
                ends = mirrored_interval(hits / np.maximum(uses, 1), rates, confidence)
                for name, end in zip(("ci_low", "ci_high"), ends, strict=True):
                    columns[name] = end[cache, size]
            tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    keys = [name for name in ("dataset", "layer") if name in table]
    if keys:
        order = {policy: i for i, policy in enumerate(policies)}
        table["order"] = table["policy"].map(order)
        table = table.sort_values([*keys, "order", "cache_size"], ignore_index=True)
        table = table.drop(columns="order")
    return table.astype({name: "str" for name in ("dataset", "policy") if name in table})
