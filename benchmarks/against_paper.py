"""Caches of ours against those of the paper's scripts, run as they are, from a checkout.

``LRC_PAPER`` names the checkout; without it there are no rows. The scripts start as many processes
as there are cores; ours as many threads. Their start-up (imports) is not timed. They need orjson
and sortedcontainers besides what the book needs.
"""

import json
import os
import shutil
import sys
import tempfile
from contextlib import chdir
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import lrc
from benchmarks.harness import LENGTHS, in_new_process, race, threads
from benchmarks.workloads import QWEN, accesses, named, synthetic, toy
from lrc.cache import policy_counts, sch_counts

# The scripts take every 16th sequence for SCH.
EVERY = 16
BOOTSTRAP = 1000


DRIVER = """
import runpy, sys, time
import orjson, pandas, safetensors.torch, sortedcontainers, torch, tqdm
source, *scripts = sys.argv[1:]
sys.path.insert(0, source)
start = time.perf_counter()
for script in scripts:
    sys.argv = [script, "ours"]
    runpy.run_path(f"{source}/{script}", run_name="__main__")
print(time.perf_counter() - start)
"""


def rows():
    if not os.environ.get("LRC_PAPER"):
        return
    checkout = Path(os.environ["LRC_PAPER"]).resolve()
    sys.path.insert(0, str(checkout / "src"))
    for trace, repetitions in ((toy().select(slice(0, 32)), 3), (synthetic(2, 512, *QWEN), 1)):
        # Under one label: the scripts never pool datasets.
        trace = lrc.Trace(trace.experts, trace.num_experts, datasets=["all"] * len(trace.experts))
        with tempfile.TemporaryDirectory() as folder:
            once, often = Path(folder) / "once", Path(folder) / "often"
            _write(trace, checkout, once)
            _write(trace, checkout, often, EVERY)
            yield from _whole_scripts(trace, checkout / "src", once, often, repetitions)
            with chdir(once / "src"):
                yield from _one_core(trace, checkout / "src", repetitions)


def _whole_scripts(trace, source, once, often, repetitions):
    def caches(measure):
        for level in ("model", "layer"):
            measure(trace, level=level, by_dataset=True, bootstrap=BOOTSTRAP)

    for name, scripts, folder, ours in [
        ("SCH, 4 lengths", ["41_sch_calc.py"], often, partial(caches, lrc.sch)),
        ("LRU, LFU, Belady", ["50_chr_calc.py"], once, partial(caches, lrc.hit_rates)),
    ]:
        theirs = [_run(scripts, source, folder) for _ in range(repetitions)]
        timed = race(ours, iter(theirs).__next__, repetitions=repetitions)
        yield {
            "name": f"{name}, {BOOTSTRAP:,} resamples, all cores",
            "baseline": "the paper's scripts",
            **timed,
            "accesses_per_s": accesses(trace) / timed["ours_s"],
            "note": f"{named(trace)}; whole scripts, one cache a layer and one for all",
        }


def _one_core(trace, source, repetitions):
    """The scripts' inner functions and our kernels on one core each, for one cache."""
    sch, caches = (_module(source / name) for name in ("41_sch_calc.py", "50_chr_calc.py"))
    for level in ("layer", "model"):
        ids = trace.experts[0].astype(np.int64)
        num_ids = trace.num_experts
        if level == "model":
            num_ids *= trace.num_layers
            ids = ids + trace.num_experts * np.arange(trace.num_layers)[:, None]
            streams = [ids.reshape(len(ids), -1)]
        else:
            streams = list(ids.transpose(1, 0, 2))[:4]
        streams = [torch.tensor(stream, dtype=torch.int16) for stream in streams]
        done = sum(stream.numel() for stream in streams)

        def their_sch(streams=streams, num_ids=num_ids):
            for stream in streams:
                for m in LENGTHS:
                    sch.calc_fsf(stream, num_ids, m)

        def their_policies(streams=streams, num_ids=num_ids):
            for stream in streams:
                for policy in (caches.calc_lru, caches.calc_lfu, caches.calc_beladi):
                    policy(stream, num_ids)

        for name, ours, theirs in [
            ("SCH, 4 lengths", sch_counts, their_sch),
            ("LRU, LFU, Belady", policy_counts, their_policies),
        ]:
            with threads(1):
                timed = race(
                    partial(ours, trace, level=level),
                    theirs,
                    repetitions=repetitions,
                    scale=accesses(trace) / done,
                )
            yield {
                "name": f"{name}, {num_ids:,} sizes, one core",
                "baseline": "the paper's scripts",
                **timed,
                "accesses_per_s": accesses(trace) / timed["ours_s"],
                "note": f"{named(trace)}; counts alone; the scripts on {done:,} of "
                f"{accesses(trace):,} accesses",
            }


def _write(trace, checkout, folder, times=1):
    """Lay the trace out as the scripts read it, each sequence so many times."""
    for name in ("src", "model", "output/topk"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(checkout / "data", folder / "data")
    shutil.copy(checkout / "config.json", folder)
    model = {"key": "ours", "main": True, "name": "ours", "abbr": "O", "type": "causal"}
    model |= {"num_params": 1.0, "attn": "eager", "top_k": trace.top_k}
    model |= {"num_layers": trace.num_layers, "num_experts": trace.num_experts}
    (folder / "model" / "config.jsonl").write_text(json.dumps(model) + "\n")
    for layer in range(trace.num_layers):
        name = f"ours_{layer:02d}.safetensors"
        ids = torch.from_numpy(trace.experts[:, :, layer].astype(np.int64))
        repeated = ids.repeat_interleave(times, dim=0).to(torch.int8)
        save_file({"all": repeated}, folder / "output" / "topk" / name)


def _run(scripts, source, folder):
    """Seconds that scripts take, in a process of their own."""
    with chdir(folder / "src"):
        return in_new_process(DRIVER, str(source), *scripts)


def _module(path):
    spec = spec_from_file_location(f"paper_{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
