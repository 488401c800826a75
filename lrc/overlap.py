"""How alike the experts of two tokens are, by how far apart the tokens stand."""

from pathlib import Path

import numpy as np
import pandas as pd

from lrc.errors import LrcError
from lrc.pair_counts import counted, interval, ratio, sums_of
from lrc.trace import Trace

__all__ = ["overlap_by_distance", "overlap_half_life", "public_overlaps"]

_TABLES = Path(__file__).parent / "data" / "overlaps"

DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def overlap_by_distance(
    trace: Trace,
    distances=DISTANCES,
    *,
    level: str = "model",
    by_token: bool = False,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Share of their experts that two tokens so far apart have in common, and what chance gives.

    Parameters
    ----------
    trace : Trace
    distances : int or sequence of int, default 1, 2, 3, 4, 6, ... 256
        From one token to the other, in tokens of the same sequence, each at least 1.
    level : {"model", "layer"}, default "model"
        All layers together (a token shares experts in each layer), or each layer.
    by_token : bool, default False
        Two rows for each: pairs of the same token id and pairs of different ids.
    bootstrap : int, default 0
        Resamples of the sequences, drawn within each dataset (0 = no interval).
    confidence : float, default 0.95
    seed : int, default 0

    Returns
    -------
    DataFrame
        A row per layer (if asked for) and distance:

        - ``same_token`` (with `by_token`): whether the pairs are of one token id;
        - ``overlap``, with ``ci_low``, ``ci_high`` if asked for;
        - ``chance``: overlap of independent tokens that use each expert at the same rate;
        - ``domain``: overlap of tokens of different sequences of the same dataset; absent unless
          there are two datasets, and at every distance one with two sequences that long;
        - ``text``: overlap of tokens of the same sequence at any distance, what `lrc.shuffle`
          within sequences is expected to leave;
        - ``pairs``: how many there are, int64; with `by_token`, ``share``, of all uses at this
          distance, and ``text_share``, at any distance; chance and domain are left out.

        A distance that no sequence is longer than has no row.

    Raises
    ------
    LrcError
        A distance below 1, an unknown level, `by_token` without token ids, no experts in use.

    Notes
    -----
    With :math:`S_i` the experts of token i in a layer, pooled over all pairs of valid tokens,

    .. math:: \mathrm{overlap}(d) =
              \frac{2 \sum_i |S_i \cap S_{i+d}|}{\sum_i \left(|S_i| + |S_{i+d}|\right)},

    which for a router of fixed top-k is the share of a token's experts that the other one uses
    too. For independent tokens of rates :math:`r_e` it is
    :math:`\sum_e r_e^2 / \sum_e r_e`. Where sequences differ in length, all levels count each of
    them as often as it has pairs at the distance.

    The interval is the mirrored percentile interval, for the overlap; levels have none here. See
    `overlap_sources` and `overlap_half_life` for intervals of differences.

    Examples
    --------
    >>> trace = lrc.Trace([[[[0, 1]], [[0, 2]], [[0, 3]], [[0, 1]]]], num_experts=4)
    >>> lrc.overlap_by_distance(trace, (1, 3))[["distance", "overlap", "chance"]]
       distance  overlap  chance
    0         1      0.5  0.6875
    1         3      1.0  0.6875
    """
    distances, counts = counted(trace, distances, level)
    if by_token and trace.token_ids is None:
        raise LrcError("by_token needs a trace with token_ids, but this one has none")
    estimate, resampled = sums_of(counts, level, bootstrap, confidence, seed)
    here, text = estimate.here[:, 0], estimate.text[:, 0]
    columns = {"overlap": _strata(here, by_token)}
    if bootstrap:
        drawn = _strata(resampled.here, by_token)
        columns["ci_low"], columns["ci_high"] = interval(columns["overlap"], drawn, confidence)
    number = counts.pairs[:, :-1].sum(axis=0)
    if by_token:
        columns["text"] = _strata(text, True)
        for name, part in (("share", here), ("text_share", text)):
            columns[name] = (part[1] / np.maximum(part[1].sum(axis=-1, keepdims=True), 1))[
                ..., ::-1
            ]
        number = number[:, ::-1]
    else:
        columns["chance"] = estimate.overlap("chance")[0][..., None]
        if estimate.has_domain:
            columns["domain"] = estimate.overlap("domain")[0][..., None]
        columns["text"] = estimate.overlap("text")[0][..., None]
        number = number.sum(axis=1, keepdims=True)
    columns["pairs"] = np.broadcast_to(number, columns["overlap"].shape)
    keys = {"layer": range(len(here[0])), "distance": distances}
    keys["same_token"] = [True, False][: number.shape[1]]
    index = pd.MultiIndex.from_product(keys.values(), names=keys)
    flat = {name: values.reshape(len(index)) for name, values in columns.items()}
    table = pd.DataFrame(flat, index=index).reset_index().dropna(subset="overlap")
    absent = (["layer"] if level == "model" else []) + ([] if by_token else ["same_token"])
    return table.drop(columns=absent).reset_index(drop=True)


def overlap_half_life(
    trace: Trace,
    longest: int = 256,
    *,
    level: str = "model",
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How far apart two tokens are when half of what their order adds to the overlap is lost.

    Parameters
    ----------
    trace : Trace
    longest : int, default 256
        Distances up to this one are looked at, in octaves: 1, 2 to 3, 4 to 7, 8 to 15, ...; so that
        lists and tables, in which every few tokens are alike, do not make it jump.
    level : {"model", "layer"}, default "model"
    bootstrap, confidence, seed
        As for `overlap_by_distance`.

    Returns
    -------
    DataFrame
        layer (if asked for), then

        - ``order``: overlap of neighbours less that of any tokens of the same text, with
          ``order_low`` and ``order_high`` if asked for;
        - ``half_life``, in tokens: from where on half of it or less is left, on the line between
          the middles of two octaves (their logarithms); infinite if more is left in the last one,
          empty (NaN) where order adds nothing;
        - ``ci_low``, ``ci_high``: its interval, mirrored on a logarithmic scale.

    Raises
    ------
    LrcError
        As for `overlap_by_distance`.

    Notes
    -----
    Over all pairs of a text, order adds nothing by definition: what near tokens have above the mean
    far ones have below. In short texts that makes half-lives a little too short.
    """
    if isinstance(longest, bool) or not isinstance(longest, int | np.integer) or longest < 1:
        raise LrcError(f"longest is {longest!r}, but must be a distance in tokens, 1 or more")
    distances, counts = counted(trace, range(1, longest + 1), level)
    octaves = 2 ** np.arange(len(distances).bit_length())
    middles = np.sqrt(octaves * np.append(octaves[1:] - 1, len(distances)))
    estimate, resampled = sums_of(counts.pooled(octaves - 1), level, bootstrap, confidence, seed)
    order = _order(estimate)[0]
    half_life = _half_life(order, middles)
    columns = {"layer": range(len(order)), "order": order[:, 0]}
    if bootstrap:
        drawn = _order(resampled)
        columns["order_low"], columns["order_high"] = interval(
            order[:, 0], drawn[..., 0], confidence
        )
    columns["half_life"] = half_life
    if bootstrap:
        # A resample in which order adds nothing has lost half of it at once.
        logs = np.log(np.nan_to_num(_half_life(drawn, middles), nan=1.0, posinf=np.inf))
        with np.errstate(invalid="ignore"):
            ends = interval(np.log(half_life), logs, confidence)
        columns["ci_low"], columns["ci_high"] = np.exp(ends)
    table = pd.DataFrame(columns)
    return table.drop(columns="layer") if level == "model" else table


def public_overlaps(kind: str = "by_distance") -> pd.DataFrame:
    """What this module and `overlap_sources` find in public traces of real models, as shipped.

    The traces (`lrc.public_traces`) are large and not part of the package; these tables are. Their
    intervals are of 200 resamples.

    Parameters
    ----------
    kind : {"by_distance", "by_domain", "half_life", "sources"}
        `overlap_by_distance`, of all texts or of each dataset; `overlap_half_life` of each layer
        and of "all"; `overlap_sources` at 4, 16 and 64 tokens.

    Returns
    -------
    DataFrame
        The function's table, a column ``model`` first.

    Raises
    ------
    LrcError
        Another kind.
    """
    kinds = sorted(path.stem for path in _TABLES.glob("*.csv"))
    if kind not in kinds:
        raise LrcError(f"kind is {kind!r}, but must be one of {', '.join(kinds)}")
    return pd.read_csv(_TABLES / f"{kind}.csv")


def _strata(sums, by_token):
    """Overlaps [..., strata]: of equal and of different ids, or of all."""
    if by_token:
        return ratio(*sums)[..., ::-1]
    return ratio(*sums.sum(axis=-1, keepdims=True))


def _order(sums):
    return sums.overlap("here") - sums.overlap("text")


def _half_life(order, middles):
    """From where on half of the first or less is left, for `order` [..., octaves]."""
    place, half = np.log(middles), order[..., 0] / 2
    above = order > half[..., None]
    last = above.shape[-1] - 1 - above[..., ::-1].argmax(axis=-1)
    after = np.minimum(last + 1, above.shape[-1] - 1)
    high, low = (np.take_along_axis(order, i[..., None], -1)[..., 0] for i in (last, after))
    step = (high - half) / np.where(high > low, high - low, 1)
    found = np.exp(place[last] + step * (place[after] - place[last]))
    found = np.where(above[..., -1], np.inf, found)
    return np.where(order[..., 0] > 0, found, np.nan)
