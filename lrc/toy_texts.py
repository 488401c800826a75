"""What the toy family reads: its tokenizer, and sequences of the embedded corpus."""

from __future__ import annotations

import os

import numpy as np

from lrc import corpora, toys

TOKENIZER = toys.DATA / "tokenizer.json"
VOCABULARY = 2048


def tokenizer():
    """Return the family's tokenizer, byte-level BPE; trained on the embedded corpus if missing."""
    from transformers import PreTrainedTokenizerFast

    if not TOKENIZER.is_file():
        _train_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token="<eos>")


def _train_tokenizer() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The same amount of every domain, so that none owns the vocabulary.
    texts = corpora.embedded("train")
    size = min(sum(map(len, documents)) for documents in texts.values())
    sample = (text for documents in texts.values() for text in _first(documents, size))
    bpe.train_from_iterator(sample, trainer)
    TOKENIZER.parent.mkdir(parents=True, exist_ok=True)
    partial = TOKENIZER.with_suffix(".partial")
    bpe.save(str(partial))
    os.replace(partial, TOKENIZER)


def _first(documents: list[str], characters: int):
    for document in documents:
        if characters <= 0:
            return
        yield document[:characters]
        characters -= len(document)


def training_sequences(
    sequences: int, domains: tuple[str, ...] = (), piece: int = 0
) -> corpora.Sequences:
    """Return the training sequences, the same number of every domain, in one fixed order.

    Parameters
    ----------
    sequences : int
        How many are wanted at least. A domain with too little text is repeated.
    domains : tuple of str
        Which domains; all, if empty.
    piece : int
        If not 0: the domains exchange pieces of so many tokens, see `mixed`.
    """
    encoder = tokenizer()
    domains = domains or corpora.DOMAINS
    per_domain = -(-sequences // len(domains))
    parts, labels = [], []
    for domain, documents in corpora.embedded("train", domains).items():
        packed = corpora.pack(documents, encoder)
        parts.append(np.resize(packed, (per_domain, packed.shape[1])))
        labels += [domain] * per_domain
    if piece:
        return corpora.Sequences(mixed(np.stack(parts), piece), ("mixed",) * len(labels))
    return corpora.Sequences(np.concatenate(parts), tuple(labels))


def mixed(token_ids: np.ndarray, piece: int, seed: int = 0) -> np.ndarray:
    """Exchange pieces between the domains, so that every sequence changes its topic.

    Parameters
    ----------
    token_ids : numpy.ndarray
        ``[domains, sequences, tokens]``.
    piece : int
        Tokens that stay together; it divides the tokens of a sequence.
    seed : int, default 0

    Returns
    -------
    numpy.ndarray
        ``[domains * sequences, tokens]``: the same pieces, each at its place within a sequence,
        but in a random one of the sequences with its number.
    """
    domains, sequences, tokens = token_ids.shape
    places = tokens // piece
    pieces = token_ids.reshape(domains, sequences, places, piece)
    # Of every number and place, which domain's piece goes where.
    order = np.tile(np.arange(domains)[:, None, None], (1, sequences, places))
    order = np.random.default_rng(seed).permuted(order, axis=0)
    return np.take_along_axis(pieces, order[..., None], axis=0).reshape(-1, tokens)


def held_out_sequences(per_domain: int) -> corpora.Sequences:
    """Return the first `per_domain` held-out sequences of every domain."""
    return corpora.sequences(tokenizer(), per_domain=per_domain)
