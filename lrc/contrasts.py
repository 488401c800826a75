"""Do two groups of models differ, and do two properties go together, with few models to judge by?

Twenty models are few, and nobody drew them at random. So nothing is assumed of distributions:
labels are exchanged in every way there is, which is exact, or values are paired anew at random.
"""

from collections.abc import Sequence
from itertools import chain, combinations
from math import comb

import numpy as np
import pandas as pd

from lrc.errors import LrcError

__all__ = ["contrast", "paired", "rank_correlation"]

# Splits that are looked at one by one: 10 of 20 models are 184,756.
_MOST_SPLITS = 200_000


def contrast(
    table: pd.DataFrame, by: str, measures: Sequence[str], *, confidence: float = 0.95
) -> pd.DataFrame:
    r"""Difference between models that have a property and those that have not, tested exactly.

    Parameters
    ----------
    table : DataFrame
        A row per model.
    by : str
        Column of truth values: the property.
    measures : sequence of str
        Columns of numbers to compare, each by itself.
    confidence : float, default 0.95
        Coverage of the interval.

    Returns
    -------
    DataFrame
        A row per measure:

        - ``measure``, and ``models_with``, ``models_without`` the property;
        - ``difference``: mean of those with it less mean of those without;
        - ``ci_low``, ``ci_high``: the differences that the test does not reject; infinite where
          there are too few models for the confidence;
        - ``p``: two-sided p-value;
        - ``smallest_p``: what p would be if the two groups did not overlap at all.

    Raises
    ------
    LrcError
        A column is missing or holds a NaN, all models are on one side, or there are too many to
        try every split (more than 200,000 splits).

    Notes
    -----
    Under the hypothesis that the property adds :math:`\delta` to each model that has it, every
    choice of as many models out of all is as likely as the real one. p is twice the share of the
    choices whose difference is at least as large (or as small, whichever is less) as the observed
    one at :math:`\delta = 0`; the interval holds every :math:`\delta` for which p is above
    1 - confidence (inversion of the test, found in closed form). The test takes models for
    exchangeable, which relatives of one family are not; it knows nothing of what else differs
    between the groups.

    Examples
    --------
    >>> models = pd.DataFrame({"shared": [True, True, False, False], "srp": [0.3, 0.4, 0.5, 0.6]})
    >>> contrast(models, "shared", ["srp"])[["difference", "p"]].round(4).values.tolist()
    [[-0.2, 0.3333]]
    """
    inside = _numbers(table, by).astype(bool)
    count, chosen = len(inside), int(inside.sum())
    if not 0 < chosen < count:
        raise LrcError(f"nothing to compare: {chosen} of {count} models have {by!r}")
    if comb(count, chosen) > _MOST_SPLITS:
        raise LrcError(
            f"{chosen} of {count} models can be chosen in {comb(count, chosen)} ways, too many to "
            f"try: compare fewer models (at most {_MOST_SPLITS} ways)"
        )
    picks = np.fromiter(chain.from_iterable(combinations(range(count), chosen)), np.int64)
    splits = np.zeros((comb(count, chosen), count), bool)
    np.put_along_axis(splits, picks.reshape(-1, chosen), True, axis=1)
    # [splits, models]: adds up to the mean of those chosen less the mean of the others.
    weights = np.where(splits, 1 / chosen, -1 / (count - chosen))
    observed = np.flatnonzero((splits == inside).all(axis=1))[0]
    rows = [
        {"measure": measure, "models_with": chosen, "models_without": count - chosen}
        | _test(weights, observed, inside, _numbers(table, measure), confidence)
        for measure in measures
    ]
    return pd.DataFrame(rows).assign(smallest_p=min(1.0, 2 / len(splits)))


