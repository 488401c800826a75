"""What the published figures say of each claim of the paper, computed.

A check returns a verdict of `lrc.claims.VERDICTS` and the numbers behind it. The numbers of claims
are those of ``data/claims.csv``. Where a claim can be decided by numbers, the verdict follows from
them by the condition in its check.
"""

import numpy as np

from lrc import anatomy, errata, published
from lrc.architectures import published_models, published_toys
from lrc.contrasts import contrast, rank_correlation
from lrc.curves import at_ratios, bends, of_published_models
from lrc.specialists import published_correlations, stacks

__all__ = ["CHECKS"]


def _said(holds, numbers, *, partly=False):
    return ("yes" if holds else "partly" if partly else "no"), numbers


def _srp(segment_length=16):
    table = published.table("srp_model").query("seg_len == @segment_length")
    table = table.assign(model=stacks(table), key=table["model"]).set_index("model")
    groups = published.table("models").set_index("key")["srp_group"]
    return table.assign(group=table["key"].map(groups))


def _sizes():
    models = published.table("models").query("main == 1")
    size = models["params_total_b"]
    return _said(
        len(models) == 20 and size.max() < 58,
        f"{len(models)} models, {size.min():.2f} to {size.max():.2f} billion",
    )


def _corpus():
    domains = published.table("datasets")
    return "partly", f"{len(domains)} domains; the inputs themselves are not published"


def _intervals():
    table = published.table("srp_model")
    known = table.dropna(subset="ci_lo")
    half = ((known["ci_hi"] - known["ci_lo"]) / 2).median()
    lengths = ", ".join(map(str, sorted(table["seg_len"].unique())))
    return "partly", f"m = {lengths}; intervals for 16 only, median ±{half:.4f}"


def _masks():
    text, script = errata.printed("masked tokens of an input")["value"]
    return _said(text == script, f"{text:.0f} in the text, {script:.0f} in the script")


def _hardware():
    return "not tested", "hardware"


def _toy_training():
    toys = published.table("toy_models")
    names = ("sequence length", "sequences in a batch", "training steps")
    tokens = np.prod([errata.printed(name)["value"].item() for name in names]) / 1e9
    return "partly", (
        f"{len(toys)} variants, {toys['layers'].max()} layers, hidden {toys['hidden'].max()}; "
        f"{tokens:.1f} billion token positions by sequence, batch and steps"
    )


def _lengths():
    wide = published.table("srp_model").pivot_table("srp", ["model", "is_decoder"], "seg_len")
    order = wide.corr("spearman")
    spread = wide.std() / wide.mean()
    return _said(
        order.loc[16, [64, 256]].min() > 0.95 and spread[4] < spread[16],
        f"rank correlation of 16 with 4: {order.loc[16, 4]:.3f}, with 64: {order.loc[16, 64]:.3f}, "
        f"with 256: {order.loc[16, 256]:.3f}; spread over mean {spread[4]:.2f} at 4, "
        f"{spread[16]:.2f} at 16",
    )


def _group(number, condition, long_ratio):
    srp = _srp()
    srp = srp[srp["group"] == number]
    ratio = srp["best_rho"]
    far = published.table("srp_model").query("seg_len == 256")
    far = far[far["model"].isin(srp["key"])]["best_rho"]
    near = abs(far.mean() - long_ratio) < 0.25 if long_ratio else True
    return _said(
        condition(srp["srp"]) and near,
        f"SRP {srp['srp'].min():.3f} to {srp['srp'].max():.3f}; size ratio {ratio.min():.2f} to "
        f"{ratio.max():.2f} at 16, {far.min():.2f} to {far.max():.2f} at 256",
        partly=condition(srp["srp"]) or near,
    )


def _table_1():
    models = published_models(parts=True)
    order = models["srp"].corr(models["excess"], "spearman")
    top = models.sort_values("excess", ascending=False)["model"]
    names = published.table("models").set_index("key")["name"]
    return "yes", (
        f"{models['srp'].max():.4f} to {models['srp'].min():.4f}; by excess the order is another "
        f"(rank correlation {order:.2f}, first {names[top.iloc[0]]})"
    )


def _design(column, least):
    models = published_models()
    groups = published.table("models").set_index("key")["srp_group"]
    best = models[models["model"].map(groups) <= 2]
    tests = contrast(models, column, ["srp", "excess"]).set_index("measure")
    return _said(
        best[column].all() and tests["p"]["srp"] < least,
        f"all {len(best)} of the two best groups; difference {tests['difference']['srp']:+.3f} in "
        f"SRP (p = {tests['p']['srp']:.4f}), {tests['difference']['excess']:+.3f} in excess "
        f"(p = {tests['p']['excess']:.2f})",
    )


