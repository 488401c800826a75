"""From a log to a trace: what is no routing is told from what is, by proof or by the caller's word.

Engines fill what they did not record with zeros or -1: padding, prompt tokens whose keys and values
were cached, dense layers that they count among the others. -1 says so itself. Zero may be expert 0,
but not in all of several slots, for no token uses an expert twice: with a top-k of 2 or more, a row
of zeros is proved to be filler. With one slot, a zero in some of a token's layers is expert 0
(fillers cover a token or a layer as a whole); in all of them it may be either.
"""

import base64

import numpy as np

from lrc.errors import TraceError
from lrc.importers.layers import fillers, moe_layers
from lrc.importers.log import Log, Options
from lrc.trace import Trace
from lrc.trace_checks import as_int16, check_experts


def build_trace(log: Log, name: str, options: Options) -> Trace:
    """Trace of a log, or an error that says which option would decide."""
    if not log.routes:
        raise TraceError(f"{name}: holds no sequences")
    _check_shapes(log.routes, name, options)
    for routes in log.routes:
        routes.experts = _as_ids(routes.experts, options.missing)
    layers = moe_layers(log.routes, name, options)
    prompts = _each(options.prompt_tokens, "prompt_tokens", len(log.routes))
    for routes, prompt in zip(log.routes, prompts, strict=True):
        if prompt is not None:
            if routes.prompt_tokens not in (None, prompt):
                raise TraceError(
                    f"{routes.place}: has {routes.prompt_tokens} prompt tokens, but prompt_tokens "
                    f"says {prompt}"
                )
            routes.prompt_tokens = prompt
        _select(routes, layers)
        _settle(routes, options.zero_rows)
        _take_part(routes, options.part)
    num_experts = _num_experts(log, name, options)
    for routes in log.routes:
        _sort_slots(routes)
        check_experts(
            routes.experts[None], np.array([len(routes.experts)]), num_experts, routes.place
        )
    return _assemble(log, num_experts, _labels(log, options), _meta(log, layers, options))


# --- Shapes -----------------------------------------------------------------------------------


def _check_shapes(sequences, name, options):
    first = sequences[0].experts.shape[1:]
    for routes in sequences:
        if routes.experts.ndim != 3:
            raise TraceError(
                f"{routes.place}: has {routes.experts.ndim} axes, but [tokens, layers, top_k] "
                "are needed"
            )
        shape = routes.experts.shape[1:]
        if shape != first:
            raise TraceError(
                f"{routes.place}: has {shape[0]} layers of {shape[1]} slots, but the first "
                f"sequence {first[0]} of {first[1]}: logs of one model at a time"
            )
    layers, top_k = first
    if options.num_layers not in (None, layers):
        total = sequences[0].experts.shape
        hint = ""
        if total[0] == options.num_layers:
            hint = "; its first axis has that length: give it as [tokens, layers, top_k]"
        raise TraceError(
            f"{name}: has {layers} layers, but num_layers says {options.num_layers}{hint}"
        )
    if options.top_k not in (None, top_k):
        raise TraceError(f"{name}: has {top_k} slots a token, but top_k says {options.top_k}")
    if not layers or not top_k:
        raise TraceError(f"{name}: has {layers} layers of {top_k} slots: nothing to read")


def _as_ids(experts, missing):
    ids = as_int16(experts)
    if missing is not None:
        ids[experts == missing] = -1
    return ids


def _select(routes, layers):
    if len(layers) < routes.experts.shape[1] or (np.diff(layers) != 1).any():
        _map_slots(routes, lambda array: array[:, layers])


# --- Tokens -----------------------------------------------------------------------------------


def _settle(routes, zero_rows):
    """Blank the rows that are no routing, and cut them off where they begin or end the text."""
    experts = routes.experts
    num_layers, top_k = experts.shape[1:]
    zero, none = fillers(experts)
    if top_k == 1:
        zero &= zero.all(axis=1, keepdims=True)
    if zero_rows == "expert":
        if top_k > 1 and zero.any():
            raise TraceError(
                f"{_row(routes, zero)}: all {top_k} slots are 0, which zero_rows='expert' would "
                "take for expert 0 used several times by one token; zero_rows='none' takes such "
                "rows as no routing"
            )
        zero[:] = False
    elif zero_rows == "error" and top_k == 1 and zero.any():
        where = "every layer" if num_layers > 1 else "its only layer"
        count = int(zero[:, 0].sum())
        raise TraceError(
            f"{_row(routes, zero)}: 0 in {where} ({count:,} such token{'s' * (count > 1)} in this "
            "sequence), which with one slot may be expert 0 or a row that was never filled; "
            "zero_rows='expert' takes it as expert 0, zero_rows='none' as no routing (and cuts off "
            "such tokens at either end)"
        )
    used = np.flatnonzero(~(zero | none).all(axis=1))
    first, last = (used[0], used[-1] + 1) if len(used) else (0, 0)
    inner = zero[first:last]
    if zero_rows == "error" and inner.any():
        offset = np.zeros_like(zero)
        offset[first:last] = inner
        raise TraceError(
            f"{_row(routes, offset)}: all {top_k} slots are 0 ({int(inner.sum()):,} such rows in "
            "this sequence); no token uses an expert twice, so nothing was recorded there; "
            "zero_rows='none' counts them as tokens without an expert"
        )
    experts[zero] = -1
    _cut(routes, first, last)


