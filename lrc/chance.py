"""What consistency would be without memory: independent tokens, and traces with shuffled tokens.

Raw SRP mixes how routing keeps to recent experts with how popular experts are and how many of them
a token uses. The level that popularity alone gives is the zero to measure from.
"""

import numpy as np
import pandas as pd

from lrc.arguments import check_level, check_trace, checked_segment_lengths
from lrc.errors import LrcError
from lrc.srp import srp
from lrc.trace import Trace

__all__ = ["chance", "excess", "shuffle"]

_LEVELS = {"model": [], "layer": ["layer"], "expert": ["layer", "expert"]}
_KEYS = ["dataset", "layer", "expert", "segment_length"]
_MEASURES = ["srp", "ci_low", "ci_high", "size_ratio", "activation_rate", "windows"]


def chance(
    source,
    segment_lengths=(4, 16, 64, 256),
    *,
    level: str = "model",
    by_dataset: bool = False,
    measure: str = "srp",
) -> pd.DataFrame:
    r"""SRP of a router that draws every token's experts independently, at the same rates.

    Parameters
    ----------
    source : Trace or DataFrame or tuple
        Where the activation rates come from: a trace (the rates in the windows that `lrc.srp`
        counts, at each segment length); a table with columns expert, activation_rate and, where
        they apply, layer and dataset; or ``(num_experts, top_k)`` for experts used equally often.
    segment_lengths : sequence of int, default (4, 16, 64, 256)
    level : {"model", "layer", "expert"}, default "model"
        Which experts share a threshold, as in `lrc.srp`.
    by_dataset : bool, default False
        The level for each dataset at its own rates.
    measure : {"srp"}, default "srp"
        Cache measures have no such closed form: shuffle the trace and measure that, e.g.
        ``lrc.sch(lrc.shuffle(trace))``.

    Returns
    -------
    DataFrame
        dataset, layer, expert (where they apply), segment_length, srp, size_ratio,
        activation_rate: the columns of `lrc.srp`, with srp the chance level.

    Raises
    ------
    LrcError
        Rates outside 0 to 1, missing columns, another measure.

    Notes
    -----
    The number of times an expert of rate :math:`r_e` is active in a window of m independent tokens
    is binomial, whatever the other experts do. The pooled histogram is therefore expected to be
    :math:`h_f = \sum_e \binom{m}{f} r_e^f (1 - r_e)^{m-f}`, and SRP is the best F1 over it,

    .. math:: \max_a \frac{2 \sum_{f \ge a} f h_f}{m \sum_{f \ge a} h_f + \sum_f f h_f}.

    A router without memory comes to this level on long texts; one that avoids the experts it has
    just used stays below.

    Examples
    --------
    >>> import lrc
    >>> lrc.chance((64, 8), (16,))[["segment_length", "srp"]].round(4).values.tolist()
    [[16.0, 0.3214]]
    """
    _check(measure, level)
    segment_lengths = checked_segment_lengths(segment_lengths)
    rates = _rates(source, segment_lengths, by_dataset)
    keys = (["dataset"] if by_dataset else []) + _LEVELS[level]
    missing = [key for key in keys if key not in rates]
    if missing:
        raise LrcError(f"rates have no column {missing[0]!r}, which level={level!r} needs")
    rows = []
    for segment_length in segment_lengths:
        here = rates
        if "segment_length" in rates:
            here = rates[rates["segment_length"] == segment_length]
        groups = here.groupby(keys) if keys else [((), here)]
        for place, group in groups:
            if len(group):
                row = dict(zip(keys, place, strict=True)) | {"segment_length": segment_length}
                rate = group["activation_rate"].to_numpy(float)
                rows.append(row | _binomial(rate, segment_length))
    keys = [*keys, "segment_length"]
    numbers = dict.fromkeys(["srp", "size_ratio", "activation_rate"], np.float64)
    numbers["segment_length"] = np.int64
    table = pd.DataFrame(rows, columns=[*keys, "srp", "size_ratio", "activation_rate"])
    return table.astype(numbers).sort_values(keys, ignore_index=True)


