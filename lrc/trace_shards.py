"""Shards of one recording, written by several processes, read as one trace in the original order.

Of n processes the i-th recorded batches i, i + n, i + 2n, …; its file says so, and how many
sequences each of its batches has.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import ExitStack
from os import PathLike, fspath
from pathlib import Path

from lrc import trace_file
from lrc.errors import TraceError
from lrc.trace import Trace, concat_traces
from lrc.trace_file import TraceFile


def shard_paths(path) -> list[Path] | None:
    """Return the files that a pattern or a list of paths means; None for one path by itself."""
    if isinstance(path, str | PathLike):
        text = fspath(path)
        if Path(text).exists() or not glob.has_magic(text):
            return None
        paths = sorted(glob.glob(text))
    else:
        paths = list(path)
    if not paths:
        raise TraceError(f"{path}: no such files")
    return [Path(one) for one in paths]


def iter_shards(paths: list[Path]) -> Iterator[Trace]:
    """Yield the sequences of all shards in their original order, about a row group at a time.

    Parameters
    ----------
    paths : list of path
        All shards of a recording, in any order.

    Yields
    ------
    Trace
        With the ``meta`` of a recording by one process.

    Raises
    ------
    TraceError
        A file that is no shard, of another recording, or missing.
    """
    with ExitStack() as stack:
        files = _ranked([stack.enter_context(TraceFile(path)) for path in paths])
        sizes = [file.meta["shard"]["batch_sizes"] for file in files]
        rows = [_Rows(file) for file in files]
        meta = {key: value for key, value in files[0].meta.items() if key != "shard"}
        held: list[Trace] = []
        for number in range(sum(map(len, sizes))):
            turn, rank = divmod(number, len(files))
            held.append(rows[rank].take(sizes[rank][turn]))
            if sum(trace.experts.size for trace in held) >= trace_file.ROW_GROUP_IDS:
                yield _joined(held, meta)
                held = []
        if held:
            yield _joined(held, meta)


class _Rows:
    """Sequences of a file, in order, a row group in memory."""

    def __init__(self, file: TraceFile):
        self._groups = (file.read(group) for group in range(file.num_row_groups))
        self._held = file.read()

    def take(self, count: int) -> Trace:
        """Return the next sequences."""
        while self._held.num_sequences < count:
            self._held = concat_traces([self._held, next(self._groups)])
        taken = self._held.select(slice(count))
        self._held = self._held.select(slice(count, None))
        return taken


def _joined(traces, meta):
    trace = concat_traces(traces)
    trace.meta = dict(meta)
    return trace


def _ranked(files):
    """Files in the order of their ranks, if they are all shards of one recording."""
    by_rank = {}
    first = files[0]
    for file in files:
        shard = file.meta.get("shard")
        if shard is None:
            raise TraceError(f"{file.path}: is no shard of a recording; load it by itself")
        if shard["rank"] in by_rank:
            other = by_rank[shard["rank"]].path
            raise TraceError(f"{file.path}: is shard {shard['rank']}, and so is {other}; leave one")
        by_rank[shard["rank"]] = file
        kinds = [(f.num_experts, f.num_layers, f.top_k, _common(f)) for f in (first, file)]
        if kinds[0] != kinds[1]:
            raise TraceError(
                f"{file.path}: is a shard of another recording than {first.path} (model, settings, "
                "batches or number of processes)"
            )
    world = first.meta["shard"]["world"]
    missing = [rank for rank in range(world) if rank not in by_rank]
    if missing:
        raise TraceError(
            f"{first.path}: of its {world} shards number {missing[0]} is missing; give all of them"
        )
    count = first.meta["batches"]["count"]
    files = [by_rank[rank] for rank in range(world)]
    for rank, file in enumerate(files):
        sizes = file.meta["shard"]["batch_sizes"]
        if len(sizes) != len(range(rank, count, world)) or sum(sizes) != file.num_sequences:
            raise TraceError(f"{file.path}: does not hold its share of the {count} batches")
    return files


def _common(file):
    """Meta that all shards share."""
    return file.meta | {"shard": file.meta["shard"]["world"]}
