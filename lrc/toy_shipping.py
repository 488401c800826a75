"""What the package ships of training runs: traces of the ten variants, statistics of the others."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrc import corpora, toy_models, toy_statistics, toys
from lrc.toy_texts import held_out_sequences
from lrc.toy_training import TRACED_PER_DOMAIN, all_runs
from lrc.trace import Trace
from lrc.trace_file import TraceWriter, load_trace
from lrc.whole_files import write_whole

COUNTED_PER_DOMAIN = 32


def ship(out: Path = Path("runs/toys"), data: Path = toys.DATA) -> list[tuple[str, int]]:
    """Write what the package ships of every finished run; texts stay behind.

    Parameters
    ----------
    out : pathlib.Path
        Where `train` left the runs.
    data : pathlib.Path
        Gets ``traces/NAME-SEED.parquet`` (experts of 12 held-out sequences of every domain,
        without token ids), ``counts/NAME-SEED.parquet`` (uses of each expert by token, over 32
        sequences of every domain), ``losses.parquet``, and the weights of the baseline.

    Returns
    -------
    list of (str, int)
        Variant and seed of the runs shipped.
    """
    from lrc.models import load_model
    from lrc.recording import record
    from lrc.vocabulary import token_counts

    texts = held_out_sequences(COUNTED_PER_DOMAIN)
    place = np.arange(len(texts)) % COUNTED_PER_DOMAIN  # Of a sequence within its domain.
    traced = np.flatnonzero(place < TRACED_PER_DOMAIN)
    runs, losses = [], []
    for folder in ("traces", "counts"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for name, seed in all_runs():
        run = out / f"{name}-{seed}"
        target = data / "traces" / f"{name}-{seed}.parquet"
        if not (run / "model" / "model.safetensors").is_file():
            continue
        runs.append((name, seed))
        losses.append(pd.read_csv(run / "losses.csv"))
        if target.is_file() and target.stat().st_mtime > (run / "model").stat().st_mtime:
            continue
        trace: Any = record(load_model(str(run / "model")).model, texts, progress=False)
        token_counts(trace, min_count=20).save(data / "counts" / target.name)
        if (name, seed) == ("baseline", 0):
            shutil.copytree(run / "model", data / name, dirs_exist_ok=True)
        part = trace.select(sequences=traced)
        meta = part.meta | {
            "model": f"toy:{name}",
            "revision": f"seed {seed}",
            "corpus": "embedded corpus, held-out",
            "fingerprint": corpora.Sequences(part.token_ids, tuple(part.datasets)).fingerprint(),
        }
        shipped = Trace(
            part.experts, part.num_experts, lengths=part.lengths, datasets=part.datasets, meta=meta
        )
        with TraceWriter(target, compression_level=19) as writer:
            writer.append(shipped)
    if runs:
        _write_losses(pd.concat(losses, ignore_index=True), data / "losses.parquet")
    return runs


def _write_losses(losses: pd.DataFrame, path: Path) -> None:
    content = io.BytesIO()
    # Much smaller than text, and the same numbers: they have four decimals.
    losses.to_parquet(content, index=False, compression="zstd", compression_level=19)
    write_whole(path, content.getvalue())


def ship_statistics(
    out: Path = Path("runs/toys"), data: Path = toys.DATA
) -> list[tuple[str, int, int]]:
    """Write statistics of every finished run in a folder, whatever its steps.

    Parameters
    ----------
    out : pathlib.Path
        Where `train` left the runs.
    data : pathlib.Path
        Gets ``statistics/NAME-SEED-STEPS.parquet``, see `lrc.toy_statistics`.

    Returns
    -------
    list of (str, int, int)
        Variant or experiment, seed and steps of the runs shipped.
    """
    from lrc.recording import record

    texts = held_out_sequences(TRACED_PER_DOMAIN)
    (data / "statistics").mkdir(parents=True, exist_ok=True)
    runs = []
    for folder in sorted(out.glob("*/model/model.safetensors")):
        run = folder.parents[1]
        name, seed = run.name.rsplit("-", 1)
        losses = pd.read_csv(run / "losses.csv")
        steps = int(losses["step"].max())
        target = data / "statistics" / f"{name}-{seed}-{steps}.parquet"
        runs.append((name, int(seed), steps))
        if target.is_file() and target.stat().st_mtime > folder.stat().st_mtime:
            continue
        model = toy_models.load(run / "model", toys.variant(name).bias_rate > 0)
        snapshots = {
            int(file.stem): toy_statistics.of_trace(load_trace(file), brief=True)
            for file in run.glob("snapshots/*.parquet")
        }
        trace: Any = record(model, texts, progress=False)
        snapshots[steps] = toy_statistics.of_trace(trace)
        toy_statistics.save(toy_statistics.Run(name, int(seed), steps, losses, snapshots), target)
    return runs
