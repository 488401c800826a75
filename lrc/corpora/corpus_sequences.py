"""From a corpus, whatever it is, to packed sequences: the one door of `lrc.corpora`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, overload

import numpy as np

from lrc.corpora.embedded_corpus import DOMAINS, check_domain, read_domain
from lrc.corpora.local_files import LABEL, by_domain, local_corpus
from lrc.corpora.packing import SEQUENCE_LENGTH, CorpusError, check_tokenizer, packed
from lrc.corpora.paper_corpora import PAPER


@dataclass(frozen=True)
class Sequences:
    """Packed token sequences, each of one domain, in memory.

    Attributes
    ----------
    token_ids : numpy.ndarray
        int32 array ``[sequences, tokens]``.
    datasets : tuple of str
        Domain label of each sequence.
    recipe : dict, optional
        What decided the sequences, see `SequenceStream`.
    """

    token_ids: np.ndarray
    datasets: tuple[str, ...]
    recipe: dict | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def fingerprint(self) -> str:
        """Return a short hash of tokens and labels: equal texts, equal tokenizer."""
        digest = hashlib.sha256(np.ascontiguousarray(self.token_ids, "<i4").tobytes())
        digest.update("\n".join(self.datasets).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SequenceStream:
    """Packed token sequences, each of one domain, read from their corpus while one goes along.

    Iterate over it as often as you like: each time, the corpus is read again and gives the same
    sequences, as mappings ``{"input_ids": int32 array [tokens], "dataset": domain}``, which
    `lrc.record` takes. Only a batch of documents is in memory at a time.

    Attributes
    ----------
    recipe : dict
        What decides the sequences, in words and numbers: corpus, domains, field of the text,
        tokenizer (a hash of what it does), sequences of a domain, tokens of a sequence. It costs
        no reading, so it cannot tell that a file has changed under its name.
    """

    recipe: dict
    _tokenizer: object = field(repr=False)
    _documents: Mapping[str, Iterable[str]] = field(repr=False)

    def __len__(self) -> int:
        return len(self._documents) * self.recipe["per_domain"]

    def __iter__(self) -> Iterator[dict]:
        per_domain, length = self.recipe["per_domain"], self.recipe["length"]
        for domain, documents in self._documents.items():
            count = 0
            for row in islice(packed(documents, self._tokenizer, length), per_domain):
                count += 1
                yield {"input_ids": row, "dataset": domain}
            if count < per_domain:
                raise CorpusError(
                    f"domain {domain!r} of corpus {self.recipe['corpus']} fills {count} sequences "
                    f"of {length} tokens, {per_domain} are wanted: lower per_domain or add text"
                )

    def load(self) -> Sequences:
        """Read all into memory: four bytes a token."""
        rows = np.empty((len(self), self.recipe["length"]), np.int32)
        labels = []
        for number, sequence in enumerate(self):
            rows[number] = sequence["input_ids"]
            labels.append(sequence["dataset"])
        return Sequences(rows, tuple(labels), self.recipe)


@overload
def sequences(
    tokenizer,
    corpus=...,
    *,
    per_domain: int = ...,
    length: int = ...,
    split: str | None = ...,
    column: str = ...,
    lazy: Literal[False] = ...,
) -> Sequences: ...
@overload
def sequences(
    tokenizer,
    corpus=...,
    *,
    per_domain: int = ...,
    length: int = ...,
    split: str | None = ...,
    column: str = ...,
    lazy: bool,
) -> Sequences | SequenceStream: ...
def sequences(
    tokenizer,
    corpus="embedded",
    *,
    per_domain: int = 12,
    length: int = SEQUENCE_LENGTH,
    split: str | None = None,
    column: str = "text",
    lazy: bool = False,
) -> Sequences | SequenceStream:
    """Pack a corpus into the same number of sequences per domain.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    corpus : str, path, mapping, dataset, or list of these
        - ``"embedded"``: text of `DOMAINS` that every installation carries;
        - a corpus of the paper by its key in `PAPER`, such as ``"c4"``, or ``"paper"`` for all
          eleven, streamed from the Hugging Face hub (the paper takes 2,048 sequences of each);
        - a local file or folder: ``.txt``, ``.md``, ``.rst`` (a document a file), ``.jsonl``,
          ``.ndjson``, ``.json`` (a list), ``.parquet`` or ``.arrow``, whose records have a field
          ``text`` and may name their domain in a field ``dataset``. Otherwise a file is a domain,
          named after the file;
        - a `datasets.Dataset` or `datasets.IterableDataset` with the same fields, or a
          `datasets.DatasetDict` together with `split`;
        - documents, or a dataset, by domain.
    per_domain : int
        Sequences per domain: the first that its documents fill, in their order.
    length : int
        Tokens per sequence.
    split : str, optional
        Of the embedded corpus, ``"held-out"`` (the default) or ``"train"``; of a
        `datasets.DatasetDict`, any of its own.
    column : str
        Field of the text in files and datasets.
    lazy : bool
        Return a stream that reads the corpus while it is used, rather than all in memory. A domain
        that has too little text then ends the stream only when its turn comes.

    Returns
    -------
    Sequences or SequenceStream

    Raises
    ------
    CorpusError
        If the corpus is missing, unreadable, out of reach, or a domain has too little text; the
        message says which and how much there is.

    Examples
    --------
    >>> texts = sequences(tokenizer, ["c4", "github", "my-texts/"])  # doctest: +SKIP
    """
    for what, number in (("per_domain", per_domain), ("length", length)):
        if not isinstance(number, int | np.integer) or number < 1:
            raise CorpusError(f"{what} is {number!r}, but must be a whole number, at least 1")
    check_tokenizer(tokenizer)
    name, documents = _resolve(corpus, split, column)
    if not documents:
        raise CorpusError(f"corpus {name} holds no documents")
    recipe = {
        "corpus": name,
        "domains": list(documents),
        "column": column,
        "tokenizer": _tokenizer_digest(tokenizer),
        "per_domain": int(per_domain),
        "length": int(length),
    }
    stream = SequenceStream(recipe, tokenizer, documents)
    if not lazy:
        return stream.load()
    once = [domain for domain, texts in documents.items() if isinstance(texts, Iterator)]
    if once:
        raise CorpusError(
            f"documents of domain {once[0]!r} can be read only once: give a list, or lazy=False"
        )
    return stream


@dataclass(frozen=True)
class _Embedded:
    """Documents of a domain of the embedded corpus."""

    domain: str
    split: str

    def __iter__(self) -> Iterator[str]:
        return read_domain(self.domain, self.split)


@dataclass(frozen=True)
class _Chain:
    """One iterable after the other, anew at each iteration."""

    parts: list

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)


def _resolve(corpus, split: str | None, column: str) -> tuple[str, dict[str, Iterable[str]]]:
    """Return what a corpus is called in messages, and its documents by domain."""
    if isinstance(corpus, list | tuple):
        documents: dict[str, Iterable[str]] = {}
        names = []
        for part in corpus:
            name, more = _resolve(part, split, column)
            names.append(name)
            twice = documents.keys() & more.keys()
            if twice:
                raise CorpusError(f"domain {min(twice)!r} is in two of the corpora: rename one")
            documents |= more
        return ", ".join(names) or "[]", documents
    if (kind := _kind(corpus)) is not None:
        return _dataset(corpus, kind, split, column)
    if isinstance(corpus, Mapping):
        documents = {}
        for domain, texts in corpus.items():
            if (kind := _kind(texts)) is not None:
                _, found = _dataset(texts, kind, split, column)
                texts = _Chain(list(found.values()))
            documents[str(domain)] = texts
        return "given as a dict", documents
    if corpus == "embedded":
        split = split or "held-out"
        for domain in DOMAINS:
            check_domain(domain, split)
        return f"'embedded' ({split})", {domain: _Embedded(domain, split) for domain in DOMAINS}
    if corpus == "paper":
        return "'paper'", dict(PAPER)
    if isinstance(corpus, str) and corpus in PAPER:
        return repr(corpus), {corpus: PAPER[corpus]}
    if not isinstance(corpus, str | Path):
        raise CorpusError(
            f"corpus is of type {type(corpus).__name__}, but must be a name, a path, a dict of "
            "documents by domain, a dataset, or a list of these"
        )
    parts = local_corpus(Path(corpus), column)
    return repr(str(corpus)), {domain: _Chain(found) for domain, found in parts.items()}


def _kind(corpus) -> str | None:
    """Class of an object of the library datasets, which is not imported to find out."""
    library = sys.modules.get("datasets")
    if library is None:
        return None
    kinds = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    return next((kind for kind in kinds if isinstance(corpus, getattr(library, kind))), None)


def _dataset(dataset, kind: str, split: str | None, column: str):
    """Documents by domain of an object of the library datasets."""
    if kind.endswith("Dict"):
        if split not in dataset:
            raise CorpusError(
                f"corpus is a {kind} of splits {', '.join(map(repr, dataset))}: choose one with "
                "split=…"
            )
        dataset = dataset[split]
    info = dataset.info
    name = info.dataset_name or info.builder_name or "dataset"
    columns = dataset.column_names
    if columns is not None and column not in columns:
        raise CorpusError(
            f"dataset {name!r} has no column {column!r}, only {', '.join(columns)}: name the one "
            "that holds the text with column=…"
        )
    if columns is not None:  # Do not decode images and the like.
        dataset = dataset.select_columns([one for one in (column, LABEL) if one in columns])
    return repr(name), by_domain(dataset, column, name, f"dataset {name!r}")


def _tokenizer_digest(tokenizer) -> str:
    """Hash of what a tokenizer does; its name may be a folder that moves."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _digest(backend.to_str())
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    return _digest(json.dumps([type(tokenizer).__name__, sorted(vocabulary.items())]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
