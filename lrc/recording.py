"""Record a corpus: the routing of a model over it, in memory or in a file that survives crashes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path

from torch import nn

from lrc import trace_file
from lrc.corpus_run import ALONE, CorpusRun, Note, check_same, check_same_kind
from lrc.errors import TraceError
from lrc.part_store import PartStore
from lrc.ranks import checked_shard, ranked
from lrc.recorder import Recorder
from lrc.trace import Trace
from lrc.trace_file import TraceFile, TraceWriter, iter_trace, load_trace
from lrc.whole_files import put_in_place, writing

PART_SECONDS = 60
"""A part is written when a row group is full, and at least this often: no crash costs more."""

STACKS = ("encoder", "decoder")
# Parts live for the time of a run only, so they are written fast rather than small.
_PART_COMPRESSION = 1


def record(
    model: nn.Module,
    batches,
    *,
    out: str | PathLike | None = None,
    datasets: str | Iterable[str] | None = None,
    progress: bool = True,
    mode: str = "executed",
    weights: bool = False,
    predictions: bool = True,
    batch_size: int = 8,
    shard: tuple[int, int] | None = None,
    load: bool = True,
) -> Trace | dict[str, Trace] | None:
    """Run a model over a corpus and record its routing.

    Parameters
    ----------
    model : torch.nn.Module
        As for `Recorder`; put into evaluation mode meanwhile.
    batches : corpus, mapping, array or iterable
        - what `lrc.corpora.sequences` returns, or anything with ``token_ids`` and ``datasets``;
        - an iterable of batches: mappings as a tokenizer returns them (``input_ids``,
          ``attention_mask``, … of shape [sequences, tokens]; a field ``dataset`` may hold a label
          for each sequence), or integer arrays [sequences, tokens]. They run as they are;
        - one such mapping or array, or an iterable of single sequences of token ids, which may
          differ in length. They run `batch_size` at a time, padded on the right.
    out : path, optional
        Write the trace to this file while it is recorded, see Notes.
    datasets : str or iterable of str, optional
        Label of all sequences, or of each.
    progress : bool
        Show a progress bar.
    mode, weights, predictions
        As for `Recorder`.
    batch_size : int
        Sequences of one forward pass, where `batches` is not cut into batches already. Results do
        not depend on it, beyond rounding inside the model.
    shard : tuple of int, optional
        Number of this process, and how many share the corpus: of n processes the i-th runs batches
        i, i + n, i + 2n, … and writes ``NAME.rankIofN.parquet`` for ``out="NAME.parquet"``.
        By default what torchrun or ``accelerate launch`` say, (0, 1) outside them.
        `load_trace` puts the shards together.
    load : bool
        With `out`: read the finished file and return it. False returns None, for a trace that is
        larger than memory.

    Returns
    -------
    Trace
        Also with `out`: what is then in the file. Of an encoder-decoder a dict, a trace for each
        stack. ``meta["batches"]`` has the number of batches and a hash of all their inputs.

    Raises
    ------
    RecordError
        Batches in no such form, ids beyond the vocabulary, labels that do not fit; batches, model
        or settings that are not those of the recording to be continued; and whatever `Recorder`
        raises.
    TraceError
        If `out` cannot be written, or another process is writing it.

    Notes
    -----
    With `out` no more than one row group of the trace is in memory. Whenever one is full, and at
    least every minute, it is written to the folder ``NAME.parquet.parts``. After an error, an
    interruption or a crash, the same call goes on from there: batches already recorded are
    compared, not run again, except one that must be routed as before. At the end the parts become
    the file, which has the same bytes as if nothing had happened, and the folder disappears. It
    needs as much room again as the file.

    A file that is there already is never overwritten. If it is the finished recording of the same
    batches by the same model, it is returned, otherwise refused. An encoder-decoder gets two
    files, ``NAME.encoder.parquet`` and ``NAME.decoder.parquet``.
    """
    recorder = Recorder(model, mode, weights, predictions=predictions)
    shard = checked_shard(shard, model)
    run = CorpusRun(recorder, batches, datasets, batch_size, shard, progress)
    if out is None:
        kept = _InMemory(shard)
        return kept.traces(run.run(kept))
    settings = {"mode": mode, "weights": weights, "predictions": predictions, "shard": shard}
    with _InFiles(ranked(Path(out), *shard), model, shard, settings) as kept:
        paths = kept.files(run.run(kept))
    if not load:
        return None
    return _alone({stack: load_trace(path) for stack, path in paths.items()})


class _InMemory:
    """Keeps everything in the recorder until the end."""

    finished = False
    place = "memory"

    def __init__(self, shard):
        self.notes = []
        self._shard = shard
        self._traces = None

    def wants(self, recorder):
        return False

    def keep(self, traces, note):
        self._traces = traces
        self.notes.append(note)

    def traces(self, corpus: Note):
        for trace in self._traces.values():
            trace.meta = trace.meta | _origin(corpus, self._shard, self.notes)
        return _alone(self._traces)


class _InFiles:
    """Keeps finished parts in a folder, and makes the file of them at the end."""

    def __init__(self, out: Path, model: nn.Module, shard: tuple[int, int], settings: dict):
        # As a writer would, before the model runs.
        TraceWriter(out)
        self.place = self._out = out
        self._shard = shard
        self._store = PartStore(out.with_name(out.name + ".parts"), settings)
        try:
            self.notes = [Note(**note) for note in self._store.notes]
            stacks = _stacks(model)
            if self.notes:
                stacks = [s for s in stacks if self._store.paths(_ending(s))]
            there = {s: self._path(s) for s in stacks if self._path(s).is_file()}
            # Of a pair that was interrupted between the two names the parts are still there.
            self.finished = bool(there) and (not self.notes or len(there) == len(stacks))
            if self.finished:
                self._files, self.notes = there, [_note_of(next(iter(there.values())), shard)]
            elif self.notes:
                self._files = {s: self._store.path(0, _ending(s)) for s in stacks}
            self._first = _kinds(self._files) if self.notes else None
        except BaseException:
            self._store.close()
            raise
        self._since = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._store.close()

    def compare(self, traces):
        recorded = {}
        for stack, path in self._files.items():
            with TraceFile(path) as file:
                recorded[stack] = file.read(0)
        check_same(traces, recorded, self.place)

    def wants(self, recorder):
        late = time.monotonic() - self._since >= PART_SECONDS
        return late or recorder.num_ids >= trace_file.ROW_GROUP_IDS

    def keep(self, traces, note):
        if self._first is None:
            self._first = {stack: trace.select(slice(0)) for stack, trace in traces.items()}
        for stack, trace in traces.items():
            check_same_kind(trace, self._first[stack], self._store.folder)
        self._store.add(
            {_ending(stack): partial(_write, trace) for stack, trace in traces.items()},
            asdict(note),
        )
        self.notes.append(note)
        self._since = time.monotonic()

    def files(self, corpus: Note) -> dict[str, Path]:
        """Finish: paths of the files, by stack."""
        if not self.finished:
            meta = _origin(corpus, self._shard, self.notes)
            for stack, first in self._first.items():
                with TraceWriter(self._joined(stack), meta=first.meta | meta) as writer:
                    for path in self._store.paths(_ending(stack)):
                        for trace in iter_trace(path):
                            writer.append(trace)
            with writing(self._out):
                for stack in self._first:
                    put_in_place(self._joined(stack), self._path(stack))
        self._store.remove()
        return {stack: self._path(stack) for stack in self._first}

    def _joined(self, stack):
        return self._store.folder / f"joined.{_ending(stack)}"

    def _path(self, stack):
        return self._out if stack == ALONE else self._out.with_stem(f"{self._out.stem}.{stack}")


def _stacks(model):
    """Stacks that a recording of a model may have."""
    config = getattr(model, "config", None)
    return STACKS if getattr(config, "is_encoder_decoder", False) else (ALONE,)


def _ending(stack):
    return f"{stack}.parquet"


def _write(trace, path):
    with TraceWriter(path, _PART_COMPRESSION) as writer:
        writer.append(trace)


def _kinds(files):
    """Traces without sequences, of the kind that files hold."""
    kinds = {}
    for stack, path in files.items():
        with TraceFile(path) as file:
            kinds[stack] = file.read()
    return kinds


def _note_of(path, shard):
    """Note of a finished file."""
    try:
        with TraceFile(path) as file:
            origin, of = file.meta["batches"], file.meta.get("shard", {})
        note = Note(origin["count"], origin["fingerprint"])
    except (TraceError, KeyError, TypeError) as error:
        raise TraceError(
            f"{path}: is there already and no recording of lrc.record; remove it or name another "
            "file"
        ) from error
    if (of.get("rank", 0), of.get("world", 1)) != shard:
        raise TraceError(f"{path}: is there already and another shard; name another file")
    return note


def _origin(corpus, shard, notes):
    """What a trace's meta say of the batches it was recorded from."""
    origin = {"batches": {"count": corpus.batches, "fingerprint": corpus.fingerprint}}
    if shard[1] > 1:
        sizes = [size for note in notes for size in note.sizes]
        origin["shard"] = {"rank": shard[0], "world": shard[1], "batch_sizes": sizes}
    return origin


def _alone(traces):
    """Traces by stack, or the only one of a model without stacks."""
    return traces.get(ALONE, traces)
