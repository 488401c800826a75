"""``route_trace v1``: the CSV of an engine that runs models from flash memory on a phone.

Comments name the model, its numbers of layers, experts and slots, and the bytes of one expert of
each layer. A row is one slot of one token in one layer: turn, phase (0 = prompt, 1 = generation),
step (the token), layer, slot, expert, weight, residency (1 = the expert was in the cache) and
expert_bytes (those read from flash for this row: 0 for an expert that was there, or was read for
another token of the same batch).

In the prompt, engines run the last layer for the last token only, whose logits they need: there,
and nowhere else, rows may be missing.
"""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes
from lrc.importers.resolve import unpack_flags
from lrc.trace import Trace

MAGIC = "# route_trace v1"
COLUMNS = (
    "turn",
    "phase",
    "step",
    "layer",
    "slot",
    "expert",
    "weight",
    "residency",
    "expert_bytes",
)


def read_route_trace(source: Path, name: str, options: Options) -> Log:
    """Read a file; a turn is a sequence."""
    header, table = _read(source, name)
    layers, num_layers = _layers(header, table, name)
    top_k = header["n_expert_used"]
    _check_numbers(table, header, name)
    routes = []
    for turn, rows in table.groupby("turn", sort=True):
        place = f"{name}, turn {turn}"
        steps = np.unique(rows["step"])
        if steps[-1] - steps[0] + 1 != len(steps):
            missing = steps[:-1][np.diff(steps) > 1][0] + 1
            raise TraceError(f"{place}: step {missing} is missing: a part of the log is lost")
        at = (rows["step"] - steps[0], rows["layer"], rows["slot"])
        shape = (len(steps), num_layers, top_k)
        if rows.duplicated(["step", "layer", "slot"]).any():
            row = rows[rows.duplicated(["step", "layer", "slot"])].iloc[0]
            raise TraceError(f"{place}, step {row.step:.0f}: a slot of layer {row.layer:.0f} twice")
        experts = _filled(shape, at, rows["expert"], -1, np.int32)
        prompt = np.unique(rows.loc[rows["phase"] == 0, "step"])
        if len(prompt) and prompt[-1] - steps[0] + 1 != len(prompt):
            raise TraceError(f"{place}: prompt steps follow generated ones")
        _check_complete(experts, layers, len(prompt), steps[0], place)
        routes.append(
            Routes(
                experts,
                place,
                weights=_filled(shape, at, rows["weight"], 0, np.float32),
                prompt_tokens=len(prompt),
                flags={
                    "resident": _filled(shape, at, rows["residency"], 0, bool),
                    "read": _filled(shape, at, rows["expert_bytes"] > 0, 0, bool),
                },
            )
        )
    meta = {"model": header["model"], "architecture": header["arch"]}
    if header["expert_bytes"]:
        meta["expert_bytes"] = [header["expert_bytes"].get(n, 0) for n in range(num_layers)]
    if len(layers) < num_layers:
        routes = [_without_dense(one, layers) for one in routes]
        meta["layers"] = [str(layer) for layer in layers]
        if header["expert_bytes"]:
            meta["expert_bytes"] = [meta["expert_bytes"][layer] for layer in layers]
    return Log(routes, "route-trace", header["n_expert"], meta=meta)


