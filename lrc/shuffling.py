"""Traces with shuffled tokens, and what a measure makes of them: chance without a formula."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from lrc.arguments import check_level, check_trace
from lrc.errors import LrcError
from lrc.trace import Trace

__all__ = ["check_repeats", "over_shuffles", "shuffle"]


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


def check_repeats(repeats: int) -> None:
    """Refuse a number of shuffles that gives no mean."""
    if isinstance(repeats, bool) or not isinstance(repeats, int | np.integer) or repeats < 1:
        raise LrcError(f"repeats is {repeats!r}, but there must be at least one shuffle")


def over_shuffles(
    traces: Iterable[Trace], measure: Callable[[Trace], pd.DataFrame], value: str
) -> pd.DataFrame:
    """Mean and spread of a measure over shuffled traces.

    Parameters
    ----------
    traces : iterable of Trace
        Shuffles of one trace, so that all give a table of the same rows.
    measure : callable
        Makes a table of a trace.
    value : str
        The table's column to average.

    Returns
    -------
    DataFrame
        The table of the first shuffle with the mean as `value`, and after it ``sd``, the standard
        deviation of one shuffle (NaN with a single one).
    """
    tables = [measure(trace) for trace in traces]
    values = np.array([table[value] for table in tables], dtype=float)
    result = tables[0].assign(**{value: values.mean(axis=0)})
    alone = len(tables) == 1
    spread = np.full(len(result), np.nan) if alone else values.std(axis=0, ddof=1)
    result.insert(list(result).index(value) + 1, "sd", spread)
    return result
