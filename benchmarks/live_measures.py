"""What measuring a model while it runs costs, as a share of a forward pass without it.

Three things are timed for every pass: the hooks, the trace that is made of what they saw, and the
counting of it. A pass with hooks and one without differ by less than two passes without, so the
parts themselves are timed, in turns with passes of a model of Qwen3's kind. Times are CPU seconds
of all threads, which other programs disturb least; those of a pass are divided by the number of
threads, as if it used them all the time and our parts only one, so ratios are upper bounds.

Run it as ``python -m benchmarks.live_measures``.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import lrc
from benchmarks.harness import time_hooks

TOKENS = 512
PASSES = 5
LAYERS, EXPERTS, TOP_K = 4, 64, 8
MEASURES = {
    "SRP": {"srp": True},
    "SRP and SCH": {"srp": True, "sch": True},
    "SRP, SCH, LRU, LFU and Belady": {"srp": True, "sch": True, "hit_rates": True},
}


def rows() -> list[dict]:
    """A row for what is measured and at which level: our seconds and those of a pass, a pass."""
    model = qwen3(LAYERS, EXPERTS, TOP_K, hidden=1024, width=512)
    recorder = lrc.Recorder(model, predictions=False)
    with torch.no_grad():
        model(_tokens(0))  # what is slow the first time
        hooks, passes, making = [], [], []
        for turn in range(1, PASSES + 1):
            tokens = _tokens(turn)
            passes.append(_seconds(lambda tokens=tokens: model(tokens)) / torch.get_num_threads())
            with recorder:
                spent = time_hooks(model, time.process_time)
                model(tokens)
            hooks.append(sum(spent))
            making.append(_seconds(recorder.trace) / turn)
    trace = recorder.trace()
    found = []
    for level in ("layer", "model"):
        for name, measures in MEASURES.items():
            counting = _counting(trace, measures, level) / PASSES
            ours, baseline = median(hooks) + median(making) + counting, median(passes)
            found.append(
                {
                    "name": f"measuring while running: {name}, by {level}",
                    "ours_s": ours,
                    "baseline_s": baseline,
                    "baseline": "a forward pass",
                    "ratio": baseline / ours,
                    "note": (
                        f"{ours / baseline:.2%} of the "
                        f"CPU time of a pass of {TOKENS} tokens, hidden size "
                        f"{model.config.hidden_size}, {LAYERS} layers, top-{TOP_K} of {EXPERTS} "
                        f"experts; hooks {median(hooks) * 1e3:.2f} ms, trace "
                        f"{median(making) * 1e3:.2f} ms, counting {counting * 1e3:.2f} ms"
                    ),
                }
            )
    return found


def _counting(trace, measures, level):
    """Seconds to count a trace, the best of three: a busy machine only adds to it."""
    options = {name: {"level": level} for name in measures}
    lrc.LiveMeasures(**options).add(trace)
    return min(_seconds(lambda: lrc.LiveMeasures(**options).add(trace)) for _ in range(3))


def qwen3(num_layers: int, num_experts: int, top_k: int, *, hidden: int, width: int):
    """A random model of Qwen3's kind; `width` is that of an expert."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden // 16 if hidden < 256 else hidden // 64,
        num_key_value_heads=2 if hidden < 256 else 4,
        head_dim=16 if hidden < 256 else 64,
        num_experts=num_experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=width,
        max_position_embeddings=TOKENS,
    )
    return Qwen3MoeForCausalLM(config).eval()


def _tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1024, (1, TOKENS), generator=generator)


def _seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']}: {row['note']}")
