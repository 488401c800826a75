"""Tokens per second with experts in slow memory: predicted by replay, and measured.

Toy models of random weights decode with the routing of the shipped traces put in place of their
own, so that times are those of a model of this size and hits those of the trained model's routing.
Experts lie in a memory-mapped file; `LINK` slows their loading down, "page cache" leaves it as fast
as the file is, which was just written. ``lrc/data/offload.csv`` keeps what was found.
"""

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import DynamicCache, Qwen2MoeForCausalLM

import lrc
from benchmarks import machine
from lrc.offload_costs import MEASURED
from lrc.throughput import Device

# Milliseconds a load beside which what else the machine does is small.
LINK = Device(compute_ms=0, bandwidth=25e6, latency_ms=0.1)
PROMPT, TOKENS, REPETITIONS = 16, 48, 3
SEQUENCES = (0, 48)  # one of code, one of prose
RATIOS = (1, 2, 3)  # the paper's
POLICIES = ("lru", "lfu", "lfu_decay", "sieve", "random")


def rows():
    table = measure()
    table.to_csv(MEASURED, index=False, float_format="%.6g")
    for row in table[table["cache_ratio"] < np.inf].itertuples():
        yield {
            "name": f"{row.model}, {row.policy}, {row.cache_ratio:g} × active, {row.link}",
            "ours_s": row.decode_ms / 1e3,
            "baseline": "predicted",
            "baseline_s": row.predicted_ms / 1e3,
            "note": f"a token: {row.loads:.1f} loads; hit rate {row.hit_rate:.4f}, as predicted",
        }


def measure() -> pd.DataFrame:
    """A row per model, policy, cache size and link; times in milliseconds a token."""
    torch.set_num_threads(1)
    here = machine.describe()
    found = []
    for name in lrc.toys.VARIANTS:
        trace = shortened(lrc.toys.load_trace(name))
        model = Qwen2MoeForCausalLM(lrc.toys.config(name)).eval()
        model.set_experts_implementation("batched_mm")
        found += list(_of_model(name, model, trace))
    table = pd.DataFrame(found)
    return table.assign(machine=f"{here['cpu']}, {here['cores']} cores, one thread")


def shortened(trace: lrc.Trace) -> lrc.Trace:
    """The heads of the texts that are run."""
    return lrc.Trace(
        trace.experts[list(SEQUENCES), :TOKENS], trace.num_experts, meta=dict(trace.meta)
    )


def _of_model(name, model, trace):
    everything, active = (trace.num_layers * n for n in (trace.num_experts, trace.top_k))
    settings = [("lru", ratio, "slow") for ratio in RATIOS]
    if name == "baseline":
        settings += [(policy, ratio, "slow") for policy in POLICIES[1:] for ratio in RATIOS]
        settings += [(policy, ratio, "page cache") for policy in POLICIES[:2] for ratio in RATIOS]
    predicted = {
        (policy, ratio): lrc.replay(
            trace, policy, cache_size=round(ratio * active), prompt_tokens=PROMPT
        )
        for policy, ratio, _ in settings
    }
    runs, copied, copying = {}, 0, 0.0
    for _ in range(REPETITIONS):  # all settings in turns, since a busy machine slows down some
        runs.setdefault("resident", []).append(_run(model, trace))
        # With all experts in the cache nothing is loaded: what is left is computing and looking up.
        with lrc.Offloader(model, cache_size=everything) as offloader:
            _run(model, trace)
            runs.setdefault("compute", []).append(_run(model, trace))
        for policy, ratio, link in settings:
            slow = LINK if link == "slow" else None
            with lrc.Offloader(
                model, policy, cache_size=round(ratio * active), link=slow
            ) as offloader:
                run = _run(model, trace, offloader)
            runs.setdefault((policy, ratio, link), []).append(run)
            hits = predicted[policy, ratio].hits
            assert np.array_equal(np.concatenate(offloader.hits), hits), (name, policy, ratio)
            if policy == POLICIES[0] and slow is None:
                copied += sum(offloader.load_bytes)
                copying += sum(offloader.load_seconds)
    times = {setting: _milliseconds(several) for setting, several in runs.items()}
    compute = times["compute"]["decode_ms"]
    yield {"model": name, "policy": "none", "cache_size": everything, "cache_ratio": np.inf,
           "link": "none", "hit_rate": 1.0, "loads": 0.0, "compute_ms": compute,
           "predicted_ms": compute, **times["resident"]}  # fmt: skip
    for policy, ratio, link in settings:
        device = LINK if link == "slow" else Device(0, copied / copying)
        device = replace(device, compute_ms=compute)
        replayed = predicted[policy, ratio]
        steps = replayed.by_step()
        yield {"model": name, "policy": policy, "cache_size": round(ratio * active),
               "cache_ratio": ratio, "link": link, "hit_rate": replayed.hit_rate,
               "loads": steps[steps["step"] > 0]["loads"].mean(), "compute_ms": compute,
               "predicted_ms": 1e3 / device.tokens_per_second(replayed)[1],
               **times[policy, ratio, link]}  # fmt: skip


def _milliseconds(runs):
    """Of a token of the prompt and of one that is decoded; of each step its fastest run.

    What else the machine does can only add to a step's time, and does not do so three times.
    """
    times = np.min(runs, axis=0) * 1e3  # [sequences, steps]
    return {"prefill_ms": times[:, 0].mean() / PROMPT, "decode_ms": times[:, 1:].mean()}


def _run(model, trace, offloader=None):
    """Seconds of each step of each sequence, from an empty cache if it is given."""
    steps = []
    for sequence in range(trace.num_sequences):
        if offloader is not None:
            offloader.forget()
        steps.append(_decode(model, trace, sequence))
    return steps


def _decode(model, trace, sequence):
    """Seconds of each step: the prompt, then token by token."""
    seconds = []
    cache = DynamicCache(config=model.config)
    tokens = torch.arange(trace.experts.shape[1])[None]
    with torch.no_grad(), _routed(model, trace, sequence):
        for begin, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, TOKENS))]:
            start = time.perf_counter()
            model(tokens[:, begin:end], past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def _routed(model, trace, sequence):
    """Put the routing of a trace in the place of the model's own, from the first token on."""
    done = [0] * trace.num_layers
    experts = torch.from_numpy(trace.experts[sequence].astype(np.int64))  # [tokens, layers, top_k]
    handles = []
    for layer, path in enumerate(trace.meta["layers"]):

        def route(module, args, layer=layer):
            hidden, ids, *rest = args
            begin = done[layer]
            done[layer] += len(ids)
            return hidden, experts[begin : begin + len(ids), layer], *rest

        handles.append(model.get_submodule(f"{path}.experts").register_forward_pre_hook(route))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    print(f"{len(list(rows()))} rows in {Path(MEASURED).name}")
