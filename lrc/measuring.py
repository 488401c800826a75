"""Measure a model while it runs over a corpus, without a trace."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from torch import nn

from lrc.corpus_run import CorpusRun, Note, check_meta, device_of
from lrc.errors import TraceError
from lrc.keepers import FileKeeper, alone, first_sequences, is_full, origin_of, part_writer
from lrc.live_measures import LiveMeasures, load_measures
from lrc.ranks import checked_shard, ranked
from lrc.recorder import Recorder


def measure(
    model: nn.Module,
    batches,
    *,
    srp=None,
    sch=None,
    hit_rates=None,
    out: str | PathLike | None = None,
    datasets: str | Iterable[str] | None = None,
    progress: bool = True,
    mode: str = "executed",
    batch_size: int = 8,
    shard: tuple[int, int] | None = None,
) -> LiveMeasures | dict[str, LiveMeasures]:
    """Run a model over a corpus and measure its routing meanwhile, without keeping a trace.

    Parameters
    ----------
    model : torch.nn.Module
        As for `record`.
    batches : corpus, mapping, array or iterable
        As for `record`.
    srp, sch, hit_rates : dict or True, optional
        Which measures to take, and the options of the function of that name, all but its
        bootstrap; True for its defaults.
    out : path, optional
        Write what is counted to this file, ``NAME.npz``, which `load_measures` reads; see Notes.
    datasets, progress, mode, batch_size, shard
        As for `record`. One of several processes measures its share and writes
        ``NAME.rankIofN.npz``; `load_measures` adds them up.

    Returns
    -------
    LiveMeasures
        ``measures["srp"]`` is the table that `srp` would give of the whole trace, to the last bit.
        Of an encoder-decoder a dict, one for each stack.

    Raises
    ------
    LrcError
        No measure, or an option that is unknown, out of range, or needs the trace.
    RecordError, TraceError
        As for `record`.

    Notes
    -----
    In memory is no more than one row group of routing, counted on the model's GPU if it has one and
    then dropped. With `out` a run that was interrupted goes on where it stopped, as `record` does:
    counts are written at least every minute.

    Examples
    --------
    >>> measures = lrc.measure(  # doctest: +SKIP
    ...     model, corpus, srp={"level": "layer"}, hit_rates={"policies": ["lru"]}
    ... )
    >>> measures["srp"]  # doctest: +SKIP
    """
    new = LiveMeasures(srp=srp, sch=sch, hit_rates=hit_rates)
    recorder = Recorder(model, mode, predictions=False)
    shard = checked_shard(shard, model)
    run = CorpusRun(recorder, batches, datasets, batch_size, shard, progress)
    device = _counted_on(model)
    if out is None:
        kept = _InMemory(new, device, shard)
        return kept.measures(run.run(kept))
    with _InFiles(ranked(Path(out), *shard), model, shard, new, mode, device) as kept:
        paths = kept.finish(run.run(kept))
    return alone({stack: load_measures(path) for stack, path in paths.items()})


def _counted_on(model) -> str:
    """Device on which to count: the model's GPU, or the CPU."""
    device = device_of(model)
    return str(device) if device.type == "cuda" else "cpu"


class _InMemory:
    """Counts a row group at a time."""

    finished = False
    place: object = "memory"

    def __init__(self, new: LiveMeasures, device, shard):
        self.notes: list[Note] = []
        self._new, self._device, self._shard = new, device, shard
        self._by_stack: dict[str, LiveMeasures] = {}

    def compare(self, traces):
        pass  # There is no earlier run.

    def wants(self, recorder):
        return is_full(recorder)

    def keep(self, traces, note):
        for stack, trace in traces.items():
            live = self._by_stack.setdefault(stack, LiveMeasures(**self._new.options))
            live.add(trace.to(self._device))
        self.notes.append(note)

    def measures(self, corpus):
        for live in self._by_stack.values():
            live.meta |= origin_of(corpus, self._shard, self.notes)
        return alone(self._by_stack)


class _InFiles(FileKeeper):
    """Keeps the counts of each part, and its first sequence, to know the model by."""

    ending = "npz"

    def __init__(self, out, model, shard, new: LiveMeasures, mode, device):
        self._new, self._device = new, device
        settings = {"mode": mode, "shard": shard, "measures": new.options}
        super().__init__(out, model, shard, settings)

    def read_meta(self, path):
        live = load_measures(path)
        if live.options != self._new.options:
            raise TraceError(f"{path}: holds {live.options}")
        return live.meta

    def part_files(self, stack, trace):
        live = LiveMeasures(**self._new.options)
        live.add(trace.to(self._device))
        return {
            f"{stack}.{self.ending}": live.save,
            f"{stack}.parquet": part_writer(trace.select(slice(1))),
        }

    def join(self, stack, path, origin):
        live = LiveMeasures(**self._new.options)
        for part in self.parts(stack):
            live = live + load_measures(part)
        live.meta |= origin
        live.save(path)

    def first(self, stack):
        return first_sequences(self.store.paths(f"{stack}.parquet")[0])

    def compare(self, traces):
        if not self.finished:
            super().compare(traces)
            return
        # Of the model's weights a finished file knows no more than their name.
        for stack, trace in traces.items():
            check_meta(trace.meta, self.read_meta(self.path(stack)), self.place)

    def _first_kinds(self):
        return {} if self.finished else super()._first_kinds()
