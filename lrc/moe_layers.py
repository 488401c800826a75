"""The Mixture-of-Experts layers of a PyTorch model: where they are and what their experts are.

In transformers 5 the experts of a layer are one module whose ``forward`` is handed the ids that
the router chose. Whatever the router does before (groups, correction bias, capacity), these ids are
what runs; so the rule looks for modules with such an argument, not for routers.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from torch import nn

from lrc.errors import LrcError

INDEX_ARGUMENTS = (
    "top_k_index",
    "topk_indices",
    "topk_index",
    "topk_idx",
    "topk_ids",
    "topK_indices",
    "router_indices",
    "selected_experts",
    "top_experts",
    "expert_indices",
)
"""Names under which ``forward`` of an experts module takes the chosen ids."""

WEIGHT_ARGUMENTS = (
    "top_k_weights",
    "topk_weights",
    "topk_weight",
    "topK_scores",
    "routing_weights",
    "router_weights",
    "expert_weights",
)
"""Names under which it takes their weights."""

# Experts modules that take ids, but where an id alone does not say what ran: one-hot masks,
# identity and skipped experts, one set of experts per modality.
_SPECIAL = ("SwitchTransformers", "NllbMoe", "Zaya", "LongcatFlash", "Ernie4_5_VLMoe")

# Parts of a model that a forward pass over text may leave out.
_OPTIONAL = re.compile(r"(^|\.)(mtp\w*|vision\w*|visual|audio\w*|talker)(\.|$)")

_ROUTER = re.compile(r"(router|gate)$", re.IGNORECASE)


class RecordError(LrcError):
    """Routing of a model cannot be recorded, or was not recorded completely."""


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
    index_argument, weights_argument : tuple of (str, int) or None
        Name and position of the arguments of ``experts.forward``.
    num_experts : int
        Routed experts.
    expert_bytes : int
        Parameters of one routed expert, in bytes as they lie in memory.
    shared_experts : int
        Experts that every token uses, in units of one routed expert.
    """

    name: str
    experts_name: str
    experts: nn.Module
    router: nn.Module | None
    index_argument: tuple[str, int]
    weights_argument: tuple[str, int] | None
    num_experts: int
    expert_bytes: int
    shared_experts: int

    @property
    def optional(self) -> bool:
        """Whether a forward pass over text may leave this layer out (vision, audio, MTP)."""
        return bool(_OPTIONAL.search(self.experts_name))

    def __str__(self) -> str:
        return f"{self.experts_name} ({type(self.experts).__name__})"


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """Return the MoE layers of a model, in the order of its modules.

    Parameters
    ----------
    model : torch.nn.Module
        On any device, the meta device included.

    Returns
    -------
    list of MoeLayer
        Never empty.

    Raises
    ------
    RecordError
        If the rule finds no experts module, or one whose ids it cannot interpret.
    """
    layers = []
    for name, module in model.named_modules():
        found = _arguments(module)
        if found is not None and not _ROUTER.search(type(module).__name__):
            layers.append(_layer(model, name, module, *found))
    if not layers:
        raise RecordError(
            f"{type(model).__name__} has no MoE layer that this version of lrc can record: no "
            f"module's forward takes the chosen expert ids ({', '.join(INDEX_ARGUMENTS)}); the "
            "model is dense, or its class needs an adapter"
        )
    return layers


def _arguments(module: nn.Module):
    """Name and position of the index and the weight argument of a module's forward, or None."""
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return None
    index = next(((name, names.index(name)) for name in INDEX_ARGUMENTS if name in names), None)
    weights = next(((name, names.index(name)) for name in WEIGHT_ARGUMENTS if name in names), None)
    return None if index is None else (index, weights)


def _layer(model, experts_name, experts, index, weights):
    label = f"{experts_name} ({type(experts).__name__})"
    if type(experts).__name__.startswith(_SPECIAL):
        raise RecordError(
            f"{label}: expert ids of this architecture need an adapter, which this version of "
            "lrc does not have"
        )
    if getattr(experts, "_is_expert_parallel", False):
        raise RecordError(
            f"{label}: experts are spread over processes (expert parallelism), so this one sees "
            "only its own; load the model without it, with device_map instead"
        )
    name = experts_name.rpartition(".")[0]
    block = model.get_submodule(name)
    num_experts = _num_experts(experts, label)
    parameters = sum(p.numel() for p in experts.parameters())
    above = model.get_submodule(name.rpartition(".")[0])
    shared = _shared_parameters(block, experts) or _shared_parameters(above, experts)
    return MoeLayer(
        name=name or experts_name,
        experts_name=experts_name,
        experts=experts,
        router=_router(block, experts),
        index_argument=index,
        weights_argument=weights,
        num_experts=num_experts,
        expert_bytes=sum(p.numel() * p.element_size() for p in experts.parameters()) // num_experts,
        shared_experts=round(shared * num_experts / parameters) if parameters else 0,
    )


def _num_experts(experts, label):
    if isinstance(getattr(experts, "num_experts", None), int):
        return experts.num_experts
    leading = {parameter.shape[0] for parameter in experts.parameters() if parameter.ndim > 1}
    if len(leading) != 1:
        raise RecordError(f"{label}: cannot tell how many experts it has (no num_experts)")
    return leading.pop()


def _shared_parameters(block, experts):
    # Not the gate of a shared expert: a single row of weights, lost in the rounding anyway.
    return sum(
        parameter.numel()
        for name, child in block.named_children()
        if "shared" in name and child is not experts
        for parameter in child.parameters()
    )


def _router(block, experts):
    for child in block.children():
        if child is not experts and _ROUTER.search(type(child).__name__):
            return child
    return None
