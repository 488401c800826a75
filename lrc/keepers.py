"""Parts of a file that a run over a corpus makes, so that it may be interrupted and go on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn

from lrc import trace_file
from lrc.corpus_run import ALONE, Note, check_same, check_same_kind
from lrc.errors import TraceError
from lrc.part_store import PartStore
from lrc.recorder import Recorder
from lrc.trace import Trace
from lrc.trace_file import TraceFile, TraceWriter
from lrc.whole_files import put_in_place, writing

PART_SECONDS = 60
"""A part is written when a row group is full, and at least this often: no crash costs more."""

# Parts live for the time of a run only, so they are written fast rather than small.
_PART_COMPRESSION = 1
_STACKS = ("encoder", "decoder")


def is_full(recorder: Recorder) -> bool:
    """Whether a recorder holds a row group."""
    return recorder.num_ids >= trace_file.ROW_GROUP_IDS


class FileKeeper(ABC):
    """Keeps parts in a folder beside the file (of each stack) that they become at the end.

    Parameters
    ----------
    out : path
        With the name of the shard, but not of the stack.
    model : torch.nn.Module
    shard : tuple of int
    settings : dict
        What all parts have in common, beside the model and the batches.

    Attributes
    ----------
    notes : list of Note
    place : path
    finished : bool
        See `lrc.corpus_run.Keeper`.
    """

    ending: str
    """Of the file that a part has for each stack."""

    def __init__(self, out: Path, model: nn.Module, shard: tuple[int, int], settings: dict):
        TraceWriter(out)  # refuses what no file can be named
        self.place, self.shard = out, shard
        self.store = PartStore(out.with_name(out.name + ".parts"), settings)
        try:
            self.notes = [Note(**note) for note in self.store.notes]
            stacks = self._stacks(model)
            there = {stack: self.path(stack) for stack in stacks if self.path(stack).is_file()}
            # Of a pair that was interrupted between the two names the parts are still there.
            self.finished = bool(there) and (not self.notes or len(there) == len(stacks))
            if self.finished:
                stacks = tuple(there)
                self.notes = [self._finished_note(path) for path in there.values()][:1]
            self.stacks = stacks if self.notes else ()
            self._kinds = self._first_kinds() if self.notes else {}
        except BaseException:
            self.store.close()
            raise
        self._since = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.store.close()

    @abstractmethod
    def read_meta(self, path: Path) -> dict:
        """Meta of a finished file."""

    @abstractmethod
    def part_files(self, stack: str, trace: Trace) -> dict[str, Callable[[Path], None]]:
        """Endings of the files of a part, and what writes them."""

    @abstractmethod
    def join(self, stack: str, path: Path, origin: dict) -> None:
        """Write the file of a stack from its parts; `origin` belongs to its meta."""

    @abstractmethod
    def first(self, stack: str) -> Trace:
        """Return the first sequences that were recorded."""

    def wants(self, recorder: Recorder) -> bool:
        """Whether a row group is full, or the last part was long ago."""
        return is_full(recorder) or time.monotonic() - self._since >= PART_SECONDS

    def compare(self, traces: dict[str, Trace]) -> None:
        """Refuse a first batch that is not routed as in the earlier run."""
        check_same(traces, {stack: self.first(stack) for stack in self.stacks}, self.place)

    def keep(self, traces: dict[str, Trace], note: Note) -> None:
        """Write a part."""
        files = {}
        for stack, trace in traces.items():
            kind = self._kinds.setdefault(stack, trace.select(slice(0)))
            check_same_kind(trace, kind, self.store.folder)
            files |= self.part_files(stack, trace)
        self.store.add(files, asdict(note))
        self.stacks = tuple(traces)
        self.notes.append(note)
        self._since = time.monotonic()

    def finish(self, corpus: Note) -> dict[str, Path]:
        """Make the parts one file for each stack, and return where it is."""
        if not self.finished:
            origin = origin_of(corpus, self.shard, self.notes)
            joined = {s: self.store.folder / f"joined.{s}.{self.ending}" for s in self.stacks}
            for stack, path in joined.items():
                self.join(stack, path, origin)
            with writing(self.place):
                for stack, path in joined.items():
                    put_in_place(path, self.path(stack))
        self.store.remove()
        return {stack: self.path(stack) for stack in self.stacks}

    def path(self, stack: str) -> Path:
        """Where the file of a stack shall be."""
        out = self.place
        return out if stack == ALONE else out.with_stem(f"{out.stem}.{stack}")

    def parts(self, stack: str) -> list[Path]:
        """Where the parts of a stack lie."""
        return self.store.paths(f"{stack}.{self.ending}")

    def _stacks(self, model):
        config = getattr(model, "config", None)
        stacks = _STACKS if getattr(config, "is_encoder_decoder", False) else (ALONE,)
        return tuple(s for s in stacks if self.parts(s)) if self.notes else stacks

    def _first_kinds(self):
        return {stack: self.first(stack).select(slice(0)) for stack in self.stacks}

    def _finished_note(self, path):
        try:
            meta = self.read_meta(path)
            origin, of = meta["batches"], meta.get("shard", {})
            note = Note(origin["count"], origin["fingerprint"])
        except (TraceError, KeyError, TypeError) as error:
            raise TraceError(
                f"{path}: is there already and was not made by this call; remove it or name "
                "another file"
            ) from error
        if (of.get("rank", 0), of.get("world", 1)) != self.shard:
            raise TraceError(f"{path}: is there already and another shard; name another file")
        return note


def first_sequences(path: Path) -> Trace:
    """Return the first row group of a trace file."""
    with TraceFile(path) as file:
        return file.read(0)


def part_writer(trace: Trace) -> Callable[[Path], None]:
    """Return what writes a trace, fast, to the file it is given."""
    return partial(_write, trace)


def _write(trace, path):
    with TraceWriter(path, _PART_COMPRESSION) as writer:
        writer.append(trace)


def origin_of(corpus: Note, shard: tuple[int, int], notes: list[Note]) -> dict:
    """What the meta say of the batches that were run."""
    origin = {"batches": {"count": corpus.batches, "fingerprint": corpus.fingerprint}}
    if shard[1] > 1:
        sizes = [size for note in notes for size in note.sizes]
        origin["shard"] = {"rank": shard[0], "world": shard[1], "batch_sizes": sizes}
    return origin


def alone(by_stack: dict):
    """What there is by stack, or the only one of a model without stacks."""
    return by_stack.get(ALONE, by_stack)
