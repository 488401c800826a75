"""What recording costs: the time inside the hooks, as a share of a forward pass without them.

Two mid-size random models that differ only in how their experts are kept: stacked in one module,
which is handed ids (transformers 5), and in a list, where rows have to be compared (transformers 4
and most code that comes with a checkpoint). A pass with hooks and one without differ by less than
two passes without, so the hooks themselves are timed.

Run it as ``python -m benchmarks.recording``.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

import lrc
from benchmarks.harness import time_hooks
from benchmarks.live_measures import qwen3

TOKENS = 512
REPEATS = 3


def rows() -> list[dict]:
    """A row for each rule: seconds in the hooks, and seconds of a pass without."""
    found = []
    for name, keep_in_list in (("index argument", False), ("rows of experts in a list", True)):
        model = _model(keep_in_list)
        tokens = torch.randint(0, model.config.vocab_size, (1, TOKENS))
        with torch.no_grad():
            model(tokens)  # Once for allocations.
            passes, hooks = [], []
            for _ in range(REPEATS):
                start = time.perf_counter()
                model(tokens)
                passes.append(time.perf_counter() - start)
                with lrc.Recorder(model, predictions=False) as recorder:
                    spent = time_hooks(model, time.perf_counter)
                    model(tokens)
                hooks.append(sum(spent))
        trace = recorder.trace()
        ours, baseline = median(hooks), median(passes)
        per_token = trace.experts.nbytes / trace.num_tokens
        found.append(
            {
                "name": f"recording, {name}",
                "ours_s": ours,
                "baseline": "the forward pass without hooks",
                "baseline_s": baseline,
                # No ratio: that would say how much faster the hooks are than the pass they are in.
                "note": (
                    f"hooks take {ours / baseline:.2%} of a pass of {TOKENS} tokens on the CPU, "
                    f"{trace.num_layers} layers, top-{trace.top_k} of {trace.num_experts} experts; "
                    f"{per_token:g} bytes a token, {ours / trace.num_layers * 1e6:.0f} µs a layer"
                ),
            }
        )
        del model
    return found


def _model(keep_in_list: bool):
    model = qwen3(3, 64, 8, hidden=1024, width=512)
    if keep_in_list:
        for layer in model.model.layers:
            layer.mlp = _Listed(layer.mlp)
    return model


class _Expert(nn.Module):
    def __init__(self, gate_up, down):
        super().__init__()
        self.gate_up, self.down = nn.Parameter(gate_up), nn.Parameter(down)

    def forward(self, rows):
        gate, up = nn.functional.linear(rows, self.gate_up).chunk(2, dim=-1)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down)


class _Listed(nn.Module):
    """The same block with an expert after the other, as transformers 4 ran it."""

    def __init__(self, block):
        super().__init__()
        self.gate = block.gate
        pairs = zip(block.experts.gate_up_proj.data, block.experts.down_proj.data, strict=True)
        self.experts = nn.ModuleList(_Expert(*pair) for pair in pairs)

    def forward(self, hidden_states):
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, ids = self.gate(tokens)
        output = torch.zeros_like(tokens)
        for expert, module in enumerate(self.experts):
            at, slot = torch.where(ids == expert)
            output.index_add_(0, at, module(tokens[at]) * weights[at, slot, None])
        return output.reshape(hidden_states.shape)


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']}: {row['note']}")
