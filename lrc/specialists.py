"""Specialization and consistency over many experts: published, of the toys, and of your own trace.

What `lrc.specialization` measures of one trace, side by side for all that is known, and correlated
with SRP as the paper does (arXiv 2505.16056, Section 4.2) and with other things equal.
"""

from typing import Any

import numpy as np
import pandas as pd

from lrc import published, toys
from lrc.association import correlation
from lrc.origin import shuffle_labels
from lrc.specialization import specialization
from lrc.trace import Trace

__all__ = [
    "MEASURES",
    "beyond_rate",
    "compare",
    "published_correlations",
    "published_experts",
    "random_domains",
    "stacks",
    "tally",
    "toy_experts",
    "toy_findings",
]

MEASURES = ("domain", "vocabulary_in", "vocabulary_predicted", "vocabulary_next")
"""Kinds of specialization: columns of `lrc.specialization`."""

_PUBLISHED = {
    "domain_spec": "domain",
    "in_vocab_spec": "vocabulary_in",
    "pred_vocab_spec": "vocabulary_predicted",
    "gt_vocab_spec": "vocabulary_next",
    "act_freq": "activation_rate",
    "srp16": "srp",
}


def compare(
    experts: pd.DataFrame,
    measures=None,
    *,
    outcome: str = "srp",
    by: str | None = None,
    stratum: int = 8,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate specialization with expert SRP: as it is, and with other things equal.

    Parameters
    ----------
    experts : DataFrame
        A row per expert, as `lrc.specialization` gives it.
    measures : sequence of str, optional
        Columns to correlate with SRP; by default those of `MEASURES` that the table has.
    outcome : str, default "srp"
        Column to correlate with, such as "excess" of `beyond_rate`.
    by : str, optional
        Column, such as the model, with correlations for each of its values.
    stratum, bootstrap, seed
        As in `lrc.correlation`.

    Returns
    -------
    DataFrame
        What `lrc.correlation` returns and a column ``compared``: "all experts", "same use" (given
        the activation rate), "same use and layer" (and relative to the mean of the layer).
    """
    if measures is None:
        measures = [name for name in MEASURES if name in experts]
    held: dict[str, dict[str, Any]] = {
        "all experts": {},
        "same use": {"given": "activation_rate", "stratum": stratum},
        "same use and layer": {"given": "activation_rate", "stratum": stratum, "within": "layer"},
    }
    options: dict[str, Any] = {"by": by, "bootstrap": bootstrap, "seed": seed}
    parts = [
        correlation(experts, measures, outcome, **options, **same).assign(compared=name)
        for name, same in held.items()
    ]
    return pd.concat(parts, ignore_index=True)


def beyond_rate(experts: pd.DataFrame, segment_length: int = 16) -> pd.DataFrame:
    r"""Add to a table of experts the chance level of each, and what it has beyond.

    Parameters
    ----------
    experts : DataFrame
        With columns activation_rate and srp, as `lrc.specialization` gives it.
    segment_length : int, default 16
        That SRP was measured at.

    Returns
    -------
    DataFrame
        `experts` with two more columns: chance, as `lrc.chance` at level "expert", and excess (see
        `lrc.excess`; 0 for an expert that is always on).

    Notes
    -----
    An expert of rate r that is drawn independently is active f times in m tokens, f binomial. As
    :math:`f\,P_m(f) = m r\,P_{m-1}(f - 1)`, its best F1 is

    .. math:: \max_a \frac{2 r\,P(f_{m-1} \ge a - 1)}{P(f_m \ge a) + r} ,

    which takes all experts at once.
    """
    from scipy.stats import binom  # takes longer to import than the rest of the package

    rates = experts["activation_rate"].to_numpy(float)[:, None]
    least = np.arange(segment_length + 1)
    matched = 2 * rates * binom.sf(least - 2, segment_length - 1, rates)
    total = binom.sf(least - 1, segment_length, rates) + rates
    level = (matched / np.where(total > 0, total, 1)).max(axis=1)  # 0 where nothing is active
    room = 1 - level
    gain = (experts["srp"].to_numpy(float) - level) / np.where(room > 1e-12, room, np.inf)
    return experts.assign(chance=level, excess=gain)


def random_domains(
    trace: Trace, *, segment_length: int = 16, repeats: int = 20, stratum: int = 8, seed: int = 0
) -> pd.DataFrame:
    """What is found of domains when labels are dealt out to the sequences at random.

    Parameters
    ----------
    trace : Trace
    segment_length : int, default 16
    repeats : int, default 20
        Times that labels are dealt out.
    stratum : int, default 8
        As in `lrc.correlation`.
    seed : int, default 0
        Of the first deal.

    Returns
    -------
    DataFrame
        A row for the mean domain specialization, and for its correlation with SRP in each way of
        `compare`: quantity, real (labels as they are), random (mean over deals) and highest (of all
        deals). Empty if the trace gives no domain specialization.
    """
    rows = [_domains(trace, segment_length, stratum)]
    if "domain specialization" not in rows[0]:
        return pd.DataFrame(columns=["quantity", "real", "random", "highest"])
    for turn in range(seed, seed + repeats):
        rows.append(_domains(shuffle_labels(trace, seed=turn), segment_length, stratum))
    real, dealt = pd.Series(rows[0]), pd.DataFrame(rows[1:], columns=list(rows[0]))
    table = pd.DataFrame({"real": real, "random": dealt.mean(), "highest": dealt.max()})
    return table.rename_axis("quantity").reset_index()


def tally(compared: pd.DataFrame) -> pd.DataFrame:
    """Count over models how correlations turn out.

    Parameters
    ----------
    compared : DataFrame
        What `compare` returns for several models.

    Returns
    -------
    DataFrame
        A row per measure and comparison: measure, compared, models, positive, clearly_positive and
        clearly_negative (the interval leaves 0 out), below_domain (correlation lower than that of
        domain specialization in the same model), and the median correlation.
    """
    domain = compared[compared["measure"] == "domain"].set_index(["model", "compared"])
    rivals = compared[["model", "compared"]].join(domain["correlation"], on=["model", "compared"])
    counted = compared.assign(
        below_domain=compared["correlation"] < rivals["correlation"],
        positive=compared["correlation"] > 0,
        clearly_positive=compared["ci_low"] > 0,
        clearly_negative=compared["ci_high"] < 0,
    )
    groups = counted.groupby(["measure", "compared"], sort=False)
    counts = ["positive", "clearly_positive", "clearly_negative", "below_domain"]
    result = groups[counts].sum()
    result.insert(0, "models", groups.size())
    result["median"] = groups["correlation"].median()
    return result.reset_index().sort_values("measure", key=_order, kind="stable", ignore_index=True)


def published_experts() -> pd.DataFrame:
    """Return the published experts of 20 models under the column names of `lrc.specialization`.

    Returns
    -------
    DataFrame
        model (with "encoder" or "decoder" behind the name where a model has both), layer (from 1),
        expert, activation_rate, srp (16 tokens), domain, vocabulary_in, vocabulary_predicted. The
        next token was published as means over models only.
    """
    table = published.table("experts")
    columns = ["model", "layer", "expert", "activation_rate", "srp", *MEASURES[:3]]
    return table.assign(model=stacks(table)).rename(columns=_PUBLISHED)[columns]


def published_correlations(toy: bool = False) -> pd.DataFrame:
    """Return the correlations with expert SRP, and mean specialization, that the paper reports.

    Parameters
    ----------
    toy : bool
        Those of the paper's ten toy models rather than of its 20 models.

    Returns
    -------
    DataFrame
        A row per model and measure: model, measure, correlation, mean. What was not published is
        left out.
    """
    if toy:
        table = published.table("toy_specialization")
        named = published.table("toy_models").set_index("key")["name"]
        table["model"] = table["model"].map(named)
    else:
        table = published.table("specialization")
        table["model"] = stacks(table)
    parts = []
    for column, measure in _PUBLISHED.items():
        if measure in MEASURES:
            numbers = {"correlation": table[f"{column}_corr"], "mean": table[f"{column}_mean"]}
            parts.append(table[["model"]].assign(measure=measure, **numbers))
    return pd.concat(parts, ignore_index=True).dropna(ignore_index=True)


def toy_experts(segment_length: int = 16, *, all_seeds: bool = False) -> pd.DataFrame:
    """Measure the specialization of every shipped toy's experts.

    Parameters
    ----------
    segment_length : int, default 16
    all_seeds : bool, default False
        All training runs of a variant rather than the first.

    Returns
    -------
    DataFrame
        model (the paper's name of the variant), seed, and the columns of `lrc.specialization`.
    """
    runs = toys.shipped()
    if not all_seeds:
        first = dict(reversed(runs))
        runs = [(name, seed) for name, seed in runs if first[name] == seed]
    parts = []
    for name, seed in runs:
        trace, counts = toys.load_trace(name, seed), toys.load_counts(name, seed)
        experts = specialization(trace, segment_length=segment_length, counts=counts)
        parts.append(experts.assign(model=toys.variant(name).label, seed=seed))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", "seed", *table.columns.drop(["model", "seed"])]]


# A claim holds for a model, or it does not: an expression over one row per model, with a column of
# correlations per measure, the mean domain specialization, and Baseline's correlation; and the
# models that it is about (None: all).
_CLAIMS = {
    "domain correlates positively with SRP": ("domain > 0", None),
    "input token correlates negatively": ("vocabulary_in < 0", None),
    "predicted token correlates positively": ("vocabulary_predicted > 0", None),
    "next token correlates positively": ("vocabulary_next > 0", None),
    "domain correlates more than input token": ("domain > vocabulary_in", None),
    "domain correlates more than predicted token": ("domain > vocabulary_predicted", None),
    "shared experts: domain correlates more": ("domain > baseline", ["1ShrExp", "2ShrExp"]),
    "no balancing loss: domain correlates least of all": ("domain == domain.min()", ["NoLB"]),
    "no balancing loss: most domain-specialized": ("mean == mean.max()", ["NoLB"]),
    "heavy balancing loss: least domain-specialized": ("mean == mean.min()", ["OverLB"]),
}


def toy_findings(experts: pd.DataFrame, *, stratum: int = 8) -> pd.DataFrame:
    """Hold what the paper's toy models show against other toy models.

    Parameters
    ----------
    experts : DataFrame
        One run of each variant, as `toy_experts` gives it.
    stratum : int, default 8
        As in `lrc.correlation`.

    Returns
    -------
    DataFrame
        A row per claim: claim; paper and here, "k of n" models for which it holds; agrees, "yes"
        where it holds for most models in both or in neither, else "no"; same_use_and_layer, the
        count here with other things equal, empty where no correlation is claimed. A claim none of
        whose models is there is left out, and so is one about an extreme while variants are
        missing.
    """
    compared = compare(experts, by="model", bootstrap=0, stratum=stratum)
    mean = experts.groupby("model")["domain"].mean()
    paper = published_correlations(toy=True)
    known = paper[paper["measure"] == "domain"].set_index("model")["mean"]
    sides = {
        "paper": _wide(paper, known),
        "here": _wide(compared[compared["compared"] == "all experts"], mean),
        "held": _wide(compared[compared["compared"] == "same use and layer"], mean),
    }
    complete = set(sides["here"].index) >= {variant.label for variant in toys.VARIANTS.values()}
    rows = []
    for claim, (expression, about) in _CLAIMS.items():
        holds = {}
        for side, table in sides.items():
            holds[side] = table.eval(expression)[table.index.isin(about or table.index)]
        extreme = "()" in expression
        if len(holds["here"]) and (complete or not extreme):
            most = {side: truth.mean() > 0.5 for side, truth in holds.items()}
            count = {side: f"{truth.sum()} of {len(truth)}" for side, truth in holds.items()}
            row = {"claim": claim, "paper": count["paper"], "here": count["here"]}
            row["agrees"] = "yes" if most["paper"] == most["here"] else "no"
            row["same_use_and_layer"] = "" if "mean" in expression else count["held"]
            rows.append(row)
    return pd.DataFrame(rows)


def stacks(table: pd.DataFrame) -> pd.Series:
    """Return the model of each row of a published table, and its stack where it has two.

    Parameters
    ----------
    table : DataFrame
        With columns model and is_decoder.
    """
    both = table.groupby("model")["is_decoder"].transform("nunique") > 1
    stack = table["is_decoder"].map({0: " encoder", 1: " decoder"})
    return table["model"] + stack.where(both, "")


def _domains(trace, segment_length, stratum):
    """Mean domain specialization and its correlations with SRP, as far as they are defined."""
    experts = specialization(trace, segment_length=segment_length)
    if "domain" not in experts:
        return {}
    found = compare(experts, ["domain"], bootstrap=0, stratum=stratum)
    scores = {f"correlation, {row.compared}": row.correlation for row in found.itertuples()}
    return {"domain specialization": experts["domain"].mean(), **scores}


def _wide(table, mean):
    """Correlations with a row per model: what claims are evaluated on."""
    wide = table.set_index(["model", "measure"])["correlation"].unstack()  # noqa: PD010
    # Without a Baseline nothing is above it.
    return wide.assign(mean=mean, baseline=wide["domain"].get("Baseline", float("inf")))


def _order(names):
    return names.map({name: place for place, name in enumerate(MEASURES)})
