"""Routing that was not recorded, or of which there is too little."""

import numpy as np

from lrc import published
from lrc.doctor.census import Census, runs
from lrc.doctor.finding import Finding, layers_named, percent, some, these
from lrc.trace import Trace

ZERO_RUN = 8
FAIR_USES = 20
SMALL_DOMAIN = 1000


def no_tokens(trace: Trace) -> Finding:
    """The finding of a trace that holds nothing."""
    where = f"{trace.num_sequences} sequences"
    return Finding("no_tokens", "warning", where, "the trace holds no tokens to measure")


def zero_rows(trace: Trace, census: Census) -> Finding | None:
    """Runs of tokens that use expert 0 alone: with one slot, padding looks so."""
    long = [one for one in runs(census.zero & trace.valid) if one[1] >= ZERO_RUN]
    if not long:
        return None
    total = sum(length for _, length in long)
    rows = list(dict.fromkeys(i for i, _ in long))
    return Finding(
        "zero_rows",
        "warning",
        these("sequence", rows),
        f"{total:,} tokens in runs of up to {max(length for _, length in long):,} use expert 0 and "
        "no other, in every layer: padding filled with zeros?",
    )


def empty_layers(trace: Trace, census: Census) -> Finding | None:
    """Layers in which nothing was recorded."""
    silent = np.flatnonzero(census.empty == trace.num_tokens)
    if not len(silent):
        return None
    return Finding(
        "empty_layers",
        "warning",
        layers_named(trace, silent),
        f"{len(silent)} of {trace.num_layers} layers hold no expert for any token: dense, or not "
        "recorded? lrc.Trace.select leaves them out",
    )


def empty_tokens(trace: Trace, census: Census) -> Finding | None:
    """Tokens for which nothing was recorded."""
    blank = census.blank & trace.valid
    if not blank.any():
        return None
    rows = np.flatnonzero(blank.any(axis=1))
    return Finding(
        "empty_tokens",
        "warning",
        these("sequence", rows),
        f"{int(blank.sum()):,} tokens ({percent(blank.sum() / trace.num_tokens)}) hold no expert "
        "in any layer, but count: padding, or a cached prompt?",
    )


def empty_rows(trace: Trace, census: Census) -> Finding | None:
    """Tokens without an expert in some layers only."""
    rows = census.empty - int((census.blank & trace.valid).sum())
    layers = np.flatnonzero((rows > 0) & (census.empty < trace.num_tokens))
    if not len(layers):
        return None
    most = layers[rows[layers].argmax()]
    return Finding(
        "empty_rows",
        "note",
        layers_named(trace, layers),
        f"{int(rows[layers].sum()):,} times a token holds no expert there, most often in layer "
        f"{trace.layer_names[most]} ({percent(rows[most] / trace.num_tokens)} of its tokens): "
        "dropped, or not run?",
    )


def too_few_slots(trace: Trace, census: Census, top_k: int | None) -> Finding | None:
    """A top-k below the slots of the trace, or below the model's own."""
    own, source = (top_k, "as given") if top_k else _own_top_k(trace)
    unused = np.flatnonzero(census.slots == 0)
    used = trace.top_k - len(unused)
    if own and used < own:
        evidence = (
            f"a token uses {used} experts at most, but {own} in the model {source}: the run was "
            "another model than that"
        )
    elif len(unused):
        evidence = f"of {trace.top_k} slots {len(unused)} are never used: a top-k of {used}"
    else:
        return None
    where = these("slot", unused) if len(unused) else "all tokens"
    return Finding("top_k", "warning", where, evidence)


def unused_experts(trace: Trace, census: Census) -> Finding | None:
    """Experts that no token used, where chance would not explain it."""
    uses = census.uses.sum(axis=1)
    judged = uses >= FAIR_USES * trace.num_experts
    unused = (census.uses == 0).sum(axis=1) * judged
    layers = np.flatnonzero(unused)
    if not len(layers):
        return None
    most = layers[unused[layers].argmax()]
    numbers = np.flatnonzero(census.uses[most] == 0)
    return Finding(
        "unused_experts",
        "warning",
        layers_named(trace, layers),
        f"{int(unused.sum()):,} of {trace.num_layers * trace.num_experts:,} experts are never "
        f"used (layer {trace.layer_names[most]}: {some(numbers)}): too few texts, dead experts, or "
        "num_experts too high?",
    )


def small_domains(trace: Trace) -> Finding | None:
    """Domains that rest on few tokens."""
    if trace.datasets is None:
        return None
    sizes = {name: int(trace.lengths[trace.datasets == name].sum()) for name in trace.dataset_names}
    small = [f"{name} ({size:,})" for name, size in sizes.items() if size < SMALL_DOMAIN]
    if not small:
        return None
    return Finding(
        "small_domains",
        "note",
        these("dataset", small),
        f"fewer than {SMALL_DOMAIN:,} tokens: what is said of them alone is uncertain",
    )


def short_sequences(trace: Trace, segment_lengths: tuple[int, ...]) -> Finding | None:
    """Sequences too short for a segment."""
    told, all_short = [], trace.lengths < max(segment_lengths)
    for m in sorted(segment_lengths):
        short = trace.lengths < m
        if short.any():
            share = trace.lengths[short].sum() / trace.num_tokens
            told.append(f"{short.sum():,} below {m} tokens ({percent(share)} of all tokens)")
    if not told:
        return None
    return Finding(
        "short_sequences",
        "note",
        f"{int(all_short.sum()):,} of {trace.num_sequences:,} sequences",
        "give no segment of that length: " + ", ".join(told),
    )


def _own_top_k(trace):
    """Top-k of the model that the trace names, and how it is known; None if it is not."""
    if isinstance(own := trace.meta.get("model_top_k"), int):
        return own, "as its meta says"
    name = str(trace.meta.get("model") or "").lower()
    models = published.table("models")
    matches = [
        (len(key), int(top_k), full)
        for full, top_k in zip(models["name"], models["top_k"], strict=True)
        if (key := full.lower()) in name
    ]
    if not matches:
        return None, ""
    _, top_k, full = max(matches)
    return top_k, f"as published ({full})"
