"""Do two measures of experts go together, also among experts that are used equally often?"""

import numpy as np
import pandas as pd

from lrc.bootstrap import check_bootstrap, resample_weights
from lrc.errors import LrcError

__all__ = ["correlation"]

_NUMBERS = ("correlation", "ci_low", "ci_high")


def correlation(
    table: pd.DataFrame,
    measures,
    outcome: str = "srp",
    *,
    by: str | None = None,
    within: str | None = None,
    given: str | None = None,
    stratum: int = 8,
    ranks: bool = False,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Correlation of measures with an outcome over experts, other things equal if wanted.

    Parameters
    ----------
    table : DataFrame
        A row per expert, such as `lrc.specialization` returns.
    measures : str or sequence of str
        Columns to correlate with `outcome`, each by itself. Experts for which one of the two, or
        `given`, is empty (NaN) are left out.
    outcome : str, default "srp"
    by : str, optional
        Column, such as the model: a correlation for each of its values.
    within : str, optional
        Column, such as the layer: compare only what an expert has above or below the mean of
        those with the same value, in `given` as well.
    given : str, optional
        Column of numbers, such as the activation rate, to hold fixed: an expert is compared only
        with those in its stratum, `stratum` experts that are next to each other in this column.
    stratum : int, default 8
        Experts in a stratum; up to twice as many where the number of experts does not divide.
    ranks : bool, default False
        Correlate ranks (within strata) rather than values: Spearman's correlation.
    bootstrap : int, default 0
        Resamples for the interval, of strata, or of experts without `given` (0 = no interval).
    confidence : float, default 0.95
    seed : int, default 0

    Returns
    -------
    DataFrame
        A row per value of `by` and measure: `by`, measure, correlation, ci_low, ci_high (if asked
        for; NaN where there is but one stratum) and experts, the number compared. A correlation
        that is not defined (fewer than three experts, or a constant) has no row;
        ``attrs["undefined"]`` names it.

    Raises
    ------
    LrcError
        A column that is not there, a stratum below 2, or what `lrc.srp` refuses of a bootstrap.

    Notes
    -----
    With :math:`x_e, y_e` the values, or the ranks within the stratum, of expert e, less the mean of
    its stratum (without `given`: of all),

    .. math:: \frac{\sum_e x_e y_e}{\sqrt{\sum_e x_e^2 \, \sum_e y_e^2}}.

    A difference between strata, and so nearly all that `given` explains, moves it no more,
    whatever the shape of that relation; what is left of it within a stratum shrinks with `stratum`.
    The interval is the percentile interval. It takes experts for independent draws, which those of
    one layer are not, and says nothing of other texts or training runs. Resampling keeps the
    ranks, and the means of `within`, of the whole table.

    Examples
    --------
    >>> table = pd.DataFrame({"srp": [1, 2, 3, 11, 12, 13], "domain": [3, 4, 5, 0, 1, 2],
    ...                       "activation_rate": [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]})
    >>> lrc.correlation(table, "domain")["correlation"].round(2).item()
    -0.79
    >>> equally_used = lrc.correlation(table, "domain", given="activation_rate", stratum=3)
    >>> equally_used["correlation"].round(2).item()
    1.0
    """
    check_bootstrap(bootstrap, confidence)
    if stratum < 2:
        raise LrcError(f"stratum is {stratum!r}, but comparing takes at least 2 experts")
    measures = [measures] if isinstance(measures, str) else list(measures)
    used = [name for name in (*measures, outcome, by, within, given) if name is not None]
    if missing := [name for name in used if name not in table]:
        raise LrcError(f"the table has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    groups = [(None, table)] if by is None else list(table.groupby(by, sort=False))
    rows, undefined = [], []
    for key, group in groups:
        for measure in measures:
            name = {"measure": measure} if by is None else {by: key, "measure": measure}
            known = group.dropna(subset=[c for c in (measure, outcome, given) if c is not None])
            strata = _strata(known, given, within, stratum)
            values = _compared(known, measure, outcome, within, strata, ranks)
            # [units, moments]: what is resampled, and sums that a correlation follows from.
            units = _moments(
                values[:, 0], values[:, 1], np.arange(len(known)) if given is None else strata
            )
            estimate = float(_pearson(units.sum(axis=0)))
            if len(known) < 3 or np.isnan(estimate):
                undefined.append(name)
                continue
            row = name | {"correlation": estimate}
            if bootstrap:
                drawn = resample_weights(np.zeros(len(units)), bootstrap, seed)
                resampled = _pearson(drawn.astype(float) @ units)
                tail = (1 - confidence) / 2
                row["ci_low"], row["ci_high"] = (
                    np.nanquantile(resampled, [tail, 1 - tail]) if len(units) > 1 else [np.nan] * 2
                )
            rows.append(row | {"experts": len(known)})
    columns = [*([by] if by else []), "measure", "correlation"]
    columns += ["ci_low", "ci_high"] if bootstrap else []
    result = pd.DataFrame(rows, columns=[*columns, "experts"])
    result = result.astype({"experts": int} | {name: float for name in columns if name in _NUMBERS})
    result.attrs["undefined"] = undefined
    return result


def _strata(table, given, within, stratum):
    """Number of each row's stratum, neighbours in column `given`; 0 without one."""
    number = np.zeros(len(table), np.int64)
    if given is not None:
        held = table[given].astype(float)
        if within is not None:
            held = held - held.groupby(table[within]).transform("mean")
        # Rounded, so that ties stay ties.
        order = np.argsort((held / (held.abs().max() or 1)).round(12), kind="stable")
        count = max(len(table) // stratum, 1)
        number[order] = np.arange(len(table)) * count // max(len(table), 1)
    return number


def _compared(table, measure, outcome, within, strata, ranks):
    """Values or ranks less the mean of their stratum: float64 array [rows, 2]."""
    values = pd.DataFrame({"x": table[measure], "y": table[outcome]}).astype(float)
    # Rounded, since what differs by rounding errors only must tie, and must not count as varying.
    values /= values.abs().max().replace(0, 1)
    if within is not None:
        values = (values - values.groupby(table[within]).transform("mean")).round(12)
    if ranks:
        values = values.groupby(strata).rank()
    return (values - values.groupby(strata).transform("mean")).round(12).to_numpy()


def _moments(x, y, unit):
    """Sums of 1, x, y, xx, xy, yy over the rows of each unit: float64 array [units, 6]."""
    products = (np.ones_like(x), x, y, x * x, x * y, y * y)
    return np.stack([np.bincount(unit, weights=product) for product in products], axis=1)


def _pearson(moments):
    """Correlation from sums [..., 6]; NaN where one of the two does not vary."""
    count, x, y, xx, xy, yy = np.moveaxis(moments, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread_x, spread_y = xx - x * x / count, yy - y * y / count
        value = (xy - x * y / count) / np.sqrt(spread_x * spread_y)
    varies = (spread_x > 1e-12 * xx) & (spread_y > 1e-12 * yy)
    return np.where(varies, np.clip(value, -1, 1), np.nan)
