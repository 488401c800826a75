"""Do experts specialize in domains, or in words? The measures of the paper's Section 4.2."""

import pandas as pd

from lrc.errors import LrcError
from lrc.srp import srp
from lrc.trace import Trace
from lrc.vocabulary import KINDS, TokenCounts, token_counts

__all__ = ["specialization"]

_KEY = ["layer", "expert"]


def specialization(
    trace: Trace,
    *,
    segment_length: int = 16,
    counts: TokenCounts | None = None,
    min_count: int = 20,
    min_rate: float = 1e-5,
) -> pd.DataFrame:
    r"""How far each expert is tied to domains and to token ids.

    Parameters
    ----------
    trace : Trace
        Domain specialization needs ``datasets`` with at least two labels.
    segment_length : int, default 16
        Window of the SRP and of the activation rates.
    counts : TokenCounts, optional
        Token counts made elsewhere, for a trace without token ids; by default those of the trace.
    min_count : int, default 20
        Token ids counted fewer times in a layer are left out of the vocabulary columns.
    min_rate : float, default 1e-5
        Datasets in which an expert is active at this rate or less are left out of its domain
        specialization.

    Returns
    -------
    DataFrame
        One row per layer and expert: layer, expert, activation_rate, srp, domain, vocabulary_in,
        vocabulary_predicted, vocabulary_next. A column that the trace cannot give is absent, and
        ``attrs["absent"]`` says why. A single expert's value is empty (NaN) where it is not
        defined: ``domain`` of an expert active in fewer than two datasets, ``vocabulary_*`` of
        one that is no token's main expert. ``attrs["undefined"]`` counts these per column.

    Raises
    ------
    LrcError
        No sequence is as long as a window, or `counts` do not belong to a model of this shape.

    Notes
    -----
    Activation rate :math:`r_{e,d}`: how often expert e is active in the windows of dataset d, over
    all positions of all windows (so the ends of sequences weigh less, as in `lrc.srp`).

    Domain specialization is the coefficient of variation over the :math:`n_e` datasets in which
    the expert is active,

    .. math:: \frac{1}{\bar r_e} \sqrt{\frac{1}{n_e - 1} \sum_d (r_{e,d} - \bar r_e)^2}.

    Vocabulary specialization follows the share of a token id's uses: with :math:`c_{e,v}` the
    number of tokens of id v whose first-choice expert (slot 0) in the layer is e, each id v with
    :math:`\sum_e c_{e,v}` of `min_count` or more belongs to the one expert with the largest
    :math:`c_{e,v}` (its main expert), and

    .. math:: \mathrm{vocabulary}(e) = \operatorname{mean}_{v \,:\, e = \arg\max_{e'} c_{e',v}}
              \frac{c_{e,v}}{\sum_{e'} c_{e',v}}.

    The three columns differ in which id a token is counted under: its own (``in``), the one that
    the model predicts there (``predicted``), or the one that really follows (``next``). All
    datasets are counted together.

    Definitions as in the paper's scripts (arXiv 2505.16056, repository at 7b3ca46); the share of
    a token id is that of OLMoE (arXiv 2409.02060) for the first choice.
    """
    result = _experts(srp(trace, (segment_length,), level="expert"))
    if result.empty:
        raise LrcError(
            f"no sequence has the {segment_length} tokens of a window: pass a shorter "
            "segment_length"
        )
    absent = {}
    if len(trace.dataset_names) < 2:
        absent["domain"] = "the trace has fewer than two datasets"
    else:
        rates = srp(trace, (segment_length,), level="expert", by_dataset=True)
        if rates["dataset"].nunique() < 2:
            absent["domain"] = f"fewer than two datasets have windows of {segment_length} tokens"
        else:
            result = result.join(_variation(rates, min_rate), on=_KEY)
    if counts is None and (trace.token_ids is not None or trace.predicted_ids is not None):
        counts = token_counts(trace, min_count=min_count)
    elif counts is not None:
        if (counts.num_layers, counts.num_experts) != (trace.num_layers, trace.num_experts):
            raise LrcError(f"counts do not belong to this trace: {counts!r} and {trace!r}")
        counts = counts.frequent(min_count)
    for kind in KINDS:
        if counts is not None and kind in counts.kinds:
            share = counts.share(kind).groupby(_KEY)["share"].mean()
            result = result.join(share.rename(f"vocabulary_{kind}"), on=_KEY)
        else:
            needed = "predicted_ids" if kind == "predicted" else "token_ids"
            absent[f"vocabulary_{kind}"] = f"the trace has no {needed}, and no counts were passed"
    measures = result.columns.difference([*_KEY, "activation_rate", "srp"])
    result.attrs["absent"] = absent
    result.attrs["undefined"] = {name: int(result[name].isna().sum()) for name in measures}
    return result


def _experts(scores):
    return scores[[*_KEY, "activation_rate", "srp"]].reset_index(drop=True)


def _variation(rates, min_rate):
    """Coefficient of variation of an expert's rate over datasets."""
    groups = rates[rates["activation_rate"] > min_rate].groupby(_KEY)["activation_rate"]
    return (groups.std(ddof=1) / groups.mean()).rename("domain")
