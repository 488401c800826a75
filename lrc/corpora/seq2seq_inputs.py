"""Inputs of encoder-decoder models: what the encoder reads, and what the decoder is fed.

The paper feeds its two encoder-decoders in two ways (``src/10_calculate.py`` of its repository):
Switch fills in masked spans, as in its pretraining (`masked_spans`); NLLB repeats its own text
(`copies`). `inputs_for` chooses between them. `pairs` is for any other pairs of texts, such as
translations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lrc.corpora.corpus_sequences import Sequences, SequenceStream
from lrc.corpora.packing import CorpusError, language_head, padded

MASKED_SPANS = 32
"""Masked tokens of a sequence, as the paper's program sets them; its text says 64."""

_MASKS = ("even", "random")
_IGNORED = -100  # What the losses of transformers leave out.


def masked_spans(
    texts: Sequences | SequenceStream,
    tokenizer,
    *,
    decoder_start_token_id: int,
    mask: str = "even",
    spans: int = MASKED_SPANS,
    density: float = 0.15,
    mean_length: float = 3.0,
    seed: int = 0,
) -> dict:
    """Mask spans of each text: the encoder reads the rest, the decoder the spans (T5, Switch).

    Each span gives way to a sentinel, ``<extra_id_0>``, ``<extra_id_1>`` and so on. The target is
    each sentinel with its span after it, and one sentinel more as the end.

    Parameters
    ----------
    texts : Sequences or SequenceStream
        From `sequences`.
    tokenizer : transformers tokenizer
        Of the model, with sentinels ``<extra_id_…>``.
    decoder_start_token_id : int
        ``model.config.decoder_start_token_id``: what the decoder begins with.
    mask : {"even", "random"}
        ``"even"``, as the paper: `spans` single tokens, each in the middle of an equal part of the
        text. ``"random"``, as T5 was pretrained: spans at random places.
    spans : int
        Number of spans, for ``mask="even"``.
    density, mean_length : float
        Share of masked tokens, and mean tokens of a span, for ``mask="random"``.
    seed : int
        Of the random spans.

    Returns
    -------
    dict
        A batch for `lrc.record`, as `pairs` returns it.

    Raises
    ------
    CorpusError
        If the tokenizer has too few sentinels, or a text too few tokens.

    Examples
    --------
    >>> batch = masked_spans(  # doctest: +SKIP
    ...     texts, tokenizer, decoder_start_token_id=model.config.decoder_start_token_id
    ... )
    >>> traces = lrc.record(model, batch)  # doctest: +SKIP
    """
    if mask not in _MASKS:
        raise CorpusError(f"mask is {mask!r}, but must be one of {', '.join(map(repr, _MASKS))}")
    token_ids, datasets = _in_memory(texts)
    random = np.random.default_rng(seed)
    tokens = token_ids.shape[1]
    chosen = [
        even_spans(tokens, spans)
        if mask == "even"
        else random_spans(tokens, random, density, mean_length)
        for _ in token_ids
    ]
    sentinels = _sentinels(tokenizer, max((len(starts) for starts, _ in chosen), default=0) + 1)
    cuts = [cut_spans(row, *one, sentinels) for row, one in zip(token_ids, chosen, strict=True)]
    return pairs(
        [inputs for inputs, _ in cuts],
        [targets for _, targets in cuts],
        decoder_start_token_id=decoder_start_token_id,
        datasets=datasets,
    )


def copies(texts: Sequences | SequenceStream, *, decoder_start_token_id: int) -> dict:
    """Let the decoder repeat what the encoder reads, as the paper does with NLLB.

    Source and target are the same text in the same language; the language token that the
    tokenizer of NLLB sets is the first of both (see `pack`).

    Parameters
    ----------
    texts : Sequences or SequenceStream
        From `sequences`.
    decoder_start_token_id : int
        ``model.config.decoder_start_token_id``: what the decoder begins with.

    Returns
    -------
    dict
        A batch for `lrc.record`, as `pairs` returns it.
    """
    token_ids, datasets = _in_memory(texts)
    return pairs(
        token_ids, token_ids, decoder_start_token_id=decoder_start_token_id, datasets=datasets
    )


def pairs(
    inputs: Sequence | np.ndarray,
    targets: Sequence | np.ndarray,
    *,
    decoder_start_token_id: int,
    datasets: Iterable[str] | str | None = None,
) -> dict:
    """Batch sources and targets: pad both, and shift the target to what the decoder is fed.

    The decoder reads `decoder_start_token_id` and then the target but for its last token, and so
    predicts the target. A translation model wants the token of the target's language first in it,
    which its tokenizer sets for ``text_target``.

    Parameters
    ----------
    inputs, targets : sequence of integer sequences
        Token ids of each source and each target; lengths may differ.
    decoder_start_token_id : int
        ``model.config.decoder_start_token_id``.
    datasets : str or iterable of str, optional
        Domain label of all pairs, or of each.

    Returns
    -------
    dict
        ``input_ids``, ``attention_mask`` [sequences, tokens]; ``decoder_input_ids``,
        ``decoder_attention_mask``, ``labels`` [sequences, tokens of the target], padding labelled
        -100; ``dataset``, a label each, if given. All int64.

    Raises
    ------
    CorpusError
        If there are no pairs, an empty one, or not as many sources as targets.

    Examples
    --------
    >>> batch = pairs([[5, 6, 1]], [[7, 1]], decoder_start_token_id=0)
    >>> batch["decoder_input_ids"].tolist()
    [[0, 7]]
    """
    if len(inputs) != len(targets) or not len(inputs):
        raise CorpusError(
            f"there are {len(inputs)} inputs and {len(targets)} targets: give as many, at least one"
        )
    batch: dict[str, Any] = {}
    batch["input_ids"], batch["attention_mask"] = _padded(inputs, "inputs", 0)
    labels, mask = _padded(targets, "targets", _IGNORED)
    shifted = np.full_like(labels, 0)
    shifted[:, 0] = decoder_start_token_id
    shifted[:, 1:] = np.where(mask[:, 1:] == 1, labels[:, :-1], 0)
    batch |= {"decoder_input_ids": shifted, "decoder_attention_mask": mask, "labels": labels}
    if datasets is not None:
        labels_of = [datasets] * len(inputs) if isinstance(datasets, str) else list(datasets)
        if len(labels_of) != len(inputs):
            raise CorpusError(f"datasets has {len(labels_of)} labels for {len(inputs)} pairs")
        batch["dataset"] = labels_of
    return batch


