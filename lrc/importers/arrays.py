"""Arrays of expert ids: .npy, .npz, torch files, and what replay buffers of trainers hold.

- ``[tokens, layers, top_k]``: one text, or several one after the other, told apart by ``offsets``
  (``sequences + 1`` numbers) or ``lengths``. So is what vLLM's offline ``CompletionOutput`` has.
- ``[sequences, tokens, layers, top_k]``: a padded batch, as verl and NeMo-RL replay it. Padding is
  told by ``attention_mask`` or ``lengths`` beside the array, or proved (`lrc.importers.resolve`).
- a list with an array for each layer, ``[tokens, top_k]`` or ``[sequences, tokens, top_k]``, as
  Megatron's router replay collects them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes
from lrc.importers.npy import (
    NPY_MAGIC,
    Npz,
    as_array,
    as_count,
    as_ids,
    as_list,
    load_torch,
    read_npy,
)

NAMES = ("routed_experts", "expert_ids", "experts")


def read_arrays(source, name: str, options: Options) -> Log:
    """Read an array, a list of one array a layer, or a mapping that holds either by name."""
    if isinstance(source, Path):
        source = _load(source)
    beside = source if isinstance(source, Mapping) else {}
    if isinstance(source, Mapping):
        key = _find(source, name)
        ids, place = source[key], f"{name}, array {key!r}"
    else:
        ids, place = source, name
    if isinstance(ids, list | tuple) and ids and getattr(ids[0], "ndim", 0) in (2, 3):
        ids = _stack(ids, place)
    ids = as_ids(ids, place)
    if ids.ndim not in (3, 4):
        raise TraceError(
            f"{place}: has shape {list(ids.shape)}, but [tokens, layers, top_k] or "
            "[sequences, tokens, layers, top_k] is needed"
        )
    parts = {"experts": ids}
    if (weights := _get(beside, "weights", name)) is not None:
        parts["weights"] = _same(weights, ids.shape, "weights", name)
    tokens = _get(beside, "token_ids", name)
    tokens = _get(beside, "input_ids", name) if tokens is None else tokens
    if tokens is not None:
        parts["token_ids"] = _same(tokens, ids.shape[:-2], "token ids", name)
    split = _packed if ids.ndim == 3 else _padded
    routes = [
        Routes(**{key: array[rows] for key, array in parts.items()}, place=f"{name}, sequence {i}")
        for i, rows in enumerate(split(ids, beside, name, options))
    ]
    _describe(routes, beside, name)
    num_experts = as_count(beside.get("num_experts"), f"{name}, array 'num_experts'")
    return Log(routes, "array", num_experts)


def _load(path):
    with open(path, "rb") as file:
        magic = file.read(len(NPY_MAGIC))
    if magic == NPY_MAGIC:
        return read_npy(path)
    if magic.startswith(b"PK"):
        arrays = Npz(path)
        return arrays if len(arrays) else load_torch(path)
    return load_torch(path)


def _find(source, name):
    """Key of the expert ids."""
    known = [key for key in NAMES if key in source]
    if not known:
        known = [
            key
            for key in source
            if getattr(source[key], "ndim", 0) in (3, 4)
            and "int" in str(getattr(source[key], "dtype", ""))
        ]
    if len(known) != 1:
        found = ", ".join(map(str, source)) or "none"
        raise TraceError(
            f"{name}: {len(known) or 'no'} array{'' if len(known) == 1 else 's'} may hold the "
            f"expert ids (found: {found}); pass that array itself, or name it 'routed_experts'"
        )
    return known[0]


def _get(beside, key, name):
    value = beside.get(key)
    return None if value is None else as_array(value, f"{name}, array {key!r}")


def _same(array, shape, what, name):
    if array.shape != shape:
        raise TraceError(
            f"{name}: the {what} have shape {list(array.shape)}, but the expert ids {list(shape)}"
        )
    return array


def _stack(layers, place):
    arrays = [as_ids(layer, f"{place}, layer {i}") for i, layer in enumerate(layers)]
    if len({array.shape for array in arrays}) > 1:
        raise TraceError(f"{place}: its layers have different shapes, so tokens do not match")
    return np.stack(arrays, axis=-2)


def _packed(ids, beside, name, options):
    """Rows of each text in an array [tokens, layers, top_k]."""
    offsets, lengths = _get(beside, "offsets", name), _lengths(beside, name, options)
    if offsets is not None:
        lengths = np.diff(offsets)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0:
            raise TraceError(f"{name}: its offsets must run from 0 to the number of tokens")
    if lengths is None:
        return [slice(0, len(ids))]
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(ids):
        raise TraceError(
            f"{name}: its sequences' lengths sum up to {lengths.sum():,}, but it holds "
            f"{len(ids):,} tokens"
        )
    ends = np.cumsum(lengths).tolist()
    return [slice(stop - length, stop) for stop, length in zip(ends, lengths.tolist(), strict=True)]


def _padded(ids, beside, name, options):
    """Sequence and valid tokens of each text in an array [sequences, tokens, layers, top_k]."""
    count, width = ids.shape[:2]
    mask, lengths = _get(beside, "attention_mask", name), _lengths(beside, name, options)
    if lengths is not None:
        if lengths.shape != (count,) or ((lengths < 0) | (lengths > width)).any():
            raise TraceError(
                f"{name}: lengths must hold {count} numbers from 0 to {width}, the valid tokens of "
                "each sequence"
            )
        return [(i, slice(0, length)) for i, length in enumerate(lengths.tolist())]
    if mask is None:
        return [(i, slice(None)) for i in range(count)]
    mask = _same(mask, (count, width), "attention mask", name) != 0
    first, total = mask.argmax(axis=1), mask.sum(axis=1)
    for i in range(count):
        if not mask[i, first[i] : first[i] + total[i]].all():
            raise TraceError(f"{name}, sequence {i}: its attention mask has a hole")
    bounds = zip(first.tolist(), (first + total).tolist(), strict=True)
    return [(i, slice(start, stop)) for i, (start, stop) in enumerate(bounds)]


def _lengths(beside, name, options):
    if options.lengths is not None:
        return as_ids(options.lengths, "lengths")
    for key in ("lengths", "input_lengths"):
        if key in beside:
            return as_ids(beside[key], f"{name}, array {key!r}")
    return None


def _describe(routes, beside, name):
    """Labels and prompt lengths, where the arrays beside hold them."""
    labels = beside.get("dataset", beside.get("datasets"))
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(labels, list | tuple | None):
        raise TraceError(f"{name}: its dataset is {labels!r}, but must be a list of labels")
    prompts = as_list(beside.get("prompt_tokens"), f"{name}, array 'prompt_tokens'")
    mask, prompt_ids = _get(beside, "attention_mask", name), _get(beside, "prompts", name)
    if prompts is None and mask is not None and prompt_ids is not None and prompt_ids.ndim == 2:
        # verl: the prompts' columns come first, padded on the left.
        prompts = (mask[:, : prompt_ids.shape[1]] != 0).sum(axis=1)
    for given, what in ((labels, "labels"), (prompts, "prompt lengths")):
        if given is not None and len(given) != len(routes):
            raise TraceError(f"{name}: holds {len(given)} {what} for {len(routes)} sequences")
    for i, one in enumerate(routes):
        one.dataset = None if labels is None else str(labels[i])
        one.prompt_tokens = None if prompts is None else int(prompts[i])
