"""Sizes from the published curves of a model, where there is no trace of it."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from lrc import expert_bytes as experts
from lrc.curves import of_published_models
from lrc.errors import LrcError
from lrc.recommendation import Recommendation, cause
from lrc.size_choice import Shape, choose, knees
from lrc.sizing import Sizing, size_cache

PUBLISHED = ("lru", "lfu", "belady")
"""Policies whose curves are published."""

READING_ERROR = {"lru": 0.005, "lfu": 0.005, "belady": 0.005, "sch": 0.002}
"""Largest error with which a published curve was read from its figure."""

UNSAID = (
    "The published curves are means over eleven corpora: how much hit rates differ from text to "
    "text is not published; the interval is the error of reading the figure.",
    "First uses count as hits until the cache is full, as in the paper; on a device they miss, "
    "which costs most in short texts.",
    "The curves are of one cache shared by all layers: what a division over layers would gain, "
    "only a trace can tell.",
    "The best policy is taken to be Belady, which under the paper's rules is no strict bound.",
    "A mean hit rate tells mean loads: the speed of single tokens, of batches and of drafts is not "
    "in it, and with overlap the speed is an upper bound.",
)


@cache
def _curves():
    return of_published_models()


def published_shape(model: str) -> Shape:
    """Layers that share the published cache, experts and top-k of a model.

    Parameters
    ----------
    model : str
        A name in `lrc.curves.of_published_models`.

    Raises
    ------
    LrcError
        An unknown model, or one of two stacks without saying which.
    """
    known = _curves()["model"].unique().tolist()
    if model not in known:
        stacks = [name for name in known if name.startswith(f"{model} ")]
        hint = (
            f"say which stack: {' or '.join(stacks)}"
            if stacks
            else f"choose from {', '.join(known)}"
        )
        raise LrcError(f"no published curves of {model!r}: {hint}")
    shape = experts.of_published(model)
    # All top-k are published; only a configuration may not tell it.
    return Shape(len(shape.parameters), shape.num_experts, shape.top_k)  # type: ignore[arg-type]


def published_curve(model: str, policy: str) -> pd.DataFrame:
    """A model's published hit rates as `lrc.sizing.Sizing` has them.

    Returns
    -------
    DataFrame
        cache_size (slots of all layers), cache_ratio, hit_rate, and ci_low, ci_high: the error of
        reading. The end, where every expert has a slot and the hit rate is 1, is exact.
    """
    shape = published_shape(model)
    table = _curves()
    table = table[(table["model"] == model) & (table["policy"] == policy)]
    table = table.sort_values("cache_ratio", ignore_index=True)
    slots = (table["cache_ratio"] * shape.top_k * shape.num_layers).round().astype(np.int64)
    error = np.where(table["hit_rate"] < 1, READING_ERROR[policy], 0)
    return pd.DataFrame(
        {
            "cache_size": slots,
            "cache_ratio": table["cache_ratio"],
            "hit_rate": table["hit_rate"],
            "ci_low": (table["hit_rate"] - error).clip(lower=0),
            "ci_high": (table["hit_rate"] + error).clip(upper=1),
        }
    )


def readings(curve: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Curves that the error of reading does not exclude: float64 [draws, points], rising."""
    rng = np.random.default_rng(seed)
    low, high = curve["ci_low"].to_numpy(), curve["ci_high"].to_numpy()
    return np.maximum.accumulate(rng.uniform(low, high, (draws, len(curve))), axis=1)


def size_published(
    model, policy, *, target, budget_bytes, cache_size, expert_bytes, device, gain, bootstrap,
    confidence, seed,
) -> Sizing:  # fmt: skip
    """`lrc.size_cache` on a published curve; between its points, the curve is straight."""
    if policy not in PUBLISHED:
        raise LrcError(f"policy is {policy!r}, but published are only {', '.join(PUBLISHED)}")
    given = {"target": target, "budget_bytes": budget_bytes, "cache_size": cache_size}
    if sum(value is not None for value in given.values()) > 1:
        raise LrcError("give one of target, budget_bytes and cache_size, or none for the knee")
    shape = published_shape(model)
    known = published_curve(model, policy)
    # Every size between the points that were read.
    slots = np.arange(1, shape.num_layers * shape.num_experts + 1)
    curve = pd.DataFrame(
        {"cache_size": slots, "cache_ratio": slots / (shape.top_k * shape.num_layers)}
    )
    for name in ("hit_rate", "ci_low", "ci_high"):
        curve[name] = np.interp(
            curve["cache_ratio"], np.append(0, known["cache_ratio"]), np.append(0, known[name])
        )
    rates = readings(known, bootstrap, seed) if bootstrap else None
    knee = knees(known, rates, gain, confidence)
    sizes = checked_sizes(model, expert_bytes)
    chosen, reason = choose(shape, curve, knee, sizes, "model", given)
    row = curve.iloc[chosen - 1]
    speed = None
    if device is not None:
        speed = device.mean_tokens_per_second(
            (1 - row[["ci_low", "hit_rate", "ci_high"]].to_numpy(float))
            * shape.top_k * shape.num_layers,
            sizes.mean(),
        )  # fmt: skip
    return Sizing(
        policy,
        "model",
        reason,
        chosen,
        int(chosen * sizes.max()),
        float(row["hit_rate"]),
        (float(row["ci_low"]), float(row["ci_high"])),
        curve,
        knee,
        None,
        {"shared": float(row["hit_rate"])},
        speed,
        UNSAID,
    )