def paired(
    table: pd.DataFrame, measures: Sequence[str], *, confidence: float = 0.95
) -> pd.DataFrame:
    r"""Mean of differences, each taken within a pair, tested exactly.

    Parameters
    ----------
    table : DataFrame
        A row per pair, such as a domain in which two models were measured.
    measures : sequence of str
        Columns of differences, each tested by itself.
    confidence : float, default 0.95
        Coverage of the interval.

    Returns
    -------
    DataFrame
        A row per measure: ``measure``, ``pairs``, ``difference`` (the mean), ``ci_low`` and
        ``ci_high`` (the means that the test does not reject; infinite where there are too few
        pairs for the confidence), ``p`` (two-sided) and ``smallest_p`` (what p would be if all
        differences had one sign).

    Raises
    ------
    LrcError
        A column is missing or holds a NaN, or there are no pairs, or too many to try every choice
        of signs (more than 17).

    Notes
    -----
    Where nothing differs within pairs, each difference is as likely to have the other sign. p is
    twice the share of all :math:`2^n` choices of signs whose mean is at least as large (or as
    small, whichever is less) as the observed one. Of differences less :math:`\delta`, a choice
    that flips the pairs S falls behind the observed one exactly if the mean over S is above
    :math:`\delta`; so the ends of the interval are means of subsets of the pairs, which is
    Hartigan's method of typical values. Like any test of pairs, it takes them for independent.

    Examples
    --------
    >>> domains = pd.DataFrame({"gain": [0.1, 0.2, 0.3, 0.4, 0.2, 0.3]})
    >>> paired(domains, ["gain"])[["difference", "p"]].round(4).values.tolist()
    [[0.25, 0.0312]]
    """
    count = len(table)
    if not count or 2**count > _MOST_SPLITS:
        raise LrcError(
            f"{count} pairs: an exact test of signs takes 1 to {int(np.log2(_MOST_SPLITS))}"
        )
    # [choices, pairs]: the first flips nothing.
    flipped = (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1
    rows = []
    for measure in measures:
        values = _numbers(table, measure)
        sums = flipped @ values  # A choice's sum is the observed one less twice this.
        slack = 1e-9 * max(np.abs(values).sum(), 1e-300)
        above, below = (sums <= slack).sum(), (sums >= -slack).sum()
        typical = np.sort(sums[1:] / flipped[1:].sum(axis=1))
        spare = int(np.floor((1 - confidence) / 2 * len(flipped) + 1e-9))
        inner = 0 < spare <= len(typical)
        rows.append(
            {
                "measure": measure,
                "pairs": count,
                "difference": values.mean(),
                "ci_low": typical[spare - 1] if inner else -np.inf,
                "ci_high": typical[-spare] if inner else np.inf,
                "p": min(1.0, 2 * min(above, below) / len(flipped)),
            }
        )
    return pd.DataFrame(rows).assign(smallest_p=min(1.0, 2 / len(flipped)))


def rank_correlation(
    table: pd.DataFrame,
    x: str,
    measures: Sequence[str],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's correlation of a property with measures, tested by pairing anew.

    Parameters
    ----------
    table : DataFrame
        A row per model.
    x : str
        Column of numbers: the property.
    measures : sequence of str
        Columns of numbers, each correlated with `x` by itself.
    resamples : int, default 9999
        Random pairings; every pairing once, if there are no more than that.
    seed : int, default 0

    Returns
    -------
    DataFrame
        A row per measure: ``measure``, ``models``, ``correlation`` and ``p`` (two-sided).

    Raises
    ------
    LrcError
        A column is missing, holds a NaN or is constant, or there are fewer than 3 models.

    Examples
    --------
    >>> models = pd.DataFrame({"experts": [8, 16, 32, 64], "srp": [0.6, 0.5, 0.4, 0.3]})
    >>> rank_correlation(models, "experts", ["srp"])[["correlation", "p"]].round(4).values.tolist()
    [[-1.0, 0.0833]]
    """
    from scipy import stats

    if len(table) < 3:
        raise LrcError(f"a correlation takes at least 3 models, not {len(table)}")
    rows = []
    for measure in measures:
        first, second = (_doubled_ranks(table, name) for name in (x, measure))
        test = stats.permutation_test(
            (first,),
            # Rises with the correlation, and is whole, so that ties are ties.
            lambda paired, axis, second=second: (paired * second).sum(axis=axis),
            permutation_type="pairings",
            vectorized=True,
            n_resamples=resamples,
            rng=np.random.default_rng(seed),
        )
        rows.append(
            {
                "measure": measure,
                "models": len(table),
                "correlation": np.corrcoef(first, second)[0, 1],
                "p": test.pvalue,
            }
        )
    return pd.DataFrame(rows)


def _numbers(table, name):
    if name not in table:
        raise LrcError(f"the table has no column {name!r}; it has {', '.join(table.columns)}")
    values = table[name].to_numpy(float)
    if np.isnan(values).any():
        raise LrcError(f"column {name!r} holds a NaN: leave out the models without a value")
    return values


def _doubled_ranks(table, name):
    from scipy import stats

    ranks = 2 * stats.rankdata(_numbers(table, name))  # Ties share a rank: n or n + 1/2.
    if np.ptp(ranks) == 0:
        raise LrcError(f"column {name!r} is the same for all models: there is no correlation")
    return ranks


def _test(weights, observed, inside, values, confidence):
    differences = weights @ values
    difference = differences[observed]
    # Equal splits differ by rounding errors, and must count as equal.
    # also where all values are the same and every difference is one.
    slack = 1e-9 * np.abs(differences).max() + 1e-14 * np.abs(values).max()
    above = (differences >= difference - slack).sum()
    below = (differences <= difference + slack).sum()
    # Taking delta off the models inside moves a split's difference by delta * moved. The observed
    # one moves by delta, more than any other, so each split falls behind it at one delta.
    moved = weights @ inside
    others = np.arange(len(weights)) != observed
    overtaken = np.sort((difference - differences[others]) / (1 - moved[others]))
    # p > 1 - confidence takes at least `spare` other splits on either side.
    spare = int(np.floor((1 - confidence) / 2 * len(weights) + 1e-9))
    inner = 0 < spare <= len(overtaken)
    return {
        "difference": difference,
        "ci_low": overtaken[spare - 1] if inner else -np.inf,
        "ci_high": overtaken[-spare] if inner else np.inf,
        "p": min(1.0, 2 * min(above, below) / len(weights)),
    }
