"""Batches of token ids for a model, of all the forms in which texts come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch

from lrc.corpora import SequenceStream
from lrc.corpora.packing import padded
from lrc.errors import RecordError

# Fields of a batch that are no input of the model, or would only cost time.
_LABELS = ("dataset", "datasets")
_DROPPED = (*_LABELS, "special_tokens_mask", "offset_mapping", "length", "text")

_FORMS = (
    "give batches as a tokenizer returns them, integer arrays [sequences, tokens], or sequences "
    "of token ids (for text, see lrc.corpora.sequences)"
)

Batch = tuple[dict[str, torch.Tensor], list[str]]


def labelled_batches(
    source, batch_size: int, datasets=None, *, targets: bool = False
) -> Iterator[Batch]:
    """Yield batches, each with a label for each sequence or none.

    Parameters
    ----------
    source
        Any form that `lrc.record` takes.
    batch_size : int
        Sequences of a batch, where `source` is not cut into batches already.
    datasets : str or iterable of str, optional
        Label of all sequences, or of each, in place of those of the batches.
    targets : bool
        Keep the field ``labels``, from which an encoder-decoder makes its decoder's inputs.
    """
    return _labelled(_iterate(source, batch_size, targets), datasets)


def _iterate(source, batch_size: int, targets: bool) -> Iterator[Batch]:
    if hasattr(source, "token_ids") and hasattr(source, "datasets"):
        yield from _cut((_tokens(source.token_ids), list(source.datasets or ())), batch_size)
    elif isinstance(source, Mapping) or getattr(source, "ndim", 0) == 2:
        yield from _cut(_batch(source, targets), batch_size)
    elif isinstance(source, str) or not isinstance(source, Iterable):
        raise RecordError(f"batches is of type {type(source).__name__}: {_FORMS}")
    else:
        items = iter(source)
        for item in items:
            if _rank(_ids(item)) == 1:
                yield _pad([item, *islice(items, batch_size - 1)])
            else:
                yield _batch(item, targets)


def _labelled(batches: Iterable[Batch], datasets) -> Iterator[Batch]:
    """Replace the labels of batches by those of the argument `datasets`, if given."""
    if datasets is None:
        with_labels = None
        for inputs, labels in batches:
            size = len(inputs["input_ids"])
            if len(labels) not in (0, size) or with_labels not in (None, bool(labels)):
                raise RecordError(
                    f"a batch of {size} sequences has {len(labels)} dataset labels: label all "
                    "sequences or none"
                )
            with_labels = bool(labels)
            yield inputs, labels
    elif isinstance(datasets, str):
        yield from ((inputs, [datasets] * len(inputs["input_ids"])) for inputs, _ in batches)
    else:
        remaining, done = iter(datasets), 0
        for inputs, _ in batches:
            labels = list(islice(remaining, len(inputs["input_ids"])))
            done += len(labels)
            if len(labels) < len(inputs["input_ids"]):
                raise RecordError(f"datasets has only {done} labels, fewer than sequences")
            yield inputs, labels
        if next(remaining, None) is not None:
            raise RecordError(f"datasets has more labels than the {done} sequences")


def _cut(batch: Batch, batch_size: int) -> Iterator[Batch]:
    """Cut one large batch into small ones."""
    inputs, labels = batch
    for start in range(0, len(inputs["input_ids"]), batch_size):
        rows = slice(start, start + batch_size)
        yield {name: value[rows] for name, value in inputs.items()}, labels[rows]


def _batch(item, targets: bool) -> Batch:
    """Whole batch, of a mapping or an array, as tensors."""
    if not isinstance(item, Mapping):
        return _tokens(item), []
    labels = next((item[key] for key in _LABELS if item.get(key) is not None), [])
    rows = _ids(item)
    labels = [labels] * len(rows) if isinstance(labels, str) else list(labels)
    if _is_ragged(rows):
        return _pad(rows)[0], labels
    dropped = {"input_ids", *_DROPPED, *(() if targets else ("labels",))}
    others = {name: item[name] for name in item.keys() - dropped}
    try:
        others = {name: torch.as_tensor(value) for name, value in others.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecordError(f"a batch holds what is no array of numbers ({error})") from error
    return _tokens(rows) | others, labels


def _pad(sequences: list) -> Batch:
    """Single sequences (token ids, or mappings with them), padded on the right."""
    rows, labels = [], []
    for item in sequences:
        ids = _ids(item)
        if _rank(ids) != 1:
            raise RecordError(f"single sequences and whole batches are mixed: {_FORMS}")
        ids = np.asarray(ids)
        if isinstance(item, Mapping):
            if item.get("attention_mask") is not None:
                ids = ids[np.asarray(item["attention_mask"]) != 0]
            labels += [item[key] for key in _LABELS if item.get(key) is not None][:1]
        rows.append(ids)
    tokens, mask = padded(rows)
    inputs = _tokens(tokens)
    if not mask.all():
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    return inputs, labels


def _tokens(ids) -> dict[str, torch.Tensor]:
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecordError(f"cannot read token ids ({error}): {_FORMS}") from error
    if tensor.ndim != 2 or tensor.is_floating_point() or not tensor.numel():
        raise RecordError(
            f"token ids have shape {list(tensor.shape)} and dtype {tensor.dtype}, but must be "
            f"integers [sequences, tokens], at least one: {_FORMS}"
        )
    return {"input_ids": tensor.long()}


def _ids(item):
    """Token ids of a mapping, or the thing itself."""
    if not isinstance(item, Mapping):
        return item
    if item.get("input_ids") is None:
        raise RecordError(f"a batch has no input_ids: {_FORMS}")
    return item["input_ids"]


def _rank(ids) -> int | None:
    """Axes of token ids: 1 for one sequence, 2 for a batch; None where it cannot be told."""
    if hasattr(ids, "ndim"):
        return ids.ndim
    if isinstance(ids, list | tuple) and ids:
        first = ids[0]
        if isinstance(first, int | np.integer):
            return 1
        if isinstance(first, list | tuple) and first and isinstance(first[0], int | np.integer):
            return 2
    return None


def _is_ragged(rows) -> bool:
    return isinstance(rows, list | tuple) and len({np.size(row) for row in rows}) > 1


def num_sequences(source) -> int | None:
    """Return the sequences there are in all, where that is known beforehand."""
    if hasattr(source, "token_ids"):
        return len(source.token_ids)
    if isinstance(source, SequenceStream):
        return len(source)
    if isinstance(source, Mapping):
        return len(_ids(source))
    if isinstance(source, list | tuple):
        ranks = [_rank(_ids(item)) for item in source]
        if all(ranks):
            pairs = zip(source, ranks, strict=True)
            return sum(1 if rank == 1 else len(_ids(item)) for item, rank in pairs)
    return len(source) if getattr(source, "ndim", 0) == 2 else None
