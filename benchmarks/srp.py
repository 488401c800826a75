"""SRP at all levels with intervals against the paper's scripts, at a size like the paper's.

``LRC_PAPER`` names a checkout of their repository; without it there are no rows. The scripts run as
they are, one after the other, in a folder of their own. Both give six tables: model, layer and
expert level, over all datasets and for each; the tables are compared.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import lrc
from benchmarks.workloads import accesses, named, toy

SEGMENT_LENGTHS = (4, 16, 64, 256)
BOOTSTRAP = 1000
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
    """The six tables, from one call."""
    options = {"level": LEVELS, "by_dataset": (False, True), "bootstrap": bootstrap}
    table = lrc.srp(trace, SEGMENT_LENGTHS, **options)
    pooled = table.dataset.isna()
    return {
        (level, by_dataset): table[(table.level == level) & (pooled != by_dataset)]
        for level in LEVELS
        for by_dataset in (False, True)
    }


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
    seconds, cpu = {}, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
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
    return seconds, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - cpu, tables


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


def rows():
    if not os.environ.get("LRC_PAPER"):
        return
    checkout = Path(os.environ["LRC_PAPER"])
    # The last has as many sequences in a dataset as the paper.
    sizes = {1024: 2, 4096: 1}
    traces = [(synthetic(n, 512, 2, 64, 8), repetitions) for n, repetitions in sizes.items()]
    for trace, repetitions in [(toy(), 3), *traces]:
        ours(trace.select(slice(2)), 2)  # compile
        timed, spent = [], []
        for _ in range(repetitions):
            with tempfile.TemporaryDirectory() as folder:
                prepare(trace, checkout, Path(folder))
                seconds, cpu, paper = theirs(Path(folder))
            started, cpu_before = time.perf_counter(), time.process_time()
            tables = ours(trace, BOOTSTRAP)
            timed.append((time.perf_counter() - started, sum(seconds.values())))
            spent.append(cpu / (time.process_time() - cpu_before))
        share, worst = compare(tables, paper)
        ratios = [slow / fast for fast, slow in timed]
        yield {
            "name": f"SRP at 3 levels, {BOOTSTRAP:,} resamples, all and each of "
            f"{len(trace.dataset_names)} datasets",
            "baseline": "the paper's scripts",
            "ours_s": float(np.median([fast for fast, _ in timed])),
            "baseline_s": float(np.median([slow for _, slow in timed])),
            "ratio": float(np.median(ratios)),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "repetitions": repetitions,
            "accesses_per_s": accesses(trace) / float(np.median([fast for fast, _ in timed])),
            "note": f"{named(trace)}; with imports; {np.median(spent):.1f} times in CPU seconds; "
            f"the scripts have {share:.0%} of our rows, SRP differs by {worst:.0e} at most",
        }
