"""Traces larger than memory: time and highest memory of one, and of one ten times as long.

    python -m benchmarks.out_of_core book/_static/out_of_core.csv

Each measure runs in a process of its own, on a file, and once on the whole trace in memory. Memory
is what the process takes at its highest, beyond what it takes to import everything and to measure
one sequence. The table that is written is part of the book.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import lrc
from lrc.trace_file import TraceWriter

# Layers, experts, top-k and tokens of a sequence; a row group is 128 sequences, 8 MB of ids.
LAYERS, EXPERTS, TOP_K, TOKENS = 8, 64, 8, 512
SEQUENCES = (1024, 10240)
MEASURES = {
    "SRP": "lrc.srp(source, level='layer')",
    "SRP, 1,000 resamples": "lrc.srp(source, level='layer', bootstrap=1000)",
    "LRU": "lrc.hit_rates(source, 'lru', level='layer')",
    "LRU, 1,000 resamples": "lrc.hit_rates(source, 'lru', level='layer', bootstrap=1000)",
}
CODE = """
import json, re, sys, time
import lrc, joblib
path, small, whole, call = sys.argv[1:]

def highest():
    # Not getrusage: it starts from what the parent process took.
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read()).group(1))

source = small
eval(call)
before, started = highest(), time.perf_counter()
source = lrc.load_trace(path) if whole == "whole" else path
eval(call)
print(json.dumps({"seconds": time.perf_counter() - started, "bytes": highest() - before}))
"""


def write(path, sequences, seed=0):
    """A file of routing with popular experts that stay for a while, written part by part.

    Parts differ by which expert is which.
    """
    rng = np.random.default_rng(seed)
    count = min(128, sequences)
    liked = rng.normal(size=(LAYERS, EXPERTS)).astype(np.float32)
    ids = np.empty((count, TOKENS, LAYERS, TOP_K), np.int16)
    held = np.zeros((count, LAYERS, EXPERTS), np.float32)
    for t in range(TOKENS):
        worth = liked + rng.standard_exponential(held.shape, np.float32)
        worth += 10 * held * (rng.random(held.shape, np.float32) < 0.5)
        ids[:, t] = np.argpartition(-worth, TOP_K - 1, axis=-1)[..., :TOP_K]
        held[:] = 0
        np.put_along_axis(held, ids[:, t].astype(int), 1, axis=-1)
    layer = np.arange(LAYERS)[:, None]
    with TraceWriter(path, compression_level=1) as writer:
        for _ in range(0, sequences, count):
            names = rng.random((LAYERS, EXPERTS)).argsort(axis=1).astype(np.int16)
            writer.append(lrc.Trace(names[layer, ids], EXPERTS))


def measure(path, small, whole, call):
    command = [sys.executable, "-c", CODE, path, small, whole, call]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows():
    """A row for each measure and length of the trace."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{sequences}.parquet") for sequences in (1, *SEQUENCES)]
        for path, sequences in zip(paths, (1, *SEQUENCES), strict=True):
            write(path, sequences)
        for name, call in MEASURES.items():
            for path, sequences in zip(paths[1:], SEQUENCES, strict=True):
                for whole in ("row groups", "whole")[: 1 + (sequences == SEQUENCES[-1])]:
                    found = measure(path, paths[0], whole, call)
                    accesses = sequences * TOKENS * LAYERS * TOP_K
                    yield {
                        "name": f"{name}, {whole} of {sequences:,} sequences",
                        "measure": name,
                        "read": whole,
                        "sequences": sequences,
                        "ours_s": found["seconds"],
                        "peak_mb": found["bytes"] / 1e6,
                        "accesses_per_s": accesses / found["seconds"],
                        "note": f"{LAYERS} layers, top-{TOP_K} of {EXPERTS}, {TOKENS} tokens each: "
                        f"{2 * accesses / 1e6:,.0f} MB of ids",
                    }


def table(found):
    """The book's table: a row a measure."""
    frame = pd.DataFrame(found).set_index(["read", "sequences", "measure"]).sort_index()
    short, long = SEQUENCES
    columns = {
        f"MB, {sequences:,} sequences": frame["peak_mb"]["row groups", sequences]
        for sequences in SEQUENCES
    }
    columns[f"MB, all {long:,} in memory"] = frame["peak_mb"]["whole", long]
    seconds = frame["ours_s"]["row groups"]
    columns[f"seconds, {long:,} sequences"] = seconds[long]
    columns[f"times those of {short:,}"] = seconds[long] / seconds[short]
    result = pd.DataFrame(columns).loc[list(MEASURES)]
    for name in result:
        digits = 0 if name.startswith("MB") else 1
        result[name] = result[name].map(f"{{:,.{digits}f}}".format)
    return result.rename_axis("measure").reset_index()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="where the table goes, as CSV")
    options = parser.parse_args(arguments)
    found = []
    for row in rows():
        print(row["name"], f"{row['ours_s']:.1f} s", f"{row['peak_mb']:.0f} MB", flush=True)
        found.append(row)
    table(found).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
