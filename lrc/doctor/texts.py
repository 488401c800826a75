"""Texts that say nothing new, or are none: twins, shared beginnings, loops, texts mixed up."""

import numpy as np

from lrc.doctor.census import Census, random_numbers, runs
from lrc.doctor.finding import Finding, percent, some, these
from lrc.kernels.cpu_census import LONGEST_LAG, overlaps
from lrc.trace import Trace

SHORTEST_TWIN = 16
PREFIX = 32
LONGEST_PERIOD = 64
LOOP = 64
LAYERS_TO_COMPARE = 4
LAYERS_TO_LAG = 8
EXCESS = 0.3


def identical(trace: Trace, census: Census) -> Finding | None:
    """Sequences whose routing is the same throughout: dummy batches, texts given twice."""
    groups = _groups(_hashes(trace, census), np.flatnonzero(trace.lengths >= SHORTEST_TWIN))
    if not groups:
        return None
    repeats = sum(len(group) - 1 for group in groups)
    length = trace.lengths[groups[0][0]]
    verb = "repeats" if repeats == 1 else "repeat"
    return Finding(
        "identical",
        "warning",
        "sequences " + some([some(group, 6, " = ") for group in groups], 4),
        f"all {length:,} tokens alike; {repeats:,} of {trace.num_sequences:,} sequences {verb} "
        "another",
    )


def shared_prefix(trace: Trace, census: Census) -> Finding | None:
    """Sequences that begin alike: a system prompt, a template."""
    whole = _hashes(trace, census)
    # Of identical sequences one stands for all.
    _, first = np.unique(whole, return_index=True)
    rows = np.sort(first[trace.lengths[first] >= PREFIX])
    heads = _hashes(trace, census, PREFIX)
    groups = sorted(_groups(heads, rows), key=len, reverse=True)
    if not groups:
        return None
    alike = [_common(trace, census, group) for group in groups]
    repeated = sum((len(group) - 1) * length for group, length in zip(groups, alike, strict=True))
    share = repeated / trace.num_tokens
    return Finding(
        "shared_prefix",
        "warning" if share >= 0.01 else "note",
        "sequences " + some([some(group, 4, " = ") for group in groups], 3),
        f"{sum(map(len, groups)):,} of {trace.num_sequences:,} sequences begin like another for "
        f"{min(alike):,} to {max(alike):,} tokens; {percent(share)} of all tokens repeat such a "
        "beginning",
    )


def loop(trace: Trace, census: Census) -> Finding | None:
    """Generated text that repeats itself."""
    if trace.token_ids is not None and (trace.token_ids[trace.valid] >= 0).any():
        symbols, kind = trace.token_ids.astype(np.uint64), "tokens"
        known = trace.token_ids >= 0
    elif trace.num_layers >= LAYERS_TO_COMPARE:
        symbols, kind, known = census.signatures, "routing", ~census.blank
    else:
        return None
    found = _loops(symbols, known & trace.valid)
    if not found:
        return None
    caught = sum(length for _, length in found.values())
    worst = max(found, key=lambda i: found[i][1])
    period, length = found[worst]
    return Finding(
        "loop",
        "warning",
        these("sequence", found),
        f"{kind} repeat with a period, {percent(caught / trace.num_tokens)} of all tokens; in "
        f"sequence {worst}, {length:,} of {trace.lengths[worst]:,} tokens with period {period}",
    )


def interleaved(trace: Trace, census: Census) -> Finding | None:
    """Texts that take turns in what is called one sequence."""
    count = min(LAYERS_TO_LAG, trace.num_layers)
    layers = np.unique(np.linspace(0, trace.num_layers - 1, count).round().astype(np.int64))
    shape = (trace.num_sequences, LONGEST_LAG + 1)
    shared, pairs = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    overlaps(trace.experts, trace.lengths, layers, trace.num_experts, shared, pairs)
    total = pairs.sum(axis=0)
    if not total[2]:
        return None
    # Lags that enough tokens have.
    lags = int((total >= total[1] / 4).sum())
    overlap = shared.sum(axis=0)[: lags + 1] / np.maximum(total[: lags + 1], 1)
    uses = census.uses[layers]
    chance = (uses**2).sum() / trace.num_tokens / max(uses.sum(), 1)
    for lag in range(2, lags + 1):
        below = overlap[1:lag].max()
        noise = np.sqrt(overlap[lag] * (1 - overlap[lag]) * trace.top_k / total[lag])
        if overlap[lag] - below < max(EXCESS * (overlap[lag] - chance), 0.01 + 6 * noise):
            continue
        multiples = np.arange(lag, lags, lag)[:3]
        if (overlap[multiples] > (overlap[multiples - 1] + overlap[multiples + 1]) / 2).all():
            own = shared[:, [1, lag]] / np.maximum(pairs[:, [1, lag]], 1)
            return Finding(
                "interleaved",
                "warning",
                f"{int((own[:, 1] > own[:, 0]).sum()):,} of {trace.num_sequences:,} sequences",
                f"a token shares {percent(overlap[lag])} of its experts with the token {lag} "
                f"places before, but {percent(overlap[1])} with the one just before (chance: "
                f"{percent(chance)}): {lag} texts that take turns?",
            )
    return None


def _hashes(trace, census, stop=None):
    """One number for each sequence's routing, or that of its first tokens."""
    # Odd factors lose no bit of a signature.
    factors = random_numbers(trace.shape[1]) | np.uint64(1)
    signed = (census.signatures + np.uint64(1)) * trace.valid
    return (signed * factors)[:, :stop].sum(axis=1, dtype=np.uint64)


def _groups(hashes, rows):
    """Rows that have a hash in common, as lists, in the order of their first."""
    members = {}
    for row in rows.tolist():
        members.setdefault(int(hashes[row]), []).append(row)
    return [group for group in members.values() if len(group) > 1]


def _common(trace, census, group):
    """Tokens that all sequences of a group begin with alike."""
    length = int(trace.lengths[group].min())
    alike = (census.signatures[group, :length] == census.signatures[group[0], :length]).all(axis=0)
    return length if alike.all() else int(alike.argmin())


def _loops(symbols, known):
    """Sequences that repeat: smallest period, and tokens that equal those a period before."""
    found = {}
    rows, step = np.arange(len(symbols)), LOOP // 2
    for period in range(1, LONGEST_PERIOD + 1):
        if symbols.shape[1] <= period:
            break
        # A run of LOOP tokens holds two places, one after the other, of every step-th.
        now, before = slice(period, None, step), slice(0, -period, step)
        equal = symbols[rows, now] == symbols[rows, before]
        equal &= known[rows, now] & known[rows, before]
        maybe = rows[(equal[:, 1:] & equal[:, :-1]).any(axis=1)]
        if not len(maybe):
            continue
        equal = symbols[maybe, period:] == symbols[maybe, :-period]
        equal &= known[maybe, period:] & known[maybe, :-period]
        for row, length in runs(equal):
            if length >= max(LOOP, 2 * period):
                first = found.get(int(maybe[row]), (period, 0))
                if first[0] == period:
                    found[int(maybe[row])] = (period, first[1] + length)
        rows = np.setdiff1d(rows, list(found))
        if not len(rows):
            break
    return dict(sorted(found.items()))
