"""Local files as corpora: text, JSON, JSON lines, Parquet and Arrow, read record by record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lrc.corpora.packing import CorpusError

LABEL = "dataset"
"""Field of a record that holds its domain."""

_TEXT = (".txt", ".md", ".rst", "")
_READ = ".txt, .md, .rst, .json, .jsonl, .ndjson, .parquet or .arrow"


@dataclass(frozen=True)
class Documents:
    """Texts of one domain among records, read anew, record by record, at each iteration.

    Attributes
    ----------
    records : iterable of mapping
        A field holds the text, the field ``dataset``, if there is one, its domain.
    column : str
        Field of the text.
    domain : str
        Domain whose texts are wanted.
    default : str
        Domain of records that name none.
    labelled : bool
        Whether records may name their domain.
    where : str
        What the records are called in a message.
    """

    records: Iterable
    column: str
    domain: str
    default: str
    labelled: bool
    where: str

    def __iter__(self) -> Iterator[str]:
        for number, record in enumerate(self.records):
            text = record.get(self.column) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise CorpusError(
                    f"{self.where}: record {number} has no string field {self.column!r}"
                )
            if not self.labelled and record.get(LABEL) is not None:
                raise CorpusError(
                    f"{self.where}: record {number} has a field {LABEL!r}, but the first has not: "
                    "label all records or none"
                )
            if _domain(record, self.default) == self.domain:
                yield text


def by_domain(records, column: str, default: str, where: str) -> dict[str, Documents]:
    """Part records into the documents of each domain, in order of appearance.

    The first record says whether records are labelled. Only if so are all of them read for their
    labels.
    """
    domains = [default]
    first = next(iter(records), None)
    labelled = isinstance(first, dict) and LABEL in first
    if labelled:
        labels = records.select_columns([LABEL]) if hasattr(records, "select_columns") else records
        domains = list(
            dict.fromkeys(_domain(record, default) for record in labels if isinstance(record, dict))
        )
    return {name: Documents(records, column, name, default, labelled, where) for name in domains}


def _domain(record: dict, default: str) -> str:
    label = record.get(LABEL)
    return default if label is None else str(label)


def local_corpus(path: Path, column: str) -> dict[str, list[Documents]]:
    """Return documents by domain, of a file or of all files of a folder."""
    if not path.exists():
        raise CorpusError(
            f"no corpus at {path}: give 'embedded', a corpus of the paper (see lrc.corpora.PAPER), "
            "a file, a folder, or a dataset that the library datasets has loaded"
        )
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not _is_hidden(p.name))
    corpus: dict[str, list[Documents]] = {}
    for file in files:
        records = File(file, column)
        for domain, documents in by_domain(records, column, file.stem, str(file)).items():
            corpus.setdefault(domain, []).append(documents)
    return corpus


def _is_hidden(name: str) -> bool:
    # The library datasets leaves cache files beside the Arrow files that it maps.
    return name.startswith(".") or (name.startswith("cache-") and name.endswith(".arrow"))


@dataclass(frozen=True)
class File:
    """Records of a file, read anew at each iteration."""

    path: Path
    column: str

    def __iter__(self) -> Iterator:
        try:
            yield from self._read()
        except CorpusError:
            raise
        # pyarrow's errors are ValueErrors or OSErrors, json's and those of encodings ValueErrors.
        except (OSError, ValueError) as error:
            what = str(error).split("\n")[0]
            raise CorpusError(f"{self.path}: not readable as a corpus ({what})") from error

    def _read(self) -> Iterator:
        suffix = self.path.suffix.lower()
        if suffix in _TEXT:
            yield {self.column: self.path.read_text("utf-8")}
        elif suffix in (".jsonl", ".ndjson"):
            # Lines end at \n only: JSON strings may contain what else Python takes for an end.
            with self.path.open(encoding="utf-8", newline="\n") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
        elif suffix == ".json":
            records = json.loads(self.path.read_text("utf-8"))
            if not isinstance(records, list):
                raise CorpusError(f"{self.path}: is no list of records; use a list, or .jsonl")
            yield from ({self.column: r} if isinstance(r, str) else r for r in records)
        elif suffix == ".parquet":
            yield from self._parquet()
        elif suffix == ".arrow":
            from datasets import Dataset

            yield from Dataset.from_file(str(self.path))
        else:
            raise CorpusError(f"{self.path}: cannot read {suffix} as text; use {_READ}")

    def _parquet(self) -> Iterator[dict]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            wanted = [name for name in (self.column, LABEL) if name in file.schema_arrow.names]
            for batch in file.iter_batches(256, columns=wanted):
                yield from batch.to_pylist()
