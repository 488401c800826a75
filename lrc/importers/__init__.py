"""Foreign logs of expert routing, read into traces: `lrc.load_routes`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lrc.errors import TraceError
from lrc.importers import responses, route_trace
from lrc.importers.arrays import read_arrays
from lrc.importers.esft import FILE, find_layers, read_esft
from lrc.importers.fingerprint import KEY, PATTERN, read_fingerprints
from lrc.importers.log import Format, Options, name_of
from lrc.importers.npy import NPY_MAGIC, Npz, load_torch
from lrc.importers.resolve import build_trace
from lrc.importers.route_trace import residency
from lrc.importers.sglang_recorder import read_recorder
from lrc.trace import Trace

__all__ = ["FORMATS", "load_routes", "residency"]

FORMATS: dict[str, Format] = {
    "vllm": Format("responses of vLLM", responses.read_vllm, ("prompt_start",)),
    "sglang": Format("responses of an SGLang server", responses.read_sglang, ("prompt_start",)),
    "sglang-recorder": Format("SGLang's recorder, mode per_token", read_recorder, ("stitch",)),
    "array": Format("arrays: .npy, .npz, .pt, replay buffers", read_arrays, ("lengths",)),
    "route-trace": Format("CSV of route_trace v1", route_trace.read_route_trace),
    "esft": Format("folder of ESFT's expert_weights_N.txt", read_esft),
    "fingerprint": Format("JSON of gpt-oss's expert fingerprints", read_fingerprints),
}
"""Formats that `lrc.load_routes` reads."""


def load_routes(
    source: Any,
    *,
    format: str | None = None,
    num_experts: int | None = None,
    num_layers: int | None = None,
    top_k: int | None = None,
    moe_layers: Sequence[int] | str | None = None,
    zero_rows: str = "error",
    missing: int | None = None,
    lengths: Sequence[int] | None = None,
    prompt_tokens: int | Sequence[int] | None = None,
    prompt_start: int | None = None,
    part: str = "all",
    stitch: str = "proved",
    datasets: str | Sequence[str] | None = None,
    meta: dict[str, Any] | None = None,
) -> Trace:
    """Read the routing that another program recorded.

    The format is found by content. What a log leaves open is taken from the options below or
    proved from the data, never guessed: else an error says which option decides, and what each of
    its values would mean.

    Parameters
    ----------
    source : path or object
        A file or folder; a list of files, for expert fingerprints; or what a file would hold: an
        array or tensor, a list of one array a layer, a mapping of arrays, parsed responses, outputs
        of vLLM's ``LLM.generate``.
    format : str, optional
        One of `lrc.importers.FORMATS`: "vllm", "sglang", "sglang-recorder", "array",
        "route-trace", "esft", "fingerprint".
    num_experts : int, optional
        Routed experts of a layer. Needed unless the log says it.
    num_layers, top_k : int, optional
        Layers (as the log counts them) and slots of a token. Needed where the log does not say
        them: both for SGLang's responses (one is enough where these count their tokens), `top_k`
        for ESFT. Elsewhere they are compared with the log.
    moe_layers : sequence of int or "recorded", optional
        Which of the log's layers, from 0, are MoE layers. Needed where a layer holds only zeros or
        -1: engines that count dense layers fill them so. "recorded" takes every other layer.
    zero_rows : {"error", "none", "expert"}
        What a row of zeros is. With several slots it is proved to be no routing: at the ends of a
        text it is cut off as padding, elsewhere "none" counts it as a token without an expert.
        With one slot it may be "expert" 0, where a token has zeros in all layers; "none" takes it
        as no routing.
    missing : int, optional
        A number that stands for no expert in the log, besides -1.
    lengths : sequence of int, optional
        For arrays. ``[tokens, layers, top_k]``: tokens of each text in it, one after the other.
        ``[sequences, tokens, layers, top_k]``: valid tokens at the head of each sequence.
    prompt_tokens : int or sequence of int, optional
        Tokens of the prompt of each text, where the log does not say it; goes into
        ``meta["prompt_tokens"]`` and is what `part` needs.
    prompt_start : int, optional
        For responses: tokens at the head of each prompt that the engine was asked to leave out
        (``routed_experts_prompt_start``, ``routed_experts_start_len``).
    part : {"all", "prompt", "completion"}
        Which tokens to keep.
    stitch : {"proved", "order", "none"}
        For SGLang's recorder: which tokens of successive passes to join into one text. "proved":
        where positions leave one possibility; "order": also those that the batch's order tells
        apart; "none": none. See `lrc.importers.sglang_recorder`.
    datasets : str or sequence of str, optional
        Label of all texts, or of each; in place of those of the log.
    meta : dict, optional
        Added to the trace's `meta`.

    Returns
    -------
    Trace
        ``meta["source"]`` is the format, ``meta["layers"]`` the numbers of the layers in the log,
        ``meta["prompt_tokens"]`` the prompt's tokens in each sequence where known. Slots are in
        falling weight where weights are known, else as recorded. Rows of -1 or zeros at the ends
        of a text are cut off.

    Raises
    ------
    TraceError
        No such file, no format that is known, a log that is damaged, holds no valid routing, or
        leaves open what an option must decide; the message names the place.

    Notes
    -----
    Files are only read, never run: no pickle is loaded, torch files with ``weights_only``. Declared
    shapes are compared with the bytes that are there before memory is taken.

    Examples
    --------
    >>> lrc.load_routes("routes.npy", num_experts=64)  # doctest: +SKIP
    >>> lrc.load_routes([[[0, 2]], [[1, 2]]], num_experts=4)
    <lrc.Trace: 1 sequence, 2 tokens, 1 layer, top-2 of 4 experts>
    """
    options = Options(
        num_experts=num_experts,
        num_layers=num_layers,
        top_k=top_k,
        moe_layers=moe_layers,
        zero_rows=zero_rows,
        missing=missing,
        lengths=lengths,
        prompt_tokens=prompt_tokens,
        prompt_start=prompt_start,
        part=part,
        stitch=stitch,
        datasets=datasets,
        meta=meta,
    )
    if isinstance(source, str | PathLike):
        source = Path(source).expanduser()
        if not source.exists():
            raise TraceError(f"{source}: no such file or folder")
    name = name_of(source)
    if format is None:
        format = _find_file(source, name) if isinstance(source, Path) else _find_object(source)
    if format not in FORMATS:
        known = "\n".join(f"{key!r} ({value.about})" for key, value in FORMATS.items())
        known = ", ".join(known.splitlines())
        what = f"format is {format!r}" if format else f"{name}: no format that is known"
        raise TraceError(f"{what}; it must be one of {known}")
    foreign = {o for other in FORMATS.values() for o in other.options}
    for option in options.given():
        if option in foreign - set(FORMATS[format].options):
            raise TraceError(f"{name}: {option} means nothing for format {format!r}")
    try:
        return build_trace(FORMATS[format].read(source, name, options), name, options)
    except OSError as error:
        raise TraceError(f"{name}: cannot be read ({error.strerror})") from error
    except TraceError as error:
        # Libraries may say in several lines why they cannot read something.
        raise TraceError(" ".join(str(error).split())) from error


def _find_file(path, name):
    """Format of a file or folder, by content; None if there is none."""
    if path.is_dir():
        folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
        if any(map(find_layers, folders)):
            return "esft"
        return "fingerprint" if next(path.rglob(PATTERN), None) else None
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError as error:
        raise TraceError(f"{name}: cannot be read ({error.strerror})") from error
    if not head:
        raise TraceError(f"{name}: is empty")
    if head.startswith(NPY_MAGIC):
        return "array"
    if head.startswith(b"PK"):
        return "array" if len(Npz(path)) else _find_object(load_torch(path))
    if head.startswith(b"PAR1"):
        raise TraceError(f"{name}: is a Parquet file: lrc.load_trace reads traces of lrc")
    if head.startswith(route_trace.MAGIC.encode()):
        return "route-trace"
    if FILE.fullmatch(path.name):
        return "esft"
    if head.lstrip()[:1] in (b"{", b"["):
        document = next(responses.documents(path))
        if isinstance(document, Mapping) and KEY in document:
            return "fingerprint"
        return responses.kind_of(document)
    return None


def _find_object(source):
    if isinstance(source, Mapping) and "records" in source:
        return "sglang-recorder"
    if hasattr(source, "outputs") or hasattr(source, "routed_experts"):
        return "vllm"
    if isinstance(source, list | tuple) and source and not hasattr(source[0], "ndim"):
        if all(isinstance(path, Path) for path in source):
            return _find_file(source[0], name_of(source[0]))
        if isinstance(source[0], Mapping):
            return responses.kind_of(source)
        if hasattr(source[0], "outputs") or hasattr(source[0], "routed_experts"):
            return "vllm"
    if isinstance(source, Mapping):
        return responses.kind_of(source) or "array"
    return "array"
