"""One Mixture-of-Experts layer of a model: its parts, its sizes, and the probe that reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from lrc.errors import RecordError
from lrc.probes import Probe

ROUTER = re.compile(r"(router|gate|gating)$", re.IGNORECASE)
"""Ends the class name of a router."""

# Parts of a model that a forward pass over text may leave out.
_OPTIONAL = re.compile(r"(^|\.)(mtp\w*|vision\w*|visual|audio\w*|talker)(\.|$)")

# Names of the number of experts a token uses. A config has a top_k for sampling as well.
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "num_selects")


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer.

    Attributes
    ----------
    name : str
        Of the block (router, experts, shared experts), for ``model.get_submodule``.
    experts_name : str
        Of the module of its routed experts.
    experts : torch.nn.Module
    router : torch.nn.Module or None
        Its neighbour that looks like a router (needed for ``mode="paper"`` only).
    probe : Probe
        Reads the ids of the experts that run.
    num_experts : int
        Routed experts.
    partial : bool
        Whether it is only called with tokens of its own kind, of which a pass may have none.
    expert_bytes : int
        Parameters of one routed expert, in bytes as they lie in memory.
    shared_experts : int
        Experts that every token uses, in units of one routed expert.
    """

    name: str
    experts_name: str
    experts: nn.Module
    router: nn.Module | None
    probe: Probe
    num_experts: int
    expert_bytes: int
    shared_experts: int
    partial: bool = False

    @property
    def optional(self) -> bool:
        """Whether a forward pass over text may leave this layer out (vision, audio, MTP)."""
        return bool(_OPTIONAL.search(self.experts_name))

    def __str__(self) -> str:
        return self.probe.label


def make_layer(
    model: nn.Module,
    experts_name: str,
    probe: Probe,
    num_experts: int,
    *,
    block: str | None = None,
    router: nn.Module | None = None,
    parameters: list[nn.Parameter] | None = None,
    shared: list[nn.Module] | None = None,
    partial: bool = False,
) -> MoeLayer:
    """Describe a layer whose experts and probe are known.

    Parameters
    ----------
    model : torch.nn.Module
    experts_name : str
        Of the module of the experts.
    probe : Probe
    num_experts : int
    block : str, optional
        Name of the block; default: the parent of the experts.
    router : torch.nn.Module, optional
        Default: the child of the block whose class is called a router.
    parameters : list of torch.nn.Parameter, optional
        Of the routed experts, where not all of the experts module's are.
    shared : list of torch.nn.Module, optional
        Shared experts; default: children of the block, or of the module around it, that are called
        so.
    partial : bool
        See `MoeLayer`.
    """
    experts = model.get_submodule(experts_name)
    name = experts_name.rpartition(".")[0] if block is None else block
    module = model.get_submodule(name)
    parameters = list(experts.parameters()) if parameters is None else parameters
    numbers = sum(p.numel() for p in parameters)
    if shared is None:
        above = model.get_submodule(name.rpartition(".")[0])
        shared = _called_shared(module, experts) or _called_shared(above, experts)
    # Not the gate of a shared expert: a single row of weights, lost in the rounding anyway.
    shared_numbers = sum(p.numel() for part in shared for p in part.parameters())
    router = _router(module, experts) if router is None else router
    probe.label = f"{experts_name} ({type(experts).__name__})"
    return MoeLayer(
        name=name or experts_name,
        experts_name=experts_name,
        experts=experts,
        router=router,
        probe=probe,
        num_experts=num_experts,
        expert_bytes=sum(p.numel() * p.element_size() for p in parameters) // num_experts,
        shared_experts=round(shared_numbers * num_experts / numbers) if numbers else 0,
        partial=partial,
    )


def count_experts(experts: nn.Module, label: str) -> int:
    """Number of experts of a module that holds all of them."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if isinstance(getattr(experts, name, None), int):
            return getattr(experts, name)
    leading = {parameter.shape[0] for parameter in experts.parameters() if parameter.ndim > 1}
    if len(leading) != 1:
        raise RecordError(f"{label}: cannot tell how many experts it has (no num_experts)")
    return leading.pop()


def find_top_k(model: nn.Module, block: nn.Module) -> int | None:
    """Experts that a token uses, where a block, its router or the model's config say so."""
    for place in (block, *block.children()):
        for name in ("top_k", *_TOP_K):
            if isinstance(getattr(place, name, None), int):
                return getattr(place, name)
    for name in _TOP_K:
        if isinstance(getattr(getattr(model, "config", None), name, None), int):
            return getattr(model.config, name)
    return None


def _called_shared(block, experts):
    return [
        child for name, child in block.named_children() if "shared" in name and child is not experts
    ]


def _router(block, experts):
    for child in block.children():
        if child is not experts and ROUTER.search(type(child).__name__):
            return child
    return None
