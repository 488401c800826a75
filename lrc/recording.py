"""The loop around a recorder: run a model over a corpus, batch by batch, into a trace."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from os import PathLike

import numpy as np
import torch
from torch import nn

from lrc.moe_layers import RecordError
from lrc.recorder import Recorder
from lrc.trace import Trace
from lrc.trace_file import TraceWriter, load_trace

# Expert ids held in memory before a part is written to the file: 64 MB.
_PART_IDS = 1 << 25

# Fields of a batch that are no input of the model, or would only cost time.
_LABELS = ("dataset", "datasets")
_DROPPED = (*_LABELS, "labels", "special_tokens_mask", "offset_mapping", "length", "text")

_FORMS = (
    "give batches as a tokenizer returns them, integer arrays [sequences, tokens], or sequences "
    "of token ids (for text, see lrc.corpora.sequences)"
)

Batch = tuple[dict[str, torch.Tensor], list[str]]


def record(
    model: nn.Module,
    batches,
    *,
    out: str | PathLike | None = None,
    datasets: str | Iterable[str] | None = None,
    progress: bool = True,
    mode: str = "executed",
    weights: bool = False,
    predictions: bool = True,
    batch_size: int = 8,
) -> Trace:
    """Run a model over a corpus and record its routing.

    Parameters
    ----------
    model : torch.nn.Module
        As for `Recorder`; put into evaluation mode meanwhile.
    batches : corpus, mapping, array or iterable
        - `lrc.corpora.Sequences`, or anything with ``token_ids`` and ``datasets``;
        - an iterable of batches: mappings as a tokenizer returns them (``input_ids``,
          ``attention_mask``, … of shape [sequences, tokens]; a field ``dataset`` may hold a label
          for each sequence), or integer arrays [sequences, tokens]. They run as they are;
        - one such mapping or array, or an iterable of single sequences of token ids, which may
          differ in length. They run `batch_size` at a time, padded on the right.
    out : path, optional
        Write the trace to this file while it is recorded; the file appears, whole, at the end.
    datasets : str or iterable of str, optional
        Label of all sequences, or of each.
    progress : bool
        Show a progress bar.
    mode, weights, predictions
        As for `Recorder`.
    batch_size : int
        Sequences of one forward pass, where `batches` is not cut into batches already. Results do
        not depend on it, beyond rounding inside the model.

    Returns
    -------
    Trace
        Also with `out`: what is then in the file.

    Raises
    ------
    RecordError
        Batches in no such form, ids beyond the vocabulary, labels that do not fit; and whatever
        `Recorder` raises.
    TraceError
        If `out` cannot be written.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise RecordError(f"batch_size is {batch_size}, but must be at least 1")
    recorder = Recorder(model, mode, weights, predictions=predictions)
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if takes_cache else {}
    vocabulary = _vocabulary(model)
    device = _device(model)
    labels: list[str] = []
    done = 0

    def take_part() -> Trace:
        part = recorder.trace(labels or None)
        recorder.clear()
        labels.clear()
        return part

    was_training = model.training
    bar = tqdm(total=_total(batches), unit=" sequences", disable=not progress, desc="Recording")
    with bar, nullcontext() if out is None else TraceWriter(out) as writer:
        model.eval()
        try:
            with recorder, torch.no_grad():
                for inputs, given in _labelled(_iterate(batches, batch_size), datasets):
                    tokens = inputs["input_ids"]
                    _check_vocabulary(tokens, vocabulary, done)
                    model(**{name: value.to(device) for name, value in inputs.items()}, **options)
                    labels += given
                    done += len(tokens)
                    bar.update(len(tokens))
                    if writer is not None and recorder.num_ids >= _PART_IDS:
                        writer.append(take_part())
        finally:
            model.train(was_training)
        if not done:
            raise RecordError("batches is empty: there is nothing to record")
        if writer is None:
            return take_part()
        if recorder.num_sequences:
            writer.append(take_part())
    return load_trace(out)


def _iterate(source, batch_size: int) -> Iterator[Batch]:
    """Yield batches, each with a label for each sequence or none, of any form `record` takes."""
    if hasattr(source, "token_ids") and hasattr(source, "datasets"):
        yield from _cut((_tokens(source.token_ids), list(source.datasets or ())), batch_size)
    elif isinstance(source, Mapping) or getattr(source, "ndim", 0) == 2:
        yield from _cut(_batch(source), batch_size)
    elif isinstance(source, str) or not isinstance(source, Iterable):
        raise RecordError(f"batches is of type {type(source).__name__}: {_FORMS}")
    else:
        items = iter(source)
        for item in items:
            if _rank(_ids(item)) == 1:
                yield _pad([item, *islice(items, batch_size - 1)])
            else:
                yield _batch(item)


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


def _batch(item) -> Batch:
    """Whole batch, of a mapping or an array, as tensors."""
    if not isinstance(item, Mapping):
        return _tokens(item), []
    labels = next((item[key] for key in _LABELS if item.get(key) is not None), [])
    rows = _ids(item)
    labels = [labels] * len(rows) if isinstance(labels, str) else list(labels)
    if _is_ragged(rows):
        return _pad(rows)[0], labels
    others = {name: item[name] for name in item.keys() - {"input_ids", *_DROPPED}}
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
    lengths = np.array([len(ids) for ids in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int64)
    tokens[mask] = np.concatenate(rows)
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


def _total(source) -> int | None:
    """Sequences in all, for the progress bar, where that is known beforehand."""
    if hasattr(source, "token_ids"):
        return len(source.token_ids)
    if isinstance(source, Mapping):
        return len(_ids(source))
    if isinstance(source, list | tuple):
        ranks = [_rank(_ids(item)) for item in source]
        if all(ranks):
            pairs = zip(source, ranks, strict=True)
            return sum(1 if rank == 1 else len(_ids(item)) for item, rank in pairs)
    return len(source) if getattr(source, "ndim", 0) == 2 else None


def _device(model) -> torch.device:
    device = getattr(model, "device", None) or next(model.parameters()).device
    # Weights that are offloaded have none; accelerate then moves the inputs itself.
    return torch.device("cpu") if device.type == "meta" else device


def _vocabulary(model) -> int | None:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(embeddings, "num_embeddings", None)


def _check_vocabulary(tokens, vocabulary, done):
    """Refuse ids that the embedding would only answer with an assertion deep inside."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise RecordError(
            f"token id {low if low < 0 else high} after sequence {done} is not in the model's "
            f"vocabulary of {vocabulary}: tokenize with the model's own tokenizer"
        )
