"""Ours against the definition in plain Python, as the tests have it."""

import sys
from functools import partial
from pathlib import Path

import lrc
from benchmarks.harness import race
from benchmarks.workloads import accesses, named, synthetic
from lrc.cache import policy_counts, sch_counts

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import plain


def rows():
    trace = synthetic(1, 96, 1, 64, 8)
    tokens = plain.uses(trace, 0, [0])
    sizes = range(1, 65)
    found = []

    def row(name, ours, baseline):
        timed = race(ours, baseline, repetitions=3)
        timed["accesses_per_s"] = accesses(trace) / timed["ours_s"]
        note = named(trace)
        found.append({"name": name, "baseline": "plain Python", **timed, "note": note})

    row(
        "SRP, m = 16",
        lambda: lrc.srp(trace, 16),
        lambda: plain.srp(plain.segments(trace, 16), 16),
    )
    row(
        "SCH, m = 16, every cache size",
        lambda: sch_counts(trace, 16, level="layer"),
        lambda: [plain.hits_of_replay(tokens, size, "lookahead", 16) for size in sizes],
    )
    for policy, name in [("lru", "LRU"), ("lfu", "LFU"), ("belady", "Belady")]:
        row(
            f"{name}, every cache size",
            partial(policy_counts, trace, policy, level="layer"),
            lambda policy=policy: [plain.hits_of_replay(tokens, size, policy) for size in sizes],
        )
    return found