def _perplexity():
    table = published.table("load_balance").dropna(subset="log_ppl")
    real, toys = (
        rank_correlation(table[table["family"] == family], "log_ppl", ["srp16"]).iloc[0]
        for family in ("REAL", "TOY")
    )
    return _said(
        real["p"] > 0.05 and toys["p"] > 0.05,
        f"rank correlation {real['correlation']:+.2f} over models (p = {real['p']:.2f}; each has "
        f"its own tokenizer), {toys['correlation']:+.2f} over toys (p = {toys['p']:.2f})",
    )


def _post_training():
    change = anatomy.post_training("all").query("segment_length == 16")
    change = change.set_index("model")["change"]
    return "partly", (
        f"LLaMA-MoE-v1 {change.filter(like='LLaMA').iloc[0]:+.2f}, OLMoE "
        f"{change.filter(like='OLMoE').min():+.2f} to {change.filter(like='OLMoE').max():+.2f}, "
        f"JetMoE {change.filter(like='JetMoE').min():+.2f} to "
        f"{change.filter(like='JetMoE').max():+.2f}: right in size, rows mislabelled"
    )


def _positions():
    table = anatomy.starts()
    settled = (table["largest_later"] < 0.02).sum()
    return _said(
        settled == len(table),
        f"first position off by {table['first'].abs().median():.1%} in the median; {settled} of "
        f"{len(table)} stacks within 2 % from the ninth on",
        partly=True,
    )


def _layers():
    table = anatomy.middle(anatomy.layers())
    first, last = ((table[f"SRP, less {end} third"] > 0).sum() for end in ("first", "last"))
    return _said(
        min(first, last) > 0.9 * len(table),
        f"middle third above the first in {first}, above the last in {last} of {len(table)} models",
        partly=first > len(table) / 2,
    )


def _between_domains():
    pairs = published.table("domain_corr")
    apart = pairs[pairs["act_freq_corr"] < 0]
    return _said(
        (pairs["srp16_corr"] < 0).mean() < 0.02,
        f"{(pairs['srp16_corr'] < 0).sum()} of {len(pairs)} SRP correlations negative; "
        f"{(apart['srp16_corr'] > 0).sum()} of the {len(apart)} where rates correlate negatively "
        "are positive",
    )


def _spread():
    table = published.table("load_balance").dropna(subset="act_freq_sd_figure")
    off = (table["act_freq_sd_table"] - table["act_freq_sd_figure"]).abs()
    worst = table.loc[off.idxmax(), "model"]
    return _said(
        (off < 0.0001).all(),
        f"{(off < 0.0001).sum()} of {len(off)} to rounding; {worst} off by {off.max():.4f}",
        partly=(off < 0.0001).sum() == len(off) - 1,
    )


def _coexist():
    models = published_models().set_index("model")
    return "yes", "; ".join(
        f"{name}: SRP {models['srp'][key]:.3f}, deviation {models['activation_sd'][key]:.3f}"
        for key, name in (("qwen3", "Qwen3"), ("grin", "GRIN"))
    )


def _trade_off():
    toys = published.table("toy_srp").set_index("name")
    row = "; ".join(
        f"{name} {toys['srp16'][name]:.3f} ({toys['act_freq_sd'][name]:.3f})"
        for name in ("NoLB", "Baseline", "OverLB")
    )
    return "partly", f"SRP (global deviation): {row}; local balance is not published"


def _coefficients():
    toys = published.table("toy_models").set_index("name")["aux_loss_coef"]
    values = {name: float(toys[name]) for name in ("Baseline", "NoLB", "OverLB")}
    text = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return _said(list(values.values()) == [0.01, 0, 0.1], text)


def _toy_table():
    toys = published.table("toy_srp").sort_values("srp16", ascending=False)
    first, last = toys.iloc[0], toys.iloc[-1]
    return "yes", f"{first['name']} {first['srp16']:.4f} to {last['name']} {last['srp16']:.4f}"


def _against_baseline(variants, loss=False):
    toys = published_toys().set_index("model")
    gain = toys - toys.loc["baseline"]
    columns = ("srp", "excess", *(["loss"] if loss else []))
    return "; ".join(
        f"{variant.replace('_', ' ')} "
        + ", ".join(f"{gain.loc[variant, c]:+.3f} {c}" for c in columns)
        for variant in variants
    )


