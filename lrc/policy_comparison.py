"""All eviction policies beside each other: hit rates, how far from the optimum, what is waited."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lrc import toys
from lrc.arguments import check_level, check_trace
from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.cache_replay import CONTRACTS, LEVELS, POLICIES, replay
from lrc.errors import LrcError
from lrc.optimum import one_by_one
from lrc.prefetch import Predictor
from lrc.trace import Trace


def usable_policies(trace: Trace, fit: Trace | None = None) -> list[str]:
    """Policies of `lrc.replay` that can be replayed on a trace, Belady's last.

    Parameters
    ----------
    trace : Trace
        Without router weights, "score" is left out.
    fit : Trace, optional
        Without it, policies that hold what was used most on other text are left out.

    Returns
    -------
    list of str
    """
    return [
        name
        for name, policy in POLICIES.items()
        if (name != "score" or trace.weights is not None)
        and ("fit" not in policy.options or fit is not None)
    ]


def compare_policies(
    trace: Trace,
    policies: Iterable[str] | None = None,
    cache_ratios: Iterable[float] = (1, 2, 4),
    *,
    fit: Trace | None = None,
    level: str = "model",
    prompt_tokens=None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rates of several policies at the same cache sizes, under the contract "engine".

    Parameters
    ----------
    trace : Trace
    policies : iterable of str, optional
        Of `lrc.replay` (default: all of `usable_policies`), with their default parameters.
    cache_ratios : iterable of float
        Slots over the experts that a token activates; for ``level="layer"`` of each layer's cache.
        Rounded to whole slots.
    fit : Trace, optional
        Other text of the same model, for policies that hold what was used most.
    level, prompt_tokens
        As in `lrc.replay`.
    bootstrap, confidence, seed
        Resamples of the sequences behind the intervals (0: none). Policies are resampled together,
        so that their differences have intervals of their own.

    Returns
    -------
    DataFrame
        A row per policy and size: policy, cache_size (slots of one cache), cache_ratio, hit_rate,
        ci_low, ci_high; to_optimum (what Belady's choice over requests, the best that loads on
        demand, hits more; what is held from the start may exceed it), to_optimum_low,
        to_optimum_high;
        waiting (share of requests that load anything). Columns of ends only with `bootstrap`.

    Raises
    ------
    LrcError
        As `lrc.replay`; no policy; a ratio that is not above 0.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[1]], [[0]], [[2]], [[0]]]], num_experts=3)
    >>> table = lrc.compare_policies(trace, ("lru", "fifo"), (2,))
    >>> table[["policy", "hit_rate", "to_optimum"]].values.tolist()
    [['lru', 0.4, 0.0], ['fifo', 0.2, 0.2]]
    """
    check_trace(trace)
    check_level(level, LEVELS)
    check_bootstrap(bootstrap, confidence)
    policies = usable_policies(trace, fit) if policies is None else list(policies)
    ratios = list(cache_ratios)
    if not policies or not all(ratio > 0 for ratio in ratios):
        raise LrcError("give at least one policy, and cache ratios above 0")
    per_token = trace.top_k * (trace.num_layers if level == "model" else 1)
    most = trace.num_experts * (trace.num_layers if level == "model" else 1)
    strata = np.zeros(trace.num_sequences) if trace.datasets is None else trace.datasets
    weights = resample_weights(strata, bootstrap, seed) if bootstrap else None
    rows = []
    for ratio in ratios:
        size = min(max(round(ratio * per_token), 1), most)
        settings = {"cache_size": size, "level": level, "prompt_tokens": prompt_tokens}
        best = replay(trace, "belady", **settings)
        best_hits, uses = _by_sequence(best, trace.num_sequences)
        for policy in policies:
            options: dict[str, Any] = {}
            if fit is not None and "fit" in _options(policy):
                options["fit"] = fit
            found = best if policy == "belady" else replay(trace, policy, **settings, **options)
            hits, _ = _by_sequence(found, trace.num_sequences)
            row = {"policy": policy, "cache_size": size, "cache_ratio": size / per_token}
            row |= _estimate("hit_rate", ("ci_low", "ci_high"), hits, uses, weights, confidence)
            ends = ("to_optimum_low", "to_optimum_high")
            row |= _estimate("to_optimum", ends, best_hits - hits, uses, weights, confidence)
            rows.append(row | {"waiting": found.waits / max(found.requests.num_requests, 1)})
    return pd.DataFrame(rows).astype({"policy": "str"})


def _options(policy):
    return POLICIES[policy].options if policy in POLICIES else ()


