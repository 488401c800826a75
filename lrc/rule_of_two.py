"""What it costs to take twice the active experts for a cache, instead of what a device allows.

More memory never hurts a hit rate, so a device's best size is what its memory holds. The rule of
two errs in two ways: it asks for more than there is, or it leaves memory unused. What unused memory
would have earned depends on how long a token waits for what it loads.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lrc import toys
from lrc.arguments import check_trace
from lrc.budget import best_split, even_split, hull_bound
from lrc.curves import bends
from lrc.errors import LrcError
from lrc.published_sizing import READING_ERROR, readings
from lrc.request_counts import request_counts
from lrc.requests import requests
from lrc.sizing import Sizing
from lrc.trace import Trace

SHARES = (0.25, 0.5, 0.75)
"""Memory of a device, as a share of what all experts take."""

WAITS = (1.0, 4.0)
"""Time to load all of a token's experts, as a multiple of the time to compute it."""


def losses(curves: Mapping[str, pd.DataFrame], shares=SHARES, waits=WAITS) -> pd.DataFrame:
    """What the rule of two loses on devices of several memories and links.

    Parameters
    ----------
    curves : dict of DataFrame
        Hit rate of each model against cache ratio (columns cache_ratio, hit_rate), up to the size
        at which all experts have a slot.
    shares : sequence of float
        Memory for experts, as a share of what all experts take.
    waits : sequence of float
        Time to load all of a token\'s experts over the time to compute it, of which nothing hides.

    Returns
    -------
    DataFrame
        model, memory (share); best_ratio, best, what fits and what it hits; two, the hit rate of
        twice the active experts, NaN where that does not fit; lost, best - two; and slower_W for
        each wait W, the share of speed that is lost,
        :math:`1 - (1 + W (1 - h_{best})) / (1 + W (1 - h_{two}))`.

    Raises
    ------
    LrcError
        Shares outside 0 to 1, or waits below 0.
    """
    if not all(0 < share <= 1 for share in shares) or not all(wait >= 0 for wait in waits):
        raise LrcError(
            f"shares {shares!r} must be above 0 and at most 1, and waits {waits!r} at least 0"
        )
    rows = []
    for model, curve in curves.items():
        curve = curve.sort_values("cache_ratio")
        known, rates = np.append(0, curve["cache_ratio"]), np.append(0, curve["hit_rate"])
        for share in shares:
            ratio = share * known[-1]
            best, two = np.interp([ratio, 2.0], known, rates)
            row = {"model": model, "memory": share, "best_ratio": ratio, "best": best}
            row["two"] = two if ratio >= 2 else np.nan
            row["lost"] = best - row["two"]
            for wait in waits:
                row[f"slower_{wait:g}"] = 1 - (1 + wait * (1 - best)) / (
                    1 + wait * (1 - row["two"])
                )
            rows.append(row)
    return pd.DataFrame(rows)


def knee_table(sizings: Mapping[str, Sizing]) -> pd.DataFrame:
    """Where curves bend by each criterion: model, criterion, cache_ratio, ci_low, ci_high.

    NaN: beyond what the criterion looks at, see `lrc.curves.bends`.
    """
    parts = [sizing.knee.assign(model=model) for model, sizing in sizings.items()]
    table = pd.concat(parts, ignore_index=True)
    table = table[table["criterion"] != "twice the active experts"]
    table = table.rename(columns={"low": "ci_low", "high": "ci_high"})
    order = ["model", "criterion", "cache_ratio", "ci_low", "ci_high"]
    return table[[name for name in order if name in table]].reset_index(drop=True)


def read_bends(
    table: pd.DataFrame, criterion: str = "chord", *, draws: int = 100, seed: int = 0, **options
) -> pd.DataFrame:
    """Bends of published curves, with what the error of reading them leaves open.

    Parameters
    ----------
    table : DataFrame
        Of `lrc.curves.of_published_models`, or some of its rows.
    criterion, **options
        As in `lrc.curves.bends`.
    draws : int
        Curves that the error of reading does not exclude, for each that was read.
    seed : int

    Returns
    -------
    DataFrame
        As of `lrc.curves.bends`, with ci_low and ci_high: 95 % of the draws lie between; NaN is
        beyond what the criterion looks at.
    """
    parts = []
    for policy, curves in table.groupby("policy", sort=False):
        error = np.where(curves["hit_rate"] < 1, READING_ERROR[policy], 0)
        bounds = curves.assign(
            ci_low=(curves["hit_rate"] - error).clip(lower=0),
            ci_high=(curves["hit_rate"] + error).clip(upper=1),
        )
        for _, curve in bounds.groupby("model", sort=False):
            curve = curve.sort_values("cache_ratio")
            keys = ["model", "policy", "cache_ratio"]
            parts += [
                curve[keys].assign(hit_rate=rate, draw=draw)
                for draw, rate in enumerate(readings(curve, draws, seed))
            ]
    drawn = bends(pd.concat(parts, ignore_index=True), criterion, **options)
    drawn["cache_ratio"] = drawn["cache_ratio"].fillna(np.inf)
    ends = drawn.groupby(["model", "policy"])["cache_ratio"].quantile(
        [0.025, 0.975], interpolation="nearest"
    )
    ends = ends.replace(np.inf, np.nan).unstack()  # noqa: PD010
    ends.columns = ["ci_low", "ci_high"]
    found = bends(table, criterion, **options)
    return found.merge(ends.reset_index(), on=["model", "policy"], how="left")


