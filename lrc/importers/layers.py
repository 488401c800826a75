"""Which layers of a log are MoE layers: engines may count dense ones and fill them with zeros."""

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Options, Routes


def moe_layers(sequences: list[Routes], name: str, options: Options) -> np.ndarray:
    """Positions of the MoE layers on the log's axis of layers."""
    num_layers, top_k = sequences[0].experts.shape[1:]
    recorded = np.zeros(num_layers, bool)
    for routes in sequences:
        zero, none = fillers(routes.experts)
        recorded |= ~(zero | none).all(axis=0)
    if isinstance(options.moe_layers, str):
        if options.moe_layers != "recorded":
            raise TraceError(
                f"moe_layers is {options.moe_layers!r}, but must be 'recorded' or list layers"
            )
        layers = np.flatnonzero(recorded)
    elif options.moe_layers is not None:
        layers = np.asarray(list(options.moe_layers))
        if layers.dtype.kind not in "iu" or len(np.unique(layers)) < len(layers):
            raise TraceError("moe_layers must list layers by number, each once")
        if len(layers) and not 0 <= layers.min() <= layers.max() < num_layers:
            raise TraceError(
                f"{name}: moe_layers names layer {layers.max()}, but layers run from 0 to "
                f"{num_layers - 1}"
            )
    else:
        layers = np.arange(num_layers)
        # A log without tokens tells nothing of its layers.
        if not recorded.all() and any(len(routes.experts) for routes in sequences):
            raise TraceError(_ask_for_layers(recorded, top_k, name))
    if not len(layers):
        raise TraceError(f"{name}: no layer holds any routing, only zeros or -1")
    return layers


def _ask_for_layers(recorded, top_k, name):
    silent = np.flatnonzero(~recorded)
    if not recorded.any():
        return f"{name}: no layer holds any routing, only zeros or -1"
    one = len(silent) == 1
    also = " (or, with one slot, expert 0 throughout)" if top_k == 1 else ""
    return (
        f"{name}: {'layer' if one else 'layers'} {_listed(silent)} of {len(recorded)} "
        f"{'holds' if one else 'hold'} only zeros or -1: dense layers that the engine counted, or "
        f"MoE layers that it did not record{also}; moe_layers={_as_code(np.flatnonzero(recorded))} "
        "names the others, moe_layers='recorded' takes whichever were recorded"
    )


def fillers(experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that hold only zeros, and rows that hold only -1: bool arrays [tokens, layers]."""
    return (experts == 0).all(axis=-1), (experts == -1).all(axis=-1)


def _listed(numbers):
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, … ({len(numbers)} in all)"


def _as_code(numbers):
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers):
        return f"range({first}, {last + 1})"
    return str([int(number) for number in numbers])