def residency(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """What the engine's cache held when a ``route_trace`` was written.

    Parameters
    ----------
    trace : Trace
        As `lrc.load_routes` read it, not a part of it.

    Returns
    -------
    resident, read : bool array [sequences, tokens, layers, top_k]
        Whether a slot's expert was in the cache, and whether it was read from flash for this slot.

    Raises
    ------
    TraceError
        The trace does not know.
    """
    packed = [trace.meta.get(name) for name in ("resident", "read")]
    if any(not isinstance(one, dict) or one.get("shape") != list(trace.shape) for one in packed):
        raise TraceError(
            "the trace does not say what was in a cache: only a whole route_trace v1 does, as "
            "lrc.load_routes reads it"
        )
    resident, read = map(unpack_flags, packed)
    return resident, read


def _read(path, name):
    """Comments at the top, and the table below them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TraceError(f"{name}: no text ({error})") from error
    if not text.startswith(MAGIC):
        raise TraceError(f"{name}: does not begin with {MAGIC!r}")
    comments, _, body = text.partition("\nturn,")
    lines = comments.splitlines()
    header = {"model": "", "arch": "", "expert_bytes": {}}
    for line in lines[1:]:
        values = dict(re.findall(r"(\w+)=(\S+)", line))
        try:
            if "layer" in values:
                header["expert_bytes"][int(values["layer"])] = int(values["expert_bytes"])
            else:
                header |= {key: values[key] for key in ("arch",) if key in values}
                header |= {key: int(values[key]) for key in values if key.startswith("n_")}
        except (KeyError, ValueError) as error:
            raise TraceError(f"{name}: cannot read its comment {line!r}") from error
        # A model's path may hold spaces; where it lay is nobody's business.
        if found := re.search(r"model=(.*?)(?: \w+=|$)", line):
            header["model"] = re.split(r"[/\\]", found[1])[-1]
    for key in ("n_layer", "n_expert", "n_expert_used"):
        if header.get(key, 0) < 1:
            raise TraceError(f"{name}: its comments do not give {key}")
    if not body:
        raise TraceError(f"{name}: has no rows: cut short?")
    if not body.endswith("\n"):
        raise TraceError(f"{name}: its last line is cut short: copy it again, or drop that token")
    try:
        table = pd.read_csv(io.StringIO("turn," + body))
    except (pd.errors.ParserError, ValueError) as error:
        raise TraceError(f"{name}: a row cannot be read ({error})") from error
    if missing := [column for column in COLUMNS if column not in table]:
        raise TraceError(f"{name}: has no column {missing[0]!r}")
    if not len(table):
        raise TraceError(f"{name}: has no rows: cut short?")
    return header, table


def _check_numbers(table, header, name):
    for column in COLUMNS:
        values = table[column]
        whole = column != "weight"
        if values.dtype.kind not in ("iu" if whole else "iuf") or values.isna().any():
            raise TraceError(f"{name}: column {column!r} has an entry that is no number: damaged")
    for column, limit in (
        ("layer", header["n_layer"]),
        ("slot", header["n_expert_used"]),
        ("expert", header["n_expert"]),
        ("phase", 2),
        ("residency", 2),
        ("step", 1 << 24),
    ):
        wrong = (table[column] < 0) | (table[column] >= limit)
        if wrong.any():
            row = table[wrong].iloc[0]
            raise TraceError(
                f"{name}, step {row.step:.0f}, layer {row.layer:.0f}: {column} is "
                f"{row[column]:.0f}, but must be from 0 to {limit - 1}"
            )


def _layers(header, table, name):
    """Layers with rows; a layer without any is dense if its experts have no bytes."""
    num_layers = header["n_layer"]
    there = np.unique(table["layer"].to_numpy())
    for layer in np.setdiff1d(np.arange(num_layers), there):
        if header["expert_bytes"].get(int(layer), 0) > 0:
            raise TraceError(
                f"{name}: layer {layer} has experts of {header['expert_bytes'][int(layer)]:,} "
                "bytes, but no rows: a part of the log is lost"
            )
    return there, num_layers


def _filled(shape, at, values, fill, dtype):
    array = np.full(shape, fill, dtype)
    array[tuple(index.to_numpy() for index in at)] = values.to_numpy().astype(dtype)
    return array


def _check_complete(experts, layers, num_prompt, first_step, place):
    """Every token has all slots in every layer, but for the prompt's tokens in the last."""
    there = experts[:, layers] >= 0
    some, every = there.any(axis=-1), there.all(axis=-1)
    missing = ~every
    if num_prompt > 1 and not some[: num_prompt - 1, -1].any():
        missing[: num_prompt - 1, -1] = False
    if missing.any():
        token, column = np.unravel_index(missing.argmax(), missing.shape)
        raise TraceError(
            f"{place}, step {first_step + token}: layer {layers[column]} lacks "
            f"{int((~there[token, column]).sum())} of {experts.shape[2]} slots: the log is cut "
            "short or damaged there"
        )


def _without_dense(routes, layers):
    routes.experts, routes.weights = routes.experts[:, layers], routes.weights[:, layers]
    routes.flags = {name: array[:, layers] for name, array in routes.flags.items()}
    return routes
