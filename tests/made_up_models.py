"""A language model around any Mixture-of-Experts block, for classes that transformers lacks."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

WIDTH = 16
NUM_EXPERTS = 6
TOP_K = 2


class Layer(nn.Module):
    """Mixes tokens by a running mean, then runs the block under test."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden):
        steps = torch.arange(1, hidden.shape[1] + 1)[:, None]
        hidden = hidden + hidden.cumsum(dim=1) / steps
        return hidden + self.block(hidden)


class LanguageModel(nn.Module):
    """Takes tokens as the models of transformers do."""

    def __init__(self, block, num_layers=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.embedding = nn.Embedding(97, WIDTH)
        self.layers = nn.ModuleList(Layer(block()) for _ in range(num_layers))
        self.head = nn.Linear(WIDTH, 97)
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return CausalLMOutput(logits=self.head(hidden))


def choose(router, hidden, log=None):
    """Weights and ids [tokens, top_k] by a rule of its own: the middle logits win."""
    order = router(hidden).argsort(dim=-1)
    ids = order[:, 2 : 2 + TOP_K]
    if log is not None:
        log.append(ids)
    return torch.full(ids.shape, 0.5), ids


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.SiLU(), nn.Linear(8, WIDTH))


class Stacked(nn.Module):
    """All experts in one module; `forward` of subclasses names the ids as it likes."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, 8))
        self.down = nn.Parameter(torch.randn(NUM_EXPERTS, 8, WIDTH))

    def run(self, rows, ids, weights):
        each = functional.silu(torch.einsum("tw,twh->th", rows, self.up[ids[:, 0]]))
        output = torch.zeros_like(rows)
        for slot in range(ids.shape[1]):
            each = functional.silu(torch.einsum("tw,twh->th", rows, self.up[ids[:, slot]]))
            output += weights[:, slot, None] * torch.einsum(
                "th,thw->tw", each, self.down[ids[:, slot]]
            )
        return output


class Listed(nn.Module):
    """A block with its experts in a list, as transformers 4 writes it."""

    def __init__(self, names=("gate", "experts"), extra=False):
        super().__init__()
        self.router_name, self.experts_name = names
        experts = [mlp() for _ in range(NUM_EXPERTS)]
        if extra:
            experts.append(nn.Dropout(0.1))
        setattr(self, self.experts_name, nn.ModuleList(experts))
        setattr(self, self.router_name, nn.Linear(WIDTH, NUM_EXPERTS, bias=False))
        self.log = []

    def forward(self, hidden):
        rows = hidden.reshape(-1, WIDTH)
        weights, ids = choose(getattr(self, self.router_name), rows, self.log)
        output = torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens, slots = torch.where(ids == expert)
            if len(tokens):
                module = getattr(self, self.experts_name)[expert]
                output[tokens] += weights[tokens, slots, None] * module(rows[tokens])
        return output.reshape(hidden.shape)


class Capped(Listed):
    """Experts of limited capacity, handed a buffer with free places, as OpenMoE and Switch do."""

    capacity = 3

    def forward(self, hidden):
        rows = hidden.reshape(-1, WIDTH)
        weights, ids = choose(self.gate, rows)
        ids = ids.clone()
        output = torch.zeros_like(rows)
        for expert, module in enumerate(self.experts):
            tokens, slots = torch.where(ids == expert)
            ids[tokens[self.capacity :], slots[self.capacity :]] = -1
            tokens, slots = tokens[: self.capacity], slots[: self.capacity]
            buffer = torch.zeros(self.capacity, WIDTH)
            buffer[: len(tokens)] = rows[tokens]
            output[tokens] += module(buffer)[: len(tokens)] * weights[tokens, slots, None]
        self.log.append(ids)
        return output.reshape(hidden.shape)
