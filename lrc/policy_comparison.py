"""All eviction policies beside each other: hit rates, how far from the optimum, what is waited."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lrc.arguments import check_level, check_trace
from lrc.bootstrap import check_bootstrap, mirrored_interval, resample_weights
from lrc.cache_replay import LEVELS, POLICIES, replay
from lrc.errors import LrcError
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
            options = {"fit": fit} if fit is not None and "fit" in _options(policy) else {}
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
