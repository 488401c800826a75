"""Memory that measures need beside the trace, at its highest (Linux only)."""

import sys
import tempfile
from pathlib import Path

from benchmarks.harness import in_new_process
from benchmarks.workloads import QWEN, named, synthetic

CODE = """
import sys
import lrc

def memory(which):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(which))

trace = lrc.load_trace(sys.argv[1])
measure = {
    "SRP": lambda trace: lrc.srp(trace),
    "SCH": lambda trace: lrc.sch(trace),
    "LRU, LFU, Belady": lambda trace: lrc.hit_rates(trace),
    "SCH, 1,000 resamples": lambda trace: lrc.sch(trace, bootstrap=1000),
}[sys.argv[2]]
measure(trace.select(slice(0, 1)))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets how high it has been
before = memory("VmRSS")
measure(trace)
print(memory("VmHWM") - before)
"""
SEQUENCES = 16


def rows():
    if not sys.platform.startswith("linux"):
        return
    trace = synthetic(SEQUENCES, 256, *QWEN)
    size = f"{trace.experts.nbytes / 1e6:.0f} MB of experts"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        trace.save(path)
        for name in ("SRP", "SCH", "LRU, LFU, Belady", "SCH, 1,000 resamples"):
            yield {
                "name": name,
                "peak_mb": in_new_process(CODE, str(path), name) / 1e6,
                "note": f"{named(trace)}: {size}; one cache of all layers",
            }
