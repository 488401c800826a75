"""Layers that fit no general rule, by the name of their class.

Names, not classes: so code that comes with a checkpoint finds its adapter too, and none of the
modelling files is imported.

An adapter is called with a model, a module's name and the module; it returns the layers that begin
there (none, where a module only looks like experts; None, where it is not of the version that the
adapter is for), or raises `RecordError`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lrc.errors import RecordError
from lrc.moe_layer import MoeLayer, make_layer
from lrc.probes import IndexArgument, OfSomeTokens, OutputOf

Adapter = Callable[[nn.Module, str, nn.Module], list[MoeLayer] | None]


def _refuse(reason: str) -> Adapter:
    def adapter(model, name, module):
        raise RecordError(f"{name} ({type(module).__name__}): {reason}")

    return adapter


def _jetmoe(model, name, block):
    """Its router returns (token, expert) pairs sorted by expert, not ids by token."""
    router = block.router

    def read(output):
        places, _, gates, sizes, _ = output
        sizes = torch.as_tensor(sizes, device=places.device)
        experts = torch.arange(len(sizes), device=places.device).repeat_interleave(sizes)
        ids, weights = torch.empty_like(places), torch.empty_like(gates)
        ids[places], weights[places] = experts, gates.detach()
        return ids.reshape(-1, router.top_k), weights.reshape(-1, router.top_k)

    # The parameters of both projections: the experts module named is the first of them.
    parameters = [*block.input_linear.parameters(), *block.output_linear.parameters()]
    probe = OutputOf(router, read, "adapter: pairs that the router returns")
    return [
        make_layer(
            model,
            f"{name}.input_linear",
            probe,
            router.num_experts,
            router=router,
            parameters=parameters,
        )
    ]


def _granite(model, name, block):
    """The same in transformers 4 and early 5; later, experts are handed ids."""
    return _jetmoe(model, name, block) if hasattr(block, "input_linear") else None


def _llama4(model, name, block):
    """Runs all experts on all tokens, on zeros where its router does not choose them."""
    router = block.router

    def read(output):
        scores, logits = output
        ids = logits.topk(router.top_k, dim=-1).indices
        return ids, scores.gather(-1, ids)

    probe = OutputOf(router, read, "adapter: scores that the router leaves above 0")
    return [make_layer(model, f"{name}.experts", probe, block.num_experts, router=router)]


def _doge(model, name, block):
    """Its experts are rows of two embeddings."""
    probe = IndexArgument(block.down_embed, "input", None, block.num_experts)
    probe.rule = "adapter: ids that are looked up as embeddings"
    layer = make_layer(
        model,
        f"{name}.down_embed",
        probe,
        block.num_experts,
        router=block.router_gate,
        parameters=[*block.down_embed.parameters(), *block.up_embed.parameters()],
        shared=[block.gate_proj, block.up_proj, block.down_proj],
    )
    return [layer]


def _switch(model, name, experts):
    """Its experts are handed a one-hot mask, all zero for a token that found no capacity."""

    def convert(mask, weights):
        dropped = mask.sum(dim=-1) == 0
        return mask.argmax(dim=-1).masked_fill(dropped, -1), weights.masked_fill(dropped, 0)

    return [
        _converted(
            model,
            name,
            experts,
            "selected_experts",
            "routing_weights",
            convert,
            "dropped: no capacity was left in the expert of the token",
        )
    ]


def _zaya(model, name, experts):
    """A token that chooses to skip the experts is given expert 0 with weight 0."""

    def convert(ids, weights):
        return ids.masked_fill(weights == 0, -1), weights

    return [
        _converted(
            model,
            name,
            experts,
            "top_k_index",
            "top_k_weights",
            convert,
            "skipped: the token chose to pass by the experts",
        )
    ]


def _longcat(model, name, experts):
    """Ids behind those of the routed experts are experts that return their input."""
    num_experts = experts.num_routed_experts

    def convert(ids, weights):
        return ids.masked_fill(ids >= num_experts, -1), weights

    identity = f"identity: one of {experts.zero_expert_num} experts that return their input"
    # The first projection has rows for identity experts too, which are never used.
    parameters = [p.detach()[:num_experts] for p in experts.parameters()]
    return [
        _converted(
            model,
            name,
            experts,
            "top_k_index",
            "top_k_weights",
            convert,
            identity,
            num_experts,
            parameters,
        )
    ]


def _converted(
    model, name, experts, index, weights, convert, no_expert, num_experts=None, parameters=None
):
    num_experts = num_experts or experts.num_experts
    probe = IndexArgument(experts, index, weights, num_experts, convert, no_expert)
    probe.rule = "adapter: index argument, converted"
    return make_layer(model, name, probe, num_experts, parameters=parameters)


def _ernie_vl(model, name, block):
    """Text and images have experts of their own, called with their tokens only."""

    def tokens_of(vision):
        def choose(arguments):
            kinds = arguments.get("moe_mm_token_type_ids")
            # Without any image all tokens go to the experts of text.
            if kinds is None or not kinds.any():
                return None
            return kinds.bool().flatten() == vision

        return choose

    layers = []
    for kind in ("text", "vision"):
        part = f"{name}.{kind}_moe"
        experts = model.get_submodule(f"{part}.experts")
        probe = OfSomeTokens(
            IndexArgument(experts, "top_k_index", "top_k_weights", experts.num_experts),
            block,
            tokens_of(kind == "vision"),
            "the token is of the other modality, which has experts of its own",
        )
        probe.rule = "adapter: index argument, by modality"
        layers.append(
            make_layer(model, f"{part}.experts", probe, experts.num_experts, partial=True)
        )
    return layers


def _mxfp4(model, name, block):
    """Quantized gpt-oss: a kernel takes the top-k of the logits, which the block returns."""
    num_experts, top_k = block.experts.num_experts, block.router.top_k

    def read(output):
        logits = output[1].reshape(-1, num_experts)
        top = logits.topk(top_k, dim=-1)
        return top.indices, top.values.softmax(dim=-1)

    probe = OutputOf(block, read, "adapter: top-k of the logits, as the kernel takes it")
    return [make_layer(model, f"{name}.experts", probe, num_experts, router=block.router)]


ADAPTERS: dict[str, Adapter] = {
    "JetMoeMoE": _jetmoe,
    "GraniteMoeMoE": _granite,
    "GraniteMoeSharedMoE": _granite,
    "GraniteMoeHybridMoE": _granite,
    # Experts of its attention; the others are what is recorded.
    "JetMoeMoA": lambda model, name, module: [],
    "Llama4TextMoe": _llama4,
    "DogeCDMoE": _doge,
    "SwitchTransformersExperts": _switch,
    "ZayaExperts": _zaya,
    "LongcatFlashExperts": _longcat,
    "Ernie4_5_VLMoeMoeBlock": _ernie_vl,
    "Mxfp4GptOssMLP": _mxfp4,
    # Its top-2 router returns one mask for both experts, which the experts take for ids.
    "NllbMoeExperts": _refuse(
        "transformers 5 sends every token of NLLB-MoE to experts 0 and 1; install transformers "
        "4.57, which routes it as its authors do"
    ),
}
