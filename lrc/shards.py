"""Corpora in parts: what a measure needs to know of all of them, and the sum over all of them.

A corpus is a trace in memory, a trace file, or several of either. Files are read a row group at a
time, so that they may be larger than memory, and their row groups are dealt out through joblib: to
the cores of this machine, or, in a block ``with joblib.parallel_config(backend="dask")`` (or
"ray"), to a cluster, whose machines must find the files under the same path. A task is a path,
numbers of row groups and the measure's arguments; what comes back are counts, which are added up.
They are whole numbers, so every split and every order give the same result, to the last bit.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from glob import glob, has_magic
from itertools import chain
from operator import add
from os import PathLike, fspath
from pathlib import Path

import joblib
import numpy as np

from lrc.errors import LrcError
from lrc.trace import Trace
from lrc.trace_file import TraceFile

# Tasks for each worker: more for even loads, fewer for less to send back.
TASKS_A_WORKER = 4


@dataclass(frozen=True)
class Part:
    """Consecutive sequences of a corpus.

    Attributes
    ----------
    trace : Trace or None
        The sequences, if they are in memory.
    path : str
        Else the file that holds them.
    groups : tuple of int
        Its row groups.
    start, stop : int
        Which sequences of the corpus.
    """

    trace: Trace | None
    path: str
    groups: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Iterator[Trace]:
        """Sequences of the part, a row group at a time."""
        return iter([self.trace]) if self.trace is not None else _read(self.path, self.groups)


class Corpus:
    """A trace, or several, in memory or in files.

    Parameters
    ----------
    source : Trace or path or sequence of these
        A text with ``*``, ``?`` or ``[`` is a pattern for paths, taken in sorted order.

    Attributes
    ----------
    parts : tuple of Part
        Traces in memory whole, files by row groups.
    num_sequences, num_layers, num_experts, top_k : int
    lengths : int64 array [sequences]
    datasets : str array [sequences] or None

    Raises
    ------
    LrcError
        No trace at all, or traces of different models, or only some of them with labels.
    TraceError
        A file that is missing or damaged.
    """

    def __init__(self, source):
        pieces = [_piece(item) for item in _items(source)]
        first = pieces[0]
        for piece in pieces[1:]:
            for name in ("num_layers", "num_experts", "top_k"):
                mine, theirs = getattr(first, name), getattr(piece, name)
                if mine != theirs:
                    raise LrcError(
                        f"{piece.name} has {name} = {theirs}, but {first.name} has {mine}: shards "
                        "must be of one model"
                    )
            if (piece.datasets is None) != (first.datasets is None):
                raise LrcError(
                    f"only one of {first.name} and {piece.name} has dataset labels: give them to "
                    "all shards or to none"
                )
        self.num_layers, self.num_experts = first.num_layers, first.num_experts
        self.top_k = first.top_k
        self.lengths = np.concatenate([piece.lengths for piece in pieces])
        self.datasets = None
        if first.datasets is not None:
            self.datasets = np.concatenate([piece.datasets for piece in pieces])
        self.num_sequences = len(self.lengths)
        self._pool = None
        self._configured = joblib.parallel.get_active_backend()[1] is not None
        self._workers = joblib.effective_n_jobs(None if self._configured else -1)
        self.parts = tuple(_parts(pieces, TASKS_A_WORKER * self._workers))

    @property
    def dataset_names(self) -> list[str]:
        """Distinct dataset labels, sorted; empty without labels."""
        return [] if self.datasets is None else sorted(set(self.datasets.tolist()))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sequences, tokens of the longest, layers, top_k."""
        longest = int(self.lengths.max(initial=0))
        return self.num_sequences, longest, self.num_layers, self.top_k

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._pool is not None:
            self._pool.__exit__(kind, error, traceback)
            self._pool = None

    def add_up(
        self,
        parts: Iterable[Part],
        function: Callable,
        arguments: Iterable[tuple],
        combine: Callable = add,
    ):
        """Sum of ``function(traces, *arguments)`` over parts, ``traces`` being an iterator.

        Workers stay for the next sum, until the corpus is left: use it in a ``with`` block.

        Parameters
        ----------
        parts : iterable of Part
        function : callable
            Of a module, so that it can be sent. What it returns must add up exactly.
        arguments : iterable of tuple
            For each part, the arguments after the traces. Small, for they are sent with the task.
        combine : callable, default addition

        Returns
        -------
        object
            The sum.
        """
        here: list[tuple] = []
        away: list[tuple] = []
        for part, values in zip(parts, arguments, strict=True):
            (away if part.trace is None else here).append((function, part, values))
        if away and (self._configured or (len(away) > 1 and self._workers > 1)):
            sent = self._parallel()(joblib.delayed(_task)(task) for task in away)
            results: Iterable = chain(sent, map(_task, here))
        else:
            results = map(_task, here + away)
        return reduce(combine, results)

    def _parallel(self):
        """Workers of the caller's choice, or threads: reading and counting let each other run."""
        if self._pool is None:
            backend, _ = joblib.parallel.get_active_backend(prefer="threads")
            # One by one where joblib can, so that there are never many results in memory.
            how = "generator_unordered" if backend.supports_return_generator else "list"
            self._pool = joblib.Parallel(self._workers, prefer="threads", return_as=how)
            self._pool.__enter__()
        return self._pool


def labels_of(trace) -> np.ndarray:
    """Label of every sequence, "" without labels: str array [sequences]."""
    return np.full(len(trace.lengths), "") if trace.datasets is None else trace.datasets


def is_of(trace, label: str) -> np.ndarray:
    """Which sequences are of a dataset, "" standing for all: bool [sequences]."""
    return labels_of(trace) == label if label else np.ones(len(trace.lengths), bool)


def _task(task):
    function, part, values = task
    return function(part.read(), *values)


def _read(path, groups):
    with TraceFile(path) as file:
        for group in groups:
            yield file.read(group)


@dataclass(frozen=True)
class _Piece:
    """A trace or a file."""

    trace: Trace | None
    path: str
    name: str
    rows: list[int]
    lengths: np.ndarray
    datasets: np.ndarray | None
    num_layers: int
    num_experts: int
    top_k: int


def _parts(pieces, wanted):
    """Row groups of all files in about as many parts as wanted, none of which spans two files."""
    total = sum(len(piece.rows) for piece in pieces if piece.trace is None)
    step = max(1, -(-total // wanted))
    start = 0
    for piece in pieces:
        for low in range(0, len(piece.rows), step):
            rows = piece.rows[low : low + step]
            stop = start + sum(rows)
            yield Part(piece.trace, piece.path, tuple(range(low, low + len(rows))), start, stop)
            start = stop


def _items(source):
    """List what a source consists of: traces and paths."""
    if isinstance(source, Trace):
        return [source]
    if isinstance(source, str | PathLike):
        text = fspath(source)
        if not has_magic(text) or Path(text).exists():
            return [Path(text)]
        paths = sorted(glob(text))
        if not paths:
            raise LrcError(f"no file matches {text!r} in {Path.cwd()}")
        return [Path(path) for path in paths]
    if isinstance(source, list | tuple):
        if not source:
            raise LrcError("an empty list of shards: give at least one trace or path")
        return [item for part in source for item in _items(part)]
    hint = "lrc.load_trace reads a file; of a dict of stacks take one, as trace['decoder']"
    raise LrcError(
        f"expected a lrc.Trace, a path, or a list of these, not {type(source).__name__} ({hint})"
    )


def _piece(item):
    if isinstance(item, Trace):
        return _Piece(
            *(item, "", repr(item), [item.num_sequences], item.lengths, item.datasets),
            *(item.num_layers, item.num_experts, item.top_k),
        )
    with TraceFile(item) as file:
        if not file.num_row_groups:
            return _piece(file.read())
        # Absolute, for workers that run elsewhere.
        return _Piece(
            *(None, str(Path(item).absolute()), str(item), file.rows(), *file.read_labels()),
            *(file.num_layers, file.num_experts, file.top_k),
        )
