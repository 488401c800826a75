"""Ours against libcachesim (C), which replays one cache of one size at a time.

The contracts coincide where a token uses one expert, but for free first uses; so the stream has
top-1 routing, and LRU and Belady have the same hits. libcachesim's LFU forgets what it evicts.
"""

import tempfile
from functools import partial
from pathlib import Path

import libcachesim
import numpy as np

from benchmarks.harness import race, threads
from benchmarks.workloads import accesses, named, synthetic
from lrc.cache import policy_counts

SEQUENCES, TOKENS, NUM_EXPERTS = 16, 4096, 128
SIMULATORS = {"LRU": libcachesim.LRU, "LFU": libcachesim.LFU, "Belady": libcachesim.Belady}
# Records of libcachesim's "oracleGeneral" format.
RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


def rows():
    trace = synthetic(SEQUENCES, TOKENS, 1, NUM_EXPERTS, 1)
    uses = accesses(trace)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.oracleGeneral.bin" for i in range(SEQUENCES)]
        for stream, path in zip(trace.experts[:, :, 0, 0], paths, strict=True):
            write(stream, path)
        for name, simulator in SIMULATORS.items():
            hits = policy_counts(trace, name.lower()).new_hits[0, 0, 0].cumsum()
            if name != "LFU":
                distinct = [len(np.unique(stream)) for stream in trace.experts]
                free = np.minimum.outer(distinct, np.arange(1, NUM_EXPERTS + 1)).sum(axis=0)
                assert (hits == uses - replay(simulator, paths) + free).all(), name
            with threads(1):
                timed = race(
                    partial(policy_counts, trace, name.lower()),
                    partial(replay, simulator, paths),
                    repetitions=3,
                )
            theirs = timed["baseline_s"] / uses / NUM_EXPERTS * 1e9
            ours = timed["ours_s"] / uses * 1e9
            found.append(
                {
                    "name": f"{name}, {NUM_EXPERTS} cache sizes, one core",
                    "baseline": "libcachesim, a run a size",
                    **timed,
                    "accesses_per_s": uses / timed["ours_s"],
                    "note": f"{named(trace)}; libcachesim takes {theirs:.0f} ns an access and "
                    f"size, ours {ours:.0f} ns an access for all sizes",
                }
            )
    return found


def replay(simulator, paths):
    """Misses at each cache size; the streams are read in C."""
    misses = np.zeros(NUM_EXPERTS, np.int64)
    for path in map(str, paths):
        for size in range(1, NUM_EXPERTS + 1):
            reader = libcachesim.TraceReader(path, libcachesim.TraceType.ORACLE_GENERAL_TRACE)
            share = simulator(size, hashpower=10).process_trace(reader)[0]
            misses[size - 1] += round(share * TOKENS)
    return misses


def write(stream, path):
    records = np.zeros(len(stream), RECORD)
    records["time"] = np.arange(len(stream))
    records["id"] = stream
    records["size"] = 1
    following = {}
    for i in range(len(stream) - 1, -1, -1):
        records["next"][i] = following.get(stream[i], np.iinfo(np.int64).max)
        following[stream[i]] = i
    records.tofile(path)
