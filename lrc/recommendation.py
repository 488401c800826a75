"""One answer for one device: how large a cache, how divided, under which policy, and how fast.

What `lrc.size_cache`, `lrc.budget` and `lrc.diagnose` say of a budget, put together, with the
choice and its judgement kept apart: policy and division are chosen on one half of the texts and
judged on the other.
"""

import json
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.budget import best_split, even_split
from lrc.cache_replay import expert_sizes, replay
from lrc.curves import bends
from lrc.diagnosis import diagnose
from lrc.errors import LrcError
from lrc.request_counts import request_counts
from lrc.requests import requests
from lrc.size_choice import Shape, choose
from lrc.throughput import Device
from lrc.trace import Trace
from lrc.unions import join_steps
from lrc.whole_files import write_whole, writing

POLICIES = ("lru", "lfu", "lfu_decay", "lfru", "sieve")
"""Policies that a recommendation chooses from: what an engine can do without knowing more."""

LAYOUTS = {
    "shared": "shared by all layers",
    "even": "divided evenly over the layers",
    "best": "divided over the layers by their need",
}
MOST_USES = 1_000_000
"""Uses of experts that a choice, and its judgement, replay at most: whole texts, evenly picked."""

# A policy or a division must hit so much more to be preferred to LRU, or to a shared cache.
_MARGIN = 0.002

# Texts of each domain from which on they are drawn within it.
_SMALLEST_STRATUM = 4


@dataclass(frozen=True)
class Recommendation:
    """What to build, what to expect of it, and how sure that is.

    Attributes
    ----------
    source : str
        What it rests on.
    evidence : {"trace", "published"}
    policy : str
    layout : {"shared", "even", "best"}
    slots : int
        Experts in the cache, of all layers together.
    num_bytes : int
        What they take, at the largest expert's size.
    split : list of int or None
        Slots of each layer's own cache; None if shared.
    hit_rate : float
    interval : tuple of float or None
        Of the hit rate: over texts, or (published) the error of reading.
    tokens_per_second : tuple of float or None
        Low, expected, high; None without a device.
    cause : str
        Whose fault the misses are, in a sentence.
    advice : str
        What would help, in a sentence (of `lrc.diagnose`, where there is a trace).
    sizes : DataFrame
        size, slots, megabytes, cache_ratio, hit_rate, ci_low, ci_high and, with a device, slowest,
        tokens_per_second, fastest: the recommendation, and other sizes beside it.
    choices : DataFrame
        policy, layout, hit_rate: what it was chosen from, on the texts of the choice.
    parts : DataFrame
        part, share: where uses go.
    curve : DataFrame
        policy, cache_size, cache_ratio, hit_rate, ci_low, ci_high.
    knee : float
        Ratio from which on as many slots as a token activates add less than 0.1 to the hit rate;
        NaN if there is none below 3.
    unsaid : tuple of str
        What this cannot say.
    """

    source: str
    evidence: str
    policy: str
    layout: str
    slots: int
    num_bytes: int
    split: list[int] | None
    hit_rate: float
    interval: tuple[float, float] | None
    tokens_per_second: tuple[float, float, float] | None
    cause: str
    advice: str
    sizes: pd.DataFrame
    choices: pd.DataFrame
    parts: pd.DataFrame
    curve: pd.DataFrame
    knee: float
    unsaid: tuple[str, ...]

    def sentence(self) -> str:
        """The recommendation in one sentence."""
        rate = f"{self.hit_rate:.1%}"
        if self.interval is not None:
            rate += f" ({self.interval[0]:.1%} to {self.interval[1]:.1%})"
        speed = ""
        if self.tokens_per_second is not None:
            low, expected, high = self.tokens_per_second
            speed = f", and {expected:.3g} tokens a second ({low:.3g} to {high:.3g})"
        return (
            f"Keep {self.slots:,} experts ({_bytes(self.num_bytes)}) in a cache "
            f"{LAYOUTS[self.layout]}, under {self.policy}: expect {rate} of the uses to hit{speed}."
        )

    def to_json(self) -> str:
        """Everything, tables too, as JSON."""
        plain = {"sentence": self.sentence()}
        for name, value in asdict(self).items():
            if isinstance(value, pd.DataFrame):
                value = json.loads(value.to_json(orient="records"))
            elif isinstance(value, float) and not np.isfinite(value):
                value = None
            plain[name] = value
        return json.dumps(plain, indent=2, allow_nan=False)

    def save(self, path: str | PathLike) -> None:
        """Write `to_json` to a file, whole or not at all."""
        target = Path(fspath(path)).expanduser()
        with writing(target):
            write_whole(target, (self.to_json() + "\n").encode())

    def __repr__(self):
        return "\n".join([self.sentence(), self.cause, self.advice])


