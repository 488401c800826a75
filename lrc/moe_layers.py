"""Find the Mixture-of-Experts layers of a PyTorch model.

Two rules find them, whatever the model is called:

- The experts of a layer are one module whose ``forward`` is handed the ids that the router chose
  (nearly all of transformers 5). Whatever the router does before (groups, correction bias,
  capacity), these ids are what runs; so the rule looks for modules with such an argument, not for
  routers.
- The experts are modules in a list (transformers 4, most code that comes with a checkpoint). What
  each is called with tells which tokens it received.

Layers that fit neither have an adapter in `lrc.adapters`. What looks like experts and is none of
these is refused, for a record that leaves out layers is worse than none.
"""

from __future__ import annotations

import re

from torch import nn

from lrc.adapters import ADAPTERS
from lrc.errors import RecordError
from lrc.moe_layer import ROUTER, MoeLayer, count_experts, find_top_k, make_layer
from lrc.probes import ExpertRows, IndexArgument, argument_names

__all__ = ["INDEX_ARGUMENTS", "WEIGHT_ARGUMENTS", "MoeLayer", "RecordError", "find_moe_layers"]

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

_EXPERT = re.compile(r"expert|moe(?!.*(attention|norm|embed))", re.IGNORECASE)
_SHARED = re.compile(r"shared", re.IGNORECASE)


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
        If there is no MoE layer, or one that cannot be recorded.
    """
    layers: list[MoeLayer] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        found = _read(model, name, module)
        if found is not None:
            layers += found
            inside += (f"{name}.",)
    if not layers:
        raise RecordError(
            f"{type(model).__name__} has no MoE layer that this version of lrc can record: no "
            f"module's forward takes the chosen expert ids ({', '.join(INDEX_ARGUMENTS)}), and "
            "none has its experts in a list; the model is dense, or its class needs an adapter"
        )
    for layer in layers:
        _refuse_kernel(model, layer)
    return layers


def _refuse_kernel(model, layer):
    """Refuse a block whose forward was replaced by a kernel, which calls no experts module."""
    block = model.get_submodule(layer.name)
    kernel = getattr(type(block), "kernel_layer_name", None)
    if kernel and getattr(model, "use_kernels", False) and "forward" in vars(block):
        raise RecordError(
            f"{layer}: the kernel {kernel} runs in place of its block and shows no expert ids; "
            "load the model with use_kernels=False"
        )


def _read(model, name, module) -> list[MoeLayer] | None:
    """Layers that begin with this module, or None if it has to do with none."""
    adapter = ADAPTERS.get(type(module).__name__)
    if adapter is not None:
        return adapter(model, name, module)
    if ROUTER.search(type(module).__name__):
        return None
    names = argument_names(module)
    index = next((known for known in INDEX_ARGUMENTS if known in names), None)
    if index is not None:
        return [_by_index(model, name, module, index)]
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        experts = _listed(model, name, module)
        return None if experts is None else [_by_rows(model, name, module, experts)]
    if _holds_experts(name, module):
        return [_by_index(model, name, module, None)]
    return None


def _by_index(model, name, experts, index):
    label = f"{name} ({type(experts).__name__})"
    if getattr(experts, "_is_expert_parallel", False):
        raise RecordError(
            f"{label}: experts are spread over processes (expert parallelism), so this one sees "
            "only its own; load the model without it, with device_map instead"
        )
    names = argument_names(experts)
    if index is None and len(names) < 2:
        raise RecordError(
            f"{label} holds experts, but its forward takes no expert ids ({', '.join(names)}): its "
            "class needs an adapter, which this version of lrc does not have"
        )
    weights = next((known for known in WEIGHT_ARGUMENTS if known in names), None)
    num_experts = count_experts(experts, label)
    return make_layer(model, name, IndexArgument(experts, index, weights, num_experts), num_experts)


def _holds_experts(name, module) -> bool:
    """Whether a module of an unknown class looks like all experts of a layer: [experts, …, …]."""
    own = f"{name.rpartition('.')[2]} {type(module).__name__}"
    if not _EXPERT.search(own) or _SHARED.search(own):
        return False
    stacked = [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return bool(stacked) and len({p.shape[0] for p in stacked}) == 1 and stacked[0].shape[0] > 1


def _listed(model, name, module) -> dict[int, nn.Module] | None:
    """Experts by id, if this list or dict of modules holds the experts of a layer."""
    own = name.rpartition(".")[2]
    if _SHARED.search(own) or not name:
        return None
    items = [
        (at, key, child)
        for at, (key, child) in enumerate(
            module.items() if isinstance(module, nn.ModuleDict) else enumerate(module)
        )
        if child is not None and next(child.parameters(), None) is not None
    ]
    if len(items) < 2 or len({type(child) for _, _, child in items}) > 1:
        return None
    if isinstance(module, nn.ModuleDict):
        numbers = [re.search(r"\d+$", str(key)) for _, key, _ in items]
        known = [int(number.group()) for number in numbers if number]
        if len(known) == len(items):
            items = [(at, key, child) for at, (_, key, child) in zip(known, items, strict=True)]
    experts = {at: child for at, _, child in items}
    named = re.search("expert", f"{own} {type(items[0][2]).__name__}", re.IGNORECASE)
    if not named and not _beside_router(model.get_submodule(name.rpartition(".")[0]), experts):
        return None
    return experts


def _beside_router(block, experts) -> bool:
    """Whether a neighbour gives as many numbers as there are experts."""
    return any(
        getattr(part, "out_features", None) == len(experts)
        for child in block.children()
        if isinstance(child, nn.Linear) or ROUTER.search(type(child).__name__)
        for part in child.modules()
    )


def _by_rows(model, name, module, experts):
    num_experts = max(experts) + 1
    # A list is no function; its owner is called with the tokens, unless a subclass is itself.
    itself = type(module).forward is not nn.Module.forward
    owner = name.rpartition(".")[0]
    layer = module if itself else model.get_submodule(owner)
    block = owner
    if re.search("expert", owner.rpartition(".")[2], re.IGNORECASE):
        block = owner.rpartition(".")[0]
    top_k = find_top_k(model, model.get_submodule(block))
    return make_layer(
        model,
        name,
        ExpertRows(layer, experts, num_experts, top_k),
        num_experts,
        block=block,
        parameters=[p for expert in experts.values() for p in expert.parameters()],
    )
