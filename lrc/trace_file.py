"""Traces in Parquet: written whole or not at all, and checked when read.

A row is a sequence. Anything that reads Parquet reads the columns:

============= =============== =========================================================
column        type            content
============= =============== =========================================================
dataset       string          domain label (absent without labels)
tokens        int32           valid tokens of the sequence
experts       list of int16   ids, flat: ``reshape(tokens, layers, top_k)``; -1 = none
token_ids     list of int32   input tokens (absent if unknown)
predicted_ids list of int32   tokens predicted after them (absent if unknown)
weights       list of float32 router weights, like experts (absent if unknown)
checksum      uint64          BLAKE2b of the row
============= =============== =========================================================

The schema's metadata has the key ``lrc`` with the rest as JSON: version, num_experts, layers,
top_k, sequence_length (padded), sequences, meta, and a checksum over all of it and over every
row's checksum. So rows can be verified one by one, row groups read out of core, and a file that
lost its end or its middle is told from a whole one.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrc.errors import TraceError
from lrc.trace import Trace, concat_traces, follow
from lrc.trace_checks import check_experts, checked_meta
from lrc.whole_files import put_in_place, temporary_beside, writing

VERSION = 1
KEY = b"lrc"
# Ids in a row group: small enough to read out of core, large enough to compress well.
ROW_GROUP_IDS = 1 << 24
# Ids that are decoded at a time.
DECODED_IDS = 1 << 20
COLUMNS = {
    "dataset": pa.string(),
    "tokens": pa.int32(),
    "experts": pa.list_(pa.int16()),
    "token_ids": pa.list_(pa.int32()),
    "predicted_ids": pa.list_(pa.int32()),
    "weights": pa.list_(pa.float32()),
    "checksum": pa.uint64(),
}
# Lists, in the order in which a row's checksum takes them.
LISTS = ("experts", "token_ids", "predicted_ids", "weights")


class TraceWriter:
    """Writes a trace part by part; the file appears, whole, at the end.

    A row group is as many sequences as it takes to reach `ROW_GROUP_IDS` expert ids. So the same
    sequences give the same bytes, in whatever parts they come, and no more than one row group and
    one part are in memory.

    Parameters
    ----------
    path : path
        Where the file shall be. Until `close` its data are in a temporary file beside it, which
        is removed if the ``with`` block ends in an error.
    compression_level : int, default 9
        Of zstd, 1 to 22; above 15 files get a twentieth smaller, and many times slower to write.
    meta : dict, optional
        Of the file, in place of the first part's.

    Raises
    ------
    TraceError
        The file cannot be written, parts do not fit together, or there are none.

    Examples
    --------
    >>> with TraceWriter("trace.parquet") as writer:  # doctest: +SKIP
    ...     for batch in batches:
    ...         writer.append(trace_of(batch))
    """

    def __init__(
        self, path: str | PathLike, compression_level: int = 9, *, meta: dict | None = None
    ):
        self.path = Path(path)
        self._meta = meta
        self.compression_level = compression_level
        if not self.path.parent.is_dir():
            raise TraceError(f"{self.path}: folder {self.path.parent} does not exist; create it")
        if self.path.is_dir():
            raise TraceError(f"{self.path}: a folder; name a file in it")
        self._first = None
        self._parquet = None
        self._temporary = None
        self._sequence_length = 0
        self._checksums = []
        self._held: list[Trace] = []
        self._prompts: list[list] = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()

    def append(self, trace: Trace) -> None:
        """Add the sequences of a trace, which must be of the same kind as those before."""
        if self._parquet is None:
            with writing(self.path):
                self._open(trace)
        else:
            concat_traces([self._first, trace.select(slice(0))])
        self._sequence_length = max(self._sequence_length, trace.shape[1])
        self._held.append(trace)
        self._prompts.append(trace.meta.get("prompt_tokens"))
        if sum(map(_num_ids, self._held)) >= ROW_GROUP_IDS:
            trace = concat_traces(self._held)
            start = 0
            for stop in _row_group_ends(trace):
                self._write(trace, slice(start, stop))
                start = stop
            self._held = [trace.select(slice(start, None))]

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._parquet is None:
            raise TraceError(f"{self.path}: nothing was appended, so there is no trace to save")
        rest = concat_traces(self._held)
        if rest.num_sequences:
            self._write(rest, slice(None))
        header = {
            "version": VERSION,
            "num_experts": self._first.num_experts,
            "layers": self._first.num_layers,
            "top_k": self._first.top_k,
            "sequence_length": self._sequence_length,
            "sequences": sum(map(len, self._checksums)),
            "meta": checked_meta(self._meta_of_all() if self._meta is None else self._meta),
        }
        rows = np.concatenate([np.empty(0, np.uint64), *self._checksums])
        header["checksum"] = _header_checksum(header, rows)
        with writing(self.path):
            self._parquet.add_key_value_metadata({KEY: json.dumps(header, sort_keys=True)})
            self._parquet.close()
            put_in_place(self._temporary, self.path)
        self._temporary = None

    def discard(self) -> None:
        """Remove what was written so far, unless it is complete."""
        if self._parquet is not None:
            with suppress(OSError, pa.ArrowException):
                self._parquet.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _meta_of_all(self):
        """Metadata of the first, with what it lists by sequence as `concat_traces` joins it."""
        meta = dict(self._first.meta)
        if isinstance(meta.get("prompt_tokens"), list):
            del meta["prompt_tokens"]
            if all(isinstance(prompts, list) for prompts in self._prompts):
                meta["prompt_tokens"] = [count for prompts in self._prompts for count in prompts]
        return meta

    def _write(self, trace, rows):
        table, checksums = _to_table(trace, rows)
        with writing(self.path):
            self._parquet.write_table(table, row_group_size=max(1, len(checksums)))
        self._checksums.append(checksums)

    def _open(self, trace):
        self._temporary = temporary_beside(self.path)
        self._first = trace.select(slice(0))
        schema = pa.schema([(name, COLUMNS[name]) for name in _column_names(trace)])
        self._parquet = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="zstd",
            compression_level=self.compression_level,
            use_dictionary=["dataset", "experts.list.element"],
            write_statistics=False,
            store_schema=False,  # else readers see Arrow's copy of the schema, without our key
            column_encoding={
                name: encoding
                for name, encoding in {
                    "token_ids.list.element": "PLAIN",
                    "predicted_ids.list.element": "PLAIN",
                    "weights.list.element": "BYTE_STREAM_SPLIT",
                }.items()
                if name.split(".")[0] in schema.names
            },
        )


def save_trace(trace: Trace, path: str | PathLike) -> None:
    """Write a trace to a Parquet file (see `Trace.save`)."""
    with TraceWriter(path) as writer:
        writer.append(trace)


def load_trace(path: str | PathLike | Iterable[str | PathLike]) -> Trace:
    """Read a trace from a file that `Trace.save` or `lrc.record` wrote.

    Parameters
    ----------
    path : path, pattern or list of paths
        A file; or all shards of a recording by several processes, in any order, which are put
        together in the order of the corpus, as in ``"trace.rank*of8.parquet"``.

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        No such file, no trace, a trace that is damaged or cut short, or a shard that is missing.
    """
    from lrc.trace_shards import iter_shards, shard_paths

    shards = shard_paths(path)
    if shards is not None:
        return concat_traces(iter_shards(shards))
    with TraceFile(path) as file:  # type: ignore[arg-type]  # a single path, then
        return file.read(*range(file.num_row_groups))


def iter_trace(path: str | PathLike | Iterable[str | PathLike]) -> Iterator[Trace]:
    """Yield a trace file, or shards, a row group at a time, so that it need not fit into memory.

    Parameters
    ----------
    path : path, pattern or list of paths
        As for `load_trace`.

    Examples
    --------
    >>> with TraceWriter("trace.parquet") as writer:  # doctest: +SKIP
    ...     for part in iter_trace("trace.rank*of8.parquet"):
    ...         writer.append(part)
    """
    from lrc.trace_shards import iter_shards, shard_paths

    shards = shard_paths(path)
    if shards is not None:
        yield from iter_shards(shards)
        return
    with TraceFile(path) as file:  # type: ignore[arg-type]  # a single path, then
        for group in range(file.num_row_groups):
            yield file.read(group)


class TraceFile:
    """A trace file opened for reading in parts.

    Attributes
    ----------
    num_row_groups : int
    num_sequences, num_experts, num_layers, top_k, sequence_length : int
    meta : dict
    """

    def __init__(self, path: str | PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise TraceError(f"{self.path}: no such file")
        try:
            self._parquet = pq.ParquetFile(self.path)
            text = (self._parquet.metadata.metadata or {}).get(KEY)
            header = None if text is None else json.loads(text)
        except Exception as error:
            raise self._unreadable(error) from error
        if not isinstance(header, dict):
            raise TraceError(
                f"{self.path}: a Parquet file, but no trace (its schema has no key 'lrc'); "
                "build lrc.Trace from its columns and save that"
            )
        if header.get("version") != VERSION:
            raise TraceError(
                f"{self.path}: trace format {header.get('version')}, but this lrc reads "
                f"{VERSION}; install the lrc that wrote it"
            )
        self._check(header)
        self.num_row_groups = self._parquet.num_row_groups
        self.num_sequences = header["sequences"]
        self.num_experts, self.num_layers = header["num_experts"], header["layers"]
        self.top_k, self.sequence_length = header["top_k"], header["sequence_length"]
        self.meta = header["meta"]

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._parquet.close()

    def _check(self, header):
        """Compare the header and all rows' checksums with the file's own checksum."""
        schema = self._parquet.schema_arrow
        for name in schema.names:
            if name not in COLUMNS or schema.field(name).type != COLUMNS[name]:
                raise self._damaged(f"column {name!r} has type {schema.field(name).type}")
        if missing := {"tokens", "experts", "checksum"} - set(schema.names):
            raise self._damaged(f"column {min(missing)!r} is missing")
        try:
            column = self._parquet.read(columns=["checksum"])["checksum"]
            rows = column.drop_null().to_numpy()
        except Exception as error:
            raise self._unreadable(error) from error
        checksum = header.pop("checksum", None)
        if len(rows) != header.get("sequences") or checksum != _header_checksum(header, rows):
            raise self._damaged("its checksum differs")

    def read_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Valid tokens and label of every sequence, without reading an id.

        They are verified with their rows, when those are read.
        """
        names = [name for name in ("tokens", "dataset") if name in self._parquet.schema_arrow.names]
        try:
            table = self._parquet.read(columns=names)
            lengths = table["tokens"].to_numpy().astype(np.int64)
            labels = table["dataset"].to_pylist() if "dataset" in names else None
        except Exception as error:
            raise self._unreadable(error) from error
        if labels is None:
            return lengths, None
        if None in labels:
            raise self._damaged("a dataset label is missing")
        return lengths, np.array(labels, np.str_)

    def rows(self) -> list[int]:
        """Sequences in each row group."""
        metadata = self._parquet.metadata
        return [metadata.row_group(group).num_rows for group in range(self.num_row_groups)]

    def read(self, *groups: int) -> Trace:
        """Sequences of some row groups, in that order; of none, a trace without sequences."""
        rows = [self._parquet.metadata.row_group(group).num_rows for group in groups]
        starts = np.cumsum([0, *rows]).tolist()
        shape = (starts[-1], self.sequence_length, self.num_layers, self.top_k)
        names = self._parquet.schema_arrow.names
        arrays = {"experts": np.full(shape, -1, np.int16)}
        for name in {"token_ids", "predicted_ids"} & set(names):
            arrays[name] = np.full(shape[:2], -1, np.int32)
        if "weights" in names:
            arrays["weights"] = np.zeros(shape, np.float16)
        lengths, labels = np.zeros(shape[0], np.int64), []
        for group, start, stop in zip(groups, starts[:-1], starts[1:], strict=True):
            part = {name: array[start:stop] for name, array in arrays.items()}
            labels += self._read_group(group, lengths[start:stop], part)
        # The checksum tells damage, not a file that was made wrong.
        check_experts(arrays["experts"], lengths, self.num_experts, f"{self.path}: experts")
        return Trace._adopt(
            arrays.pop("experts"),
            self.num_experts,
            lengths=lengths,
            datasets=np.array(labels, np.str_) if "dataset" in names else None,
            meta=self._meta_of(groups),
            **arrays,
        )

    def _meta_of(self, groups):
        """Metadata; of lists by sequence, what tells of the sequences of some row groups."""
        meta, sizes = dict(self.meta), self.rows()
        starts = np.cumsum([0, *sizes])
        kept = [np.arange(starts[group], starts[group + 1]) for group in groups]
        follow(meta, ("prompt_tokens",), np.concatenate([np.arange(0), *kept]), int(starts[-1]))
        return meta

    def _read_group(self, group, lengths, arrays):
        """Fill lengths and arrays with a row group, and return its labels."""
        labels, start = [], 0
        # Arrow takes many times the memory of what it decodes at once.
        each = self.sequence_length * self.num_layers * self.top_k
        batches = self._parquet.iter_batches(max(1, DECODED_IDS // max(1, each)), [group])
        while (batch := self._next(batches)) is not None:
            stop = start + batch.num_rows
            part = {name: array[start:stop] for name, array in arrays.items()}
            labels += self._read_rows(
                group, pa.Table.from_batches([batch]), lengths[start:stop], part
            )
            start = stop
        if start != len(lengths):
            raise self._damaged(f"row group {group} has {start} rows instead of {len(lengths)}")
        return labels

    def _next(self, batches):
        try:
            return next(batches, None)
        except Exception as error:
            raise self._unreadable(error) from error

    def _read_rows(self, group, table, lengths, arrays):
        """Fill lengths and arrays with rows of a row group, and return their labels."""
        try:
            if table["tokens"].null_count or table["checksum"].null_count:
                raise self._damaged("a length or checksum is missing")
            lengths[:] = table["tokens"].to_numpy()
            if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= self.sequence_length:
                raise self._damaged("a sequence is longer than the header says")
            flat = {
                name: self._flat(table, name, lengths * int(np.prod(array.shape[2:])))
                for name, array in arrays.items()
            }
            labels = table["dataset"].to_pylist() if "dataset" in table.column_names else []
            checksums = table["checksum"].to_numpy()
        except TraceError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error
        if None in labels:
            raise self._damaged("a dataset label is missing")
        if not np.array_equal(checksums, _row_checksums(labels, lengths, flat)):
            raise self._damaged(f"row group {group} does not have its checksum")
        valid = np.arange(self.sequence_length) < lengths[:, None]
        for name, array in arrays.items():
            array[valid] = flat[name].reshape(-1, *array.shape[2:])
        return labels

    def _flat(self, table, name, counts):
        column = table[name]
        array = column.chunk(0) if column.num_chunks else pa.array([], COLUMNS[name])
        offsets = array.offsets.to_numpy()
        if array.null_count or not np.array_equal(np.diff(offsets), counts):
            raise self._damaged(f"column {name!r} does not fit the number of tokens")
        values = array.flatten().to_numpy(zero_copy_only=False)
        if values.dtype != COLUMNS[name].value_type.to_pandas_dtype():
            raise self._damaged(f"column {name!r} has empty entries")
        return values

    def _damaged(self, what):
        return TraceError(f"{self.path}: damaged ({what}); copy or record the trace again")

    def _unreadable(self, error):
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return TraceError(
            f"{self.path}: no Parquet file, or a damaged one ({reason}); "
            "copy or record the trace again"
        )


def _column_names(trace):
    there = {name for name, _ in trace._arrays()}
    there |= {"tokens", "checksum"} | ({"dataset"} if "datasets" in there else set())
    return [name for name in COLUMNS if name in there]


def _num_ids(trace):
    return trace.num_tokens * trace.num_layers * trace.top_k


def _row_group_ends(trace):
    """Yield where row groups end that are full; what is left is the beginning of the next."""
    ends = np.cumsum(trace.lengths) * (trace.num_layers * trace.top_k)
    before = 0
    while (stop := int(np.searchsorted(ends, before + ROW_GROUP_IDS)) + 1) <= len(ends):
        yield stop
        before = int(ends[stop - 1])


def _to_table(trace, rows):
    """Rows of a trace as an Arrow table, and their checksums."""
    lengths, valid = trace.lengths[rows], trace.valid[rows]
    flat = {
        name: getattr(trace, name)[rows][valid].ravel()
        for name in LISTS
        if getattr(trace, name) is not None
    }
    if "weights" in flat:
        flat["weights"] = flat["weights"].astype(np.float32)
    labels = [] if trace.datasets is None else trace.datasets[rows].tolist()
    checksums = _row_checksums(labels, lengths, flat)
    columns = {"tokens": pa.array(lengths.astype(np.int32)), "checksum": pa.array(checksums)}
    if trace.datasets is not None:
        columns["dataset"] = pa.array(labels, pa.string())
    for name, values in flat.items():
        offsets = np.concatenate([[0], np.cumsum(lengths * _each(values, lengths))])
        columns[name] = pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(values, COLUMNS[name].value_type)
        )
    names = _column_names(trace)
    return pa.table([columns[name] for name in names], names=names), checksums


def _row_checksums(labels, lengths, flat):
    """BLAKE2b of each row: label, length, then its part of each list in the order of `LISTS`."""
    flat = {name: flat[name] for name in LISTS if name in flat}
    ends = {name: np.cumsum(lengths * _each(values, lengths)) for name, values in flat.items()}
    raw = {name: memoryview(_little_endian(values)).cast("B") for name, values in flat.items()}
    checksums = np.empty(len(lengths), np.uint64)
    for row, length in enumerate(lengths.tolist()):
        digest = blake2b(digest_size=8)
        label = labels[row].encode() if labels else b""
        digest.update(len(label).to_bytes(4, "little") + label + length.to_bytes(4, "little"))
        for name, values in flat.items():
            size = values.itemsize
            stop = int(ends[name][row])
            start = int(ends[name][row - 1]) if row else 0
            digest.update(raw[name][start * size : stop * size])
        checksums[row] = int.from_bytes(digest.digest(), "little")
    return checksums


def _each(values, lengths):
    """Values a token has in a flat list."""
    total = int(lengths.sum())
    return len(values) // total if total else 0


def _little_endian(values):
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def _header_checksum(header, rows):
    text = json.dumps(header, sort_keys=True).encode()
    return blake2b(text + _little_endian(rows).tobytes(), digest_size=16).hexdigest()
