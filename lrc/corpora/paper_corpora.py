"""The eleven corpora of the paper, streamed from the Hugging Face hub.

The paper names their repositories and publishes the finished texts, but not the code that made
texts out of records. For the seven parts of RedPajama a text is a text. How the four downstream
sets are joined into one text is our choice, stated in `PaperCorpus.columns`; for the paper's very
texts, unpack the archive of its release and give that folder to `sequences`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lrc.corpora.packing import CorpusError

SEQUENCES_PER_DOMAIN = 2048
"""Sequences that the paper takes of each corpus."""

_REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"


@dataclass(frozen=True)
class PaperCorpus:
    """One corpus of the paper: where it lies, and what of a record is its text.

    Attributes
    ----------
    key, name : str
        As in `lrc.published`; the key labels the sequences.
    repository : str
        On the Hugging Face hub.
    columns : tuple of str
        Fields that make the text, joined by an empty line. A conversation contributes what its
        turns say.
    file : str, optional
        JSON-lines file of the repository; without, the repository's default configuration is read.
    split : str
        The split.
    """

    key: str
    name: str
    repository: str
    columns: tuple[str, ...]
    file: str | None = None
    split: str = "train"

    def load_arguments(self) -> dict:
        """Return what `datasets.load_dataset` is called with.

        RedPajama's repository holds a loading script, which datasets 4 and later refuse, so its
        files are named. They are read as lines of text: their field ``meta`` changes its type
        within a file, on which the JSON reader of datasets fails.
        """
        if self.file is None:
            return {"path": self.repository, "split": self.split, "streaming": True}
        url = f"hf://datasets/{self.repository}/{self.file}"
        return {"path": "text", "data_files": url, "split": self.split, "streaming": True}

    def __iter__(self) -> Iterator[str]:
        """Stream the documents, in the order of the hub."""
        import datasets

        try:
            for record in datasets.load_dataset(**self.load_arguments()):
                text = self.text(record if self.file is None else json.loads(record["text"]))
                if text:
                    yield text
        except CorpusError:
            raise
        # Whatever the hub, the network or a changed repository raise, in a dozen classes.
        except Exception as error:
            what = f"{type(error).__name__}: {error}".split("\n")[0]
            raise CorpusError(
                f"corpus {self.key!r} cannot be read from {self.repository} on the Hugging Face "
                f"hub ({what}): check the network, HF_HUB_OFFLINE and access to the repository, "
                "or download it and give the folder"
            ) from error

    def text(self, record: Mapping) -> str:
        """Return the text of a record of the corpus."""
        missing = [column for column in self.columns if column not in record]
        if missing:
            raise CorpusError(
                f"corpus {self.key!r}: records of {self.repository} have no field {missing[0]!r}, "
                f"only {', '.join(record)}; the repository has changed"
            )
        parts = (_said(record[column]) for column in self.columns)
        return "\n\n".join(part for part in parts if part)


def _said(value) -> str:
    """Text of a field: a string, or a conversation of turns, whose content may be in parts."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        return _said(value["content"] if "content" in value else value.get("text"))
    return "\n\n".join(said for said in map(_said, value) if said)


def _redpajama(key: str, name: str, file: str) -> PaperCorpus:
    return PaperCorpus(key, name, _REDPAJAMA, ("text",), f"{file}_sample.jsonl")


PAPER: dict[str, PaperCorpus] = {
    corpus.key: corpus
    for corpus in (
        _redpajama("c4", "C4", "c4"),
        _redpajama("cc2306", "CommonCrawl", "cc_2023-06"),
        _redpajama("book", "Books", "book"),
        _redpajama("wikipedia", "Wikipedia", "wikipedia"),
        _redpajama("arxiv", "ArXiv", "arxiv"),
        _redpajama("stackexchange", "StackExchange", "stackexchange"),
        _redpajama("github", "GitHub", "github"),
        PaperCorpus(
            "lmarena", "LMArena", "lmarena-ai/arena-human-preference-140k", ("conversation_a",)
        ),
        PaperCorpus(
            "math", "OpenMath", "nvidia/OpenMathInstruct-2", ("problem", "generated_solution")
        ),
        PaperCorpus("code", "OpenCode", "nvidia/OpenCodeInstruct", ("input", "output")),
        PaperCorpus("science", "OpenScience", "nvidia/OpenScienceReasoning-2", ("input", "output")),
    )
}
"""The paper's corpora by key, in its order."""