def excess(observed: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Share of the way from chance to perfect consistency.

    Parameters
    ----------
    observed : DataFrame
        What `lrc.srp` measured.
    expected : DataFrame
        Its chance level: what `chance` gives for the same rows, or `lrc.srp` of a shuffled trace.

    Returns
    -------
    DataFrame
        `observed` with two more columns: chance, and excess = (srp - chance) / (1 - chance), which
        is 0 for a router without memory and 1 where every window's experts never change. Rows are
        matched by segment_length, dataset, layer, expert, and by any column of your own that both
        tables have, such as model.

    Raises
    ------
    LrcError
        A row of `observed` has no chance level, or several.
    """
    observed = observed.drop(columns=["chance", "excess"], errors="ignore")
    unmatched = [name for name in _KEYS if (name in observed) != (name in expected)]
    if unmatched or "segment_length" not in observed:
        name = [*unmatched, "segment_length"][0]
        raise LrcError(f"column {name!r} must be in both tables: measure both alike")
    keys = [name for name in observed if name in expected and name not in _MEASURES]
    if expected.duplicated(keys).any():
        raise LrcError(f"several chance levels for one row: columns {keys} do not tell them apart")
    levels = expected[[*keys, "srp"]].rename(columns={"srp": "chance"})
    result = observed.merge(levels, on=keys, how="left")
    if result["chance"].isna().any():
        row = result.loc[result["chance"].isna(), keys].iloc[0].to_dict()
        raise LrcError(f"no chance level for {row}")
    room = 1 - result["chance"]
    # Where chance is 1 but for rounding (all experts always on), there is nothing to exceed.
    possible = room > 1e-12
    gain = (result["srp"] - result["chance"]) / room.where(possible, 1.0)
    return result.assign(excess=gain.where(possible, 0.0))


def shuffle(trace: Trace, level: str = "all", *, seed: int = 0) -> Trace:
    """The same tokens in another order, to take consistency apart.

    A token keeps its experts in all layers, its weights and its ids; sequences keep their lengths
    and labels. What each level leaves of SRP comes from

    ==============  ====================================================================
    "all"           popularity: how often each expert is used, and nothing else
    "domain"        and topic: which experts a dataset prefers
    "sequence"      and text: which experts a single sequence prefers
    (unshuffled)    and order: which experts follow each other
    ==============  ====================================================================

    "token" is a level beside these: the text stays, and each token is routed as another token of
    its id was somewhere in the trace. What it leaves follows from the words alone, without their
    context (a word that occurs once keeps its own routing).

    Parameters
    ----------
    trace : Trace
    level : {"all", "domain", "sequence", "token"}, default "all"
        Tokens change places within the whole trace, within their dataset, within their sequence, or
        with tokens of the same id.
    seed : int, default 0

    Returns
    -------
    Trace

    Raises
    ------
    LrcError
        Unknown level, "domain" for a trace without datasets, or "token" for one without token ids.
    """
    check_trace(trace)
    check_level(level, ("all", "domain", "sequence", "token"))
    if level == "domain" and trace.datasets is None:
        raise LrcError("level='domain' needs a trace with datasets, but this one has no labels")
    if level == "token" and trace.token_ids is None:
        raise LrcError("level='token' needs a trace with token_ids, but this one has none")
    rows, columns = trace.valid.nonzero()
    if level == "all":
        pools = np.zeros(len(rows), np.int64)
    elif level == "sequence":
        pools = rows
    elif level == "token":
        ids = trace.token_ids[rows, columns].astype(np.int64)
        pools = np.where(ids >= 0, ids, -1 - np.arange(len(ids)))  # Unknown ones stay.
    else:
        pools = np.unique(trace.datasets, return_inverse=True)[1][rows]
    # Random order within each pool; pools keep the places they have.
    drawn = np.lexsort([np.random.default_rng(seed).random(len(rows)), pools])
    order = np.empty_like(drawn)
    order[np.argsort(pools, kind="stable")] = drawn
    parts = {"lengths": trace.lengths, "datasets": trace.datasets, "meta": trace.meta}
    for name in ("experts", "token_ids", "predicted_ids", "weights"):
        array = getattr(trace, name)
        if array is not None:
            parts[name] = array.copy()
            parts[name][rows, columns] = array[rows[order], columns[order]]
    return Trace(parts.pop("experts"), trace.num_experts, **parts)


def _check(measure, level):
    if measure != "srp":
        raise LrcError(
            f"measure is {measure!r}, but only 'srp' has a chance level in closed form: for a "
            "cache, measure a shuffled trace, such as lrc.sch(lrc.shuffle(trace))"
        )
    if level not in _LEVELS:
        raise LrcError(f"level is {level!r}, but must be 'model', 'layer' or 'expert'")


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


def _binomial(rates, segment_length):
    """Best F1, its size ratio and the mean rate, of binomial window counts at these rates."""
    from scipy.stats import binom  # takes longer to import than the rest of the package

    count = np.arange(segment_length + 1)
    histogram = binom.pmf(count, segment_length, rates[:, None]).sum(axis=0)
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