def _row(routes, where):
    token, layer = np.unravel_index(where.argmax(), where.shape)
    return f"{routes.place}, token {token}, layer {layer}"


def _take_part(routes, part):
    if part == "all":
        return
    if routes.prompt_tokens is None:
        raise TraceError(
            f"{routes.place}: does not say where its prompt ends, which part={part!r} needs; give "
            "prompt_tokens, a number or one for each sequence"
        )
    border = min(max(routes.prompt_tokens - routes.start, 0), len(routes.experts))
    if part == "prompt":
        _cut(routes, 0, border)
    else:
        _cut(routes, border, len(routes.experts))


def _cut(routes, first, last):
    _map_slots(routes, lambda array: array[first:last])
    if routes.token_ids is not None:
        routes.token_ids = routes.token_ids[first:last]
    routes.start += int(first)


def _map_slots(routes, change):
    routes.experts = np.ascontiguousarray(change(routes.experts))
    if routes.weights is not None:
        routes.weights = change(routes.weights)
    routes.flags = {name: change(array) for name, array in routes.flags.items()}


def _sort_slots(routes):
    """Slots in falling weight where weights are known; equal ones as the log has them."""
    if routes.weights is None or not routes.experts.size:
        return
    # By the weights that the trace keeps, so that its order can be told from them. Slots without
    # an expert come last.
    keys = np.where(routes.experts < 0, -np.inf, routes.weights.astype(np.float16))
    order = np.argsort(-keys, axis=-1, kind="stable")
    _map_slots(routes, lambda array: np.take_along_axis(array, order, axis=-1))


# --- The trace --------------------------------------------------------------------------------


def _num_experts(log, name, options):
    if log.num_experts is not None and options.num_experts not in (None, log.num_experts):
        raise TraceError(
            f"{name}: says {log.num_experts} experts, but num_experts says {options.num_experts}"
        )
    num_experts = options.num_experts or log.num_experts
    if num_experts is None:
        largest = max((int(r.experts.max()) for r in log.routes if r.experts.size), default=-1)
        raise TraceError(
            f"{name}: does not say how many routed experts a layer has; give num_experts (the "
            f"largest id is {largest}, but experts beyond it may just not have been used)"
        )
    return num_experts


def _labels(log, options):
    if options.datasets is None:
        labels = [routes.dataset for routes in log.routes]
        return None if None in labels else labels
    if isinstance(options.datasets, str):
        return [options.datasets] * len(log.routes)
    return list(options.datasets)


def _meta(log, layers, options):
    meta = {"source": log.format, "layers": [str(layer) for layer in layers]} | log.meta
    if isinstance(meta.get("expert_bytes"), list):
        sizes = [meta["expert_bytes"][layer] for layer in layers]
        meta["expert_bytes"] = sizes[0] if len(set(sizes)) == 1 else sizes
    if options.part == "all" and all(r.prompt_tokens is not None for r in log.routes):
        meta["prompt_tokens"] = [
            min(max(r.prompt_tokens - r.start, 0), len(r.experts)) for r in log.routes
        ]
    return meta | (options.meta or {})


def _assemble(log, num_experts, labels, meta):
    sequences = log.routes
    lengths = [len(routes.experts) for routes in sequences]
    shape = (len(sequences), max(lengths), *sequences[0].experts.shape[1:])
    experts = np.full(shape, -1, np.int16)
    weights = None
    if all(routes.weights is not None for routes in sequences):
        weights = np.zeros(shape, np.float32)
    token_ids = None
    if any(routes.token_ids is not None for routes in sequences):
        token_ids = np.full(shape[:2], -1, np.int64)
    flags = {name: np.zeros(shape, bool) for name in sequences[0].flags}
    for i, routes in enumerate(sequences):
        experts[i, : lengths[i]] = routes.experts
        if weights is not None:
            weights[i, : lengths[i]] = routes.weights
        if routes.token_ids is not None:
            token_ids[i, : lengths[i]] = routes.token_ids
        for name, array in flags.items():
            array[i, : lengths[i]] = routes.flags[name]
    for name, array in flags.items():
        meta[name] = {"shape": list(shape), "bits": pack_flags(array)}
    return Trace(
        experts,
        num_experts,
        lengths=lengths,
        datasets=labels,
        token_ids=token_ids,
        weights=weights,
        meta=meta,
    )


def pack_flags(flags: np.ndarray) -> str:
    """Bits of a bool array as text that JSON can hold."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpack_flags(packed: dict) -> np.ndarray:
    """The bool array that `pack_flags` packed, of the shape that is kept with it."""
    bits = np.frombuffer(base64.b64decode(packed["bits"]), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(packed["shape"]))).reshape(packed["shape"]) > 0


def _each(value, name, count):
    """A number for each sequence, given as one for all or one each."""
    values = [value] * count if value is None or np.ndim(value) == 0 else list(value)
    if len(values) != count:
        raise TraceError(f"{name} has {len(values)} numbers for {count} sequences")
    for one in values:
        if one is not None and not (isinstance(one, int | np.integer) and one >= 0):
            raise TraceError(f"{name} holds {one!r}, but must count tokens")
    return [None if one is None else int(one) for one in values]
