"""Why a cache misses: what is the text's fault, the cache size's, and the policy's."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.cache_replay import Replay, replay
from lrc.shuffling import shuffle
from lrc.trace import Trace

PARTS = {
    "hits": "found in the cache",
    "policy": "missed, though the best possible choice of evictions would have kept it",
    "capacity": "missed by every policy at this size",
    "forced": "missed because the experts of one request exceed the cache",
    "compulsory": "needed for the first time",
}
"""Where uses go, in `Diagnosis.parts`."""


@dataclass(frozen=True)
class Diagnosis:
    """Where the uses of a replay went, and what would help.

    Attributes
    ----------
    replayed : Replay
        Of the policy that is diagnosed.
    parts : DataFrame
        part, uses, share: a row for each of `PARTS`; the shares add up to 1.
    exact : bool
        Whether the optimum is known. With experts of several sizes in one cache it is only
        bounded: the true "policy" is smaller and the true "capacity" larger, by as much.
    orders : DataFrame
        order, hit_rate, gain: the same policy on shuffled tokens. "popularity": shuffled over
        all texts, so that only popular experts help; "text": shuffled within each text, what a
        text prefers helps too; "recency": as they are.
    advice : str
        One sentence.
    """

    replayed: Replay
    parts: pd.DataFrame
    exact: bool
    orders: pd.DataFrame
    advice: str

    def __repr__(self):
        rows = "\n".join(
            f"  {row.part:<11}{row.share:7.1%}  {PARTS[row.part]}"
            for row in self.parts.itertuples()
        )
        bound = "" if self.exact else "\n  (the optimum is bounded, not known: sizes differ)"
        return f"{self.replayed!r}\n{rows}{bound}\n{self.advice}"


def diagnose(
    trace: Trace,
    policy: str = "lru",
    *,
    cache_size=None,
    budget_bytes=None,
    level: str = "model",
    prompt_tokens=None,
    expert_bytes=None,
    carry_over: bool = False,
    seed: int = 0,
    **options,
) -> Diagnosis:
    """Take the distance of a hit rate from 100 % apart, under the contract "engine".

    Parameters
    ----------
    trace : Trace
    policy, cache_size, budget_bytes, level, prompt_tokens, expert_bytes, carry_over, **options
        As in `lrc.replay`.
    seed : int
        Of the shuffling.

    Returns
    -------
    Diagnosis
        Prints as a short report.

    Raises
    ------
    LrcError
        As `lrc.replay`.

    Notes
    -----
    Belady's choice, taken over requests, loads as little as any cache of equal slots can. An
    expert kept from one request that needs it to the next one is an interval of requests. Beside a
    request of n experts a cache of C slots has room for C - n intervals, and of those that overlap
    too many, to give up the one that ends last is never wrong. Where sizes differ and layers share
    a cache, that problem is as hard as packing; the optimum of as many slots as the *smallest*
    expert allows bounds it.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[1]], [[0]], [[2]], [[0]]]], num_experts=3)
    >>> lrc.diagnose(trace, cache_size=1).parts
             part  uses  share
    0        hits     0    0.0
    1      policy     0    0.0
    2    capacity     2    0.4
    3      forced     0    0.0
    4  compulsory     3    0.6
    """
    check_trace(trace)
    settings = {
        "level": level,
        "prompt_tokens": prompt_tokens,
        "expert_bytes": expert_bytes,
        "carry_over": carry_over,
    }
    size = {"cache_size": cache_size, "budget_bytes": budget_bytes}
    replayed = replay(trace, policy, **size, **settings, **options)
    slots, exact = _slots(trace, replayed, size, level)
    best = replay(trace, "belady", cache_size=slots, **settings)
    compulsory, forced = _unavoidable(replayed, slots, level, carry_over)
    misses = replayed.loads
    counts = {
        "hits": replayed.uses - misses,
        "policy": max(misses - best.loads, 0),
        "capacity": min(best.loads, misses) - compulsory - forced,
        "forced": forced,
        "compulsory": compulsory,
    }
    parts = pd.DataFrame({"part": list(counts), "uses": list(counts.values())})
    parts["share"] = parts["uses"] / max(replayed.uses, 1)
    parts = parts.astype({"part": "str"})

    rates = {}
    for name, scope in (("popularity", "all"), ("text", "sequence")):
        mixed = shuffle(trace, level=scope, seed=seed)
        rates[name] = replay(mixed, policy, **size, **settings, **options).hit_rate
    rates["recency"] = replayed.hit_rate
    orders = pd.DataFrame({"order": list(rates), "hit_rate": list(rates.values())})
    orders["gain"] = orders["hit_rate"].diff().fillna(orders["hit_rate"])
    orders = orders.astype({"order": "str"})
    advice = _advice(trace, replayed, counts, settings, size, options)
    return Diagnosis(replayed, parts, exact, orders, advice)


def _slots(trace, replayed, size, level):
    """Slots of each cache, at least as many as its capacity holds; whether just as many."""
    if size["cache_size"] is not None:
        return size["cache_size"], True
    layers = replayed.requests.ids // trace.num_experts
    sizes = np.zeros(trace.num_layers, np.int64)
    sizes[layers] = replayed.use_bytes
    used = sizes[sizes > 0]
    if level == "model":
        smallest = int(used.min()) if len(used) else 1
        return int(size["budget_bytes"]) // smallest, len(set(used.tolist())) <= 1
    budget = np.broadcast_to(
        np.asarray(size["budget_bytes"]) // (1 if np.ndim(size["budget_bytes"]) else len(sizes)),
        len(sizes),
    )
    return (budget // np.maximum(sizes, 1)), True


def _unavoidable(replayed, slots, level, carry_over):
    """First uses, and uses that exceed the cache beside those of their own request."""
    asked = replayed.requests
    num_ids = asked.num_layers * asked.num_experts
    request = np.repeat(np.arange(asked.num_requests), np.diff(asked.starts))
    key = asked.ids.astype(np.int64)
    if not carry_over:
        key = key + num_ids * asked.sequences[request].astype(np.int64)
    first = np.zeros(len(key), bool)
    first[np.unique(key, return_index=True)[1]] = True
    again = np.bincount(request[~first], minlength=asked.num_requests)
    room = np.asarray(slots) if np.ndim(slots) == 0 else np.asarray(slots)[asked.layers]
    return int(first.sum()), int(np.maximum(again - room, 0).sum())


def _advice(trace, replayed, counts, settings, size, options):
    """One sentence on the largest part of what is missed."""
    uses = max(replayed.uses, 1)
    lost = {part: count / uses for part, count in counts.items() if part != "hits"}
    part = max(lost, key=lost.get)
    if replayed.loads == 0:
        return "Nothing is missed: a smaller cache may do."
    if part == "forced":
        return (
            f"The cache is too small for the experts of one request, which costs "
            f"{lost['forced']:.0%} of the uses whatever is evicted: give it at least "
            f"{trace.top_k} slots a layer, or run prompts in smaller steps."
        )
    if part == "compulsory":
        return (
            f"{lost['compulsory']:.0%} of the uses are first uses, which no cache avoids: keep the "
            "cache from one text to the next (carry_over=True), or load ahead of need."
        )
    if part == "capacity":
        return (
            f"{lost['capacity']:.0%} of the uses are out of reach at this size even for a policy "
            "that knows the future: only a larger cache, loading ahead, or a model whose routing "
            "is more consistent would help."
        )
    tried = {}
    for name in ("lru", "lfu", "lfu_decay", "lfru", "sieve"):
        if name != replayed.policy:
            tried[name] = replay(trace, name, **size, **settings).hit_rate
    name = max(tried, key=tried.get)
    gain = tried[name] - replayed.hit_rate
    better = (
        f"{name} hits {gain:.1%} more"
        if gain > 0.001
        else "none of the policies here does better, so it takes a predictor of routing"
    )
    return (
        f"{replayed.policy} misses {lost['policy']:.0%} of the uses that a policy that knows the "
        f"future would keep at this size: {better}."
    )
