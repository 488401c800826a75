"""What the first call costs on a machine that has nothing compiled yet."""

import tempfile

from benchmarks.harness import in_new_process

# Small, so that next to nothing but compilation is timed.
CODE = """
import os, sys, time
os.environ["NUMBA_CACHE_DIR"] = sys.argv[1]
import numpy as np, lrc
trace = lrc.Trace(np.arange(2 * 8 * 4 * 2).reshape(2, 8, 4, 2) % 16, 16)
call = {
    "srp": lambda: lrc.srp(trace, 4),
    "sch of small caches": lambda: lrc.sch(trace, 4, level="layer"),
    "sch of large caches": lambda: lrc.sch(trace.select(slice(0, 1)), 4),
    "sch of best sets": lambda: lrc.sch(trace, 4, definition="static"),
    "balance": lambda: lrc.balance(trace, window=4),
}[sys.argv[2]]
start = time.perf_counter()
call()
print(time.perf_counter() - start)
"""
CALLS = ("srp", "sch of small caches", "sch of large caches", "sch of best sets", "balance")


def rows():
    for name in CALLS:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (in_new_process(CODE, folder, name) for _ in range(2))
        yield {
            "name": f"lrc: {name}",
            "baseline": "nothing compiled yet",
            "ours_s": second,
            "baseline_s": first,
            "ratio": first / second,
            "note": "one tiny trace; compiled code comes from disk from the second process on",
        }
