"""SRP, SCH and hit rates of texts that are seen once: what they need is counted, no trace is kept.

All three follow from whole numbers that add up (`lrc.window_counts`, `lrc.hit_counts`), so traces
may come in any parts: the tables are those of the whole trace, to the last bit.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrc.cache import policy_counts, sch_counts
from lrc.errors import LrcError, TraceError
from lrc.hit_counts import HitCounts, HitKind
from lrc.trace import Trace
from lrc.trace_checks import checked_meta
from lrc.trace_shards import check_ranks, shard_paths
from lrc.whole_files import put_in_place, temporary_beside, writing
from lrc.window_counts import WindowCounts, window_counts

VERSION = 1
_COUNTERS: dict[str, Callable] = {
    "srp": window_counts,
    "sch": sch_counts,
    "hit_rates": policy_counts,
}


class LiveMeasures:
    """SRP, SCH and hit rates of traces that come one after the other and are not kept.

    Parameters
    ----------
    srp, sch, hit_rates : dict or True, optional
        Which to take, and with which options of the function of that name; True for its defaults.
        There is no ``bootstrap``: it needs the sequences, so record a trace for it.

    Attributes
    ----------
    options : dict
        By measure, as given.
    counts : dict
        By measure, what was counted so far: `lrc.window_counts.WindowCounts` or
        `lrc.hit_counts.HitCounts`.
    num_sequences, num_tokens : int
        Seen so far.
    meta : dict
        The first trace's.

    Raises
    ------
    LrcError
        No measure, an option that is unknown or out of range; traces of different models.

    Examples
    --------
    >>> live = lrc.LiveMeasures(srp={"level": "layer"}, hit_rates=True)
    >>> with lrc.Recorder(model) as recorder:  # doctest: +SKIP
    ...     for batch in batches:
    ...         model(**batch)
    ...         live.add(recorder.trace())
    ...         recorder.clear()
    >>> live["srp"]  # doctest: +SKIP
    """

    def __init__(self, *, srp=None, sch=None, hit_rates=None) -> None:
        given = {"srp": srp, "sch": sch, "hit_rates": hit_rates}
        self.options: dict[str, dict] = {
            name: _checked(name, options)
            for name, options in given.items()
            if options is not None and options is not False
        }
        if not self.options:
            raise LrcError("nothing to measure: give srp, sch or hit_rates, such as srp=True")
        self.counts: dict[str, WindowCounts | HitCounts] = {}
        self.num_sequences = self.num_tokens = 0
        self.meta: dict = {}

    def add(self, trace: Trace) -> None:
        """Count a trace, where its experts lie (see `Trace.to`)."""
        found = {name: _COUNTERS[name](trace, **options) for name, options in self.options.items()}
        self._add(found, trace.num_sequences, trace.num_tokens, trace.meta)

    def __getitem__(self, measure: str) -> pd.DataFrame:
        """Table of a measure: what the function of that name would return of all traces."""
        if measure not in self.options:
            raise LrcError(f"{measure!r} was not measured, but {', '.join(self.options)}")
        if not self.counts:
            raise LrcError("nothing was measured yet: add a trace")
        return self.counts[measure].table()

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables of all measures, by name."""
        return {measure: self[measure] for measure in self.options}

    def __add__(self, other: LiveMeasures) -> LiveMeasures:
        if self.options.keys() != other.options.keys():
            raise LrcError(
                f"measures of different kinds cannot be added: {', '.join(self.options)} and "
                f"{', '.join(other.options)}"
            )
        total = LiveMeasures(**self.options)
        for part in (self, other):
            if part.counts:
                total._add(part.counts, part.num_sequences, part.num_tokens, part.meta)
        return total

    def __repr__(self) -> str:
        seen = f"{self.num_tokens:,} tokens of {self.num_sequences:,} sequences"
        return f"<lrc.LiveMeasures: {', '.join(self.options)} of {seen}>"

    def save(self, path: str | PathLike) -> None:
        """Write what was counted to a file, whole or not at all; `lrc.load_measures` reads it."""
        path = Path(path)
        header: dict[str, Any] = {"version": VERSION, "sequences": self.num_sequences}
        header["tokens"] = self.num_tokens
        header |= {"meta": checked_meta(self.meta), "options": self.options, "kinds": {}}
        arrays = {}
        for measure, counts in self.counts.items():
            header["kinds"][measure], parts = _packed(counts)
            arrays |= {f"{measure}.{name}": array for name, array in parts.items()}
        with writing(path):
            temporary = temporary_beside(path)
            try:
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
                put_in_place(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _add(self, counts, num_sequences, num_tokens, meta):
        joined = {name: self.counts[name] + counts[name] for name in self.counts} or dict(counts)
        self.counts = joined
        self.meta = self.meta or dict(meta)
        self.num_sequences += num_sequences
        self.num_tokens += num_tokens


def load_measures(path: str | PathLike | Iterable[str | PathLike]) -> LiveMeasures:
    """Read what `LiveMeasures.save` or `lrc.measure` wrote, and add it up.

    Parameters
    ----------
    path : path, pattern or list of paths
        A file; or several, as those of all processes that measured a corpus together:
        ``"measures.rank*of8.npz"``.

    Returns
    -------
    LiveMeasures

    Raises
    ------
    TraceError
        No such file, or none that holds measures.
    LrcError
        Files of different measures or models.
    """
    paths = shard_paths(path)
    if paths is None:
        return _load(Path(path))  # type: ignore[arg-type]  # a single path, then
    parts = [_load(one) for one in paths]
    check_ranks([(one, part.meta) for one, part in zip(paths, parts, strict=True)])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total.meta = {key: value for key, value in total.meta.items() if key != "shard"}
    return total


def _load(path):
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header["version"] != VERSION:
                raise TraceError(
                    f"{path}: measures of format {header['version']}, but this lrc reads "
                    f"{VERSION}; install the lrc that wrote it"
                )
            live = LiveMeasures(**header["options"])
            for measure, kind in header["kinds"].items():
                arrays = {
                    name.partition(".")[2]: file[name]
                    for name in file.files
                    if name.startswith(f"{measure}.")
                }
                live.counts[measure] = _unpacked(kind, arrays)
            live.num_sequences, live.num_tokens = header["sequences"], header["tokens"]
            live.meta = header["meta"]
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"{path}: holds no measures, or is damaged ({error!r}); measure again"
        ) from error
    return live


