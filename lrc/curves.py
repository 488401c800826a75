"""Reading hit-rate curves: how large a cache must be, and where a curve bends.

Takes the tables of `lrc.sch` and `lrc.hit_rates`, or published ones of the same form. The rows
that agree in everything but cache size and hit rate are one curve: hit rate against cache ratio,
which starts at (0, 0), is straight between the sizes that are known, and is level after the last.
"""

from typing import Any

import numpy as np
import pandas as pd

from lrc import published
from lrc.cache import hit_rates, sch
from lrc.chance import excess
from lrc.errors import LrcError
from lrc.shuffling import check_repeats, over_shuffles, shuffle
from lrc.trace import Trace

__all__ = [
    "at_ratios",
    "bends",
    "beyond_chance",
    "compare",
    "of_published_models",
    "over_layers",
    "smallest",
]

_RATES = ("hit_rate", "ci_low", "ci_high")
_POINT = ("cache_size", "cache_ratio", *_RATES)
_DEFINITIONS = {"sch": "lookahead", "static": "static"}


def compare(
    trace: Trace,
    policies=("lru", "lfu", "sch", "belady", "static"),
    *,
    segment_length: int = 16,
    level: str = "model",
    bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rates of policies and SCH, at every cache size, in one table.

    Parameters
    ----------
    trace : Trace
    policies : sequence of str
        Policies of `lrc.hit_rates`; "sch" is SCH with look-ahead, "static" SCH of a static set.
    segment_length : int
        Tokens that SCH knows in advance.
    level : {"model", "layer"}
        One cache shared by all layers, or one for each: then a row each, see `over_layers`.
    bootstrap, seed
        As in `lrc.sch`.

    Returns
    -------
    DataFrame
        layer (if asked for), policy, cache_size, cache_ratio, hit_rate, ci_low, ci_high, in the
        order of `policies`. A policy without anything to measure has no rows ("static", where no
        sequence reaches the segment length).
    """
    options: dict[str, Any] = {"level": level, "bootstrap": bootstrap, "seed": seed}
    parts = []
    for policy in [policies] if isinstance(policies, str) else policies:
        if policy in _DEFINITIONS:
            part = sch(trace, segment_length, definition=_DEFINITIONS[policy], **options)
            part = part.rename(columns={"segment_length": "policy"})
            part["policy"] = pd.Series(policy, part.index, "str")
        else:
            part = hit_rates(trace, policy, **options)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def beyond_chance(
    trace: Trace,
    policies=("lru", "lfu", "sch", "belady"),
    *,
    segment_length: int = 16,
    level: str = "model",
    repeats: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rates of policies and SCH, and how far they lie above those of shuffled tokens.

    Parameters
    ----------
    trace : Trace
    policies, segment_length, level
        As in `compare`.
    repeats, seed : int
        As in `lrc.chance`.

    Returns
    -------
    DataFrame
        layer (if asked for), policy, cache_size, cache_ratio, hit_rate, and as `lrc.excess` gives
        them chance and excess.

    Raises
    ------
    LrcError
        Fewer than one shuffle, and as `lrc.sch` and `lrc.hit_rates`.
    """
    check_repeats(repeats)
    traces = (shuffle(trace, seed=turn) for turn in range(seed, seed + repeats))

    def measure(one):
        return compare(one, policies, segment_length=segment_length, level=level)

    return excess(measure(trace), over_shuffles(traces, measure, "hit_rate"))


def of_published_models(segment_length: int = 16) -> pd.DataFrame:
    """Published curves of the paper's 20 models, in the form of `compare`.

    All of one vintage, "HEAD" (see `lrc.published`): SCH with look-ahead, and the policies under
    the contract "paper", with one cache shared by all layers.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
        Tokens that SCH knows in advance.

    Returns
    -------
    DataFrame
        model (a key of `lrc.published`; of encoder-decoder models with the part behind it, such as
        "nllb decoder"), policy ("sch", "lru", "lfu", "belady"), cache_ratio, hit_rate. Read from
        figures up to ratio 4; the size at which every expert has a slot, and the hit rate is 1,
        is added.

    Raises
    ------
    LrcError
        A segment length that was not published.
    """
    models = published.table("models").set_index("key")
    bounds = published.table("sch_model", vintage="HEAD")
    lengths = sorted(bounds["seg_len"].unique().tolist())
    if segment_length not in lengths:
        raise LrcError(f"segment_length is {segment_length!r}, but published are only {lengths}")
    bounds = bounds[bounds["seg_len"] == segment_length].assign(policy="sch")
    replayed = published.table("chr_model", vintage="HEAD")
    table = pd.concat(
        [bounds.rename(columns={"sch": "hit_rate"}), replayed], ignore_index=True
    ).rename(columns={"rho": "cache_ratio"})
    table["policy"] = table["policy"].str.lower()

    end = table.drop_duplicates(["model", "is_decoder", "policy"])
    everything = end["model"].map(models["experts"] / models["top_k"])
    table = pd.concat([table, end.assign(cache_ratio=everything, hit_rate=1.0)])
    table = table.drop_duplicates(["model", "is_decoder", "policy", "cache_ratio"])
    parts = table.groupby("model")["is_decoder"].transform("nunique")
    part = table["is_decoder"].map({0: " encoder", 1: " decoder"}).where(parts > 1, "")
    table["model"] = table["model"] + part
    return table[["model", "policy", "cache_ratio", "hit_rate"]].reset_index(drop=True)


def over_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over layers of caches of the same size, one for each layer.

    Parameters
    ----------
    table : DataFrame
        Of level "layer"; one without column ``layer`` is returned as it is.

    Returns
    -------
    DataFrame
        The same columns but ``layer``. ``cache_size`` counts the slots of all layers together, so
        that it compares with a cache shared by all layers; each layer weighs the same. The ends
        of intervals are means of the layers' own ends: no narrower than an interval of the mean,
        equal to it where layers vary together.
    """
    if "layer" not in table:
        return table
    keys = [name for name in _keys(table) if name != "layer"] + ["cache_ratio"]
    taken = dict.fromkeys(_measured(table), "mean") | {"cache_size": "sum"}
    summed = table.groupby(keys, sort=False).agg(taken).reset_index()
    return summed[[column for column in table if column != "layer"]]


def at_ratios(table: pd.DataFrame, ratios=(1, 2, 4)) -> pd.DataFrame:
    """Hit rates at some cache ratios, the same for all curves.

    Parameters
    ----------
    table : DataFrame
        Curves.
    ratios : float or sequence of float
        Cache slots over active experts. Beyond a curve's last size, where every expert has a
        slot, its last hit rate holds.

    Returns
    -------
    DataFrame
        The columns of `table` but ``cache_size``, a row for each curve and ratio.
    """
    ratios = np.atleast_1d(np.asarray(ratios, float))
    columns = _measured(table)

    def read(curve):
        known = np.append(0, curve["cache_ratio"])
        rates = {name: np.interp(ratios, known, np.append(0, curve[name])) for name in columns}
        return pd.DataFrame({"cache_ratio": ratios, **rates})

    return _each_curve(table, read)


def smallest(table: pd.DataFrame, target: float) -> pd.DataFrame:
    """Smallest cache of each curve with a hit rate of at least `target`.

    Parameters
    ----------
    table : DataFrame
        Curves.
    target : float
        Hit rate wanted, above 0 and at most 1.

    Returns
    -------
    DataFrame
        A row per curve, with ``cache_ratio`` and, where known, ``cache_size`` in slots; NaN, or
        ``<NA>`` slots, where the curve stays below. With an interval in the table,
        ``ratio_low`` and ``ratio_high`` (``size_low``, ``size_high``) are where its upper and its
        lower end reach the target: the sizes that the data do not exclude.

    Raises
    ------
    LrcError
        A target that is no hit rate.
    """
    if not 0 < target <= 1:
        raise LrcError(f"target is {target!r}, but must be a hit rate above 0 and at most 1")
    ends = {"hit_rate": "", "ci_high": "_low", "ci_low": "_high"}
    ends = {name: ending for name, ending in ends.items() if name in table}

    def read(curve):
        row = {}
        for column in ("cache_size", "cache_ratio"):
            for name, ending in ends.items() if column in curve else ():
                reached = curve.loc[curve[name] >= target, column]
                start = column if not ending else column.removeprefix("cache_")
                row[start + ending] = reached.iloc[0] if len(reached) else np.nan
        return pd.DataFrame([row])

    found = _each_curve(table, read)
    slots = [name for name in found if "size" in name]
    return found.astype(dict.fromkeys(slots, "Int64"))


def bends(
    table: pd.DataFrame, criterion: str = "chord", *, reach: float = 4.0, gain: float = 0.1
) -> pd.DataFrame:
    """Where each curve bends, by a criterion that can be stated.

    Parameters
    ----------
    table : DataFrame
        Curves.
    criterion : {"chord", "gain"}
        - "chord": the point farthest above the straight line from (0, 0) to the curve's value at
          ratio `reach`. A curve always has one, whether it bends or not, and its place moves with
          `reach`: mind its height.
        - "gain": the smallest ratio from which on one more ratio unit (as many slots as a token
          has active experts) adds less than `gain` to the hit rate, as far as `reach` shows.
    reach : float
        Largest ratio that is looked at, more than 1.
    gain : float
        Hit rate that one more ratio unit must add to be worth it.

    Returns
    -------
    DataFrame
        A row per curve: ``cache_ratio`` of the bend (NaN if the gain does not fall below `gain`
        before ratio `reach` - 1), ``hit_rate`` there, and for "chord" its ``height`` above
        the line.

    Raises
    ------
    LrcError
        An unknown criterion, or a `reach` that leaves nothing to look at.
    """
    if criterion not in ("chord", "gain"):
        raise LrcError(f"criterion is {criterion!r}, but must be 'chord' or 'gain'")
    if not reach > 1:
        raise LrcError(f"reach is {reach!r}, but must be a cache ratio above 1")

    def read(curve):
        last = reach if criterion == "chord" else reach - 1
        inside = curve[curve["cache_ratio"] < last]
        ratio = np.concatenate([[0], inside["cache_ratio"], [last]])
        rate = _rate(curve, ratio)
        if criterion == "chord":
            # Rounded, so that of equal heights the smallest cache is found on any machine.
            height = (rate - ratio * rate[-1] / reach).round(12)
            bend = height.argmax()
            row = {"cache_ratio": ratio[bend], "hit_rate": rate[bend], "height": height[bend]}
        else:
            worth = np.flatnonzero((_rate(curve, ratio + 1) - rate).round(12) >= gain)
            bend = worth[-1] + 1 if len(worth) else 0
            there = bend < len(ratio)
            row = {
                "cache_ratio": ratio[bend] if there else np.nan,
                "hit_rate": rate[bend] if there else np.nan,
            }
        return pd.DataFrame([row])

    return _each_curve(table, read)


def _rate(curve, ratios):
    known = np.append(0, curve["cache_ratio"])
    return np.interp(ratios, known, np.append(0, curve["hit_rate"]))


def _each_curve(table, read):
    """What `read` says of every curve, in order of appearance, below the curve's keys."""
    if missing := [name for name in ("cache_ratio", "hit_rate") if name not in table]:
        raise LrcError(f"the table has no column {missing[0]!r}: give one of lrc.hit_rates")
    keys = _keys(table)
    parts = []
    groups = table.groupby(keys, sort=False, dropna=False) if keys else [((), table)]
    for values, curve in groups:
        found = read(curve.sort_values("cache_ratio", kind="stable"))
        for place, (key, value) in enumerate(zip(keys, values, strict=True)):
            found.insert(place, key, value)
        parts.append(found)
    if not parts:
        raise LrcError("the table has no rows: there is no curve to read")
    return pd.concat(parts, ignore_index=True)


def _keys(table):
    return [name for name in table if name not in _POINT]


def _measured(table):
    return [name for name in _RATES if name in table]