def _shared():
    return "yes", _against_baseline(("one_shared", "two_shared"), loss=True) + " (excess estimated)"


def _combinations():
    return "yes", (
        _against_baseline(("fewer_experts", "fewer_active", "more_active")) + " (excess estimated)"
    )


def _dense():
    return "yes", _against_baseline(("dense_first", "dense_half"), loss=True)


def _pattern(models, columns, wants):
    table = anatomy.domains()
    table = table[table["model"].isin(models)].pivot_table("difference", "model", "dataset")
    text = "; ".join(f"{c} {table[c].min():+.1%} to {table[c].max():+.1%}" for c in columns)
    return _said(wants(table), text, partly=True)


def _favour_technical():
    return _pattern(
        ("phi", "grin", "olmoe"),
        ("ArXiv", "StackExchange", "GitHub"),
        lambda t: (t[["ArXiv", "StackExchange", "GitHub"]] > 0.1).all(axis=None),
    )


def _favour_wikipedia():
    return _pattern(
        ("llamamoe2", "yuan", "qwen3"),
        ("Wikipedia", "OpenMath", "OpenCode"),
        lambda t: (t["Wikipedia"] > 0).all() and (t[["OpenMath", "OpenCode"]] < 0).all(axis=None),
    )


def _flat():
    table = anatomy.domains()
    table = table[table["model"].isin(("mixtral", "minicpm", "jetmoe"))]["difference"]
    return _said(table.abs().max() < 0.025, f"{table.min():+.1%} to {table.max():+.1%}")


def _toy_pattern():
    wide = anatomy.domains(toy=True).pivot_table("difference", "model", "dataset")
    best = wide.idxmax(axis=1).value_counts()
    low = (wide[["C4", "CommonCrawl", "Books"]].max(axis=1) < 0).sum()
    return "partly", (
        ", ".join(f"{name} highest in {count}" for name, count in best.items())
        + f"; web text and books below the corpus in {low} of {len(wide)}"
    )


def _specialization(measures, wants):
    table = published_correlations()
    texts, holds = [], []
    for measure in measures:
        values = table.loc[table["measure"] == measure, "correlation"]
        texts.append(
            f"{measure.replace('_', ' ')} {values.min():+.2f} to {values.max():+.2f}, positive in "
            f"{(values > 0).sum()} of {len(values)}"
        )
        holds.append(wants[measure](values))
    return _said(all(holds), "; ".join(texts), partly=any(holds))


def _domain_specialists():
    return _specialization(["domain"], {"domain": lambda v: (v > 0).mean() > 0.75})


def _word_specialists():
    positive = {
        "vocabulary_in": lambda v: (v > 0.1).sum() <= 2,
        "vocabulary_predicted": lambda v: (v > 0).mean() > 0.5,
        "vocabulary_next": lambda v: (v > 0).mean() > 0.5,
    }
    return _specialization(list(positive), positive)


def _domains_over_words():
    table = published_correlations().pivot_table("correlation", "model", "measure")
    both = table.dropna(subset="vocabulary_in")
    more = (both["domain"] > both["vocabulary_in"]).sum()
    return _said(
        more > 0.75 * len(both),
        f"domain above input token in {more} of {len(both)} models; medians "
        f"{both['domain'].median():+.2f} and {both['vocabulary_in'].median():+.2f}",
    )


def _twice():
    curves = of_published_models(16)
    chord = bends(curves[curves["policy"] == "sch"])["cache_ratio"]
    gain = bends(curves[curves["policy"] == "sch"], "gain")["cache_ratio"]
    return "partly", (
        f"bend by the chord at {chord.min():.2f} to {chord.max():.2f} in all models, by a gain of "
        f"0.1 between 1.5 and 2.5 in {gain.between(1.5, 2.5).sum()} of {len(gain)} curves"
    )


def _table_8():
    ends = published.table("sch_rho2_ci", "HEAD")
    curves = published.table("sch_model", "HEAD").query("rho == 2")
    both = ends.merge(curves, on=["model", "is_decoder", "seg_len"])
    inside = both["sch"].between(both["ci_lo"] - 0.0015, both["ci_hi"] + 0.0015)
    return _said(
        inside.all(), f"{inside.sum()} of {len(both)} curves pass through the printed interval"
    )


