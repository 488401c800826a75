"""Packing: documents become token sequences of one length, as the paper cuts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lrc.errors import LrcError

SEQUENCE_LENGTH = 512
"""Tokens of one sequence, as in the paper."""

# Tokenized at once: fast tokenizers work in parallel over a batch, but what is tokenized beyond
# the last sequence wanted is in vain, and memory must stay bounded.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 200_000


class CorpusError(LrcError):
    """A corpus is unknown, unreadable or too small."""


def pack(documents: Iterable[str], tokenizer, length: int = SEQUENCE_LENGTH) -> np.ndarray:
    """Concatenate documents, each closed by the end-of-text token, and cut into sequences.

    This is how the paper prepares its texts (``src/01_tokenize.py`` of its repository): documents
    in their order, tokenized with the special tokens that the tokenizer adds by itself, such as a
    token that begins a text; one end-of-text token after each, unless the tokenizer has set it
    already. A tokenizer for translation opens every text with the token of its language (NLLB):
    then each *sequence* begins with that token, and no document within it.

    Parameters
    ----------
    documents : iterable of str
    tokenizer : transformers tokenizer
        Its ``eos_token_id`` closes each document.
    length : int
        Tokens of a sequence; an incomplete last sequence is dropped.

    Returns
    -------
    numpy.ndarray
        int32 array ``[sequences, tokens]``.

    Raises
    ------
    CorpusError
        If there is no tokenizer, or none with an end-of-text token.
    """
    rows = list(packed(documents, tokenizer, length))
    return np.stack(rows) if rows else np.empty((0, length), np.int32)


def packed(documents: Iterable[str], tokenizer, length: int) -> Iterator[np.ndarray]:
    """Yield what `pack` returns sequence by sequence, reading no further than is needed."""
    check_tokenizer(tokenizer)
    head = language_head(tokenizer)
    body = length - len(head)
    if body < 1:
        raise CorpusError(f"length is {length}, but must be at least {len(head) + 1}")
    rest = np.empty(0, np.int32)
    for batch in _batches(documents):
        ids: list[int] = rest.tolist()
        # Not verbose: that a document is longer than the model reads is why it is cut.
        for document in tokenizer(batch, verbose=False)["input_ids"]:
            ids += document[len(head) :]
            if not document or document[-1] != tokenizer.eos_token_id:
                ids.append(tokenizer.eos_token_id)
        count = len(ids) // body
        rest = np.asarray(ids[count * body :], np.int32)
        for row in np.asarray(ids[: count * body], np.int32).reshape(count, body):
            yield np.concatenate([head, row])


def check_tokenizer(tokenizer) -> None:
    """Refuse what cannot close a document."""
    if tokenizer is None:
        raise CorpusError("there is no tokenizer: give the one that the model was trained with")
    if tokenizer.eos_token_id is None:
        raise CorpusError("the tokenizer has no end-of-text token: set tokenizer.eos_token first")


def language_head(tokenizer) -> np.ndarray:
    """Return the token of the source language, if the tokenizer opens every text with it."""
    language = getattr(tokenizer, "src_lang", None)
    opening = tokenizer([""])["input_ids"][0][:1] if language else []
    is_language = opening == [tokenizer.convert_tokens_to_ids(language)] if opening else False
    return np.asarray(opening if is_language else [], np.int32)


def padded(rows: Sequence | np.ndarray, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids of different length as one array, filled up on the right, and its mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, fill, np.int64)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    if isinstance(documents, str):
        raise CorpusError("documents are one string: give a list of strings")
    batch, characters = [], 0
    for document in documents:
        if not isinstance(document, str):
            raise CorpusError(f"a document is of type {type(document).__name__}, not a string")
        batch.append(document)
        characters += len(document)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