def _packed(counts):
    """What JSON can hold of counts, and their arrays."""
    values = {field.name: getattr(counts, field.name) for field in fields(counts)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in values.items() if name not in arrays}
    if "kind" in others:
        others["kind"] = asdict(others["kind"])
    return others, arrays


def _unpacked(others, arrays):
    others = _with_tuples(others)
    if "kind" in others:
        return HitCounts(kind=HitKind(**_with_tuples(others.pop("kind"))), **others, **arrays)
    return WindowCounts(**others, **arrays)


def _with_tuples(values):
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _checked(measure, options):
    """Options of a measure, tried on the smallest trace there is."""
    if options is True:
        options = {}
    if not isinstance(options, Mapping):
        raise LrcError(f"{measure} is {options!r}, but must be True or a dict of its options")
    counter = _COUNTERS[measure]
    known = list(inspect.signature(counter).parameters)[1:]
    for name in options:
        if name not in known:
            why = ", which needs the sequences: record a trace" if name == "bootstrap" else ""
            raise LrcError(
                f"{measure} cannot be taken while recording with {name!r}{why}; options are "
                f"{', '.join(known)}"
            )
    counter(Trace(np.zeros((1, 1, 1, 1), np.int16), 1, datasets=["a"]), **options)
    return json.loads(json.dumps(dict(options), default=_plain))


def _plain(value):
    """Tuples are lists in JSON already; numpy's numbers and arrays are not."""
    return value.tolist()