def divisions(trace: Trace, ratios=(1.5, 2, 3, 4), policy: str = "lru") -> pd.DataFrame:
    """What dividing a budget over layers by their need gains, on texts it was not fitted on.

    Parameters
    ----------
    trace : Trace
    ratios : sequence of float
        Budgets, as slots over active experts; those with fewer slots than a token needs in all
        layers, or more than there are experts, have no row.
    policy : {"lru", "lfu", "belady"}

    Returns
    -------
    DataFrame
        cache_ratio; hit rates on the second half of the texts (every other one): shared (one cache
        for all layers), even, best (divided exactly by the needs of the first half); and on the
        first half itself best_fitted and bound, which no division exceeds. A trace of fewer than
        four texts is cut in two in time, its second half starting with an empty cache.

    Raises
    ------
    LrcError
        A single layer: there is nothing to divide.
    """
    check_trace(trace)
    if trace.num_layers < 2:
        raise LrcError("the trace has a single layer: there is nothing to divide")
    rows = []
    known, judged = (_hits(half, policy) for half in _halves(trace))
    for ratio in ratios:
        slots = round(ratio * trace.top_k * trace.num_layers)
        if not trace.top_k * trace.num_layers <= slots <= trace.num_experts * trace.num_layers:
            continue
        fitted, fitted_uses, _ = known
        hits, uses, shared = judged
        layers = np.arange(trace.num_layers)
        even = even_split(slots, trace.num_layers, most=trace.num_experts)
        best = best_split(fitted, slots, least=trace.top_k)
        rows.append(
            {
                "cache_ratio": ratio,
                "shared": shared[slots - 1] / uses,
                "even": hits[layers, even - 1].sum() / uses,
                "best": hits[layers, best - 1].sum() / uses,
                "best_fitted": fitted[layers, best - 1].sum() / fitted_uses,
                "bound": hull_bound(fitted, slots) / fitted_uses,
            }
        )
    return pd.DataFrame(rows)


def _halves(trace):
    if trace.num_sequences >= 4:
        return trace.select(slice(0, None, 2)), trace.select(slice(1, None, 2))
    middle = int(trace.lengths.max()) // 2
    spans = (slice(0, middle), slice(middle, None))
    lengths = (np.minimum(trace.lengths, middle), np.maximum(trace.lengths - middle, 0))
    return tuple(
        Trace(trace.experts[:, span], trace.num_experts, lengths=length)
        for span, length in zip(spans, lengths, strict=True)
    )


def _hits(trace, policy):
    """Hits of each layer\'s own cache of every size, uses, and hits of a shared one."""
    asked = requests(trace, 0)
    own = request_counts(asked, policy, "layer", trace.num_sequences).sum(axis=0)
    shared = request_counts(asked, policy, "model", trace.num_sequences).sum(axis=(0, 1))
    return own.cumsum(axis=1)[:, :-1], len(asked.ids), shared.cumsum()[:-1]


def toy_costs(curves: pd.DataFrame, ratios=(2, 4), memory: float = 0.5) -> pd.DataFrame:
    """What the rule of two and an even division cost the toy family.

    Parameters
    ----------
    curves : DataFrame
        Hit rates of every shipped run: model, seed, policy, cache_ratio, hit_rate; those of LRU
        are used.
    ratios : sequence of float
        Budgets that are divided over the layers, as in `divisions`.
    memory : float
        Share of all experts that a device holds.

    Returns
    -------
    DataFrame
        A row per variant: two, best, lost and slower_W of `losses`, means over its seeds; and for
        each ratio R, under the contract "engine" and on every third text of seed 0, even_R: the hit
        rate of an even division, and what others add to it: by_need_R (the best division of half
        of those texts, judged on the other half) and shared_R.
    """
    runs = curves[curves["policy"] == "lru"].groupby(["model", "seed"], sort=False)
    table = losses(dict(list(runs)), (memory,))
    table["model"] = [model for model, _ in runs.groups]
    table = table.drop(columns=["memory", "best_ratio"]).groupby("model", sort=False).mean()
    for model in table.index:
        gains = divisions(toys.load_trace(model).select(slice(0, None, 3)), ratios)
        for row in gains.itertuples():
            name = f"{row.cache_ratio:g}"
            table.loc[model, f"even_{name}"] = row.even
            table.loc[model, f"by_need_{name}"] = row.best - row.even
            table.loc[model, f"shared_{name}"] = row.shared - row.even
    return table
