"""Traces to measure on: toy models' own, and synthetic routing in the shapes of large models."""

from functools import cache

import numpy as np

import lrc

# Layers, experts, top-k: Qwen3-30B-A3B, and a layer as in OLMoE.
QWEN = (48, 128, 8)
OLMOE_LAYER = (1, 64, 8)


@cache
def synthetic(sequences, tokens, layers, experts, top_k, seed=0):
    """Routing with popular experts and a drift that a sequence's neighbours share."""
    rng = np.random.default_rng(seed)
    popularity = rng.normal(size=(layers, experts)).astype(np.float32)
    ids = np.empty((sequences, tokens, layers, top_k), np.int16)
    for sequence in ids:
        drift = np.zeros((layers, experts), np.float32)
        for token in sequence:
            drift = 0.95 * drift + 0.5 * rng.normal(size=drift.shape).astype(np.float32)
            score = popularity + drift + 0.7 * rng.gumbel(size=drift.shape).astype(np.float32)
            best = np.argpartition(-score, top_k - 1)[:, :top_k]
            order = np.take_along_axis(-score, best, 1).argsort()
            token[:] = np.take_along_axis(best, order, 1)
    return lrc.Trace(ids, experts)


@cache
def toy():
    """The shipped trace of the toy model: 4 layers, top-8 of 64 experts, 8 domains."""
    return lrc.resolve_trace("toy:baseline")


def accesses(trace):
    """Experts used, over all tokens and layers."""
    return int((trace.experts >= 0).sum())


def named(trace):
    """What a row says of a trace."""
    sequences, tokens, layers, top_k = trace.experts.shape
    word = "layer" if layers == 1 else "layers"
    return f"{layers} {word}, top-{top_k} of {trace.num_experts}, {sequences} × {tokens} tokens"
