"""What consistency would be without memory: independent tokens of the same popular experts.

Raw SRP mixes how routing keeps to recent experts with how popular experts are and how many of them
a token uses; so do hit rates. The level that popularity alone gives is the zero to measure from.
"""

from typing import Any

import numpy as np
import pandas as pd

from lrc.arguments import check_trace, checked_segment_lengths
from lrc.cache import hit_rates, sch
from lrc.errors import LrcError
from lrc.shuffling import check_repeats, over_shuffles, shuffle
from lrc.srp import srp
from lrc.trace import Trace

__all__ = ["chance", "excess"]

_LEVELS = {"model": [], "layer": ["layer"], "expert": ["layer", "expert"]}
_VALUES = ("srp", "hit_rate")
_KEYS = ["dataset", "layer", "expert", "segment_length", "policy", "cache_size"]
_MEASURES = [
    *_VALUES,
    *("sd", "ci_low", "ci_high", "size_ratio", "activation_rate", "windows", "cache_ratio"),
]


def chance(
    source,
    segment_lengths=(4, 16, 64, 256),
    *,
    level: str = "model",
    by_dataset: bool = False,
    measure: str = "srp",
    replacement: bool = True,
    policies=("lru", "lfu", "belady"),
    definition: str = "lookahead",
    repeats: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What a measure gives for a router that draws every token's experts at the same rates.

    Parameters
    ----------
    source : Trace or DataFrame or tuple
        Where the activation rates come from: a trace (the rates in the windows that `lrc.srp`
        counts, at each segment length); a table with columns expert, activation_rate and, where
        they apply, layer and dataset; or ``(num_experts, top_k)`` for experts used equally often.
    segment_lengths : sequence of int, default (4, 16, 64, 256)
    level : {"model", "layer", "expert"}, default "model"
        Which experts share a threshold, as in `lrc.srp`, or a cache, as in `lrc.sch`.
    by_dataset : bool, default False
        The level for each dataset at its own rates.
    measure : {"srp", "sch", "hit_rates"}, default "srp"
        "srp" follows from a formula. What a cache makes of a token depends on those before it:
        there a trace is needed, whose tokens are shuffled and measured.
    replacement : bool, default True
        For "srp". True: tokens are drawn from a source that never runs out, as those of a router
        are. False: windows are drawn from the tokens of the trace, each of which is there once, as
        in a shuffled trace (`lrc.shuffle`); this matters for traces of few tokens.
    policies : str or sequence of str
        For "hit_rates": policies of `lrc.hit_rates`.
    definition : {"lookahead", "static"}
        For "sch": see `lrc.sch`.
    repeats : int, default 5
        For "sch" and "hit_rates": shuffles to average.
    seed : int, default 0
        Of the first shuffle.

    Returns
    -------
    DataFrame
        The columns of the measure (without bootstrap intervals and windows), with srp or hit_rate
        the chance level. Where tokens are shuffled, ``sd`` is the standard deviation of one
        shuffle: that of the mean is smaller by the root of `repeats`.

    Raises
    ------
    LrcError
        Rates outside 0 to 1, missing columns, another measure; rates without a trace where one is
        needed.

    Notes
    -----
    The number of times an expert of rate :math:`r_e` is active in a window of m independent tokens
    is binomial, whatever the other experts do. The pooled histogram is therefore expected to be
    :math:`h_f = \sum_e \binom{m}{f} r_e^f (1 - r_e)^{m-f}`, and SRP is the best F1 over it,

    .. math:: \max_a \frac{2 \sum_{f \ge a} f h_f}{m \sum_{f \ge a} h_f + \sum_f f h_f}.

    A router without memory comes to this level on long texts; one that avoids the experts it has
    just used stays below. Without replacement counts are hypergeometric: expert e is active in
    :math:`K_e` of the trace's n tokens, and :math:`h_f = \sum_e \binom{K_e}{f}
    \binom{n - K_e}{m - f} / \binom{n}{m}`, exactly what shuffled tokens give on average. Its
    best F1 is a little below the average of theirs, for each shuffle's threshold suits itself.

    With replacement the rates are those in the windows that SRP counts, which belong to texts of at
    least m tokens: where only few are as long, their topic is in the rates. The rates of all tokens
    are those of ``lrc.srp(trace, 1, level="expert")``.

    Examples
    --------
    >>> import lrc
    >>> lrc.chance((64, 8), (16,))[["segment_length", "srp"]].round(4).values.tolist()
    [[16.0, 0.3214]]
    """
    _check(source, measure, level, replacement, repeats)
    if measure != "srp":
        traces = _shuffles(source, by_dataset, repeats, seed)
        options: dict[str, Any] = {"level": level, "by_dataset": by_dataset}
        if measure == "sch":
            options |= {"segment_lengths": segment_lengths, "definition": definition}
            return over_shuffles(traces, lambda one: sch(one, **options), "hit_rate")
        return over_shuffles(traces, lambda one: hit_rates(one, policies, **options), "hit_rate")
    segment_lengths = checked_segment_lengths(segment_lengths)
    rates = _rates(source, segment_lengths if replacement else (1,), by_dataset)
    if not replacement:
        rates = rates.drop(columns="segment_length").assign(longest=_longest(source, rates))
    keys = (["dataset"] if by_dataset else []) + _LEVELS[level]
    missing = [key for key in keys if key not in rates]
    if missing:
        raise LrcError(f"rates have no column {missing[0]!r}, which level={level!r} needs")
    rows = []
    for segment_length in segment_lengths:
        here = rates
        if "segment_length" in rates:
            here = rates[rates["segment_length"] == segment_length]
        elif "longest" in rates:
            here = rates[rates["longest"] >= segment_length]
        groups = here.groupby(keys) if keys else [((), here)]
        for place, group in groups:
            if len(group):
                row = dict(zip(keys, place, strict=True)) | {"segment_length": segment_length}
                rate = group["activation_rate"].to_numpy(float)
                tokens = None if replacement else group["windows"].to_numpy()
                rows.append(row | _expected(rate, segment_length, tokens))
    keys = [*keys, "segment_length"]
    numbers: dict[str, type] = dict.fromkeys(["srp", "size_ratio", "activation_rate"], np.float64)
    numbers["segment_length"] = np.int64
    table = pd.DataFrame(rows, columns=[*keys, "srp", "size_ratio", "activation_rate"])
    return table.astype(numbers).sort_values(keys, ignore_index=True)


def excess(observed: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Share of the way from chance to perfect consistency.

    Parameters
    ----------
    observed : DataFrame
        What `lrc.srp`, `lrc.sch` or `lrc.hit_rates` measured.
    expected : DataFrame
        Its chance level: what `chance` gives for the same rows, or the same measure of a shuffled
        trace.

    Returns
    -------
    DataFrame
        `observed` with two more columns: chance, and excess = (srp - chance) / (1 - chance), or the
        same of hit_rate. It is 0 for a router without memory and 1 where every window's experts
        never change, or every look-up hits; where chance leaves nearly no room it says little.
        Rows are matched by segment_length or policy and cache_size, dataset, layer, expert, and by
        any column of your own that both tables have, such as model.

    Raises
    ------
    LrcError
        A row of `observed` has no chance level, or several.
    """
    observed = observed.drop(columns=["chance", "excess"], errors="ignore")
    unmatched = [name for name in _KEYS if (name in observed) != (name in expected)]
    if unmatched or not {"segment_length", "policy"} & set(observed):
        name = [*unmatched, "segment_length"][0]
        raise LrcError(f"column {name!r} must be in both tables: measure both alike")
    value = next((name for name in _VALUES if name in observed and name in expected), None)
    if value is None:
        raise LrcError("both tables must have a column 'srp', or both 'hit_rate'")
    keys = [name for name in observed if name in expected and name not in _MEASURES]
    if expected.duplicated(keys).any():
        raise LrcError(f"several chance levels for one row: columns {keys} do not tell them apart")
    levels = expected[[*keys, value]].rename(columns={value: "chance"})
    result = observed.merge(levels, on=keys, how="left")
    if result["chance"].isna().any():
        row = result.loc[result["chance"].isna(), keys].iloc[0].to_dict()
        raise LrcError(f"no chance level for {row}")
    room = 1 - result["chance"]
    # Where chance is 1 but for rounding (all experts always on), there is nothing to exceed.
    possible = room > 1e-12
    gain = (result[value] - result["chance"]) / room.where(possible, 1.0)
    return result.assign(excess=gain.where(possible, 0.0))


def _check(source, measure, level, replacement, repeats):
    if measure not in ("srp", "sch", "hit_rates"):
        raise LrcError(f"measure is {measure!r}, but must be 'srp', 'sch' or 'hit_rates'")
    levels = list(_LEVELS)[: None if measure == "srp" else 2]
    if level not in levels:
        known = " or ".join(map(repr, levels))
        raise LrcError(f"level is {level!r}, but for {measure} it must be {known}")
    if measure == "srp" and not replacement:
        check_trace(source, anywhere=True)
    if measure != "srp":
        if not isinstance(source, Trace):
            raise LrcError(
                f"measure={measure!r} has no formula that needs rates only: give the trace, whose "
                "tokens are shuffled"
            )
        check_repeats(repeats)


def _shuffles(trace, by_dataset, repeats, seed):
    """Traces in which nothing but popularity is left: of all tokens, or of each dataset's."""
    pool = "domain" if by_dataset else "all"
    return (shuffle(trace, pool, seed=turn) for turn in range(seed, seed + repeats))


def _rates(source, segment_lengths, by_dataset):
    """Table of activation rates; those of a trace differ a little between segment lengths."""
    if isinstance(source, Trace):
        return srp(source, segment_lengths, level="expert", by_dataset=by_dataset)
    if isinstance(source, pd.DataFrame):
        rates = source
        if "activation_rate" not in rates:
            raise LrcError(
                f"rates have columns {list(rates)}, but need 'activation_rate' "
                "(and 'layer', 'expert', 'dataset' where they apply)"
            )
    else:
        try:
            num_experts, top_k = source
        except (TypeError, ValueError):
            raise LrcError(
                "chance needs a Trace, a table of activation rates, or (num_experts, top_k), "
                f"but got {type(source).__name__}"
            ) from None
        if not isinstance(num_experts, int | np.integer) or num_experts < 1:
            raise LrcError(f"num_experts is {num_experts!r}, but must be a whole number from 1 on")
        rates = pd.DataFrame({"layer": 0, "expert": range(num_experts)})
        rates["activation_rate"] = top_k / num_experts
    wrong = ~rates["activation_rate"].between(0, 1)
    if wrong.any():
        value = rates.loc[wrong, "activation_rate"].iloc[0]
        raise LrcError(f"an activation rate is {value}, but rates lie between 0 and 1")
    return rates


def _longest(trace, rates):
    """Tokens of the longest sequence that each row of `rates` is from."""
    if "dataset" not in rates:
        return trace.lengths.max(initial=0)
    longest = pd.Series(trace.lengths).groupby(trace.datasets).max()
    return rates["dataset"].map(longest)


def _expected(rates, segment_length, tokens=None):
    """Best F1, its size ratio and the mean rate, of the window counts expected at these rates.

    With `tokens`, windows are drawn without replacement from as many.
    """
    from scipy.stats import binom, hypergeom  # takes longer to import than the rest of the package

    count = np.arange(segment_length + 1)
    if tokens is None:
        likely = binom.pmf(count, segment_length, rates[:, None])
    else:
        active = np.rint(rates * tokens).astype(int)
        likely = hypergeom.pmf(count, tokens[:, None], active[:, None], segment_length)
    histogram = likely.sum(axis=0)
    predicted = segment_length * histogram[::-1].cumsum()[::-1]
    matched = (count * histogram)[::-1].cumsum()[::-1]
    active = segment_length * rates.sum()
    if active == 0:
        return {"srp": 0.0, "size_ratio": 0.0, "activation_rate": 0.0}
    score = 2 * matched / (predicted + active)
    best = score.argmax()
    return {
        "srp": score[best],
        "size_ratio": predicted[best] / active,
        "activation_rate": rates.mean(),
    }
