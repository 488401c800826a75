"""SRP at all three levels with bootstrap intervals, against the scripts of the paper.

    python benchmarks/srp.py --scripts CHECKOUT_OF_MOE_LRC

The scripts (github.com/ljcleo/moe-lrc: 30_srp_calc.py, 31_srp_refine.py; they need orjson) run as
they are, in a folder of their own, on the same trace on the same machine, one after the other.
Both give six tables: model, layer and expert level, over all datasets and for each.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import lrc

SEGMENT_LENGTHS = (4, 16, 64, 256)
SCRIPTS = ("30_srp_calc.py", "31_srp_refine.py")
LEVELS = ("model", "layer", "expert")


def synthetic(sequences, tokens, layers, experts, top_k, datasets=2, seed=0, stay=0.5):
    """A trace in which an expert that is used stays for the next token with chance `stay`."""
    rng = np.random.default_rng(seed)
    of = np.arange(sequences) * datasets // sequences
    liked = rng.normal(size=(datasets, layers, experts))[of]
    score = np.float32(liked + 0.5 * rng.normal(size=liked.shape))
    held = np.zeros(score.shape, np.float32)
    ids = np.empty((sequences, tokens, layers, top_k), np.int16)
    for t in range(tokens):
        worth = score + 10 * held * (rng.random(score.shape, np.float32) < stay)
        worth += rng.standard_exponential(score.shape, np.float32)
        ids[:, t] = np.argpartition(-worth, top_k - 1, axis=-1)[..., :top_k]
        held[:] = 0
        np.put_along_axis(held, ids[:, t].astype(int), 1, axis=-1)
    return lrc.Trace(ids, experts, datasets=[f"d{i}" for i in of])


def ours(trace, bootstrap):
    """The six tables, from two calls."""
    tables = {}
    for by_dataset in (False, True):
        options = {"level": LEVELS, "by_dataset": by_dataset, "bootstrap": bootstrap}
        table = lrc.srp(trace, SEGMENT_LENGTHS, **options)
        for level in LEVELS:
            tables[level, by_dataset] = table[table.level == level]
    return tables


def prepare(trace, checkout, folder):
    """Lay out a folder as the scripts expect it: their code, and ranks of experts per layer."""
    from safetensors.numpy import save_file

    (folder / "src").symlink_to((checkout / "src").resolve())
    (folder / "config.json").write_text((checkout / "config.json").read_text())
    for name, row in {
        "data": [{"key": label} for label in trace.dataset_names],
        "model": [
            {
                "key": "bench",
                "type": "causal",
                "num_layers": trace.num_layers,
                "num_experts": trace.num_experts,
                "top_k": trace.top_k,
            }
        ],
    }.items():
        (folder / name).mkdir()
        lines = "\n".join(json.dumps(line) for line in row)
        (folder / name / "config.jsonl").write_text(lines)
    (folder / "output" / "rank").mkdir(parents=True)
    order = np.arange(trace.num_experts - 1, trace.num_experts - 1 - trace.top_k, -1, np.int8)
    for layer in range(trace.num_layers):
        ranks = {}
        for label in trace.dataset_names:
            ids = trace.experts[trace.datasets == label, :, layer]
            rank = np.zeros((*ids.shape[:2], trace.num_experts), np.int8)
            np.put_along_axis(rank, ids, np.broadcast_to(order, ids.shape), axis=-1)
            ranks[label] = rank
        save_file(ranks, folder / "output" / "rank" / f"bench_{layer:02d}.safetensors")


def theirs(folder):
    """Seconds of each script, CPU seconds of both, and their six tables."""
    seconds, cpu = {}, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    for script in SCRIPTS:
        # They make their output folders and read from the folder above.
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", RUN.format(script)],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds[script] = time.perf_counter() - started
    tables = {
        (level, by_dataset): pd.read_parquet(
            folder / "output" / "srp_pq" / f"bench_{level[0]}{'d' if by_dataset else 'g'}.parquet"
        )
        for level in LEVELS
        for by_dataset in (False, True)
    }
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu, tables


# The scripts take paths relative to src, which here is a link to the checkout.
RUN = (
    "import os, runpy, sys; sys.path.insert(0, os.path.abspath('src')); os.makedirs('cwd', "
    "exist_ok=True); os.chdir('cwd'); sys.argv = ['x', 'bench']; "
    "runpy.run_path('../src/{}', run_name='__main__')"
)


def compare(mine, paper):
    """Share of our rows that the scripts have, and the largest difference of SRP in these.

    The scripts stop at the segment length that exceeds the number of sequences of a dataset.
    """
    worst, rows, found = 0.0, 0, 0
    for key, table in mine.items():
        other = paper[key].rename(
            columns={"seg_len": "segment_length", "layer_idx": "layer", "expert_idx": "expert"}
        )
        keys = ["segment_length"] + [c for c in ("dataset", "layer", "expert") if c in other]
        both = table.merge(other.astype({k: table[k].dtype for k in keys}), on=keys)
        worst = max(worst, float((both.srp - both.best_f1).abs().max()))
        rows, found = rows + len(table), found + len(both)
    return found / rows, worst


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scripts", type=Path, help="a checkout of the paper's repository")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--trace", action="append", help="toy:baseline, a file, or SxTxLxExK")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.trace or ["toy:baseline", "512x512x4x64x8"]:
        if all(c.isdigit() or c == "x" for c in name):
            trace = synthetic(*map(int, name.split("x")))
        else:
            trace = lrc.resolve_trace(name)
        ours(trace.select(slice(2)), 2)  # compile
        seconds, cpu = [], []
        for _ in range(options.repeat):
            started, spent = time.perf_counter(), time.process_time()
            tables = ours(trace, options.bootstrap)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - spent)
        row = {"trace": name, "lrc_seconds": float(np.median(seconds))}
        row["lrc_cpu_seconds"] = float(np.median(cpu))
        row["lrc_spread"] = max(seconds) - min(seconds)
        if options.scripts:
            with tempfile.TemporaryDirectory() as folder:
                prepare(trace, options.scripts, Path(folder))
                script_seconds, script_cpu, script_tables = theirs(Path(folder))
            row |= {f"{script}_seconds": value for script, value in script_seconds.items()}
            row["scripts_cpu_seconds"] = script_cpu
            row["ratio_cpu"] = script_cpu / row["lrc_cpu_seconds"]
            row["ratio"] = sum(script_seconds.values()) / row["lrc_seconds"]
            row["rows_compared"], row["largest_difference"] = compare(tables, script_tables)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


if __name__ == "__main__":
    main()