def checked_sizes(model, expert_bytes) -> np.ndarray:
    """Bytes of one expert of each layer; by default those of the published numbers, in 16 bits."""
    shape = published_shape(model)
    if expert_bytes is None:
        expert_bytes = experts.of_published(model).num_bytes()
    sizes = np.asarray(expert_bytes)
    if sizes.dtype.kind not in "iu" or sizes.ndim > 1 or sizes.size not in (1, shape.num_layers):
        raise LrcError(
            f"expert_bytes is {expert_bytes!r}, but must be whole bytes of one expert, one number "
            f"or one for each of {shape.num_layers} layers"
        )
    if (sizes < 1).any():
        raise LrcError(f"expert_bytes is {expert_bytes!r}, but an expert has at least one byte")
    return np.broadcast_to(sizes.astype(np.int64), shape.num_layers)


def recommend_published(model, budget_bytes, expert_bytes, device, name) -> Recommendation:
    """`lrc.recommendation.recommend` on published curves."""
    shape = published_shape(model)
    sizes = checked_sizes(model, expert_bytes)
    largest = int(sizes.max())
    options: dict[str, Any] = {
        "expert_bytes": sizes,
        "device": device,
        "bootstrap": 0,  # intervals are errors of reading
    }
    sized = {p: size_cache(model, p, budget_bytes=budget_bytes, **options) for p in PUBLISHED}
    rates = {policy: found.hit_rate for policy, found in sized.items()}
    policy = "lfu" if rates["lfu"] > rates["lru"] + 2 * READING_ERROR["lru"] else "lru"
    found = sized[policy]
    per_token = shape.top_k * shape.num_layers
    everything = shape.num_layers * shape.num_experts
    beside = {
        "recommended": found.slots,
        "half of it": found.slots // 2,
        "twice the active experts": 2 * per_token,
        "all experts": everything,
    }
    rows = []
    for label, slots in beside.items():
        if shape.top_k <= slots <= everything:
            other = size_cache(model, policy, cache_size=slots, **options)
            row = {"size": label, "slots": slots, "megabytes": slots * largest / 1e6}
            row |= {"cache_ratio": slots / per_token, "hit_rate": other.hit_rate}
            if other.interval is not None:
                row |= dict(zip(("ci_low", "ci_high"), other.interval, strict=True))
            if other.tokens_per_second is not None:
                names = ("slowest", "tokens_per_second", "fastest")
                row |= dict(zip(names, other.tokens_per_second, strict=True))
            rows.append(row)
    lost = {"hits": rates[policy], "policy": max(rates["belady"] - rates[policy], 0)}
    lost["capacity"] = 1 - lost["hits"] - lost["policy"]
    parts = pd.DataFrame({"part": list(lost), "share": list(lost.values())})
    curve = pd.concat(
        [published_curve(model, p).assign(policy=p) for p in PUBLISHED], ignore_index=True
    )
    choices = pd.DataFrame({"policy": list(PUBLISHED), "layout": "shared"})
    choices["hit_rate"] = choices["policy"].map(rates)
    advice = "A larger cache, loading ahead, or a model that routes more consistently would help."
    if lost["policy"] > lost["capacity"]:
        advice = "A better policy or a predictor of routing would help: record a trace to try them."
    return Recommendation(
        name or f"published curves of {model}",
        "published",
        policy,
        "shared",
        found.slots,
        found.slots * largest,
        None,
        found.hit_rate,
        found.interval,
        found.tokens_per_second,
        cause(lost),
        advice,
        pd.DataFrame(rows).astype({"size": "str"}),
        choices[choices["policy"] != "belady"].astype({"policy": "str", "layout": "str"}),
        parts.astype({"part": "str"}),
        curve.astype({"policy": "str"})[["policy", *curve.columns.drop("policy")]],
        float(sized["lru"].knee["cache_ratio"].iloc[0]),
        (*UNSAID, *(() if device is not None else ("Without a device there is no speed.",))),
    )
