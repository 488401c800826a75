"""Time the GPU kernels at the size of the paper's run of Qwen3-30B, against the GPU's limits.

    python benchmarks/gpu.py                     # on a machine with a CUDA GPU of 40 GB or more
    python benchmarks/gpu.py --sequences 2048    # less of it, for smaller ones
    python benchmarks/gpu.py --small             # the same code in Triton's interpreter
    python benchmarks/gpu.py --estimate          # what an H100 would need by its data sheet

Synthetic routing is drawn on the device: 48 layers, 128 experts, top-8, 22,528 sequences of 512
tokens, 8.9 GB. A sample of the sequences must give the integers that numba gives. Then each kernel
is timed by itself and set against the least time the device could need: all its bytes at the rate
of a copy, or all its instructions at the rate of a loop of integer arithmetic, whichever is longer.
At last each measure is timed whole, with 1,000 bootstrap draws: these add up to the total.
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import lrc
from lrc import kernels

TARGET_S = 60
POLICIES = {"lru": kernels.LRU, "lfu": kernels.LFU, "belady": kernels.BELADY}

# Warp instructions of a step, counted in the machine code for compute capability 9.0 (128 experts,
# top-8; caches of a layer, of the model): of `count_windows` a token; of LRU a token, and 256
# places of the stack; of priority stacks an access that looks at one block, the least.
WINDOWS_TOKEN = 260
LRU_TOKEN, LRU_PLACES = {False: 180, True: 1900}, 400
PRIORITY_ACCESS = {False: 190, True: 255}
# Data sheet of an H100 SXM: bytes a second; of its 132 multiprocessors, each two warp instructions
# of integer arithmetic a cycle of 1.755 GHz.
H100 = {"bytes": 3.35e12, "instructions": 132 * 2 * 1.755e9}


@dataclass(frozen=True)
class Workload:
    """Shape of the routing, what is measured of it, and how many sequences are checked."""

    sequences: int
    tokens: int
    layers: int
    experts: int
    top_k: int
    segment_lengths: tuple[int, ...]
    bootstrap: int
    sample: int


QWEN3_30B = Workload(22_528, 512, 48, 128, 8, (4, 16, 64, 256), 1000, 16)
SMALL = Workload(2, 4, 2, 5, 2, (2, 3), 3, 2)


def synthetic(workload: Workload, device: str, seed: int = 0, keep: float = 0.9) -> lrc.Trace:
    """Routing in which popular experts and those of a moment ago are likelier, drawn on the device.

    Scores are normal: an expert's popularity, a text's taste, and a part that changes from token to
    token, with correlation `keep`.
    """
    import torch

    place = torch.device("cpu" if device == "interpreter" else device)
    random = torch.Generator(place).manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, device=place)

    w = workload
    shape = (w.sequences, w.tokens, w.layers, w.top_k)
    experts = torch.empty(shape, dtype=torch.int16, device=place)
    popularity = normal(w.layers, w.experts) / 2
    for part in experts.split(2048):
        scores = (len(part), w.layers, w.experts)
        liked, moving = popularity + normal(*scores) / 2, normal(*scores)
        for t in range(w.tokens):
            part[:, t] = (liked + moving).topk(w.top_k).indices.to(torch.int16)
            moving = keep * moving + (1 - keep**2) ** 0.5 * normal(*scores)
    lengths = np.full(w.sequences, w.tokens, np.int64)
    # Valid by construction, and too large to be checked on the host.
    return lrc.Trace._adopt(experts, w.experts, lengths=lengths, meta={})


def kept_share(trace: lrc.Trace) -> float:
    """Share of a token's experts that the token before used too, in some sequences."""
    experts = trace.select(slice(0, 8)).to("cpu").experts
    same = experts[:, 1:, :, :, None] == experts[:, :-1, :, None, :]
    return float(same.any(axis=-1).mean())


