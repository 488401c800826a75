"""Two tokens of one segment: how alike their experts are, why, and what it says of SRP.

SRP counts experts in segments. The same counts, squared, are pairs of tokens that share an expert.
So what makes two tokens share experts is where SRP comes from.
"""

import numpy as np
import pandas as pd

from lrc.arguments import check_trace, checked_segment_lengths
from lrc.errors import LrcError
from lrc.pair_counts import counted, interval, ratio, sums_of
from lrc.trace import Trace
from lrc.window_counts import SEGMENT_LENGTHS, window_counts

__all__ = ["overlap_sources", "segment_overlap"]


def segment_overlap(
    source, segment_lengths=SEGMENT_LENGTHS, *, level: str = "model", by_dataset: bool = False
) -> pd.DataFrame:
    r"""Overlap of two tokens drawn from one segment, between which and its root SRP must lie.

    Parameters
    ----------
    source, segment_lengths, level, by_dataset
        As for `lrc.srp`.

    Returns
    -------
    DataFrame
        dataset, layer, expert (where they apply), segment_length, overlap, srp, and bound, the
        square root of the overlap.

    Raises
    ------
    LrcError
        As `lrc.srp`.

    Notes
    -----
    The two tokens are drawn from a segment independently, so that one in m times they are the same
    token. With :math:`f_{e,p}` the activations of expert e in the segment from p on,

    .. math:: q = \frac{\sum f_{e,p}^2}{m \sum f_{e,p}},

    since :math:`f_{e,p}^2` counts the pairs of tokens that both use e. Then

    .. math:: q \le \mathrm{SRP} \le \sqrt{q} .

    Below: a router that may switch an expert on by a fraction, and chooses :math:`R = f / m`,
    scores :math:`2 \sum f^2 / m \, / \, (\sum f + \sum f) = q`. F1 as a function of one expert's R
    is monotone, so the best of these routers is one that switches on or off. Above: with N experts
    on that are active F times, of T activations, Cauchy and Schwarz give
    :math:`F^2 \le N \sum f^2 = N m T q`, and the mean of N m and T is at least
    :math:`\sqrt{N m T}`, so :math:`2 F / (N m + T) \le \sqrt{q}`. Neither can be improved: q is the
    SRP of counts that are m or half of :math:`q m`, in the right proportion, and the root is
    approached where one expert has :math:`\sqrt q \, m` and very many have next to nothing.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]]]], num_experts=4)
    >>> lrc.segment_overlap(trace, 4).round(4)
       segment_length  overlap   srp   bound
    0               4   0.6875  0.75  0.8292
    """
    counts = window_counts(source, segment_lengths, level=level, by_dataset=by_dataset)
    table = counts.table()
    # As the table: datasets, layers, experts, segment lengths, those without windows left out.
    overlaps = []
    for i, m in enumerate(counts.segment_lengths):
        histogram, count = counts.histogram(i), np.arange(m + 1)
        overlaps.append(ratio(histogram @ count**2 / 2, histogram @ count * m))
    overlap = np.stack(overlaps, axis=-1)
    there = np.broadcast_to(counts.windows[:, None, None] > 0, overlap.shape)
    keys = [c for c in ("dataset", "layer", "expert", "segment_length") if c in table]
    found = np.nan_to_num(overlap[there])  # An expert that is never active shares nothing.
    result = table[keys].assign(overlap=found, srp=table["srp"])
    return result.assign(bound=np.sqrt(found))


def overlap_sources(
    trace: Trace,
    segment_lengths=SEGMENT_LENGTHS,
    *,
    level: str = "model",
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""What makes two tokens of a segment share experts.

    Parameters
    ----------
    trace : Trace
    segment_lengths : int or sequence of int, default (4, 16, 64, 256)
        Tokens in a segment, at least 2.
    level : {"model", "layer"}, default "model"
    bootstrap, confidence, seed
        As for `overlap_by_distance`.

    Returns
    -------
    DataFrame
        layer (if asked for), segment_length, source, gain, ci_low and ci_high (if asked for), and
        share, of all sources but popularity. The gains add up to the overlap of two different
        tokens of a segment. Sources are

        - "popularity": overlap of independent tokens;
        - "domain": what tokens of different texts of one dataset have above it, without it in a
          trace of fewer than two datasets;
        - "text": what tokens of the same text, at any distance, have above that;
        - "repeats": what comes from a token's returning sooner within a segment than within the
          text; without token ids this is part of order;
        - "order": what else tokens that are near each other have above tokens of the same text.

    Raises
    ------
    LrcError
        As for `overlap_by_distance`, or no sequence is as long as a segment.

    Notes
    -----
    A segment of m tokens holds :math:`m - d` pairs of distance d, so the overlap of two of its
    tokens is the mean of :math:`\mathrm{overlap}(d)` with these weights. Mean pairs at the same
    distance are taken for alike wherever they stand in the text: `segment_overlap` counts windows,
    and comes to the same but for the few tokens at the ends of a text.

    Repeats: with :math:`p_d` the share of the pairs that are of one token id, :math:`p` that in
    pairs of any distance, and :math:`s, u` the overlaps of the latter with equal and different ids,
    :math:`(p_d - p)(s - u)`.
    """
    lengths = checked_segment_lengths(segment_lengths)
    if min(lengths) < 2:
        raise LrcError("a segment of 1 token holds no pair of tokens: segment_lengths from 2 on")
    check_trace(trace)
    if max(lengths) > trace.lengths.max(initial=0):
        raise LrcError(f"no sequence has the {max(lengths)} tokens of a segment: choose shorter")
    every = range(1, max(lengths))
    _, counts = counted(trace, every, level)
    estimate, resampled = sums_of(counts, level, bootstrap, confidence, seed)
    known = {"domain": estimate.has_domain, "ids": trace.token_ids is not None}
    gains = estimate.gains(**known)
    drawn = resampled.gains(**known) if bootstrap else {}
    parts = []
    for m in lengths:
        weights = np.maximum(m - np.array(every), 0)
        weights = weights / weights.sum()
        total = sum(gain[0] @ weights for name, gain in gains.items() if name != "popularity")
        for source, gain in gains.items():
            columns = {"gain": gain[0] @ weights}
            if bootstrap:
                columns["ci_low"], columns["ci_high"] = interval(
                    columns["gain"], drawn[source] @ weights, confidence
                )
            some = (np.abs(total) > 1e-12) & (source != "popularity")
            columns["share"] = np.where(some, columns["gain"] / np.where(some, total, 1), np.nan)
            rows = pd.DataFrame({"layer": range(len(total)), "segment_length": m} | columns)
            rows.insert(2, "source", source)
            parts.append(rows)
    table = pd.concat(parts).sort_values(["layer", "segment_length"], kind="stable")
    table = table.reset_index(drop=True)
    return table.drop(columns="layer") if level == "model" else table
