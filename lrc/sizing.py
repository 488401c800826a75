"""How large an expert cache a device needs, how to divide it, and how fast it will be."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrc.arguments import check_level, check_trace
from lrc.bootstrap import check_bootstrap, resample_weights
from lrc.budget import best_split, even_split, hull_bound
from lrc.cache_replay import LEVELS, expert_sizes, replay
from lrc.errors import LrcError
from lrc.request_counts import POLICIES, request_counts
from lrc.requests import requests
from lrc.size_choice import Shape, choose, knees
from lrc.throughput import Device
from lrc.trace import Trace
from lrc.unions import join_steps


@dataclass(frozen=True)
class Sizing:
    """What `size_cache` recommends.

    Attributes
    ----------
    policy, level : str
    reason : str
        What decided: the budget, the target or the knee.
    slots : int
        Experts that the cache holds, of all layers together.
    num_bytes : int or None
        What they take, at the largest expert's size; None if bytes are not known.
    hit_rate : float
        At this size, first uses counted as misses.
    interval : tuple of float or None
        Of the hit rate, over texts.
    curve : DataFrame
        cache_size (slots of all layers together), cache_ratio, hit_rate, ci_low, ci_high.
    knee : DataFrame
        criterion, cache_ratio, low, high: where the curve bends (see `lrc.curves.bends`), with
        its interval; and the rule of twice the active experts beside it.
    split : DataFrame or None
        layer, even, best: slots of each layer's own cache when the same budget is divided evenly,
        or best.
    split_rates : dict
        Hit rates of the divisions: "even", "best", "shared" (one cache for all layers), and
        "bound", which no division exceeds.
    tokens_per_second : tuple of float or None
        Low, expected and high, if a device was given.
    unsaid : tuple of str
        Sentences: what this recommendation cannot say.
    """

    policy: str
    level: str
    reason: str
    slots: int
    num_bytes: int | None
    hit_rate: float
    interval: tuple[float, float] | None
    curve: pd.DataFrame
    knee: pd.DataFrame
    split: pd.DataFrame | None
    split_rates: dict
    tokens_per_second: tuple[float, float, float] | None
    unsaid: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The recommendation in one sentence."""
        size = "" if self.num_bytes is None else f" ({self.num_bytes / 2**20:,.0f} MiB)"
        rate = f"{self.hit_rate:.1%}"
        if self.interval is not None:
            rate += f" ({self.interval[0]:.1%} to {self.interval[1]:.1%})"
        speed = ""
        if self.tokens_per_second is not None:
            low, expected, high = self.tokens_per_second
            speed = f", {expected:.1f} tokens a second ({low:.1f} to {high:.1f})"
        shared = "shared by all layers" if self.level == "model" else "divided evenly over layers"
        return (
            f"{self.slots:,} slots{size} {shared}, for {self.reason}: {self.policy} hits {rate} of "
            f"the uses{speed}."
        )

    def to_json(self) -> str:
        """The recommendation and its tables as JSON."""
        plain = {
            "policy": self.policy,
            "level": self.level,
            "reason": self.reason,
            "slots": self.slots,
            "bytes": self.num_bytes,
            "hit_rate": self.hit_rate,
            "interval": self.interval,
            "tokens_per_second": self.tokens_per_second,
            "split_rates": self.split_rates,
            "unsaid": self.unsaid,
            "sentence": self.sentence(),
        }
        for name in ("curve", "knee", "split"):
            table = getattr(self, name)
            plain[name] = None if table is None else json.loads(table.to_json(orient="records"))
        return json.dumps(plain, indent=2, allow_nan=False)

    def __repr__(self):
        return self.sentence()


