"""Where a model's consistency comes from: popular experts, domains, texts, or the order of tokens.

A correlation over experts says that two things go together, not how much of one comes with the
other. Shuffling does: what SRP loses when tokens change places was due to where they stood.
"""

import numpy as np
import pandas as pd

from lrc.arguments import check_trace
from lrc.chance import shuffle
from lrc.errors import LrcError
from lrc.srp import srp
from lrc.trace import Trace

__all__ = ["decompose", "shuffle_labels"]


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
    if repeats < 1:
        raise LrcError(f"repeats is {repeats!r}, but there must be at least one shuffle")
    domains = trace.datasets is not None and len(trace.dataset_names) > 1
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
