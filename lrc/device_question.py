"""What a user asks of a device, read from a notebook's parameters and checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lrc.errors import LrcError
from lrc.params import ParameterError, resolve_trace
from lrc.recommendation import Recommendation, recommend
from lrc.throughput import Device
from lrc.trace import Trace

DEFAULT = "toy:baseline"
"""The trace of those who name neither a trace nor a model."""

_GB = 10**9


@dataclass(frozen=True)
class Question:
    """A device, a memory budget, and what is known of a model.

    Attributes
    ----------
    source : Trace or str
        A trace, or the key of a published model.
    name : str
    budget_bytes : int
    expert_bytes : list of int
        Of one expert of each layer.
    device : lrc.throughput.Device
    batch_size, draft_tokens : int
    """

    source: Trace | str
    name: str
    budget_bytes: int
    expert_bytes: list[int]
    device: Device
    batch_size: int
    draft_tokens: int

    def answer(self, **options) -> Recommendation:
        """`lrc.recommendation.recommend` of all this; `options` as there."""
        return recommend(
            self.source,
            self.budget_bytes,
            expert_bytes=self.expert_bytes,
            device=self.device,
            batch_size=self.batch_size,
            draft_tokens=self.draft_tokens,
            name=self.name,
            **options,
        )


def ask(
    *,
    trace: str,
    model: str,
    expert_bytes: int | str,
    bits: float,
    memory_gb: float,
    bandwidth_gb: float,
    latency_ms: float,
    compute_ms: float,
    overlap: float,
    uncertainty: float,
    batch_size: int,
    draft_tokens: int,
    out: str = "",
) -> Question:
    """Read a notebook's parameters; whatever cannot be answered ends in one sentence.

    Parameters
    ----------
    trace : str
        As for `lrc.resolve_trace`; empty if a model is given, or for `DEFAULT`.
    model : str
        Key of a published model, in place of a trace.
    expert_bytes : int or str
        Bytes of one expert; or a ``config.json``, a folder with one, or a name on the hub, which
        tell them; 0 for what the trace says, or the published numbers of parameters.
    bits : float
        Bits of a weight where `expert_bytes` is a configuration, or a model is given; 0 for as
        stored.
    memory_gb : float
        For experts of all layers, in 10^9 bytes.
    bandwidth_gb : float
        10^9 bytes a second, at which experts are loaded.
    latency_ms, compute_ms : float
        Milliseconds a load, and those of computing a step.
    overlap : float
        As in `lrc.throughput.Device`.
    uncertainty : float
        Share by which a step may take longer, or less long, than these numbers say.
    batch_size, draft_tokens : int
        As in `lrc.unions.join_steps`.
    out : str
        File that will be written; its folder must be there.

    Returns
    -------
    Question

    Raises
    ------
    ParameterError
        Names the parameter, and what it must be.
    """
    if trace and model:
        raise ParameterError(
            f"trace, model: give one of the two, not both ({trace!r} and {model!r})"
        )
    trace = trace or ("" if model else DEFAULT)
    numbers = {"memory_gb": memory_gb, "bandwidth_gb": bandwidth_gb}
    wanted = {"memory_gb": "gigabytes for experts", "bandwidth_gb": "gigabytes a second"}
    for name, value in numbers.items():
        if not math.isfinite(value) or value <= 0:
            raise ParameterError(f"{name} is {value!r}, but must be {wanted[name]}, more than 0")
    numbers = {"latency_ms": latency_ms, "compute_ms": compute_ms}
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0:
            raise ParameterError(f"{name} is {value!r}, but must be milliseconds, 0 or more")
    for name, value, most in (("overlap", overlap, 1), ("uncertainty", uncertainty, 0.99)):
        if not 0 <= value <= most:
            raise ParameterError(f"{name} is {value!r}, but must be a share from 0 to {most}")
    if out and not Path(out).expanduser().absolute().parent.is_dir():
        raise ParameterError(f"out: there is no folder for {out!r}: make it first")
    device = Device(
        float(compute_ms),
        float(bandwidth_gb) * _GB,
        float(latency_ms),
        float(overlap),
        (1 - uncertainty, 1 + uncertainty),
    )
    source: Trace | str = model
    try:
        if model:
            from lrc.published_sizing import published_shape

            layers, num_experts, top_k = published_shape(model)
        else:
            source = read = resolve_trace(trace)
            layers, num_experts, top_k = read.num_layers, read.num_experts, read.top_k
    except ParameterError:
        raise
    except LrcError as error:
        raise ParameterError(f"model: {error}") from error
    sizes = _expert_bytes(expert_bytes, bits, source, layers, num_experts)
    budget = round(memory_gb * _GB)
    _check_budget(memory_gb, budget, sizes, num_experts, top_k)
    if model and (batch_size, draft_tokens) != (1, 1):
        raise ParameterError(
            "batch_size, draft_tokens: a published curve serves token by token; give a trace"
        )
    texts, longest = 1, 1
    if isinstance(source, Trace):
        texts, longest = source.num_sequences, int(source.lengths.max())
    for name, value, most in (
        ("batch_size", batch_size, texts),
        ("draft_tokens", draft_tokens, longest),
    ):
        if not 1 <= value <= most:
            raise ParameterError(f"{name} is {value!r}, but must be from 1 to {most} here")
    called = trace or f"published curves of {model}"
    return Question(source, called, budget, sizes, device, batch_size, draft_tokens)


def _expert_bytes(given, bits, source, layers, num_experts):
    """Bytes of one expert of each layer."""
    from lrc import expert_bytes as experts

    try:
        if isinstance(given, str) and not given.strip().isdecimal():
            shape = experts.of_config(given)
            found = (len(shape.parameters), shape.num_experts)
            if found != (layers, num_experts):
                raise LrcError(
                    f"{given} has {found[0]} layers of {found[1]} experts, but the trace or model "
                    f"has {layers} of {num_experts}"
                )
            return shape.num_bytes(bits or None)
        given = int(given)
        if given < 0:
            raise LrcError(f"is {given}, but an expert has at least one byte")
        if given:
            return [given] * layers
        if isinstance(source, str):
            return experts.of_published(source).num_bytes(bits or None)
        known = source.meta.get("expert_bytes")
        if known is None:
            raise LrcError(
                "the trace does not say how many bytes an expert has: give them, or a config.json"
            )
        return [known] * layers if isinstance(known, int) else list(known)
    except LrcError as error:
        raise ParameterError(f"expert_bytes: {error}") from error


def _check_budget(memory_gb, budget, sizes, num_experts, top_k):
    least, model = top_k * max(sizes), num_experts * sum(sizes)
    if budget < least:
        raise ParameterError(
            f"memory_gb is {memory_gb:g}, but the {top_k} experts that one token uses in one layer "
            f"already take {least / _GB:.3g} GB"
        )
    if budget > model:
        raise ParameterError(
            f"memory_gb is {memory_gb:g}, and all experts of the model take {model / _GB:.3g} GB: "
            "no cache is needed, keep them all"
        )