def inputs_for(model, tokenizer, texts: Sequences | SequenceStream):
    """Make of texts what the paper feeds a model of this kind.

    Parameters
    ----------
    model : transformers model
        Its configuration says whether it has an encoder and what its decoder begins with.
    tokenizer : transformers tokenizer
        Of the model. Sentinels in its vocabulary call for `masked_spans`, a language that opens
        every text for `copies`.
    texts : Sequences or SequenceStream
        From `sequences`.

    Returns
    -------
    Sequences, SequenceStream or dict
        For `lrc.record`: of a decoder the texts themselves.

    Raises
    ------
    CorpusError
        If an encoder-decoder is of neither kind: what its decoder should read is then yours to
        say, with `pairs`.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return texts
    start = model.config.decoder_start_token_id
    if "<extra_id_0>" in tokenizer.get_vocab():
        return masked_spans(texts, tokenizer, decoder_start_token_id=start)
    if len(language_head(tokenizer)):
        return copies(texts, decoder_start_token_id=start)
    raise CorpusError(
        "the paper has no inputs for such an encoder-decoder, which neither fills masked spans nor "
        "translates: give what the decoder reads, with lrc.corpora.pairs"
    )


def cut_spans(
    token_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut disjoint spans, in rising order, out of one text [tokens].

    Returns
    -------
    inputs, targets : numpy.ndarray
        The text with a sentinel for each span; each sentinel with its span after it, and one
        sentinel more. Either with the other gives the text back.
    """
    masked = np.zeros(len(token_ids), bool)
    for start, length in zip(starts, lengths, strict=True):
        masked[start : start + length] = True
    marked = np.array(token_ids)
    marked[starts] = sentinels[: len(starts)]
    kept = ~masked
    kept[starts] = True
    before = np.cumsum(lengths) - lengths  # Masked tokens before each span.
    targets = np.insert(token_ids[masked], before, sentinels[: len(starts)])
    return marked[kept], np.append(targets, sentinels[len(starts)])


def even_spans(tokens: int, spans: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and length of single tokens, each in the middle of an equal part of a text."""
    if not 1 <= spans <= tokens:
        raise CorpusError(f"cannot mask {spans} of {tokens} tokens: give a number from 1 to that")
    step = tokens // spans
    return np.arange(spans) * step + step // 2, np.ones(spans, np.int64)


def random_spans(
    tokens: int, random: np.random.Generator, density: float, mean_length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return start and length of spans at random places, as in the pretraining of T5.

    Masked tokens and the others are both cut into as many pieces, at random, and alternate; a text
    begins with a piece that is not masked.
    """
    if not 0 < density < 1 or mean_length < 1 or tokens < 2:
        raise CorpusError(
            f"cannot mask {density} of {tokens} tokens in spans of {mean_length}: the density must "
            "lie between 0 and 1, spans be 1 token at least, and texts 2"
        )
    masked = min(max(round(tokens * density), 1), tokens - 1)
    spans = min(max(round(masked / mean_length), 1), tokens - masked)
    lengths, gaps = (_pieces(random, total, spans) for total in (masked, tokens - masked))
    return np.cumsum(gaps + lengths) - lengths, lengths


def _pieces(random: np.random.Generator, total: int, pieces: int) -> np.ndarray:
    """Cut `total` into `pieces` positive whole numbers, all ways equally likely."""
    cuts = np.sort(random.choice(total - 1, pieces - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _in_memory(texts) -> tuple[np.ndarray, tuple[str, ...]]:
    texts = texts.load() if isinstance(texts, SequenceStream) else texts
    return texts.token_ids, texts.datasets


def _sentinels(tokenizer, count: int) -> np.ndarray:
    vocabulary = tokenizer.get_vocab()
    names = [f"<extra_id_{number}>" for number in range(count)]
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise CorpusError(
            f"the tokenizer has no sentinel {missing[0]}, {count} are needed: mask fewer spans, or "
            "use the tokenizer of a model trained to fill spans (T5, Switch)"
        )
    return np.array([vocabulary[name] for name in names])


def _padded(rows: Sequence | np.ndarray, name: str, fill: int) -> tuple[np.ndarray, np.ndarray]:
    empty = next((number for number, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise CorpusError(f"{name} {empty} is empty: leave the pair out")
    filled, mask = padded(rows, fill)
    return filled, mask.astype(np.int64)