def _by_sequence(replayed, num_sequences):
    """Hits and uses of each sequence."""
    asked = replayed.requests
    owner = np.repeat(asked.sequences, np.diff(asked.starts))
    return (np.bincount(owner, values, num_sequences) for values in (replayed.hits, None))


def _estimate(name, ends, hits, uses, weights, confidence):
    """The share of all uses, and its interval over the resamples, if there are any."""
    value = hits.sum() / max(uses.sum(), 1)
    if weights is None:
        return {name: value}
    drawn = (weights @ hits) / np.maximum(weights @ uses, 1)
    low, high = mirrored_interval(np.asarray(value), drawn, confidence)
    return {name: value, ends[0]: float(low), ends[1]: float(high)}


def compare_contracts(
    trace: Trace, policies: Iterable[str], cache_ratios: Iterable[float] = (1, 2, 4)
) -> pd.DataFrame:
    """The same policies and sizes under both contracts, one cache shared by all layers.

    Parameters
    ----------
    trace : Trace
        Every token a step.
    policies, cache_ratios
        As in `compare_policies`.

    Returns
    -------
    DataFrame
        policy, cache_ratio, engine, paper: hit rates. A first row of each size, "belady, one by
        one", is Belady's choice over single uses (see `lrc.optimum.one_by_one`).
    """
    rows = []
    for ratio in cache_ratios:
        size = round(ratio * trace.top_k * trace.num_layers)
        single = replay(one_by_one(trace), "belady", cache_size=size, prompt_tokens=0)
        names = {"policy": "belady, one by one", "cache_ratio": ratio}
        rows.append(names | {"engine": single.hit_rate})
        for policy in policies:
            rates = {
                contract: replay(
                    trace, policy, cache_size=size, replay=contract, prompt_tokens=0
                ).hit_rate
                for contract in CONTRACTS
            }
            rows.append({"policy": policy, "cache_ratio": ratio} | rates)
    return pd.DataFrame(rows).astype({"policy": "str"})


def compare_prefetching(
    trace: Trace,
    predictors: Mapping[str, Predictor | None],
    cache_ratios: Iterable[float] = (1, 2, 4),
    *,
    policy: str = "lru",
) -> pd.DataFrame:
    """What predictors of `lrc.prefetch` gain and waste, one cache shared by all layers.

    Parameters
    ----------
    trace : Trace
    predictors : mapping of str to predictor
        By the name that the table has for them; None loads on demand.
    cache_ratios : iterable of float
    policy : str

    Returns
    -------
    DataFrame
        cache_ratio, predictor, hit_rate; misses, ahead, loads: experts a token that are loaded on
        demand, ahead of need, and both; wasted: share of those loaded ahead that the request did
        not need (0 where none are).
    """
    rows = []
    for ratio in cache_ratios:
        size = round(ratio * trace.top_k * trace.num_layers)
        for name, predictor in predictors.items():
            found = replay(trace, policy, cache_size=size, prefetch=predictor)
            misses, ahead = (n / trace.num_tokens for n in (found.loads, found.prefetched))
            row = {"cache_ratio": ratio, "predictor": name, "hit_rate": found.hit_rate}
            row |= {"misses": misses, "ahead": ahead, "loads": misses + ahead}
            rows.append(row | {"wasted": found.wasted / max(found.prefetched, 1)})
    return pd.DataFrame(rows).astype({"predictor": "str"})


def compare_on_toys(cache_ratio: float = 2, step: int = 4) -> pd.DataFrame:
    """`compare_policies` on every toy (its first seed), and what each policy gains over LRU.

    Parameters
    ----------
    cache_ratio : float
    step : int
        Judged on every `step`-th text; policies that hold what was used most see as many others.

    Returns
    -------
    DataFrame
        model, and the columns of `compare_policies`; gain (hit rate above that of LRU) and
        mean_gain (over models), by which policies are ordered.
    """
    parts = []
    for model in toys.VARIANTS:
        toy = toys.load_trace(model)
        fit, judged = (toy.select(slice(begin, None, step)) for begin in (0, 1))
        parts.append(compare_policies(judged, None, (cache_ratio,), fit=fit).assign(model=model))
    table = pd.concat(parts, ignore_index=True)
    lru = table[table["policy"] == "lru"].set_index("model")["hit_rate"]
    table["gain"] = table["hit_rate"] - table["model"].map(lru)
    table["mean_gain"] = table.groupby("policy")["gain"].transform("mean")
    place = table["model"].map({model: at for at, model in enumerate(toys.VARIANTS)})
    table = table.assign(place=place).sort_values(
        ["mean_gain", "place"], ascending=[False, True], kind="stable", ignore_index=True
    )
    return table.drop(columns="place")
