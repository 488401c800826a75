"""Measure what a plan of a recording is made of, and write it where `lrc.plan_recording` reads it.

Bytes of expert ids on the disk, CPU seconds and memory, on this machine: of the toy traces, of
public traces of real models if their folder is given, and of a rehearsal, a model with the routing
of Qwen3-30B-A3B (48 layers, 128 experts, top-8) that is only a few numbers wide. CPU seconds are
those of all threads, which other programs on the machine disturb least.

Run it as ``python -m benchmarks.recording_rates [FOLDER OF TRACES]``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import tracemalloc
from math import log2
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import lrc
from benchmarks import machine
from benchmarks.harness import time_hooks
from benchmarks.live_measures import qwen3
from lrc.live_measures import LiveMeasures
from lrc.planning import RATES, write_tables
from lrc.trace_file import TraceWriter, iter_trace

LAYERS, EXPERTS, TOP_K, TOKENS = 48, 128, 8, 512
COUNTED = 2  # sequences
# Sequences whose memory is compared: what they differ by grows with the ids of a row group.
FEW, MANY = 8, 32
MEASURES = {
    "srp": {"srp": True},
    "sch": {"sch": True},
    "hit_rates": {"hit_rates": True},
}


def main(folder: Path | None) -> None:
    """Measure everything and write it."""
    rates = {"machine": machine.describe(), "bits": _bits(folder)}
    model = _rehearsal()
    texts = torch.randint(0, 1024, (COUNTED, TOKENS), generator=torch.Generator().manual_seed(0))
    rates["cpu_s_per_million_ids"], rates["file"] = _times(model, texts)
    rates["peak_bytes_per_id"] = _peak(model)
    RATES.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    write_tables(Path("book/tables"))


def _bits(folder) -> dict:
    """Bits of an expert id in the file, and those that tell one of all experts from the others."""
    traces = {}
    for path in sorted(lrc.toys.DATA.glob("traces/*-0.parquet")):
        traces[f"toy {path.stem.removesuffix('-0')}"] = lrc.load_trace(path)
    for path in sorted(folder.glob("*/*.npz")) if folder else ():
        with np.load(path, allow_pickle=False) as file:
            lengths = np.diff(file["offsets"])
            ids = file["expert_ids"]
            experts = np.full((len(lengths), lengths.max(), *ids.shape[1:]), -1, np.int16)
            experts[np.arange(lengths.max()) < lengths[:, None]] = ids
            traces[path.stem] = lrc.Trace(experts, int(file["num_experts"]), lengths=lengths)
    return {name: _bits_of(trace) for name, trace in traces.items()}


def _bits_of(trace) -> dict:
    bare = lrc.Trace(trace.experts, trace.num_experts, lengths=trace.lengths)
    with tempfile.TemporaryDirectory() as scratch:
        bare.save(Path(scratch) / "t.parquet")
        size = (Path(scratch) / "t.parquet").stat().st_size
    ids = trace.num_tokens * trace.num_layers * trace.top_k
    return {
        "per_id": 8 * size / ids,
        "all": log2(trace.num_experts),
        "ids": ids,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
    }


def _rehearsal():
    model = qwen3(LAYERS, EXPERTS, TOP_K, hidden=32, width=8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    return model


def _times(model, texts):
    """CPU seconds of each step for a million ids; what is in the file beside them."""
    found = {}
    with torch.no_grad(), lrc.Recorder(model) as recorder:
        spent = time_hooks(model, time.process_time)
        for batch in texts.split(1):
            model(batch)
        found["hooks"] = sum(spent)
    started = time.process_time()
    trace = recorder.trace()
    found["trace"] = time.process_time() - started
    with tempfile.TemporaryDirectory() as scratch:
        part, whole = Path(scratch) / "part.parquet", Path(scratch) / "whole.parquet"
        started = time.process_time()
        with TraceWriter(part, 1) as writer:
            writer.append(trace)
        found["part"] = time.process_time() - started
        started = time.process_time()
        with TraceWriter(whole) as writer:
            for one in iter_trace(part):
                writer.append(one)
        found["file"] = time.process_time() - started
        part_bytes, whole_bytes = part.stat().st_size, whole.stat().st_size
    for name, measures in MEASURES.items():
        LiveMeasures(**measures).add(trace.select(slice(1)))  # compiles
        started = time.process_time()
        LiveMeasures(**measures).add(trace)
        found[name] = time.process_time() - started
    millions = trace.experts.size / 1e6
    of_ids = _bits_of(trace)["per_id"] * trace.num_layers * trace.top_k / 8
    file = {
        "part_to_file": part_bytes / whole_bytes,
        "token_bytes": whole_bytes / trace.num_tokens - of_ids,
    }
    return {name: seconds / millions for name, seconds in found.items()}, file


def _peak(model) -> float:
    """Bytes that an id of a row group takes, at worst, beside the model while it is recorded."""
    pool = pa.default_memory_pool()
    peaks = []
    for sequences in (FEW, FEW, MANY):  # the first one for what is only needed once
        texts = torch.randint(0, 1024, (sequences, TOKENS))
        with tempfile.TemporaryDirectory() as scratch:
            tracemalloc.start()
            lrc.record(model, texts, out=Path(scratch) / "t.parquet", progress=False, load=False)
            peaks.append(tracemalloc.get_traced_memory()[1] + pool.max_memory())
            tracemalloc.stop()
    return (peaks[2] - peaks[1]) / ((MANY - FEW) * TOKENS * LAYERS * TOP_K)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