def _caches():
    table = errata.cache_correlations().dropna(subset="head_fixed")
    table = table[table["segment_length"] == 16].set_index("policy")
    numbers = ", ".join(f"{p} {table['head_fixed'][p]:.3f}" for p in ("LRU", "LFU", "Belady"))
    return "partly", f"at ratio 2, HEAD: {numbers}; the printed values are older and pooled"


def _table_7():
    table = errata.srp_correlations().set_index("segment_length")
    off = (table["printed_v2"] - table["models_v1"]).abs().max()
    head = table["models_head"]
    return _said(
        head.min() > 0.95,
        f"v2 values within {off:.4f}; over models at HEAD {head.min():.3f} to {head.max():.3f} at "
        "ratio 1.5",
    )


def _relative():
    toys = published.table("toy_chr").query("model == 'baseline'")
    toys = toys.pivot_table("hit_rate", "rho", "policy")
    known = published.table("toy_sch").query("model == 'baseline'").set_index("rho")["sch"]
    best = toys[next(c for c in toys if c.lower().startswith("bela"))]
    sch = {ratio: known[ratio] / best[ratio] for ratio in (1.0, 2.0, 3.0)}
    models = at_ratios(of_published_models(16), 2).pivot_table("hit_rate", "model", "policy")
    share = models["sch"] / models["belady"]
    return "yes", (
        "SCH " + ", ".join(f"{value:.1%}" for value in sch.values()) + " of Belady at 1, 2, 3; "
        f"real models at 2: median {share.median():.1%}"
    )


def _throughput():
    hits = published.table("toy_chr").query("policy == 'LRU' and rho == 2")
    speed = published.table("toy_throughput").query("mode == 'new_gen'")
    whole = speed[np.isinf(speed["cache_ratio"])].set_index("model")["decode_tok_s"]
    two = speed[speed["cache_ratio"] == 2].set_index("model")["decode_tok_s"]
    both = hits.set_index("model")[["hit_rate"]].assign(overhead=whole / two - 1)
    both = both.dropna().drop(index=["top16", "top2"], errors="ignore")
    row = rank_correlation(both, "hit_rate", ["overhead"]).iloc[0]
    pearson = both["hit_rate"].corr(both["overhead"])
    return _said(
        row["p"] < 0.05,
        f"decoding at ratio 2: {pearson:+.2f} over {len(both)} toys, with LRU's hit rate; rank "
        f"correlation {row['correlation']:+.2f}, p = {row['p']:.2f}: not to be told from zero",
        partly=pearson < 0,
    )


def _case():
    shares = {}
    for name, key in (("GRIN", "grin_layer21"), ("Jamba", "jamba_layer25")):
        table = published.table(f"case_{key}_github").filter(regex=r"^e\d+$")
        used = table.sum().sort_values(ascending=False)
        shares[name] = used.iloc[:2].sum() / used.sum()
    return _said(
        shares["GRIN"] > shares["Jamba"],
        "two busiest experts take "
        + ", ".join(f"{value:.0%} ({name})" for name, value in shares.items())
        + "; one text, one layer each",
    )


def _review():
    return "not tested", "a record, not a measurement"


CHECKS = dict(
    enumerate(
        [
            _sizes,
            _corpus,
            _intervals,
            _masks,
            _hardware,
            _toy_training,
            _lengths,
            lambda: _group(1, lambda srp: srp.min() > 0.5, 1.25),
            lambda: _group(2, lambda srp: abs(srp.mean() - 0.48) < 0.01, 2.5),
            lambda: _group(3, lambda srp: abs(srp.mean() - 0.36) < 0.02, 2.0),
            lambda: _group(4, lambda srp: srp.max() < 0.31, None),
            _table_1,
            lambda: _design("moe_everywhere", 0.05),
            lambda: _design("no_shared", 0.05),
            _perplexity,
            _post_training,
            _positions,
            _layers,
            _between_domains,
            _spread,
            _coexist,
            _trade_off,
            _coefficients,
            _toy_table,
            _shared,
            _combinations,
            _dense,
            _favour_technical,
            _favour_wikipedia,
            _flat,
            _toy_pattern,
            _domain_specialists,
            _word_specialists,
            _domains_over_words,
            _twice,
            _table_8,
            _caches,
            _table_7,
            _relative,
            _throughput,
            _case,
            _review,
        ],
        start=1,
    )
)
"""A check for each claim, by its number: returns verdict and numbers."""
