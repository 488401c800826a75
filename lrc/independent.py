"""Traces of a router without memory: what caches would do if only activation rates mattered.

SRP has its chance level in closed form (`lrc.chance`); hit rates of caches have not. Where a trace
is at hand, shuffle it. Where only activation rates are known, as of the paper's models, draw one.
"""

import numpy as np
import pandas as pd

from lrc.errors import LrcError
from lrc.trace import Trace

__all__ = ["independent"]


def independent(
    rates: pd.DataFrame, *, sequences: int = 8, tokens: int = 512, seed: int = 0
) -> Trace:
    r"""Draw a trace whose tokens choose their experts independently, at given activation rates.

    Parameters
    ----------
    rates : DataFrame
        A row per expert: layer, expert, activation_rate (0 to 1). The rates of a layer add up to
        its top-k, the same in all layers but for rounding.
    sequences, tokens : int
        Sequences to draw, and tokens in each.
    seed : int, default 0

    Returns
    -------
    Trace
        Layers in ascending order. Within a token, slots are in random order.

    Raises
    ------
    LrcError
        A column is missing, rates are outside 0 to 1, or layers differ in top-k or in experts.

    Notes
    -----
    Each token takes exactly k experts of a layer, expert e with probability :math:`r_e`: systematic
    sampling of the experts in an order that is drawn anew for each token (with one uniform number
    u, those on whose stretch of the cumulated rates one of u, u + 1, ... falls). Rates are scaled
    to add up to k exactly.

    Examples
    --------
    >>> rates = pd.DataFrame({"layer": 0, "expert": range(4), "activation_rate": [1, 0.5, 0.5, 0]})
    >>> trace = independent(rates, sequences=1, tokens=6)
    >>> trace.top_k, (trace.experts == 0).any(axis=3).all().item()
    (2, True)
    """
    missing = {"layer", "expert", "activation_rate"} - set(rates)
    if missing:
        raise LrcError(f"rates have no column {sorted(missing)[0]!r}")
    wide = rates.pivot_table("activation_rate", "layer", "expert")
    if wide.isna().any(axis=None) or not rates["activation_rate"].between(0, 1).all():
        raise LrcError("rates must lie between 0 and 1, for the same experts in every layer")
    values = wide.to_numpy(float)
    totals = values.sum(axis=1)
    top_k = int(np.rint(totals.mean()))
    if top_k < 1 or (np.abs(totals - top_k) > 0.02 * top_k).any():
        raise LrcError(
            f"the rates of a layer add up to {totals.min():.3f} to {totals.max():.3f}, but must "
            "add up to the same whole number of active experts in every layer"
        )
    random = np.random.default_rng(seed)
    count, num_experts = sequences * tokens, values.shape[1]
    experts = np.empty((count, len(values), top_k), np.int16)
    for layer, row in enumerate(values):
        order = random.permuted(np.tile(np.arange(num_experts), (count, 1)), axis=1)
        cumulated = np.minimum(row * top_k / row.sum(), 1)[order].cumsum(axis=1)
        cumulated[:, -1] = top_k
        passed = np.floor(cumulated - random.uniform(1e-9, 1 - 1e-9, (count, 1)))
        taken = np.diff(passed, axis=1, prepend=-1) > 0
        experts[:, layer] = order[taken].reshape(count, top_k)
    return Trace(experts.reshape(sequences, tokens, len(values), top_k), num_experts)
