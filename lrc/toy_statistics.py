"""What is kept of a toy run whose trace is not shipped: integers, from which its measures follow.

A trace of a toy is a megabyte, its statistics are ten kilobytes: how often each expert is active in
a window, by layer and by sequence, how often it is active at all, and how often a cache is hit.
They give SRP with its interval over texts, its chance level, local balance and hit rates, to the
last bit as the trace would. What needs the order of tokens beyond that, or a trace's experts one by
one, cannot be had from them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lrc import toys
from lrc.bootstrap import mirrored_interval, resample_weights
from lrc.chance import chance, excess
from lrc.errors import LrcError, TraceError
from lrc.hit_counts import HitCounts, HitKind, sequence_counts
from lrc.local_balance import local_balance_of_counts
from lrc.trace import Trace
from lrc.whole_files import write_whole
from lrc.window_counts import WindowCounts, best_router, window_counts

__all__ = ["LENGTHS", "MAIN_LENGTH", "Run", "Statistics", "load", "of_trace", "read", "save"]

LENGTHS = (4, 16, 64)
"""Segment lengths counted at the end of a training."""

MAIN_LENGTH = 16
"""Tokens of the segments that are also counted by sequence and by dataset, and while training."""

_DATA = toys.DATA / "statistics"
_VERSION = 1


@dataclass(frozen=True)
class Statistics:
    """Integers of one trace.

    Attributes
    ----------
    segment_lengths : tuple of int
        `LENGTHS`, or `MAIN_LENGTH` alone.
    windows : int64 array [layers, bins]
        Windows and experts with 0 ... m activations, one segment length after the other.
    activations : int64 array [segment_lengths, layers, experts]
        Activations of each expert, summed over windows.
    by_sequence : int64 array [sequences, MAIN_LENGTH + 1]
        Windows and experts of all layers with so many activations, in each sequence.
    by_dataset : int64 array [datasets, layers, experts], optional
        `activations` for `MAIN_LENGTH`, by dataset in sorted order.
    lru_hits : int64 array [layers, experts], optional
        Uses that hit in an LRU cache of the layer from so many slots on, as in `HitCounts`.
    datasets : tuple of str
        Label of each sequence.
    lengths : tuple of int
        Tokens of each sequence.
    top_k : int
    """

    segment_lengths: tuple[int, ...]
    windows: np.ndarray
    activations: np.ndarray
    by_sequence: np.ndarray
    datasets: tuple[str, ...]
    lengths: tuple[int, ...]
    top_k: int
    by_dataset: np.ndarray | None = None
    lru_hits: np.ndarray | None = None

    def counts(self, level: str = "layer") -> WindowCounts:
        """Return the window counts, of all datasets together."""
        windows = np.array([[self._windows(m) for m in self.segment_lengths]])
        shape = self.activations.shape[1:]
        counts = self.windows[None, :, None]
        return WindowCounts(counts, windows, ("",), self.segment_lengths, "layer", shape).at(level)

    def _windows(self, segment_length, dataset=None):
        pairs = zip(self.lengths, self.datasets, strict=True)
        long = [n for n, label in pairs if dataset in (None, label) and n >= segment_length]
        return sum(long) - (segment_length - 1) * len(long)

    def measures(
        self, segment_length: int = MAIN_LENGTH, *, level: str = "model", bootstrap: int = 0, seed=0
    ) -> pd.DataFrame:
        """SRP, its chance level and local balance.

        Parameters
        ----------
        segment_length : int
            One of `segment_lengths`.
        level : {"model", "layer"}
        bootstrap : int
            Resamples of the sequences, drawn within each dataset, for an interval of SRP; only
            for ``level="model"`` and `MAIN_LENGTH`.
        seed : int

        Returns
        -------
        DataFrame
            A row, or one a layer: ``segment_length, srp, ci_low, ci_high, chance, excess`` and the
            columns of `lrc.local_balance`.
        """
        if segment_length not in self.segment_lengths:
            counted = ", ".join(map(str, self.segment_lengths))
            raise LrcError(f"segment_length is {segment_length}, but only {counted} were counted")
        if bootstrap and (segment_length, level) != (MAIN_LENGTH, "model"):
            raise LrcError(f"intervals need level='model' and segments of {MAIN_LENGTH} tokens")
        counts, i = self.counts(level), self.segment_lengths.index(segment_length)
        rates = self._rates(self.activations[i], counts.windows[0, i] * segment_length)
        there = counts.table().query("segment_length == @segment_length")
        table = excess(there, chance(rates, (segment_length,), level=level))
        balance = local_balance_of_counts(counts, self.activations[:, None])
        keys = ["layer", "segment_length"] if level == "layer" else ["segment_length"]
        table = table.merge(balance, on=keys)
        if bootstrap:
            weights = resample_weights(self.datasets, bootstrap, seed)
            resampled, _, _ = best_router(weights @ self.by_sequence)
            ends = mirrored_interval(table["srp"].item(), resampled, 0.95)
            table[["ci_low", "ci_high"]] = np.array([ends], float)
        return table

    def by_domain(self) -> pd.DataFrame:
        """Return SRP, chance and excess of each dataset by itself, segments of `MAIN_LENGTH`."""
        by_dataset = self._kept("by_dataset")
        rows = []
        for g, dataset in enumerate(sorted(set(self.datasets))):
            mine = np.array(self.datasets) == dataset
            score, _, _ = best_router(self.by_sequence[mine].sum(axis=0))
            tokens = self._windows(MAIN_LENGTH, dataset) * MAIN_LENGTH
            rates = self._rates(by_dataset[g], tokens)
            level = chance(rates, (MAIN_LENGTH,))["srp"].item()
            row = {"dataset": dataset, "srp": float(score), "chance": level}
            rows.append(row | {"excess": (row["srp"] - level) / (1 - level)})
        return pd.DataFrame(rows)

    def hit_rates(self) -> pd.DataFrame:
        """Return what `lrc.hit_rates` returns for LRU with a cache a layer."""
        lru_hits = self._kept("lru_hits")
        layers, experts = lru_hits.shape
        kind = HitKind("policy", ("lru",), "paper", "layer", layers, experts, self.top_k)
        return HitCounts(kind, ("",), lru_hits[None, None]).table()

    def _kept(self, name: str) -> np.ndarray:
        array = getattr(self, name)
        if array is None:
            raise LrcError(f"these statistics have no {name}: it is kept of finished runs only")
        return array

    @staticmethod
    def _rates(activations, tokens):
        layer, expert = np.indices(activations.shape)
        columns = {"layer": layer.ravel(), "expert": expert.ravel()}
        return pd.DataFrame(columns | {"activation_rate": activations.ravel() / tokens})


def of_trace(trace: Trace, *, brief: bool = False) -> Statistics:
    """Count what is kept of a trace with dataset labels.

    Parameters
    ----------
    trace : Trace
    brief : bool, default False
        Only what is kept of a model that is still learning.

    Returns
    -------
    Statistics
    """
    if trace.datasets is None:
        raise LrcError("statistics are kept by dataset, but this trace has no labels")
    lengths = (MAIN_LENGTH,) if brief else LENGTHS
    counts = window_counts(trace, lengths, level="expert")
    by_sequence = [
        window_counts(trace.select(sequences=[i]), MAIN_LENGTH).counts.ravel()
        for i in range(trace.num_sequences)
    ]
    more = {}
    if not brief:
        main = window_counts(trace, MAIN_LENGTH, level="expert", by_dataset=True)
        hits = [new.sum(axis=0) for _, new in sequence_counts(trace, "lru", level="layer")]
        more = {"by_dataset": main.histogram(0) @ np.arange(MAIN_LENGTH + 1), "lru_hits": sum(hits)}
    return Statistics(
        segment_lengths=lengths,
        windows=counts.at("layer").counts[0, :, 0],
        activations=np.stack(
            [counts.histogram(i)[0] @ np.arange(m + 1) for i, m in enumerate(lengths)]
        ),
        by_sequence=np.stack(by_sequence),
        datasets=tuple(str(label) for label in trace.datasets),
        lengths=tuple(int(n) for n in trace.lengths),
        top_k=trace.top_k,
        **more,
    )


_LOSSES = ("step", "tokens", "dataset", "loss")
_ARRAYS = ("windows", "activations", "by_sequence", "by_dataset", "lru_hits")


@dataclass(frozen=True)
class Run:
    """A training run: what it was, its losses, and its statistics at one or more steps.

    Attributes
    ----------
    model : str
    seed, steps : int
        Optimizer steps in all.
    losses : DataFrame
        As `lrc.toys.losses`.
    snapshots : dict of int to Statistics
        By step; the last is the end of the training.
    """

    model: str
    seed: int
    steps: int
    losses: pd.DataFrame
    snapshots: dict[int, Statistics]

    @property
    def end(self) -> Statistics:
        """Statistics at the end of the training."""
        return self.snapshots[self.steps]

    def course(self, *, level: str = "model", bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
        """Return what `Statistics.measures` says at each step, with a column ``step`` first."""
        tables = []
        for step, statistics in self.snapshots.items():
            tables.append(statistics.measures(level=level, bootstrap=bootstrap, seed=seed))
            tables[-1].insert(0, "step", step)
        return pd.concat(tables, ignore_index=True)

    @property
    def loss(self) -> float:
        """Held-out loss at the end, mean of the domains, in nats per token."""
        held_out = self.losses[self.losses["split"] == "held-out"]
        return float(held_out.loc[held_out["step"] == self.steps, "loss"].mean())


def save(run: Run, path: str | PathLike) -> None:
    """Write a run as a Parquet file: a row for each array of integers, and its shape."""
    first = run.end
    header: dict[str, Any] = {
        "version": _VERSION,
        "model": run.model,
        "seed": run.seed,
        "steps": run.steps,
        "datasets": first.datasets,
        "lengths": first.lengths,
        "top_k": first.top_k,
    }
    rows = [
        (step, name, getattr(statistics, name))
        for step, statistics in run.snapshots.items()
        for name in _ARRAYS
        if getattr(statistics, name) is not None
    ]
    coded = run.losses.fillna({"dataset": ""})
    header["losses_of"] = sorted(set(coded["dataset"]))  # "": in training
    coded = coded.assign(
        loss=(coded["loss"] * 10_000).round().astype(int),
        dataset=coded["dataset"].map(header["losses_of"].index),
    )
    rows += [(-1, name, coded[name].to_numpy()) for name in _LOSSES]
    steps, names, arrays = zip(*rows, strict=True)
    table = pa.table(
        {
            "step": pa.array(steps, pa.int32()),
            "name": pa.array(names),
            "shape": pa.array([list(a.shape) for a in arrays], pa.list_(pa.int32())),
            "values": pa.array([a.ravel().tolist() for a in arrays], pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({"lrc_toy_statistics": json.dumps(header)})
    content = io.BytesIO()
    pq.write_table(
        table,
        content,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        use_byte_stream_split=["values.list.element"],
        write_statistics=False,
    )
    write_whole(Path(path), content.getvalue())


def read(path: str | PathLike) -> Run:
    """Read what `save` wrote.

    Raises
    ------
    TraceError
        No such file, or one that holds no such statistics.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
        header = json.loads((table.schema.metadata or {})[b"lrc_toy_statistics"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise TraceError(f"{path}: no statistics of a toy run, or damaged ({reason})") from error
    if header["version"] != _VERSION:
        raise TraceError(f"{path}: statistics of another version of lrc; make them again")
    arrays: dict[int, dict[str, Any]] = {}
    for row in table.to_pylist():
        array = np.array(row["values"], np.int64).reshape(row["shape"])
        arrays.setdefault(row["step"], {})[row["name"]] = array
    losses = pd.DataFrame({name: arrays[-1].pop(name) for name in _LOSSES})
    of = np.array(header["losses_of"], object)[losses["dataset"]]
    losses = losses.assign(
        model=header["model"],
        seed=header["seed"],
        split=np.where(of == "", "train", "held-out"),
        dataset=np.where(of == "", np.nan, of),
        loss=losses["loss"] / 10_000,
    )
    del arrays[-1]
    rest: dict[str, Any] = {
        "datasets": tuple(header["datasets"]),
        "lengths": tuple(header["lengths"]),
    }
    snapshots = {
        step: Statistics(
            LENGTHS if "by_dataset" in values else (MAIN_LENGTH,),
            **values,
            **rest,
            top_k=header["top_k"],
        )
        for step, values in sorted(arrays.items())
    }
    columns = ["model", "seed", "step", "tokens", "split", "dataset", "loss"]
    return Run(header["model"], header["seed"], header["steps"], losses[columns], snapshots)


def shipped() -> list[tuple[str, int, int]]:
    """Return (model, seed, steps) of every run whose statistics are shipped."""
    order = [*toys.VARIANTS, *toys.EXPERIMENTS]
    parts = [file.stem.rsplit("-", 2) for file in _DATA.glob("*.parquet")]
    runs = [(name, int(seed), int(steps)) for name, seed, steps in parts]
    return sorted(runs, key=lambda run: (run[2], order.index(run[0]), run[1]))


def load(name: str, seed: int = 0, steps: int = toys.SHORT) -> Run:
    """Return the shipped statistics of a run.

    Parameters
    ----------
    name : str
        A key of `lrc.toys.VARIANTS` or `lrc.toys.EXPERIMENTS`.
    seed : int
    steps : int
        Optimizer steps of the run.

    Raises
    ------
    LrcError
        If there is no such run; the message lists those of that name.
    """
    file = _DATA / f"{toys.variant(name).name}-{seed}-{steps}.parquet"
    if not file.is_file():
        there = [f"seed {s}, {n} steps" for model, s, n in shipped() if model == name]
        raise LrcError(
            f"no statistics are shipped of toy {name!r} with seed {seed} and {steps} steps, only "
            f"of: {'; '.join(there) or 'nothing'}"
        )
    return read(file)
