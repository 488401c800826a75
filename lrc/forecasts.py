"""Do SRP and SCH foretell the hit rates of caches that can be built?

Over the paper's models, at one cache size at a time or pooled over sizes, measured or above what
chance gives; and over our toys and their layers. Published figures of one vintage only are ever set
against each other (see `lrc.published`).
"""

import numpy as np
import pandas as pd

from lrc import curves, published, toys
from lrc.architectures import published_models
from lrc.association import correlation
from lrc.chance import chance, excess
from lrc.contrasts import rank_correlation
from lrc.errors import LrcError
from lrc.independent import independent
from lrc.specialists import stacks
from lrc.srp import srp

__all__ = ["RATIOS", "chance_levels", "over_models", "pooling", "related", "toy_caches"]

RATIOS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Cache ratios at which the paper correlates SRP with SCH."""

POLICIES = ("sch", "lru", "lfu", "belady")


def chance_levels(
    segment_length: int = 16, ratios=RATIOS, *, sequences: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Hit rates that the paper's models would have without memory, at their activation rates.

    Parameters
    ----------
    segment_length : int, default 16
        Tokens that SCH knows in advance.
    ratios : sequence of float
        Cache ratios.
    sequences : int, default 4
        Sequences of 512 tokens to draw for each model (65 for Switch's decoder, as published).
    seed : int, default 0

    Returns
    -------
    DataFrame
        model, policy ("sch", "lru", "lfu", "belady"), cache_ratio and hit_rate, under the contract
        "paper" with one cache for all layers, as at vintage HEAD. Drawn by `lrc.independent`.
    """
    rates = published.table("experts").rename(columns={"act_freq": "activation_rate"})
    parts = []
    for model, part in rates.assign(model=stacks(rates)).groupby("model"):
        tokens = 65 if model == "switch decoder" else 512
        trace = independent(part, sequences=sequences, tokens=tokens, seed=seed)
        table = curves.compare(trace, POLICIES, segment_length=segment_length)
        parts.append(curves.at_ratios(table, ratios).assign(model=model))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", "policy", "cache_ratio", "hit_rate"]]


