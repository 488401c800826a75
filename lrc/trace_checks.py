"""What makes a trace valid: each check gives the array as a trace keeps it, or names the fault."""

import json
from os import PathLike

import numpy as np

from lrc.errors import TraceError
from lrc.kernels.cpu_checks import OUT_OF_RANGE, first_fault

MAX_EXPERTS = np.iinfo(np.int16).max


def checked_array(values, name, *, kinds, ndim):
    """Array of the right kind and number of axes; torch tensors on any device are welcome."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TraceError(f"{name} is ragged: pad it to one shape and give lengths") from error
    if array.size == 0 and array.dtype.kind == "f" and "i" in kinds and "f" not in kinds:
        array = array.astype(np.int16)  # numpy's dtype of an empty list
    if array.dtype.kind not in kinds:
        wanted = "numbers" if "f" in kinds else "integers"
        raise TraceError(f"{name} has dtype {array.dtype}, but must hold {wanted}")
    if array.ndim != ndim:
        raise TraceError(f"{name} has shape {list(array.shape)}, but must have {ndim} axes")
    return array


def checked_num_experts(num_experts):
    if isinstance(num_experts, bool) or not isinstance(num_experts, int | np.integer):
        raise TraceError(f"num_experts is {num_experts!r}, but must be an integer")
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise TraceError(f"num_experts is {num_experts}, but must be from 1 to {MAX_EXPERTS}")
    return int(num_experts)


def checked_lengths(lengths, num_sequences, num_tokens):
    if lengths is None:
        return np.full(num_sequences, num_tokens, np.int64)
    lengths = checked_array(lengths, "lengths", kinds="iu", ndim=1).astype(np.int64)
    if lengths.shape != (num_sequences,):
        raise TraceError(f"lengths has {len(lengths)} entries for {num_sequences} sequences")
    wrong = (lengths < 0) | (lengths > num_tokens)
    if wrong.any():
        i = int(wrong.argmax())
        raise TraceError(f"lengths[{i}] is {lengths[i]}, but must be from 0 to {num_tokens} tokens")
    return lengths


def checked_experts(given, lengths, num_experts):
    experts = as_int16(given)
    _blank_past(experts, lengths, -1)
    check_experts(experts, lengths, num_experts, "experts", given)
    return experts


def as_int16(given):
    """Copy of integers, clipped where they do not fit: what was out of range stays so."""
    info = np.iinfo(np.int16)
    fits = np.can_cast(given.dtype, np.int16) or not given.size
    if not fits and (given.min() < info.min or given.max() > info.max):
        # Not wrapped (what does not fit may also lie past a length).
        return np.clip(given, -2 if given.dtype.kind == "i" else 0, info.max).astype(np.int16)
    return np.array(given, np.int16, order="C")


def check_experts(experts, lengths, num_experts, name, given=None):
    """Raise `TraceError` at the first id that is out of range or twice in a token."""
    fault, i, t, j, k = first_fault(experts, lengths, num_experts)
    if not fault:
        return
    value = (experts if given is None else given)[i, t, j, k]
    place = f"{name}[sequence {i}, token {t}, layer {j}, slot {k}] is {value}"
    if fault == OUT_OF_RANGE:
        raise TraceError(
            f"{place}, but ids run from 0 to {num_experts - 1} (-1 = no expert): "
            "correct num_experts or the ids"
        )
    raise TraceError(
        f"{place}, which an earlier slot of the same token has too: a token uses an expert once"
    )


def checked_datasets(datasets, num_sequences):
    if datasets is None:
        return None
    if isinstance(datasets, str):
        raise TraceError(f"datasets is one text, {datasets!r}: give a label for each sequence")
    labels = list(datasets)
    if len(labels) != num_sequences:
        raise TraceError(f"datasets has {len(labels)} labels for {num_sequences} sequences")
    for i, label in enumerate(labels):
        if not isinstance(label, str) or not label:
            raise TraceError(f"datasets[{i}] is {label!r}, but must be a text that is not empty")
    return np.array(labels, dtype=np.str_) if labels else np.empty(0, np.str_)


def checked_tokens(tokens, name, lengths, num_tokens):
    if tokens is None:
        return None
    tokens = checked_array(tokens, name, kinds="iu", ndim=2)
    if tokens.shape != (len(lengths), num_tokens):
        raise TraceError(
            f"{name} has shape {list(tokens.shape)}, but experts has "
            f"[{len(lengths)}, {num_tokens}] sequences and tokens"
        )
    wide = tokens.astype(np.int64)
    _blank_past(wide, lengths, -1)
    wrong = (wide < -1) | (wide > np.iinfo(np.int32).max)
    if wrong.any():
        i, t = np.unravel_index(wrong.argmax(), wrong.shape)
        raise TraceError(
            f"{name}[sequence {i}, token {t}] is {tokens[i, t]}, but ids start at 0 (-1 = unknown)"
        )
    return wide.astype(np.int32)


def checked_weights(weights, experts, lengths):
    if weights is None:
        return None
    weights = checked_array(weights, "weights", kinds="fiu", ndim=4)
    if weights.shape != experts.shape:
        raise TraceError(
            f"weights has shape {list(weights.shape)}, but experts has {list(experts.shape)}"
        )
    with np.errstate(over="ignore"):
        half = np.array(weights, np.float16, order="C")
    half[experts < 0] = 0
    wrong = ~((half >= 0) & np.isfinite(half))
    if wrong.any():
        i, t, j, k = np.unravel_index(wrong.argmax(), wrong.shape)
        raise TraceError(
            f"weights[sequence {i}, token {t}, layer {j}, slot {k}] is {weights[i, t, j, k]}, "
            "but must be a number from 0 to 65504"
        )
    return half


def checked_meta(meta):
    """Meta as JSON gives it back, or `TraceError`."""
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise TraceError(f"meta is of type {type(meta).__name__}, but must be a dict")
    try:
        return json.loads(json.dumps(meta, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TraceError(f"meta cannot be kept as JSON: {error}") from error


def _plain(value):
    """Numpy scalars and arrays, dtypes and paths as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, PathLike) or type(value).__name__ == "dtype":
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _blank_past(array, lengths, fill):
    for i in np.flatnonzero(lengths < array.shape[1]):
        array[i, lengths[i] :] = fill