def size_cache(
    trace: Trace | str,
    policy: str = "lru",
    *,
    target: float | None = None,
    budget_bytes: int | None = None,
    cache_size: int | None = None,
    level: str = "model",
    prompt_tokens=None,
    expert_bytes=None,
    device: Device | None = None,
    batch_size: int = 1,
    draft_tokens: int = 1,
    gain: float = 0.1,
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Sizing:
    """Recommend an expert cache, under the contract "engine" (see `lrc.cache_replay`).

    Parameters
    ----------
    trace : Trace or str
        Routing of the model on text like that to be served; or the key of a published model in
        `lrc.curves.of_published_models`, whose published curve then stands in for a trace.
    policy : {"lru", "lfu", "belady"}
    target : float, optional
        Hit rate wanted: the smallest cache that reaches it.
    budget_bytes, cache_size : int, optional
        Memory for experts of all layers together, in bytes or in slots: the largest cache that
        fits. Give at most one of the three; without any, the knee of the curve decides.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each, of equal size.
    prompt_tokens, expert_bytes
        As in `lrc.replay`.
    device : lrc.throughput.Device, optional
        Tells the tokens per second to expect. Its `compute_ms` is that of a step, of as many tokens
        as a step has.
    batch_size, draft_tokens : int
        Texts that run in lockstep, and tokens of a draft that is accepted as a whole, see
        `lrc.unions.join_steps`. Hits are then counted per step, in which an expert is looked up
        once however many tokens need it; ``cache_ratio`` stays relative to a single token.
    gain : float
        The knee is the smallest cache from which on as many more slots as a token activates add
        less than this to the hit rate.
    bootstrap, confidence, seed
        Resamples of the sequences behind the intervals; of a single sequence there are none.

    Returns
    -------
    Sizing
        Prints as one sentence.

    Raises
    ------
    LrcError
        More than one of target, budget and size; a budget below one token's experts, negative, or
        larger than the model; a target that is no hit rate, or that first uses put out of reach.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[1]], [[0]], [[1]]]], num_experts=4)
    >>> lrc.size_cache(trace, target=0.5, bootstrap=0)
    2 slots shared by all layers, for a hit rate of 50%: lru hits 50.0% of the uses.
    """
    if isinstance(trace, str):
        from lrc.published_sizing import size_published

        if prompt_tokens is not None or (batch_size, draft_tokens, level) != (1, 1, "model"):
            raise LrcError(
                "a published curve is that of one cache shared by all layers, which serves token "
                "by token: give a trace for prompts, batches, drafts or level='layer'"
            )
        return size_published(
            trace,
            policy,
            target=target,
            budget_bytes=budget_bytes,
            cache_size=cache_size,
            expert_bytes=expert_bytes,
            device=device,
            gain=gain,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
        )
    check_trace(trace)
    check_level(level, LEVELS)
    check_bootstrap(bootstrap, confidence)
    if policy not in POLICIES:
        raise LrcError(
            f"policy is {policy!r}, but sizes are compared for {', '.join(POLICIES)}; for others "
            "replay single sizes (lrc.replay)"
        )
    given = {"target": target, "budget_bytes": budget_bytes, "cache_size": cache_size}
    if sum(value is not None for value in given.values()) > 1:
        raise LrcError("give one of target, budget_bytes and cache_size, or none for the knee")
    sizes = expert_sizes(trace, expert_bytes)
    joined, step_tokens = trace, 1.0
    if (batch_size, draft_tokens) != (1, 1):
        joined = join_steps(
            trace,
            batch_size=batch_size,
            draft_tokens=draft_tokens,
            prompt_tokens=prompt_tokens,
            seed=seed,
        )
        step_tokens, prompt_tokens = joined.meta["step_tokens"], None
    asked = requests(joined, prompt_tokens)
    if not len(asked.ids):
        raise LrcError("the trace uses no expert: there is nothing to size")
    counts = request_counts(asked, policy, level, joined.num_sequences)
    curve, rates = _curve(joined, trace.top_k, counts, level, bootstrap, confidence, seed)
    knee = knees(curve, rates, gain, confidence)
    slots, reason = choose(
        Shape(trace.num_layers, trace.num_experts, trace.top_k), curve, knee, sizes, level, given
    )
    row = curve[curve["cache_size"] == slots].iloc[0]
    split, split_rates = _split(trace, asked, policy, slots, joined.num_sequences)
    speed = None
    if device is not None:
        if sizes is None:
            raise LrcError("tokens per second need the bytes of one expert: give expert_bytes")
        per_cache = slots if level == "model" else slots // trace.num_layers
        slow, expected, fast = device.tokens_per_second(
            replay(
                joined,
                policy,
                cache_size=per_cache,
                level=level,
                prompt_tokens=prompt_tokens,
                expert_bytes=sizes,
            )
        )
        speed = (step_tokens * slow, step_tokens * expected, step_tokens * fast)
    return Sizing(
        policy,
        level,
        reason,
        slots,
        None if sizes is None else int(slots * sizes.max()),
        float(row["hit_rate"]),
        (float(row["ci_low"]), float(row["ci_high"])) if rates is not None else None,
        curve,
        knee,
        split,
        split_rates,
        speed,
    )


def _curve(trace, top_k, counts, level, bootstrap, confidence, seed):
    """Hit rate at every size, all layers pooled; and that of every resample, or None."""
    pooled = counts.sum(axis=1)  # [sequences, sizes + 1]: of equal caches, or of the one
    caches = counts.shape[1]
    hits, uses = pooled.cumsum(axis=1)[:, :-1], pooled.sum(axis=1)
    slots = np.arange(1, hits.shape[1] + 1) * caches
    rate = hits.sum(axis=0) / uses.sum()
    table = pd.DataFrame(
        {
            "cache_size": slots,
            "cache_ratio": slots / (top_k * trace.num_layers),
            "hit_rate": rate,
        }
    )
    if not bootstrap or trace.num_sequences < 2:
        return table, None
    strata = np.zeros(trace.num_sequences) if trace.datasets is None else trace.datasets
    weights = resample_weights(strata, bootstrap, seed).astype(np.float64)
    rates = (weights @ hits) / np.maximum(weights @ uses, 1)[:, None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail], axis=0)
    return table.assign(ci_low=2 * rate - high, ci_high=2 * rate - low), rates


def _split(trace, asked, policy, slots, num_sequences):
    """Slots of each layer, divided evenly and best, and the hit rates of all divisions."""
    uses = len(asked.ids)
    shared = request_counts(asked, policy, "model", num_sequences).sum(axis=(0, 1))
    rates = {"shared": float(shared[:slots].sum() / uses)}
    if trace.num_layers < 2 or slots < trace.num_layers * trace.top_k:
        return None, rates
    own = request_counts(asked, policy, "layer", num_sequences).sum(axis=0)
    hits = own.cumsum(axis=1)[:, :-1]
    even = even_split(slots, trace.num_layers, most=trace.num_experts)
    best = best_split(hits, slots, least=trace.top_k)
    layers = np.arange(trace.num_layers)
    rates["even"] = float(hits[layers, even - 1].sum() / uses)
    rates["best"] = float(hits[layers, best - 1].sum() / uses)
    rates["bound"] = float(hull_bound(hits, slots) / uses)
    return pd.DataFrame({"layer": layers, "even": even, "best": best}), rates