def kernel_runs(workload: Workload) -> dict:
    """Each kernel: what runs it on a trace, its least bytes and its warp instructions."""
    w = workload
    tokens = w.sequences * w.tokens
    accesses = tokens * w.layers * w.top_k
    layers, experts = np.arange(w.layers), np.arange(w.experts)
    lengths = w.segment_lengths

    def windows(trace):
        groups = np.zeros(trace.num_sequences, np.int64)
        where = (trace.experts, trace.lengths, groups, 1, layers, experts, lengths)
        return kernels.count_windows(*where)

    def caches(rule, m, shared):
        def run(trace):
            everything = np.arange(trace.num_sequences)
            where = (trace.experts, trace.lengths, everything, w.experts, shared)
            return kernels.count_new_hits(rule, m, *where)

        return run

    # A trace must be read once, 2 bytes an access.
    steps = tokens * w.layers * len(lengths) * WINDOWS_TOKEN
    runs = {f"windows of {lengths}": (windows, 2 * accesses, steps)}
    variants = {name: (rule, 0) for name, rule in POLICIES.items()}
    variants |= {f"SCH {m}": (kernels.LOOKAHEAD, m) for m in lengths}
    for shared, level in ((False, "layer"), (True, "model")):
        caches_a_token = 1 if shared else w.layers
        places = w.experts * (w.layers if shared else 1)
        histograms = 4 * w.sequences * w.layers * w.experts
        for name, (rule, m) in variants.items():
            steps = accesses * PRIORITY_ACCESS[shared]
            if rule == kernels.LRU:
                passes = -(-places // 256)
                steps = tokens * caches_a_token * (LRU_TOKEN[shared] + passes * LRU_PLACES)
            runs[f"{name}, {level}"] = (
                *(caches(rule, m, shared), 2 * accesses + histograms),
                steps,
            )
    return runs


def least_seconds(size: float, steps: float, reached: dict[str, float]) -> float:
    """Time that a kernel needs at least, for its bytes or for its instructions."""
    return max(size / reached["bytes"], steps / reached["instructions"])


def estimate() -> str:
    """What an H100 would need at least by its data sheet: a table in Markdown, for the book."""
    lines = [
        "| kernel | GB | 10⁹ warp instructions | for the bytes, s | for the instructions, s |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (_, size, steps) in kernel_runs(QWEN3_30B).items():
        moving, computing = size / H100["bytes"], steps / H100["instructions"]
        lines.append(
            f"| {name} | {size / 1e9:.1f} | {steps / 1e9:,.0f} | {moving:.3f} | {computing:.2f} |"
        )
    return "\n".join(lines)


def measures(workload: Workload) -> dict:
    """Everything a user asks for, with intervals."""
    w, options = workload, {"bootstrap": workload.bootstrap}
    runs = {
        f"srp, {level}": lambda trace, level=level: lrc.srp(
            trace, w.segment_lengths, level=level, **options
        )
        for level in ("model", "layer", "expert")
    }
    for level in ("layer", "model"):
        runs[f"sch, {level}"] = lambda trace, level=level: lrc.sch(
            trace, w.segment_lengths, level=level, **options
        )
        runs[f"hit_rates, {level}"] = lambda trace, level=level: lrc.hit_rates(
            trace, tuple(POLICIES), level=level, **options
        )
    return runs


def check(workload: Workload, trace: lrc.Trace) -> int:
    """Compare the kernels with numba, integer by integer; return how many integers there were."""
    sample = trace.select(np.linspace(0, trace.num_sequences - 1, workload.sample).astype(int))
    there, compared = sample.to("cpu"), 0
    for name, (run, *_) in kernel_runs(workload).items():
        counted, expected = kernels.host(run(sample)), kernels.host(run(there))
        if not np.array_equal(counted, expected):
            raise SystemExit(f"{name}: {(counted != expected).sum():,} counts differ from numba's")
        compared += counted.size
    return compared


def report(workload: Workload, device: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check, time and print.

    Returns
    -------
    kernels : DataFrame
        kernel, seconds, gigabytes, giga_instructions, least_s, times_least
    measures : DataFrame
        measure, seconds
    """
    from gpu_limits import limits, timed

    reached = limits(device)
    print(
        f"{device_name(device)}: copies {reached['bytes'] / 1e9:,.1f} GB/s, "
        f"{reached['instructions'] / 1e9:,.1f} G warp instructions/s"
    )
    seconds, trace = timed(lambda: synthetic(workload, device), device)
    print(f"{trace}\n  drawn in {seconds:.1f} s; {kept_share(trace):.0%} of experts are kept")
    # The first runs compile, so they are not timed.
    print(f"checked against numba: {check(workload, trace):,} integers agree", flush=True)
    rows = []
    for name, (run, size, steps) in kernel_runs(workload).items():
        seconds, _ = timed(lambda run=run: run(trace), device)
        least = least_seconds(size, steps, reached)
        rows.append((name, seconds, size / 1e9, steps / 1e9, least, seconds / least))
    columns = ["kernel", "seconds", "gigabytes", "giga_instructions", "least_s", "times_least"]
    by_kernel = pd.DataFrame(rows, columns=columns)
    print(by_kernel.to_string(index=False, float_format="{:,.3f}".format), flush=True)
    rows = []
    for name, run in measures(workload).items():
        rows.append((name, timed(lambda run=run: run(trace), device)[0]))
    by_measure = pd.DataFrame(rows, columns=["measure", "seconds"])
    print(by_measure.to_string(index=False, float_format="{:,.3f}".format))
    total = by_measure["seconds"].sum()
    if device != "interpreter":
        import torch

        print(f"total {total:.1f} s, target {TARGET_S} s")
        print(f"most memory: {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")
    return by_kernel, by_measure


def device_name(device: str) -> str:
    if device == "interpreter":
        return "Triton's interpreter (its times mean nothing)"
    import torch

    return torch.cuda.get_device_name(device)


def rows(sequences: int = 512) -> list[dict]:
    """The kernels on a GPU against numba on this machine's cores, for `make bench`.

    Returns
    -------
    list of dict
        name, ours_s, baseline_s, ratio, note; empty without a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    sys.path.insert(0, str(Path(__file__).parent))
    from gpu_limits import best_of, timed

    workload = replace(QWEN3_30B, sequences=sequences)
    trace = synthetic(workload, "cuda")
    there, result = trace.to("cpu"), []
    note = f"{device_name('cuda')} against numba, {sequences} sequences of Qwen3-30B's shape"
    for name, (run, *_) in kernel_runs(workload).items():
        ours = best_of(lambda run=run: run(trace), "cuda")
        run(there.select([0]))  # compiles
        baseline, _ = timed(lambda run=run: run(there), "cuda")
        one = {"name": f"gpu: {name}", "ours_s": ours, "baseline_s": baseline}
        result.append(one | {"ratio": baseline / ours, "note": note})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny, in Triton's interpreter")
    parser.add_argument("--sequences", type=int, default=QWEN3_30B.sequences)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--estimate", action="store_true", help="for an H100, from its data sheet")
    options = parser.parse_args()
    if options.estimate:
        print(estimate())
        return
    if options.small:
        # Before Triton is imported.
        os.environ["TRITON_INTERPRET"] = "1"
        report(SMALL, "interpreter")
        return
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here: --small runs the same code in Triton's interpreter")
    report(replace(QWEN3_30B, sequences=options.sequences), options.device)


if __name__ == "__main__":
    main()
