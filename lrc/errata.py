"""What we found while checking the paper: its printed numbers beside those of its own files.

Every table here has the number as it is printed and the number that the published files, or
arithmetic, give. Nothing is compared across vintages without a column that says so.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lrc import published
from lrc.errors import LrcError
from lrc.specialists import published_experts, stacks
from lrc.window_counts import window_counts

__all__ = [
    "cache_correlations",
    "domain_margins",
    "overview",
    "printed",
    "relabelled",
    "repeated_figure",
    "srp_correlations",
    "thresholds",
]

_PRINTED = Path(__file__).parent / "data" / "printed.csv"
_STACK = ["model", "is_decoder"]
FAVOURED = ("arxiv", "stackexchange", "github")
"""Domains that the paper names as those on which some models are more consistent."""


def printed(quantity: str | None = None) -> pd.DataFrame:
    """Numbers as the paper prints them, where they are in no table of `lrc.published`.

    Parameters
    ----------
    quantity : str, optional
        Keep the rows of this quantity.

    Returns
    -------
    DataFrame
        place (arXiv version and table or section, or a file of the repository), quantity, key,
        segment_length (empty where none belongs to it) and value; rates and correlations are
        fractions, as in `lrc.published`.

    Raises
    ------
    LrcError
        No such quantity.
    """
    table = pd.read_csv(_PRINTED)
    if quantity is None:
        return table
    if quantity not in set(table["quantity"]):
        raise LrcError(
            f"nothing printed is called {quantity!r}: there are {sorted(set(table['quantity']))}"
        )
    return table[table["quantity"] == quantity].reset_index(drop=True)


def relabelled(segment_length: int = 16) -> pd.DataFrame:
    """Rows of the table of post-trained models, and whose values they hold.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
        Where the differences are shown; a row's values are compared at all four.

    Returns
    -------
    DataFrame
        A row per printed row: printed_as (model), printed and notebook (SRP less that of the base
        model, at `segment_length`), values_of (the post-trained models of the same base whose
        differences round to the printed ones at every segment length).
    """
    wide = printed("SRP less that of the base model").pivot_table(
        "value", "key", "segment_length", sort=False
    )
    lengths = list(wide.columns)
    if segment_length not in lengths:
        raise LrcError(f"printed for segments of {lengths} tokens, not of {segment_length!r}")
    scores = published.table("posttrain").query("dataset == 'all'")
    base = scores.drop_duplicates("model").set_index("model")["base_model"]
    srp = scores.pivot_table("srp", "model", "seg_len")[lengths]
    gain = srp - srp.loc[base.loc[srp.index]].to_numpy()
    rows = []
    for label, values in wide.iterrows():
        rivals = gain[(base.loc[gain.index] == base[label]) & (gain.index != base[label])]
        same = ((rivals - values).abs() < 0.00005 + 1e-9).all(axis=1)
        rows.append(
            {
                "printed_as": label,
                "printed": values[segment_length],
                "notebook": gain.loc[label, segment_length],
                "values_of": ", ".join(rivals.index[same]),
            }
        )
    return pd.DataFrame(rows)


def repeated_figure() -> pd.DataFrame:
    """Correlation with expert SRP of the points of two figures, and of what one is called.

    Returns
    -------
    DataFrame
        A row per model: predicted (published correlation of predicted-vocabulary specialization),
        plotted (that of the points which both figures show, see `lrc.published`) and ground_truth
        (published correlation), sorted by how far the last two are apart.
    """
    known = published.table("specialization")
    table = pd.DataFrame(
        {
            "model": stacks(known),
            "predicted": known["pred_vocab_spec_corr"],
            "ground_truth": known["gt_vocab_spec_corr"],
        }
    ).dropna()
    experts = published_experts().groupby("model")
    plotted = experts.apply(lambda part: part["srp"].corr(part["vocabulary_predicted"]))
    table.insert(2, "plotted", table["model"].map(plotted))
    apart = (table["ground_truth"] - table["plotted"]).abs()
    return table.loc[apart.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def cache_correlations(ratio: float = 2.0) -> pd.DataFrame:
    """Correlation of SCH with hit rates: as printed, as of v1.0, and from the curves at HEAD.

    Parameters
    ----------
    ratio : float, default 2
        Cache ratio of the last column.

    Returns
    -------
    DataFrame
        segment_length, policy, printed (v4 Table 3), v1 (output of the notebook at tag v1.0: static
        SCH, older replay, over models, domains and cache sizes together), head_pooled and
        head_fixed (look-ahead SCH and newer replay, over models and cache ratios together, and over
        models at `ratio`). What a vintage does not have is empty.
    """
    table = printed("correlation of SCH with hit rate").rename(
        columns={"key": "policy", "value": "printed"}
    )[["segment_length", "policy", "printed"]]
    notebook = published.table("correlations", "v1.0")
    notebook = notebook[notebook["pair"].str.startswith("SCH_static_vs_")]
    notebook = notebook.assign(policy=notebook["pair"].str.removeprefix("SCH_static_vs_"))
    keys = ["segment_length", "policy"]
    notebook = notebook.rename(columns={"seg_len": "segment_length", "value": "v1"})
    curves = published.table("sch_model", "HEAD").rename(columns={"seg_len": "segment_length"})
    curves = curves.merge(published.table("chr_model", "HEAD"), on=[*_STACK, "rho"])
    ways = {"head_pooled": curves, "head_fixed": curves[curves["rho"] == ratio]}
    for name, part in ways.items():
        related = part.groupby(keys).apply(lambda rows: rows["sch"].corr(rows["hit_rate"]))
        ways[name] = related.rename(name).reset_index()
    table = table.merge(notebook[[*keys, "v1"]], on=keys)
    for part in ways.values():
        table = table.merge(part, on=keys, how="outer")
    return table.sort_values(keys, ignore_index=True)


def srp_correlations(ratio: float = 1.5) -> pd.DataFrame:
    """Correlation of SRP with SCH at one cache ratio: as printed, and over models.

    Parameters
    ----------
    ratio : float, default 1.5

    Returns
    -------
    DataFrame
        segment_length; printed_v2 and models_v1 (static SCH: Table 7 of arXiv v2, and recomputed
        over the stacks of the 20 models from the curves at v1.0); printed_v4 and models_head
        (look-ahead SCH: Table 7 of v4, which runs over models, layers and domains together, and
        recomputed over stacks from the curves at HEAD).
    """
    known = published.table("correlations", "all")
    known = known[known["pair"].str.startswith("SRP_vs_SCH") & (known["rho"] == str(ratio))]
    if known.empty:
        raise LrcError(f"no correlation of SRP with SCH is printed for cache ratio {ratio!r}")
    srp = published.table("srp_model").drop(columns=["vintage", "source"])
    columns = {}
    for vintage, version in (("v1.0", "v2"), ("HEAD", "v4")):
        values = known[known["vintage"] == vintage].set_index("seg_len")["value"]
        columns[f"printed_{version}"] = values
        curves = published.table("sch_model", vintage)
        curves = curves[curves["rho"] == ratio].merge(srp, on=[*_STACK, "seg_len"])
        name = "models_" + vintage.lower().removesuffix(".0")
        groups = curves.groupby("seg_len")
        columns[name] = groups.apply(lambda rows: rows["srp"].corr(rows["sch"]))
    return (
        pd.DataFrame(columns)
        .rename_axis("segment_length")
        .reset_index()
        .astype({"segment_length": int})
    )


def thresholds(trace, segment_lengths=(4, 16, 64, 256)) -> pd.DataFrame:
    """Best threshold of SRP by search, and by two closed forms of it.

    Parameters
    ----------
    trace : Trace
    segment_lengths : sequence of int

    Returns
    -------
    DataFrame
        segment_length, srp, best (lowest threshold that reaches SRP), with_factor
        (ceil(m / 2 · SRP), which the proof leads to) and printed (ceil(SRP)), each followed by the
        F1 that it gives.
    """
    counts = window_counts(trace, segment_lengths).at("model")
    rows = []
    for place, m in enumerate(counts.segment_lengths):
        histogram = counts.histogram(place).sum(axis=(0, 1, 2))
        active = np.arange(m + 1) * histogram
        on, matched = (part[::-1].cumsum()[::-1] for part in (histogram, active))
        score = 2 * matched / (m * on + active.sum())
        srp, best = score.max(), int(score.argmax())
        row = {"segment_length": m, "srp": srp, "best": best, "f1_best": srp}
        for name, a in (("with_factor", np.ceil(m / 2 * srp)), ("printed", np.ceil(srp))):
            row |= {name: int(a), f"f1_{name}": score[int(a)]}
        rows.append(row)
    return pd.DataFrame(rows)


def domain_margins() -> pd.DataFrame:
    """How far SRP in the favoured domains is above that of the whole corpus, at 16 tokens.

    Returns
    -------
    DataFrame
        A row per model that the paper names, and column per domain of `FAVOURED`.
    """
    table = published.table("srp_model_dataset")
    named = printed("SRP in a domain over that of all")["key"].item().split(", ")
    table = table[table["model"].isin(named) & table["dataset"].isin(FAVOURED)]
    wide = table.pivot_table("rel_diff", "model", "dataset")
    return wide.loc[named, list(FAVOURED)].rename_axis(columns=None).reset_index()


def overview(trace) -> pd.DataFrame:
    """All that was found, a row each: the number as printed, and as found.

    Parameters
    ----------
    trace : Trace
        Where the printed threshold is tried.

    Returns
    -------
    DataFrame
        what (in words), printed, found, where (place in the paper), vintage (state of the paper's
        repository that "found" comes from, or "arithmetic").
    """
    rows = [
        *_of_tables(),
        *_of_words(),
        *_of_set_up(),
        *_of_formulas(thresholds(trace, (16,)).iloc[0]),
    ]
    return pd.DataFrame(rows, columns=["what", "printed", "found", "where", "vintage"])


def _of_tables():
    moved = relabelled().set_index("printed_as")
    for label in moved.index[moved["values_of"] != moved.index]:
        row = moved.loc[label]
        yield (
            f"Change by post-training, row {_name(label)} (m = 16); the row holds the values of "
            f"{_name(row['values_of'])}",
            f"{100 * row['printed']:+.2f}",
            f"{100 * row['notebook']:+.2f}",
            "v4 Table 6 (v2 Table 5)",
            "v1.0",
        )
    caches = cache_correlations().set_index(["segment_length", "policy"]).loc[(16, "LRU")]
    yield (
        "Correlation of SCH with the hit rate of LRU (m = 16): the printed one is that of the "
        "older definitions, over all cache sizes together",
        f"{caches['printed']:.4f}",
        f"{caches['head_fixed']:.4f} at ratio 2, {caches['head_pooled']:.4f} over ratios",
        "v4 Table 3 (equal to v2 Table 3)",
        "HEAD",
    )
    related = srp_correlations().set_index("segment_length").loc[16]
    yield (
        "Correlation of SRP with SCH across models (m = 16, ratio 1.5): the printed one runs over "
        "models, layers and domains together",
        f"{related['printed_v4']:.4f}",
        f"{related['models_head']:.4f}",
        "v4 Table 7",
        "HEAD",
    )
    spread = published.table("load_balance").set_index("model").loc["llamamoe2"]
    yield (
        "Standard deviation of activation rates of LLaMA-MoE-v2, beside SRP at m = 16: the value "
        "of m = 64",
        f"{_printed('standard deviation of activation rates'):.4f}",
        f"{spread['act_freq_sd_figure']:.4f}",
        "v4 Table 2",
        "v1.0",
    )
    ends = published.table("sch_rho2_ci", "HEAD").query("model == 'switch' and is_decoder == 1")
    ends = ends.set_index("seg_len")[["ci_lo", "ci_hi"]]
    masked = printed("masked tokens of an input").set_index("place")["value"]
    yield (
        "SCH of Switch's decoder for segments of 256 tokens (which its caption calls invalid): "
        "the interval of m = 64, while the decoder sees fewer tokens than that",
        "{:.4f} to {:.4f}".format(*ends.loc[256]),
        "{:.4f} to {:.4f} at m = 64; {:.0f} tokens".format(*ends.loc[64], 2 * masked.iloc[-1] + 1),
        "v4 Table 8",
        "HEAD",
    )


def _of_words():
    figure = repeated_figure().iloc[0]
    yield (
        "Figure of experts named after ground-truth vocabulary: it plots the predicted one again "
        f"(correlation with SRP, {_name(figure['model'])})",
        f"{figure['plotted']:.3f} in the figure",
        f"{figure['ground_truth']:.3f} in the notebook's table",
        "v4 Figure 18",
        "v1.0, HEAD",
    )
    margins = domain_margins().set_index("model")
    above = (margins > _printed("SRP in a domain over that of all")).sum()
    yield (
        "Phi-3.5, GRIN and OLMoE can be more than 10 % above their SRP on ArXiv, StackExchange and "
        "GitHub: it takes GitHub",
        "more than 10 %",
        "; ".join(f"{_domain(d)} {margins[d].max():+.1%}" for d in FAVOURED)
        + f" at most; {above['github']} of {len(margins)} models",
        "v4 Section 4.1",
        "v1.0",
    )
    toys = published.table("toy_domain").pivot_table("rel_diff", "model", "dataset")
    highest = toys.idxmax(axis=1).value_counts()
    yield (
        "All toys are said to favour ArXiv, StackExchange and GitHub: their highest domain",
        f"one of the three, {len(toys)} of {len(toys)}",
        ", ".join(f"{_domain(name)} {count}" for name, count in highest.items()),
        "v4 Section 4.1",
        "HEAD",
    )
    srp = published.table("srp_model").query("seg_len == 16").merge(_groups(), on="model")
    yield (
        "Bound on SRP of the last group (m = 16)",
        f"below {_printed('upper bound of SRP in group 4'):.2f}",
        f"{srp.loc[srp['srp_group'] == 4, 'srp'].max():.4f} (NLLB decoder)",
        "v4 Section 3.2 (Table 1 has it right)",
        "v1.0",
    )
    third = srp.loc[srp["srp_group"] == 3, "srp"]
    yield (
        "SRP of the third group (m = 16)",
        f"about {_printed('SRP of group 3, about'):.2f}",
        f"{third.min():.3f} to {third.max():.3f}, mean {third.mean():.3f}",
        "v4 Section 3.2",
        "v1.0",
    )
    ways = published.table("correlations", "HEAD")["pair"].str
    for kind in ("prefill", "decode"):
        pairs = ways.startswith(f"LRU_hit_rate_vs_{kind}_overhead_ratio")
        values = published.table("correlations", "HEAD")["value"][pairs]
        yield (
            f"Correlation of overhead in {kind} with SCH over toys: computed with the hit rate of "
            "LRU, over the toys without ActMore and ActFewer",
            f"about {_printed('correlation of overhead with SCH, about', kind):+.1f}, "
            f"{_printed('toys behind the correlation'):.0f} toys",
            f"{values.min():+.2f} to {values.max():+.2f}, 8 toys",
            "v4 Appendix F",
            "HEAD",
        )


def _of_set_up():
    models = published.table("models").query("main == 1")
    sizes = printed("largest model, billion parameters")["value"]
    yield (
        "Size of the largest model, in billion parameters",
        " and ".join(f"{size:.0f}" for size in sizes),
        f"{models['params_total_b'].max():.2f}",
        "v4 Sections 1 and 3.1",
        "HEAD",
    )
    domains = printed("number of domains")["value"]
    yield (
        "Domains of the corpus",
        f"{domains.iloc[0]:.0f} in one section, {domains.iloc[1]:.0f} in others",
        f"{len(published.table('datasets'))}",
        "v2 Section 4.1 (v4 has it right)",
        "HEAD",
    )
    masked = printed("masked tokens of an input")["value"]
    yield (
        "Masked tokens of an input for Switch; drawn at random in the paper, at even distances in "
        "the script",
        f"{masked.iloc[0]:.0f}",
        f"{masked.iloc[1]:.0f}",
        "v4 Appendix D.3",
        "HEAD",
    )
    steps = ("sequence length", "sequences in a batch", "training steps")
    yield (
        "Training tokens of a toy, in billions: sequence length times batch times steps",
        f"{_printed('training tokens, billion'):.0f}",
        f"{np.prod([_printed(name) for name in steps]) / 1e9:.1f}",
        "v4 Appendix D.2",
        "arithmetic",
    )
    yield (
        "Language of the text in the first figure, whose first token is "
        f"“{published.table('case_grin_layer21_github')['token'].iloc[0].lstrip('▁')}”",
        "Java",
        "C#",
        "v4 Figure 1",
        "v1.0",
    )


def _of_formulas(threshold):
    yield (
        "Threshold that gives SRP (toy Baseline, m = 16): the factor m / 2 of the proof is lost in "
        "its last line",
        f"{threshold['printed']:.0f}, F1 = {threshold['f1_printed']:.3f}",
        f"{threshold['with_factor']:.0f}, F1 = {threshold['f1_with_factor']:.3f}",
        "v4 Appendix C.3",
        "arithmetic",
    )
    yield (
        "F1 of precision and recall both equal to 1, by the first line of its derivation",
        f"{1 / (1 / 1 + 1 / 1):.1f}",
        f"{2 / (1 / 1 + 1 / 1):.1f}",
        "v4 Equation 10 (v2 Equation 13)",
        "arithmetic",
    )


def _printed(quantity, key=None):
    rows = printed(quantity)
    return (rows if key is None else rows[rows["key"] == key])["value"].item()


def _name(model):
    return published.table("models").set_index("key")["name"][model]


def _domain(dataset):
    return published.table("datasets").set_index("key")["name"][dataset]


def _groups():
    models = published.table("models")[["key", "srp_group"]]
    return models.rename(columns={"key": "model"})
