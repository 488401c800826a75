"""Where a model's consistency comes from: popular experts, domains, texts, or the order of tokens.

A correlation over experts says that two things go together, not how much of one comes with the
other. Shuffling does: what SRP loses when tokens change places was due to where they stood.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.cache import hit_rates, sch
from lrc.errors import LrcError
from lrc.shuffling import check_repeats, over_shuffles, shuffle
from lrc.srp import srp
from lrc.trace import Trace

__all__ = ["decompose", "ladder", "shuffle_labels"]

_MEASURES: dict[str, tuple[Callable[..., pd.DataFrame], str]] = {
    "srp": (srp, "srp"),
    "sch": (sch, "hit_rate"),
    "hit_rates": (hit_rates, "hit_rate"),
}
# Where the tokens of a trace change places, by what of its consistency is left then.
_RUNGS = {"popularity": "all", "domain": "domain", "text": "sequence", "order": None}


def shuffle_labels(trace: Trace, *, seed: int = 0) -> Trace:
    """The same routing with its dataset labels dealt out at random: domains without a meaning.

    Each label goes to as many sequences as before. What a measure of domains still finds comes from
    single texts, of which every domain has but a few.

    Parameters
    ----------
    trace : Trace
    seed : int, default 0

    Returns
    -------
    Trace

    Raises
    ------
    LrcError
        The trace has no dataset labels.
    """
    check_trace(trace)
    if trace.datasets is None:
        raise LrcError("there are no labels to shuffle: build the trace with datasets=[...]")
    parts = {name: getattr(trace, name) for name in ("lengths", "token_ids", "predicted_ids")}
    labels = np.random.default_rng(seed).permutation(trace.datasets)
    parts |= {"weights": trace.weights, "meta": trace.meta, "datasets": labels}
    return Trace(trace.experts, trace.num_experts, **parts)


def ladder(
    trace: Trace,
    segment_lengths=(4, 16, 64, 256),
    *,
    measure: str = "srp",
    level: str = "model",
    repeats: int = 5,
    bootstrap: int = 0,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """What a measure gives as more and more of a trace's order is kept: four rungs up to the trace.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int
        For "srp" and "sch".
    measure : {"srp", "sch", "hit_rates"}, default "srp"
    level : str, default "model"
        As in the measure.
    repeats : int, default 5
        Shuffles that are averaged on each rung but the last.
    bootstrap : int, default 0
        Resamples of the sequences for an interval on the last rung (0 = no intervals).
    seed : int, default 0
        Of the first shuffle, and of the resampling.
    **options
        Passed on to `lrc.srp`, `lrc.sch` or `lrc.hit_rates`, such as ``policies``.

    Returns
    -------
    DataFrame
        For each row of the measure and each rung: ``rung``, the measure's columns with the mean of
        the shuffles as ``srp`` or ``hit_rate``, and ``sd``, the standard deviation of one shuffle
        (0 on the last rung, which is the trace itself). With `bootstrap` also ``ci_low`` and
        ``ci_high``: on the last rung over sequences, on the others of the mean over all shuffles of
        these very sequences (1.96 standard errors), which is far narrower.

        ==========  =========================================================================
        popularity  tokens change places in the whole trace: popular experts are left
        domain      … within their dataset: and what domains prefer
        text        … within their sequence: and what single texts prefer
        order       … not at all: and which experts follow each other
        ==========  =========================================================================

        A trace of fewer than two datasets has no rung "domain", one of a single sequence no rung
        "popularity" of its own: there it is called "text".

    Raises
    ------
    LrcError
        An unknown measure, fewer than one shuffle, and what the measure refuses.

    See Also
    --------
    decompose : The steps, with what any few texts share kept apart from what domains do.
    """
    check_trace(trace)
    check_repeats(repeats)
    if measure not in _MEASURES:
        raise LrcError(f"measure is {measure!r}, but must be one of {', '.join(_MEASURES)}")
    function, value = _MEASURES[measure]
    options |= {"level": level}
    if measure != "hit_rates":
        options["segment_lengths"] = segment_lengths
    rungs = dict(_RUNGS)
    if not _has_domains(trace):
        del rungs["domain"]
    if trace.num_sequences == 1:
        del rungs["popularity"]
    tables = []
    for pool in rungs.values():
        if pool is None:
            table = function(trace, **options, bootstrap=bootstrap, seed=seed)
            table.insert(list(table).index(value) + 1, "sd", 0.0)
        else:
            traces = (shuffle(trace, pool, seed=turn) for turn in range(seed, seed + repeats))
            table = over_shuffles(traces, lambda one: function(one, **options), value)
            if bootstrap:
                error = 1.96 * table["sd"] / np.sqrt(repeats)
                after = list(table).index("sd") + 1
                table.insert(after, "ci_low", table[value] - error)
                table.insert(after + 1, "ci_high", table[value] + error)
        tables.append(table)
    result = pd.concat(tables, keys=list(rungs), names=["rung", None])
    return result.reset_index("rung").reset_index(drop=True)


def _has_domains(trace):
    return trace.datasets is not None and len(trace.dataset_names) > 1


def decompose(
    trace: Trace,
    segment_lengths=(16,),
    *,
    level: str = "model",
    repeats: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Split SRP into what popularity, domains, texts and the order of tokens each add to it.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int, default (16,)
    level : {"model", "layer", "expert"}, default "model"
        Which experts share a threshold, as in `lrc.srp`.
    repeats : int, default 5
        Shuffles that are averaged.
    seed : int, default 0
        Of the first shuffle.

    Returns
    -------
    DataFrame
        Four rows for each row of `lrc.srp`: layer, expert (where they apply), segment_length,
        source, gain and share. ``source`` is "popularity", "domain", "text" or "order"; a trace of
        fewer than two datasets has no "domain", and its texts account for both. The gains add up to
        SRP. ``share`` is the gain over that of all sources but popularity; it is left empty (NaN)
        for popularity, and where there is nothing to share out.

    Notes
    -----
    With :math:`S_x` the SRP of a trace whose tokens change places within x (see `lrc.shuffle`), and
    :math:`S_\text{dealt}` that within domains of labels dealt out at random (`shuffle_labels`):

    ==========  ======================================================================
    popularity  :math:`S_\text{all}`
    domain      :math:`S_\text{domain} - S_\text{dealt}`
    text        :math:`S_\text{sequence} - S_\text{domain} + S_\text{dealt} - S_\text{all}`
    order       :math:`\mathrm{SRP} - S_\text{sequence}`
    ==========  ======================================================================

    A domain is known by its sequences only, and any few sequences together, domain or not, prefer
    some experts. What they prefer by that alone is due to texts and counted there.
    """
    check_trace(trace)
    check_repeats(repeats)
    domains = _has_domains(trace)
    rungs = {"all": 0, "dealt": 0, "domain": 0, "sequence": 0}
    for turn in range(seed, seed + repeats):
        for name in rungs:
            source, within = trace, name
            if name in ("dealt", "domain") and not domains:
                within = "all"
            elif name == "dealt":
                source, within = shuffle_labels(trace, seed=turn), "domain"
            shuffled = shuffle(source, within, seed=turn)
            rungs[name] += srp(shuffled, segment_lengths, level=level)["srp"] / repeats
    result = srp(trace, segment_lengths, level=level)
    gains = {
        "popularity": rungs["all"],
        "domain": rungs["domain"] - rungs["dealt"],
        "text": rungs["sequence"] - rungs["domain"] + rungs["dealt"] - rungs["all"],
        "order": result["srp"] - rungs["sequence"],
    }
    above = result["srp"] - rungs["all"]
    keys = [name for name in ("layer", "expert", "segment_length") if name in result]
    parts = []
    for name, gain in gains.items():
        if name != "domain" or domains:
            share = (gain / above).where((above > 1e-12) & (name != "popularity"))
            parts.append(result[keys].assign(source=name, gain=gain, share=share))
    # Each row's sources together, in the order of the table above.
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
