"""Which size to take: where a curve bends, and what a budget or a target asks for."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from lrc.curves import bends
from lrc.errors import LrcError


class Shape(NamedTuple):
    """How many experts a model has and uses."""

    num_layers: int
    num_experts: int
    top_k: int


def knees(curve, rates, gain, confidence):
    """Where the curve bends by two criteria, with intervals over the resamples.

    No number: beyond what `lrc.curves.bends` looks at.
    """
    rows = []
    plain = curve[["cache_ratio", "hit_rate"]]
    for criterion in ("gain", "chord"):
        found = bends(plain, criterion, gain=gain)["cache_ratio"].iloc[0]
        row = {"criterion": criterion, "cache_ratio": found}
        if rates is not None:
            many = pd.concat(
                [plain.assign(hit_rate=rate, draw=i) for i, rate in enumerate(rates[:200])]
            )
            drawn = bends(many, criterion, gain=gain)["cache_ratio"].fillna(np.inf)
            tail = (1 - confidence) / 2
            ends = drawn.quantile([tail, 1 - tail], interpolation="nearest")
            row |= dict(zip(("low", "high"), ends.replace(np.inf, np.nan), strict=True))
        rows.append(row)
    rows.append({"criterion": "twice the active experts", "cache_ratio": 2.0})
    return pd.DataFrame(rows).astype({"criterion": "str"})


def choose(shape: Shape, curve, knee, sizes, level, given) -> tuple[int, str]:
    """Slots of all layers together, one of the curve's sizes, and what decided."""
    known = curve["cache_size"].to_numpy()
    everything = shape.num_layers * shape.num_experts
    least = shape.top_k * (shape.num_layers if level == "layer" else 1)
    if given["target"] is not None:
        target = given["target"]
        if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= 1:
            raise LrcError(f"target is {target!r}, but must be a hit rate above 0 and at most 1")
        reached = known[curve["hit_rate"] >= target]
        if not len(reached):
            raise LrcError(
                f"target is {target:g}, but even a cache of all experts hits only "
                f"{curve['hit_rate'].iloc[-1]:.4f} of the uses: the rest are first uses"
            )
        return int(reached[0]), f"a hit rate of {target:.0%}"
    if given["budget_bytes"] is not None:
        budget = given["budget_bytes"]
        if sizes is None:
            raise LrcError(
                "budget_bytes needs the bytes of one expert, which the trace does not say: give "
                "expert_bytes"
            )
        _check_budget("budget_bytes", budget, least * int(sizes.max()), shape, level)
        model = int(sizes.sum()) * shape.num_experts
        if budget > model:
            raise LrcError(
                f"budget_bytes is {budget:,}, more than all experts of the model take "
                f"({model:,}): no cache is needed"
            )
        fits, reason = budget // int(sizes.max()), f"a budget of {budget / 2**20:,.0f} MiB"
    elif given["cache_size"] is not None:
        fits = given["cache_size"]
        _check_budget("cache_size", fits, least, shape, level)
        if fits > everything:
            raise LrcError(
                f"cache_size is {fits:,}, more than all {everything:,} experts of the model: no "
                "cache is needed"
            )
        reason = f"{fits:,} slots"
    else:
        ratio = knee["cache_ratio"].iloc[0]
        reason = "the knee of the curve"
        if np.isnan(ratio):
            ratio, reason = 2.0, "want of a knee below three times the active experts"
        fits = max(round(ratio * shape.top_k * shape.num_layers), least)
    fitting = known[known <= fits]
    return int(fitting[-1] if len(fitting) else known[0]), reason


def _check_budget(name, value, least, shape, level):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise LrcError(f"{name} is {value!r}, but must be a whole number of at least 0")
    if value < least:
        whose = "one token in every layer" if level == "layer" else "one token in one layer"
        raise LrcError(
            f"{name} is {value:,}, but the {shape.top_k} experts of {whose} already take {least:,}"
        )
