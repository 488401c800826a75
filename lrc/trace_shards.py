"""Shards of one recording, written by several processes, read as one trace in the original order.

Of n processes the i-th recorded batches i, i + n, i + 2n, …; its file says so, and how many
sequences each of its batches has.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from os import PathLike, fspath
from pathlib import Path

from lrc import trace_file
from lrc.errors import TraceError
from lrc.trace import Trace, concat_traces
from lrc.trace_file import TraceFile


def shard_paths(path: str | PathLike | Iterable[str | PathLike]) -> list[Path] | None:
    """Return the files that a pattern or a list of paths means; None for one path by itself."""
    if isinstance(path, str | PathLike):
        text = fspath(path)
        if Path(text).exists() or not glob.has_magic(text):
            return None
        paths = sorted(glob.glob(text))
    else:
        paths = [fspath(one) for one in path]
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


def check_ranks(metas: list[tuple[Path, dict]]) -> list[int] | None:
    """Make sure that files are all shards of one recording.

    Parameters
    ----------
    metas : list of (path, dict)
        Each file and its ``meta``.

    Returns
    -------
    list of int or None
        Positions of the files in the order of their ranks; None if none is a shard.

    Raises
    ------
    TraceError
        A shard is missing or there twice, or a file belongs to something else.
    """
    first_path, first = metas[0]
    if not any("shard" in meta for _, meta in metas):
        return None
    places = {}
    for place, (path, meta) in enumerate(metas):
        if "shard" not in meta or _common(meta) != _common(first):
            raise TraceError(
                f"{path}: is no shard of the recording that {first_path} belongs to (model, "
                "settings, batches and number of processes)"
            )
        rank = meta["shard"]["rank"]
        if rank in places:
            other = metas[places[rank]][0]
            raise TraceError(f"{path}: is shard {rank}, and so is {other}; leave one out")
        places[rank] = place
    world = first["shard"]["world"]
    missing = [rank for rank in range(world) if rank not in places]
    if missing:
        raise TraceError(
            f"{first_path}: of its {world} shards number {missing[0]} is missing; give all of them"
        )
    return [places[rank] for rank in range(world)]


def _common(meta):
    """Meta that all shards share."""
    return meta | {"shard": meta.get("shard", {}).get("world")}


def _ranked(files):
    """Files in the order of their ranks."""
    order = check_ranks([(file.path, file.meta) for file in files])
    if order is None:
        raise TraceError(f"{files[0].path}: is no shard of a recording; load it by itself")
    files = [files[place] for place in order]
    count = files[0].meta["batches"]["count"]
    for rank, file in enumerate(files):
        sizes = file.meta["shard"]["batch_sizes"]
        if len(sizes) != len(range(rank, count, len(files))) or sum(sizes) != file.num_sequences:
            raise TraceError(f"{file.path}: does not hold its share of the {count} batches")
    return files
