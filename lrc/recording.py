"""Record a corpus: the routing of a model over it, in memory or in a file that survives crashes."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from torch import nn

from lrc.corpus_run import CorpusRun, Note
from lrc.keepers import FileKeeper, alone, first_sequences, origin_of, part_writer
from lrc.ranks import checked_shard, ranked
from lrc.recorder import Recorder
from lrc.trace import Trace
from lrc.trace_file import TraceFile, TraceWriter, iter_trace, load_trace


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
        paths = kept.finish(run.run(kept))
    if not load:
        return None
    return alone({stack: load_trace(path) for stack, path in paths.items()})


class _InMemory:
    """Keeps everything in the recorder until the end."""

    finished = False
    place: object = "memory"

    def __init__(self, shard) -> None:
        self.notes: list[Note] = []
        self._shard = shard

    def compare(self, traces):
        pass  # There is no earlier run.

    def wants(self, recorder):
        return False

    def keep(self, traces, note):
        self._traces = traces
        self.notes.append(note)

    def traces(self, corpus):
        for trace in self._traces.values():
            trace.meta = trace.meta | origin_of(corpus, self._shard, self.notes)
        return alone(self._traces)


class _InFiles(FileKeeper):
    """Keeps the traces themselves."""

    ending = "parquet"

    def read_meta(self, path):
        with TraceFile(path) as file:
            return file.meta

    def part_files(self, stack, trace):
        return {f"{stack}.{self.ending}": part_writer(trace)}

    def join(self, stack, path, origin):
        meta = self.first(stack).meta | origin
        with TraceWriter(path, meta=meta) as writer:
            for part in self.parts(stack):
                for trace in iter_trace(part):
                    writer.append(trace)

    def first(self, stack):
        return first_sequences(self.path(stack) if self.finished else self.parts(stack)[0])
