"""Models that run with the code of their repository only: LLaMA-MoE-v1, OpenMoE and Yuan2.0-M32.

The repositories here are written by the test, in the way that those three write theirs, with
experts in their numbers: what can be tested without their weights.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import lrc
from lrc.models import paper_models

RECENT = int(transformers.__version__.split(".")[0]) >= 5

pytestmark = [
    pytest.mark.skipif(RECENT, reason="own code is for transformers 4: make test-legacy"),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "{kind}"

    def __init__(self, layers=2, experts=8, num_experts_per_tok=2, every=1, shared=0, **others):
        self.hidden_size, self.vocab_size = 16, 97
        self.layers, self.experts, self.num_experts_per_tok = layers, experts, num_experts_per_tok
        self.every, self.shared = every, shared
        super().__init__(**others)
"""

MODEL = '''
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_own import OwnConfig

LOG = []


class Expert(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, rows):
        return self.down(nn.functional.silu(self.up(rows)))


def choose(router, rows, count):
    """Not what a router's logits suggest: those in the middle win."""
    ids = router(rows).argsort(dim=-1)[:, 1 : 1 + count]
    return ids, torch.full(ids.shape, 1 / count)


{block}


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        width = config.hidden_size
        self.mixed = (number + 1) % config.every == 0
        self.mlp = Block(config) if self.mixed else Expert(width)
        self.shared_mlp = Expert(width) if self.mixed and config.shared else None

    def forward(self, hidden):
        steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        hidden = hidden + hidden.cumsum(dim=1) / steps
        extra = self.shared_mlp(hidden) if self.shared_mlp is not None else 0
        return hidden + self.mlp(hidden) + extra


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(config.layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        # As in code of its time: a table that is computed when the model is built.
        self.register_buffer("table", torch.outer(torch.arange(9.0), torch.ones(4)), False)
        if float(self.table.sum()) != 144.0:
            raise ValueError("built without its tables")

    def forward(self, input_ids, attention_mask=None, use_cache=None, **others):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache:
            raise ValueError("this cache is of another time")
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return CausalLMOutputWithPast(logits=self.head(hidden))
'''

# All experts behind one calculator, which is handed ids.
CALCULATOR = """
class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.num_experts = config.hidden_size, config.experts
        up, down = torch.empty(8, width), torch.empty(width, 8)
        count = range(config.experts)
        self.weights_up = nn.ParameterList(nn.Parameter(up.clone()) for _ in count)
        self.weights_down = nn.ParameterList(nn.Parameter(down.clone()) for _ in count)

    def forward(self, rows, number):
        inner = nn.functional.silu(nn.functional.linear(rows, self.weights_up[number]))
        return nn.functional.linear(inner, self.weights_down[number])


class Calculator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.experts, self.num_experts = Experts(config), config.experts

    def forward(self, x, topK_indices, topK_scores, **others):
        output = torch.zeros_like(x)
        for expert in range(self.num_experts):
            tokens, slots = torch.where(topK_indices == expert)
            output[tokens] += topK_scores[tokens, slots, None] * self.experts(x[tokens], expert)
        return output


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.count = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.calculator = Calculator(config)

    def forward(self, hidden):
        rows = hidden.flatten(0, 1)
        ids, weights = choose(self.gate, rows, self.count)
        LOG.append(ids)
        return self.calculator(rows, topK_indices=ids, topK_scores=weights).view_as(hidden)
"""

# Experts in a list, called with the tokens that chose them.
LISTED = """
class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.count = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.experts = nn.ModuleList(Expert(config.hidden_size) for _ in range(config.experts))

    def forward(self, hidden):
        rows = hidden.flatten(0, 1)
        ids, weights = choose(self.router, rows, self.count)
        LOG.append(ids)
        output = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            tokens, slots = torch.where(ids == number)
            output[tokens] += weights[tokens, slots, None] * expert(rows[tokens])
        return output.view_as(hidden)
"""

# Experts of limited capacity, called with buffers that have free places; the rest is dropped.
CAPPED = """
class Block(nn.Module):
    capacity = 3

    def __init__(self, config):
        super().__init__()
        self.count = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.experts = nn.ModuleList(Expert(config.hidden_size) for _ in range(config.experts))

    def forward(self, hidden):
        rows = hidden.flatten(0, 1)
        ids, weights = choose(self.gate, rows, self.count)
        ids = ids.clone()
        output = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            tokens, slots = torch.where(ids == number)
            ids[tokens[self.capacity :], slots[self.capacity :]] = -1
            tokens, slots = tokens[: self.capacity], slots[: self.capacity]
            buffer = torch.zeros(self.capacity, rows.shape[-1])
            buffer[: len(tokens)] = rows[tokens]
            output[tokens] += weights[tokens, slots, None] * expert(buffer)[: len(tokens)]
        LOG.append(ids)
        return output.view_as(hidden)
"""

REPOSITORIES = {
    "llamamoe": ("llama_moe", CALCULATOR, {"layers": 32, "experts": 16, "num_experts_per_tok": 4}),
    "openmoe": ("openmoe", CAPPED, {"layers": 24, "experts": 32, "every": 6, "shared": 1}),
    "yuan": ("yuan", LISTED, {"layers": 24, "experts": 32}),
}


def write(folder, name):
    kind, block, fields = REPOSITORIES[name]
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(kind=kind))
    (folder / "modeling_own.py").write_text(MODEL.replace("{block}", block))
    auto_map = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    config = {"model_type": kind, "auto_map": auto_map, "transformers_version": "4.31.0"}
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(lrc.ModelError, match="give trust_remote_code=True"):
        lrc.load_model(folder)
    own = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True),
        trust_remote_code=True,
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(weight.shape, generator=generator) / 4
        for name, weight in own.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", REPOSITORIES)
def test_code_of_the_repository_runs_on_transformers_4(name, tmp_path):
    model, _ = lrc.load_model(write(tmp_path, name), device="cpu", trust_remote_code=True)
    assert model.config.use_cache is False
    log = __import__(type(model).__module__, fromlist=["LOG"]).LOG
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    log.clear()
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(tokens)
    trace = recorder.trace()
    row = paper_models().set_index("model").loc[name]
    assert (trace.num_layers, trace.num_experts) == (row.moe_layers, row.experts)
    assert trace.experts.shape[-1] == row.top_k
    assert trace.meta["shared_experts"] == row.shared_experts
    chosen = np.sort(torch.stack(log, dim=1).numpy(), axis=-1)
    recorded = np.sort(trace.experts.reshape(chosen.shape), axis=-1)
    np.testing.assert_array_equal(recorded, chosen)
    assert (chosen == -1).any() == (name == "openmoe")
