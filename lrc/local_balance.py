"""Load balance within short windows: how much of it is chance, and how much is consistency."""

from typing import Any

import numpy as np
import pandas as pd

from lrc.arguments import check_level
from lrc.errors import LrcError
from lrc.window_counts import LEVELS, SEGMENT_LENGTHS, WindowCounts, window_counts

__all__ = ["local_balance", "local_balance_of_counts"]


def local_balance(
    source, segment_lengths=SEGMENT_LENGTHS, *, level: str = "model", by_dataset: bool = False
) -> pd.DataFrame:
    r"""How unevenly the experts are used within windows, and why.

    Parameters
    ----------
    source, segment_lengths, by_dataset
        As in `lrc.srp`.
    level : {"model", "layer"}, default "model"
        Experts of all layers pooled, or of each.

    Returns
    -------
    DataFrame
        dataset, layer (where they apply), segment_length, then

        - load_cv: coefficient of variation of the loads of a window's experts, the root of its
          mean square over windows. `lrc.balance` averages the coefficient itself, which is the
          same or a little less;
        - chance_load_cv: what tokens drawn independently with the same activation rates give;
        - overlap: of two tokens drawn from one window, as in `lrc.segment_overlap`. It is the sum
          of the next four;
        - share: mean activation rate, what perfectly even use would leave;
        - uneven: what unequal use over all windows adds (*global* imbalance);
        - sampling: what is due to m tokens being few: even independent tokens use the experts of a
          window unequally;
        - memory: the rest, the tokens of a window being more alike than any two tokens.

    Raises
    ------
    LrcError
        As `lrc.srp`; a level that is none of these; an expert group without any activation.

    Notes
    -----
    With windows w, E experts of rates :math:`r_e` in all windows, their mean r, and loads
    :math:`f_{we}`, the overlap is :math:`q = \sum f^2 / (m \sum f)`, and

    .. math::

        \mathrm{cv}^2 = \frac{1}{W} \sum_w \frac{\sum_e (f_{we} - m r)^2 / (E - 1)}{(m r)^2}
                      = \frac{E}{E - 1} \left(\frac{q}{r} - 1\right).

    As :math:`q \le \mathrm{SRP} \le \sqrt q` (see `lrc.segment_overlap`), at a given share r of
    active experts SRP can be high only where windows are unbalanced, and must be high where they
    are very much so, whatever router it is.

    For independent tokens f is binomial, so

    .. math:: q_0 = g + \frac{1 - g}{m}, \qquad g = \frac{\sum_e r_e^2}{\sum_e r_e},

    and the parts of q are share r, uneven g - r, sampling (1 - g) / m and memory q - q_0.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0]], [[0]], [[1]], [[1]]]], num_experts=2)
    >>> table = lrc.local_balance(trace, 2)
    >>> table[["overlap", "share", "uneven", "sampling"]].round(3).values.tolist()
    [[0.833, 0.5, 0.0, 0.25]]
    """
    check_level(level, LEVELS[:2])
    counts = window_counts(source, segment_lengths, level="expert", by_dataset=by_dataset)
    activations = [
        counts.histogram(i) @ np.arange(m + 1) for i, m in enumerate(counts.segment_lengths)
    ]
    return local_balance_of_counts(counts.at(level), activations)


def local_balance_of_counts(counts: WindowCounts, activations) -> pd.DataFrame:
    """As `local_balance`, of window counts that were pooled already.

    Parameters
    ----------
    counts : WindowCounts
        Of level "model" or "layer".
    activations : sequence of int array [datasets, layers, experts]
        Of each segment length: activations of each expert, summed over windows.

    Returns
    -------
    DataFrame
    """
    check_level(counts.level, LEVELS[:2])
    if not len(counts.windows) or not counts.windows.any():
        raise LrcError("no sequence is as long as a window: choose smaller segment_lengths")
    rows, pooled = [], counts.level == "model"
    for g, dataset in enumerate(counts.datasets):
        for layer in range(counts.counts.shape[1]):
            for i, m in enumerate(counts.segment_lengths):
                if counts.windows[g, i]:
                    place: dict[str, Any] = {} if counts.datasets == ("",) else {"dataset": dataset}
                    place |= {} if pooled else {"layer": layer}
                    mine = activations[i][g, slice(None) if pooled else layer]
                    histogram = counts.histogram(i)[g, layer, 0]
                    if not mine.any():
                        where = ", ".join(f"{k} {v}" for k, v in place.items()) or "the model"
                        raise LrcError(f"{where}: no expert is ever active, so there is no load")
                    rows.append(
                        place
                        | {"segment_length": m}
                        | _measures(histogram, mine.ravel().astype(float), counts.windows[g, i])
                    )
    return pd.DataFrame(rows)


def _measures(histogram, activations, windows):
    m, num_experts = len(histogram) - 1, len(activations)
    load = np.arange(m + 1)
    total = float(histogram @ load)
    overlap = float(histogram @ load**2) / (m * total)
    share = total / (m * windows * num_experts)
    overall = (activations**2).sum() / (m * windows * total)
    by_chance = overall + (1 - overall) / m

    def spread(q):
        # Rounding may leave a hair below zero.
        return np.sqrt(max(q / share - 1, 0) * num_experts / max(num_experts - 1, 1))

    return {
        "load_cv": spread(overlap),
        "chance_load_cv": spread(by_chance),
        "overlap": overlap,
        "share": share,
        "uneven": overall - share,
        "sampling": (1 - overall) / m,
        "memory": overlap - by_chance,
    }