def recommend(
    source: Trace | str,
    budget_bytes: int,
    *,
    expert_bytes=None,
    device: Device | None = None,
    batch_size: int = 1,
    draft_tokens: int = 1,
    name: str = "",
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Recommendation:
    """Recommend a cache for a memory budget, under the contract "engine".

    Parameters
    ----------
    source : Trace or str
        Routing on text like that to be served; or the key of a published model, see
        `lrc.size_cache`.
    budget_bytes : int
        Memory for the experts of all layers.
    expert_bytes : int or int array [layers], optional
        Bytes of one expert; by default what the trace says or, for a published model, what
        `lrc.expert_bytes.of_published` derives.
    device : lrc.throughput.Device, optional
        Its `compute_ms` is that of a step: of a token, or of a batch or draft of tokens.
    batch_size, draft_tokens : int
        As in `lrc.unions.join_steps`.
    name : str
        What to call the source.
    bootstrap, confidence, seed
        Resamples behind the intervals.

    Returns
    -------
    Recommendation
        Prints as three sentences.

    Raises
    ------
    LrcError
        A budget below one token's experts, negative, or larger than the model; bytes that are not
        known; whatever `lrc.replay` refuses.

    Notes
    -----
    Slots are counted at the size of the largest expert. Hit rates are those of texts that each find
    an empty cache. A single text is chosen and judged on as a whole.

    Examples
    --------
    >>> toy = lrc.toys.load_trace("baseline")
    >>> lrc.recommendation.recommend(toy, 3_000_000).slots
    108
    """
    if isinstance(source, str):
        from lrc.published_sizing import recommend_published

        if (batch_size, draft_tokens) != (1, 1):
            raise LrcError(
                "a published curve serves token by token: batches and drafts need a trace"
            )
        return recommend_published(source, budget_bytes, expert_bytes, device, name)
    check_trace(source)
    check_bootstrap(bootstrap, confidence)
    trace = source
    sizes = expert_sizes(trace, expert_bytes)
    shape = Shape(trace.num_layers, trace.num_experts, trace.top_k)
    given = {"target": None, "budget_bytes": budget_bytes, "cache_size": None}
    everything = trace.num_layers * trace.num_experts
    every_size = pd.DataFrame({"cache_size": np.arange(1, everything + 1)})
    slots, _ = choose(shape, every_size, None, sizes, "model", given)

    joined, step_tokens = trace, 1.0
    if (batch_size, draft_tokens) != (1, 1):
        joined = join_steps(trace, batch_size=batch_size, draft_tokens=draft_tokens, seed=seed)
        step_tokens = joined.meta["step_tokens"]
    one_text = joined.num_sequences < 4
    halves = [joined] * 2 if one_text else [joined.select(slice(n, None, 2)) for n in (0, 1)]
    known, judged = (_few(half) for half in halves)

    chosen, choices = _choose(known, slots, shape.top_k)
    policy, layout, size = chosen
    level = "model" if layout == "shared" else "layer"
    found = diagnose(judged, policy, cache_size=size, level=level, expert_bytes=sizes, seed=seed)
    options = (device, step_tokens, bootstrap, confidence, seed)
    here = _expect(found.replayed, judged, *options)
    rows = [{"size": "recommended", "slots": slots} | here]
    per_token = shape.top_k * shape.num_layers
    beside = {"half of it": slots // 2, "twice the active experts": 2 * per_token}
    beside["all experts"] = everything
    for label, other in beside.items():
        if shape.top_k <= other <= everything:
            replayed = replay(judged, policy, cache_size=other, expert_bytes=sizes)
            rows.append({"size": label, "slots": other} | _expect(replayed, judged, *options))
    table = pd.DataFrame(rows).astype({"size": "str"})
    table.insert(2, "megabytes", table["slots"] * sizes.max() / 1e6)
    table.insert(3, "cache_ratio", table["slots"] / per_token)

    drawn = ["lru", "lfu", "belady"]
    curve = pd.concat(
        [_curve(judged, name, per_token, bootstrap, confidence, seed) for name in drawn],
        ignore_index=True,
    ).astype({"policy": "str"})
    knee = bends(curve[curve["policy"] == "lru"][["cache_ratio", "hit_rate"]], "gain")
    parts = found.parts[["part", "share"]]
    shares = parts.set_index("part")["share"]
    first = rows[0]
    unsaid = [
        "Each text finds an empty cache: an engine that keeps it from text to text has fewer first "
        "uses to load."
    ]
    if one_text:
        unsaid.append(
            "The trace holds too few texts to tell how much hit rates differ between them, and the "
            "choice was judged on the text that it was made on."
        )
    if draft_tokens > 1:
        unsaid.append("Drafts are taken to be accepted as a whole.")
    if device is None:
        unsaid.append("Without a device there is no speed.")
    return Recommendation(
        name or repr(trace),
        "trace",
        policy,
        layout,
        slots,
        int(slots * sizes.max()),
        None if layout == "shared" else np.asarray(size).tolist(),
        first["hit_rate"],
        None if np.isnan(first["ci_low"]) else (first["ci_low"], first["ci_high"]),
        None
        if device is None
        else (first["slowest"], first["tokens_per_second"], first["fastest"]),
        cause(shares),
        found.advice,
        table,
        choices,
        parts,
        curve,
        float(knee["cache_ratio"].iloc[0]),
        tuple(unsaid),
    )


def _few(trace):
    """Whole texts of a trace, evenly picked, with at most `MOST_USES` uses; at least two."""
    uses = int((trace.experts >= 0).sum())
    if not uses:
        raise LrcError("the trace uses no expert: there is nothing to size")
    step = max(1, -(-uses // MOST_USES))
    step = min(step, max(1, trace.num_sequences // 2))
    return trace.select(slice(None, None, step))


def _choose(trace, slots, top_k):
    """Policy, layout and size (a number, or one a layer) that hit most, and all that were tried."""
    rows = []
    for policy in POLICIES:
        found = replay(trace, policy, cache_size=slots).hit_rate
        rows.append({"policy": policy, "layout": "shared", "hit_rate": found})
    policy, _ = _preferred([(row["policy"], row["hit_rate"]) for row in rows])
    sizes = {"shared": slots}
    if trace.num_layers > 1 and slots >= trace.num_layers * top_k:
        kind = "lfu" if policy.startswith("lf") else "lru"
        own = request_counts(requests(trace), kind, "layer", trace.num_sequences).sum(axis=0)
        hits = own.cumsum(axis=1)[:, :-1]
        sizes["even"] = even_split(slots, trace.num_layers, most=trace.num_experts)
        sizes["best"] = best_split(hits, slots, least=top_k)
        for layout in ("even", "best"):
            found = replay(trace, policy, cache_size=sizes[layout], level="layer").hit_rate
            rows.append({"policy": policy, "layout": layout, "hit_rate": found})
    rated = {row["layout"]: row["hit_rate"] for row in rows if row["policy"] == policy}
    layout, _ = _preferred([(name, rated[name]) for name in sizes])
    table = pd.DataFrame(rows).astype({"policy": "str", "layout": "str"})
    return (policy, layout, sizes[layout]), table


def _preferred(rated):
    """The first, unless a later one hits more by the margin."""
    chosen = rated[0]
    for other in rated[1:]:
        if other[1] > chosen[1] + _MARGIN:
            chosen = other
    return chosen


def _weights(trace, bootstrap, seed):
    strata = np.zeros(trace.num_sequences)
    if trace.datasets is not None:
        _, sizes = np.unique(trace.datasets, return_counts=True)
        # A domain of a single text always draws that text, and so would seem to have no spread.
        strata = trace.datasets if sizes.min() >= _SMALLEST_STRATUM else strata
    return resample_weights(strata, bootstrap, seed).astype(np.float64)


def _expect(replayed, trace, device, step_tokens, bootstrap, confidence, seed):
    """Hit rate and speed of a replay, with their intervals over texts, as a row."""
    texts = trace.num_sequences
    owner = np.repeat(replayed.requests.sequences, np.diff(replayed.requests.starts))
    uses = np.bincount(owner, minlength=texts)
    hits = np.bincount(owner, replayed.hits, texts)
    weights = _weights(trace, bootstrap, seed) if bootstrap and texts > 1 else None
    row = {"hit_rate": replayed.hit_rate, "ci_low": np.nan, "ci_high": np.nan}
    if weights is not None:
        rates = (weights @ hits) / np.maximum(weights @ uses, 1)
        ends = mirrored_interval(row["hit_rate"], rates, confidence)
        row["ci_low"], row["ci_high"] = np.clip(ends, 0, 1).tolist()
    if device is None:
        return row
    steps = device.by_step(replayed)
    took = np.bincount(steps["sequence"], steps["ms"], texts)
    count = np.bincount(steps["sequence"], minlength=texts)
    mean = took.sum() / count.sum()
    ends = (mean, mean)
    if weights is not None:
        ends = mirrored_interval(
            mean, (weights @ took) / np.maximum(weights @ count, 1), confidence
        )
    low, high = device.spread
    factors = {"slowest": ends[1] * high, "tokens_per_second": mean, "fastest": ends[0] * low}
    return row | {name: float(1e3 * step_tokens / ms) for name, ms in factors.items()}


def _curve(trace, policy, per_token, bootstrap, confidence, seed):
    """Hit rates of one shared cache of some sizes, up to all experts."""
    counts = request_counts(requests(trace), policy, "model", trace.num_sequences).sum(axis=1)
    hits, uses = counts.cumsum(axis=1)[:, :-1], counts.sum(axis=1)
    last = hits.shape[1]
    sizes = np.unique(np.geomspace(min(per_token / trace.num_layers, last), last, 24).round())
    hits = hits[:, sizes.astype(int) - 1]
    rate = hits.sum(axis=0) / uses.sum()
    table = pd.DataFrame(
        {"policy": policy, "cache_size": sizes.astype(int), "cache_ratio": sizes / per_token}
    ).assign(hit_rate=rate)
    if bootstrap and trace.num_sequences > 1:
        weights = _weights(trace, bootstrap, seed)
        rates = (weights @ hits) / np.maximum(weights @ uses, 1)[:, None]
        table["ci_low"], table["ci_high"] = mirrored_interval(rate, rates, confidence)
    return table


def cause(shares) -> str:
    """Whose fault the misses are, in a sentence; `shares` by part, as of `lrc.diagnose`."""
    lost = 1 - shares["hits"]
    if lost < 0.005:
        return "Hardly anything is missed."
    whose = {
        "capacity": "the model's routing (no policy hits them at this size)",
        "policy": "the policy (one that knows the future hits them)",
        "compulsory": "first uses",
        "forced": "too small a cache for the experts of one request",
    }
    told = [
        f"{shares[part]:.1%} for {reason}"
        for part, reason in whose.items()
        if shares.get(part, 0) >= 0.0005
    ]
    return f"{lost:.1%} of the uses miss: {', '.join(told)}."


def _bytes(count):
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