def over_models(
    segment_length: int = 16, ratios=RATIOS, *, levels: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The paper's models at fixed cache ratios: SRP, SCH and the hit rates of policies at HEAD.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
    ratios : sequence of float
    levels : DataFrame, optional
        What `chance_levels` returns, to add the excess of every hit rate.

    Returns
    -------
    DataFrame
        A row per stack of layers and ratio: model, cache_ratio, srp, chance, excess (of SRP), and
        sch, lru, lfu, belady; with `levels` also sch_excess and so on: (hit rate - chance) / (1 -
        chance).
    """
    scores = published_models(segment_length, parts=True)[["model", "srp", "chance", "excess"]]
    table = curves.at_ratios(curves.of_published_models(segment_length), ratios)
    table = _wide(table).merge(scores, on="model")
    if levels is not None:
        known = _wide(levels).set_index(["model", "cache_ratio"])
        expected = known.loc[pd.MultiIndex.from_frame(table[["model", "cache_ratio"]])]
        for policy in POLICIES:
            level = expected[policy].to_numpy()
            table[f"{policy}_excess"] = (table[policy] - level) / (1 - level)
    return table.dropna(subset=[*POLICIES, "srp"], ignore_index=True)


def related(
    table: pd.DataFrame, predictors, outcomes, *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlations over models, with an interval and a permutation test, at each cache ratio.

    Parameters
    ----------
    table : DataFrame
        A row per model and cache_ratio.
    predictors, outcomes : sequence of str
        Columns of numbers.
    bootstrap : int, default 1000
        Resamples of the models behind an interval (0 = no interval).
    seed : int, default 0

    Returns
    -------
    DataFrame
        A row per cache_ratio, outcome and predictor: models (how many), correlation (Pearson's),
        ci_low, ci_high (if asked for), rank_correlation (Spearman's), and p (two-sided, of the
        latter, values paired anew at random).
    """
    rows = []
    for ratio, part in table.groupby("cache_ratio"):
        for outcome in outcomes:
            found = correlation(part, predictors, outcome, bootstrap=bootstrap, seed=seed)
            ranks = [
                rank_correlation(part, name, [outcome], seed=seed)[["correlation", "p"]].iloc[0]
                for name in found["measure"]
            ]
            ranks = pd.DataFrame(ranks).set_axis(["rank_correlation", "p"], axis=1)
            found = pd.concat([found, ranks.reset_index(drop=True)], axis=1)
            rows.append(found.assign(cache_ratio=ratio, outcome=outcome))
    result = pd.concat(rows, ignore_index=True)
    result = result.rename(columns={"measure": "predictor", "experts": "models"})
    front = ["cache_ratio", "outcome", "predictor", "models"]
    return result[[*front, *result.columns.drop(front)]]


def pooling(
    vintage: str, segment_length: int = 16, *, repeats: int = 200, seed: int = 0
) -> pd.DataFrame:
    """What pooling over cache sizes does to the correlation of SCH with hit rates.

    Parameters
    ----------
    vintage : {"v1.0", "HEAD"}
        Of SCH and policies alike.
    segment_length : {4, 16, 64, 256}
    repeats : int, default 200
        Times that the models' hit-rate curves are dealt out at random.
    seed : int, default 0

    Returns
    -------
    DataFrame
        A row per policy: pooled (correlation over models and all published cache ratios), wrong
        (the same, mean over deals, where every model has the hit-rate curve of a random one),
        fixed_1 and fixed_2 (over models at ratios 1 and 2), and wrong_2 (fixed, over deals).

    Raises
    ------
    LrcError
        A vintage without cache figures.
    """
    if vintage not in ("v1.0", "HEAD"):
        raise LrcError(f"vintage is {vintage!r}, but cache figures exist at 'v1.0' and 'HEAD'")
    bounds = published.table("sch_model", vintage).query("seg_len == @segment_length")
    policies = published.table("chr_model", vintage)
    bounds, policies = (part.assign(model=stacks(part)) for part in (bounds, policies))
    random = np.random.default_rng(seed)
    rows = []
    for policy, part in policies.groupby("policy"):
        both = bounds.merge(part, on=["model", "rho"])
        # [models, ratios] each.
        sch, rate = (
            both.pivot_table(name, "model", "rho").dropna(axis=1) for name in ("sch", "hit_rate")
        )
        row = {"policy": policy, "pooled": _pearson(sch, rate)}
        deals = [rate.iloc[random.permutation(len(rate))] for _ in range(repeats)]
        row["wrong"] = np.mean([_pearson(sch, deal) for deal in deals])
        row |= {f"fixed_{ratio}": _pearson(sch[ratio], rate[ratio]) for ratio in (1, 2)}
        row["wrong_2"] = np.mean([_pearson(sch[2], deal[2]) for deal in deals])
        rows.append(row)
    return pd.DataFrame(rows)


def toy_caches(segment_length: int = 16, ratios=(1, 2, 3), *, level: str = "model") -> pd.DataFrame:
    """SRP, SCH and the hit rates of policies of every shipped toy, at fixed cache ratios.

    Parameters
    ----------
    segment_length : int, default 16
    ratios : sequence of float
    level : {"model", "layer"}
        One cache for all layers, or each layer by itself.

    Returns
    -------
    DataFrame
        A row per run (and layer) and ratio: model, seed, layer (if asked for), cache_ratio, srp,
        chance, excess, sch, lru, lfu, belady.
    """
    keys = [] if level == "model" else ["layer"]
    parts = []
    for name, seed in toys.shipped():
        trace = toys.load_trace(name, seed)
        expected = chance(trace, (segment_length,), level=level)
        scores = excess(srp(trace, segment_length, level=level), expected)
        caches = curves.compare(trace, POLICIES, segment_length=segment_length, level=level)
        caches = _wide(curves.at_ratios(caches, ratios).assign(model=name), keys)
        scores = scores[[*keys, "srp", "chance", "excess"]].assign(model=name)
        parts.append(caches.merge(scores, on=["model", *keys]).assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def _wide(table, keys=()):
    """A column per policy."""
    index = ["model", *keys, "cache_ratio"]
    wide = table.pivot_table("hit_rate", index, "policy")[list(POLICIES)]
    return wide.rename_axis(columns=None).reset_index()


def _pearson(first, second):
    return np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
