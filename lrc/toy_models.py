"""The models of the toy family: Qwen2-MoE, and a router that balances by a bias.

DeepSeek-V3 balances without a loss: a bias of each expert is added for the choice of experts, but
not to their weights, and moves against the error of the expert's load after every step. Its
routers score by sigmoids. Ours are softmax, so the bias is added to logits: it multiplies scores.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

__all__ = ["BiasedRouter", "biased_routers", "build", "load", "move_biases"]


class BiasedRouter(Qwen2MoeTopKRouter):
    """Chooses experts by logit plus bias, and weighs them by their logit alone.

    Attributes
    ----------
    selection_bias : torch.Tensor
        float32 ``[experts]``, saved with the weights; no gradient reaches it.
    load : torch.Tensor
        Tokens of each expert in the last forward pass, ``[experts]``.
    """

    selection_bias: torch.Tensor

    def forward(self, hidden_states):
        """Return logits, weights and ids of the experts chosen, as the router it stands for."""
        logits = torch.nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        chosen = torch.topk(logits.float() + self.selection_bias, self.top_k, dim=-1).indices
        self.load = torch.bincount(chosen.flatten(), minlength=self.num_experts)
        weights = torch.softmax(logits, dim=-1, dtype=torch.float).gather(-1, chosen)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights.to(logits.dtype), chosen


def biased_routers(model: torch.nn.Module) -> list[BiasedRouter]:
    """Return the routers of a model that have a bias, in order."""
    return [module for module in model.modules() if isinstance(module, BiasedRouter)]


def move_biases(model: torch.nn.Module, rate: float) -> None:
    """Raise the bias of experts that had too little to do in the last pass, lower the others'."""
    with torch.no_grad():
        for router in biased_routers(model):
            load = router.load.float()
            router.selection_bias += rate * torch.sign(load.mean() - load)


def build(config: Qwen2MoeConfig, biased: bool = False) -> Qwen2MoeForCausalLM:
    """Return a new model, its routers with biases of zero if `biased`."""
    with warnings.catch_warnings():
        # Without shared experts their block has width zero, which torch finds worth a warning.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model = Qwen2MoeForCausalLM(config)
    return _with_biases(model) if biased else model


def load(folder: str | Path, biased: bool = False) -> Qwen2MoeForCausalLM:
    """Return a saved model; `from_pretrained` alone would leave the biases out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model = Qwen2MoeForCausalLM.from_pretrained(folder)
    if biased:
        model = _with_biases(model)
        with safe_open(Path(folder) / "model.safetensors", "pt") as tensors:
            for name, module in model.named_modules():
                if isinstance(module, BiasedRouter):
                    module.selection_bias.copy_(tensors.get_tensor(f"{name}.selection_bias"))
    return model


def _with_biases(model):
    for module in model.modules():
        if isinstance(module, Qwen2MoeTopKRouter):
            module.__class__ = BiasedRouter
            module.register_buffer("selection_bias", torch.zeros(module.num_experts))
    return model
