"""Replay one cache of one size under any policy, as an engine would run it.

`lrc.hit_rates` gives every cache size at once, for policies that allow it; here is one cache at a
time, for all others too, with capacities in experts or bytes, prompts, and prefetching.

Two contracts, which a short trace tells apart: two tokens that use experts (0, 1) and (2, 0), two
slots, LRU.

- "engine": what a device does. A step's experts of one layer (a *request*, see `lrc.requests`) are
  looked up once, together, and must all be resident at the same time: none of them is evicted to
  make room for another. Every first use is a miss. The first token misses twice, the second
  finds 0 and misses 2: hit rate 1/4.
- "paper": that of `lrc.cache`. A token's experts of all layers in the cache are looked up together
  and then taken one by one; first uses hit while the cache is not full. The first token's uses
  both hit, 2 misses, and 0 hits, although 2 has taken its place by then if 0 is the one used
  longest ago: hit rate 3/4.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lrc.arguments import check_level, check_trace
from lrc.errors import LrcError
from lrc.kernels import cpu_replay
from lrc.prefetch import Predictor
from lrc.requests import Requests, requests
from lrc.trace import Trace

LEVELS = ("model", "layer")
CONTRACTS = ("engine", "paper")


@dataclass(frozen=True)
class Policy:
    """How a cache chooses what to evict.

    Attributes
    ----------
    rule : int
        Of `lrc.kernels.cpu_replay`.
    about : str
        What is evicted.
    options : dict
        Its parameters and their defaults; None where one must be given.
    """

    rule: int
    about: str
    options: dict


POLICIES: dict[str, Policy] = {
    "lru": Policy(cpu_replay.LRU, "used longest ago", {}),
    "fifo": Policy(cpu_replay.FIFO, "loaded longest ago", {}),
    "lfu": Policy(cpu_replay.LFU, "used least since the start, in the cache or not", {}),
    "lfu_cached": Policy(cpu_replay.LFU_CACHED, "used least since it was last loaded", {}),
    "lfu_decay": Policy(
        cpu_replay.SCORE, "lowest number of uses, each halved after `half_life` steps",
        {"half_life": 64.0},
    ),
    "lfru": Policy(cpu_replay.LFRU, "lowest number of uses over the time since the last", {}),
    "score": Policy(
        cpu_replay.SCORE, "lowest running mean of router weights, the newest with share `alpha`",
        {"alpha": 0.1},
    ),
    "random": Policy(cpu_replay.RANDOM, "any, at random", {"seed": 0}),
    "sieve": Policy(cpu_replay.SIEVE, "loaded longest ago and not used since the hand passed", {}),
    "static": Policy(cpu_replay.FIXED, "nothing: holds what `fit` uses most", {"fit": None}),
    "pinned_lru": Policy(
        cpu_replay.LRU, "used longest ago, but for a `share` of the cache that holds what `fit` "
        "uses most", {"fit": None, "share": 0.5},
    ),
    "belady": Policy(cpu_replay.BELADY, "needed again last (knows the future)", {}),
}  # fmt: skip
"""Policies of `lrc.replay` by name."""


@dataclass(frozen=True)
class Replay:
    """What became of every use in a replay.

    Attributes
    ----------
    policy, contract, level : str
    requests : Requests
        What was asked for.
    hits : bool array [uses]
        Which uses found their expert in the cache, loaded ahead or not.
    use_bytes : int64 array [uses]
        Bytes of each use's expert (1 where not known).
    prefetched, wasted : int
        Experts loaded ahead of need, and those among them that the request did not need.
    prefetched_bytes : int
    """

    policy: str
    contract: str
    level: str
    requests: Requests
    hits: np.ndarray
    use_bytes: np.ndarray
    prefetched: int = 0
    wasted: int = 0
    prefetched_bytes: int = 0

    @property
    def uses(self) -> int:
        """Look-ups: an expert counts once in a request, however many of its tokens need it."""
        return len(self.hits)

    @property
    def hit_rate(self) -> float:
        """Hits over uses."""
        return float(self.hits.mean()) if self.uses else 0.0

    @property
    def loads(self) -> int:
        """Experts loaded on demand (misses)."""
        return int((~self.hits).sum())

    @property
    def waits(self) -> int:
        """Requests that load on demand: what an engine waits for that loads side by side."""
        missed = np.concatenate([[0], np.cumsum(~self.hits)])[self.requests.starts]
        return int((np.diff(missed) > 0).sum())

    @property
    def bytes(self) -> int:
        """Bytes loaded, on demand and ahead of need; experts where their bytes are not known."""
        return int(self.use_bytes[~self.hits].sum()) + self.prefetched_bytes

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: layer, uses, hits, hit_rate, loads, bytes (on demand)."""
        return self._grouped(layer=self.requests.ids // self.requests.num_experts)

    def by_step(self) -> pd.DataFrame:
        """One row per step: sequence, step, uses, hits, hit_rate, loads, bytes (on demand)."""
        sizes = np.diff(self.requests.starts)
        keys = {"sequence": self.requests.sequences, "step": self.requests.steps}
        return self._grouped(**{name: np.repeat(values, sizes) for name, values in keys.items()})

    def _grouped(self, **keys):
        table = pd.DataFrame(keys).assign(
            uses=1,
            hits=self.hits.astype(np.int64),
            loads=(~self.hits).astype(np.int64),
            bytes=np.where(self.hits, 0, self.use_bytes),
        )
        table = table.groupby(list(keys), as_index=False).sum()
        table.insert(len(keys) + 2, "hit_rate", table["hits"] / table["uses"])
        return table

    def __repr__(self):
        return (
            f"<lrc.Replay: {self.policy}, contract {self.contract!r}, hit rate "
            f"{self.hit_rate:.4f}, {self.loads:,} loads of {self.uses:,} uses>"
        )


def replay(
    trace: Trace,
    policy: str = "lru",
    *,
    cache_size=None,
    budget_bytes=None,
    level: str = "model",
    replay: str = "engine",
    prompt_tokens=None,
    expert_bytes=None,
    carry_over: bool = False,
    prefetch: Predictor | None = None,
    **options,
) -> Replay:
    """Replay a trace on one cache of one size.

    Parameters
    ----------
    trace : Trace
    policy : str
        A name in `lrc.cache_replay.POLICIES`; its parameters are keyword arguments (`half_life`,
        `alpha`, `seed`, `fit`, `share`).
    cache_size : int or int array [layers], optional
        Slots, one expert each; with ``level="layer"`` of each layer's cache.
    budget_bytes : int or int array [layers], optional
        Bytes instead of slots; one number is the budget of all layers together, which
        ``level="layer"`` divides evenly.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each.
    replay : {"engine", "paper"}
        The contract, see `lrc.cache_replay`.
    prompt_tokens : int or int array [sequences], optional
        Tokens at the head of each sequence that are run as one step, layer by layer (contract
        "engine"; default: ``meta["prompt_tokens"]``, else every token is a step).
    expert_bytes : int or int array [layers], optional
        Bytes of one expert (default: ``meta["expert_bytes"]``).
    carry_over : bool
        Let a sequence find the cache as the one before it left it, instead of empty.
    prefetch : callable, optional
        A predictor of `lrc.prefetch`: experts to load ahead of each request, in place of others
        that are not predicted themselves. One that was not needed keeps its old rank.
    **options
        Parameters of the policy.

    Returns
    -------
    Replay
        ``hit_rate``, ``loads``, ``bytes``; ``by_layer()`` and ``by_step()`` are tables.

    Raises
    ------
    LrcError
        An unknown policy, level, contract or parameter, no or two capacities, a capacity below one
        expert or below none, bytes that are needed but unknown.

    Notes
    -----
    A request that needs more than the capacity (a long prompt, or a cache smaller than top-k)
    passes through: all its misses are loaded, and what the policy ranks highest stays.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0, 1]], [[2, 0]]]], num_experts=3)
    >>> lrc.replay(trace, "lru", cache_size=2)
    <lrc.Replay: lru, contract 'engine', hit rate 0.2500, 3 loads of 4 uses>
    >>> lrc.replay(trace, "lru", cache_size=2, replay="paper")
    <lrc.Replay: lru, contract 'paper', hit rate 0.7500, 1 loads of 4 uses>
    """
    check_trace(trace)
    check_level(level, LEVELS)
    if replay not in CONTRACTS:
        raise LrcError(f"replay is {replay!r}, but must be one of {', '.join(CONTRACTS)}")
    options = checked_options(policy, options, trace.weights is not None)
    sizes = expert_sizes(trace, expert_bytes)
    capacities, in_bytes = checked_capacities(
        trace.num_layers, cache_size, budget_bytes, level, sizes
    )
    if replay == "paper":
        if (
            in_bytes
            or prefetch is not None
            or (prompt_tokens is not None and np.any(prompt_tokens))
        ):
            raise LrcError(
                "the contract 'paper' knows no bytes, prompts or prefetching: use replay='engine'"
            )
        asked = requests(trace, 0)
        asked = asked if level == "layer" else _whole_steps(asked)
    else:
        asked = requests(trace, prompt_tokens)
    if prefetch is not None and policy in ("belady", "static"):
        raise LrcError(
            f"policy {policy!r} does not go with prefetch: it knows the future, or never loads"
        )
    known = np.ones(trace.num_layers, np.int64) if sizes is None else sizes
    use_bytes = known[asked.ids // trace.num_experts]
    taken = known if in_bytes else np.ones(trace.num_layers, np.int64)
    predicted = None if prefetch is None else prefetch(asked)
    hits = np.empty(len(asked.ids), np.bool_)
    prefetched = wasted = prefetched_bytes = 0
    for group in range(len(capacities)):
        if level == "model":
            part, inside = asked, slice(None)
            id_sizes = np.repeat(taken, trace.num_experts)
            layers = range(trace.num_layers)
        else:
            part, inside = asked.of_layer(group), asked.ids // trace.num_experts == group
            id_sizes = np.repeat(taken[group], trace.num_experts)
            layers = range(group, group + 1)
        guessed = _guesses(predicted, asked, None if level == "model" else group)
        fate = np.zeros(len(guessed[0]), np.int8)
        hits[inside] = _run(
            part, policy, options, capacities[group], id_sizes, layers, replay == "engine",
            carry_over, guessed, fate,
        )  # fmt: skip
        loaded = fate != cpu_replay.NOT_LOADED
        prefetched += int(loaded.sum())
        wasted += int((fate == cpu_replay.WASTED).sum())
        owner = guessed[0][loaded] // trace.num_experts + (0 if level == "model" else group)
        prefetched_bytes += int(known[owner].sum())
    return Replay(
        policy, replay, level, asked, hits, use_bytes, prefetched, wasted, prefetched_bytes
    )


def _run(part, policy, options, capacity, sizes, layers, together, carry_over, guessed, fate):
    """Hits of one cache."""
    rules = rules_of(policy, options, capacity, sizes, layers, together)
    gains = np.ones(len(part.ids))
    if policy == "score":
        gains = options["alpha"] * part.weights.astype(np.float64)
    new = np.concatenate([[True], part.sequences[1:] != part.sequences[:-1]])[: part.num_requests]
    steps = np.concatenate(
        [[True], (part.steps[1:] != part.steps[:-1]) | new[1:]]
    )[: part.num_requests]  # fmt: skip
    hits = np.empty(len(part.ids), np.bool_)
    resets = np.zeros_like(new) if carry_over else new
    cpu_replay.replay(
        part.ids, gains, part.starts, np.cumsum(steps), resets, rules, options.get("seed", 0),
        *guessed, hits, fate,
    )  # fmt: skip
    return hits


def rules_of(policy, options, capacity, sizes, layers, together=True) -> cpu_replay.Rules:
    """What the kernel is told of one cache; `options` are checked."""
    decay = 1.0
    if policy == "lfu_decay":
        decay = 0.5 ** (1 / options["half_life"])
    elif policy == "score":
        decay = 1.0 - options["alpha"]
    pinned = np.zeros(len(sizes), np.bool_)
    if "fit" in options:
        share = int(options.get("share", 1.0) * capacity)
        pinned = _most_used(options["fit"], layers, sizes, share)
    return cpu_replay.Rules(
        POLICIES[policy].rule, int(capacity), float(decay), together, sizes, pinned
    )


def _most_used(fit, layers, sizes, room):
    """Mark the experts used most in a trace, as many as fit; on equal use the lower id."""
    chosen = fit.experts[:, :, list(layers)]
    num_experts = fit.num_experts
    counts = np.concatenate(
        [np.bincount(chosen[:, :, j][chosen[:, :, j] >= 0], minlength=num_experts)
         for j in range(chosen.shape[2])]
    )  # fmt: skip
    pinned = np.zeros(len(sizes), np.bool_)
    for x in np.argsort(-counts, kind="stable"):
        if sizes[x] <= room:
            pinned[x] = True
            room -= sizes[x]
    return pinned


def _guesses(predicted, asked, layer):
    """Predicted ids by request, of one layer or of all; nothing predicted: empty."""
    if predicted is None:
        count = asked.num_requests if layer is None else int((asked.layers == layer).sum())
        return np.empty(0, np.int32), np.zeros(count + 1, np.int64)
    ids, starts = predicted
    if layer is None:
        return ids, starts
    chosen = asked.layers == layer
    sizes = np.diff(starts)
    inside = np.repeat(chosen, sizes)
    return (
        (ids[inside] - layer * asked.num_experts).astype(np.int32),
        np.concatenate([[0], np.cumsum(sizes[chosen])]),
    )


def _whole_steps(asked: Requests) -> Requests:
    """Requests of all layers of a step as one."""
    first = np.flatnonzero(asked.layers == 0)
    return replace(
        asked,
        starts=np.append(asked.starts[first], asked.starts[-1]),
        layers=asked.layers[first],
        steps=asked.steps[first],
        sequences=asked.sequences[first],
    )


def checked_options(policy: str, options: dict, weighted: bool) -> dict:
    """Parameters of a policy, complete, or `LrcError`; `weighted`: router weights are known."""
    if policy not in POLICIES:
        raise LrcError(f"policy is {policy!r}, but must be one of {', '.join(POLICIES)}")
    known = POLICIES[policy].options
    for name, value in options.items():
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "has no parameters"
            raise LrcError(f"policy {policy!r} has no parameter {name!r}; it {takes}")
        if name == "fit":
            check_trace(value)
    if policy == "score" and not weighted:
        raise LrcError("policy 'score' needs router weights, and the trace has none")
    options = {**known, **options}
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise LrcError(
            f"policy {policy!r} needs {missing[0]}=: the trace whose counts say what to hold "
            "(another one than it is judged on)"
        )
    for name, low, high in (("half_life", 0, np.inf), ("alpha", 0, 1), ("share", 0, 1)):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise LrcError(f"{name} is {value!r}, but must be above {low} and at most {high}")
    return options


def expert_sizes(trace, expert_bytes):
    """Bytes of one expert of each layer, int64 [layers]; None if not known."""
    given = expert_bytes is not None
    value = expert_bytes if given else (trace.meta or {}).get("expert_bytes")
    if value is None:
        return None
    sizes = np.asarray(value)
    if sizes.dtype.kind not in "iu" or sizes.ndim > 1 or sizes.size not in (1, trace.num_layers):
        where = "expert_bytes" if given else "meta['expert_bytes']"
        raise LrcError(
            f"{where} is {value!r}, but must be whole bytes of one expert, one number or one for "
            f"each of {trace.num_layers} layers"
        )
    if (sizes < 1).any():
        raise LrcError(f"expert_bytes is {value!r}, but an expert has at least one byte")
    return np.broadcast_to(sizes.astype(np.int64), trace.num_layers).copy()


def checked_capacities(num_layers, cache_size, budget_bytes, level, sizes):
    """Capacity of every cache, a list of int, and whether it is in bytes."""
    if (cache_size is None) == (budget_bytes is None):
        raise LrcError("give either cache_size (slots) or budget_bytes, and not both")
    in_bytes = cache_size is None
    name, value = ("budget_bytes", budget_bytes) if in_bytes else ("cache_size", cache_size)
    if in_bytes and sizes is None:
        raise LrcError(
            "budget_bytes needs the bytes of one expert, which the trace does not say: give "
            "expert_bytes"
        )
    caches = 1 if level == "model" else num_layers
    given = np.asarray(value)
    if given.dtype.kind not in "iu" or given.ndim > 1 or given.size not in (1, caches):
        raise LrcError(
            f"{name} is {value!r}, but must be a whole number, or one for each of {caches} caches"
        )
    capacities = np.broadcast_to(given.astype(np.int64), caches)
    if in_bytes and given.ndim == 0:
        capacities = capacities // caches
    least = sizes if in_bytes else np.ones(num_layers, np.int64)
    least = least.min(keepdims=True) if level == "model" else least
    if (capacities < least).any():
        raise LrcError(
            f"{name} is {value!r}, which holds not one expert"
            + (f" of {int(least.max()):,} bytes" if in_bytes else "")
        )
    return capacities.tolist(), in_bytes
