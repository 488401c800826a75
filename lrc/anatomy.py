"""Models taken apart: by layer, place in the text and domain, before and after post-training.

Tables of what the paper published of its models' parts, with the chance level wherever activation
rates are known, and the same of our toys. Models are named as in `lrc.specialists.stacks`: by key,
with "encoder" or "decoder" behind it where a model has both.
"""

import numpy as np
import pandas as pd

from lrc import published, toys
from lrc.chance import chance, excess
from lrc.contrasts import contrast, paired, rank_correlation
from lrc.errors import LrcError
from lrc.specialists import stacks
from lrc.srp import srp

__all__ = [
    "alike",
    "domain_profiles",
    "domains",
    "layers",
    "middle",
    "peaks",
    "positions",
    "post_training",
    "starts",
    "technical",
    "toy_domains",
    "toy_layers",
    "yardsticks",
]

_GENERAL = ("c4", "cc2306", "book", "wikipedia")
_TECHNICAL = ("arxiv", "stackexchange", "github", "math", "code")


def layers(segment_length: int = 16) -> pd.DataFrame:
    """Every MoE layer of the paper's twenty models: SRP, its chance level, and SCH.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}

    Returns
    -------
    DataFrame
        A row per layer: ``model``, ``layer`` (as published, from 1, counting layers without
        experts), ``depth`` (place among the MoE layers of the stack, from 0 to 1), ``srp`` (read
        from a figure, within 0.001), ``chance`` and ``excess`` (see `lrc.excess`) at the published
        activation rates of the layer's experts, ``activation_sd`` of these, and ``sch_1``,
        ``sch_2``: look-ahead SCH (vintage HEAD) of the layer's own cache at cache ratios 1 and 2.
        Layers without a value, of Switch's decoder at 256 tokens, are left out.

    Raises
    ------
    LrcError
        Nothing is published for this segment length.
    """
    table = _at(published.table("layer"), segment_length)
    rates = published.table("experts").rename(columns={"act_freq": "activation_rate"})
    rates = rates.assign(model=stacks(rates))
    levels = [
        chance(part, (segment_length,), level="layer").assign(model=model)
        for model, part in rates.groupby("model")
    ]
    keys = ["model", "layer"]
    table = excess(table.dropna(subset="srp"), pd.concat(levels)[[*keys, "segment_length", "srp"]])
    spread = rates.groupby(keys)["activation_rate"].std().rename("activation_sd")
    table = table.join(spread, on=keys)
    place = table.groupby("model")["layer"].rank() - 1
    table["depth"] = place / (table.groupby("model")["layer"].transform("size") - 1)
    table = table.rename(columns={"sch_head_rho1": "sch_1", "sch_head_rho2": "sch_2"})
    columns = ["srp", "chance", "excess", "activation_sd", "sch_1", "sch_2"]
    return table[["model", "layer", "depth", *columns]].reset_index(drop=True)


def peaks(table: pd.DataFrame, *, reading_error: float = 0.001) -> pd.DataFrame:
    """Most consistent layer of each model, by SRP and by excess.

    Parameters
    ----------
    table : DataFrame
        What `layers` returns.
    reading_error : float, default 0.001
        How far below chance a layer must be to count as such.

    Returns
    -------
    DataFrame
        A row per model, the highest median excess first: layers (how many), highest_srp and
        highest_excess (numbers of layers), chance_there (at the highest SRP), median_excess and
        below_chance (how many layers).
    """
    groups = table.groupby("model")
    first = table.loc[groups["srp"].idxmax()].set_index("model")
    second = table.loc[groups["excess"].idxmax()].set_index("model")
    below = table["srp"] < table["chance"] - reading_error
    result = pd.DataFrame(
        {
            "layers": groups.size(),
            "highest_srp": first["layer"],
            "highest_excess": second["layer"],
            "chance_there": first["chance"],
            "median_excess": groups["excess"].median(),
            "below_chance": below.groupby(table["model"]).sum(),
        }
    )
    return result.sort_values("median_excess", ascending=False)


def middle(table: pd.DataFrame, *, least_layers: int = 12) -> pd.DataFrame:
    """Mean over the middle third of the layers, less that over the first and the last.

    Parameters
    ----------
    table : DataFrame
        What `layers` returns.
    least_layers : int, default 12
        Models with fewer MoE layers are left out.

    Returns
    -------
    DataFrame
        A row per model: model, and "SRP, less first third", "SRP, less last third", and the same of
        excess.
    """
    deep = table[table.groupby("model")["layer"].transform("size") >= least_layers]
    names = {"srp": "SRP", "chance": "chance", "excess": "excess"}
    if deep.empty:
        return pd.DataFrame(columns=["model", *_differences(names)])
    third = pd.cut(deep["depth"], [-0.01, 1 / 3, 2 / 3, 1], labels=["first", "middle", "last"])
    means = deep.assign(third=third).pivot_table(list(names), "model", "third", observed=True)
    differences = {
        title: means[value]["middle"] - means[value][other]
        for title, (value, other) in _differences(names).items()
    }
    result = pd.DataFrame(differences).rename_axis("model").reset_index()
    return result.sort_values("excess, less first third", ascending=False, ignore_index=True)


def positions(segment_length: int = 16) -> pd.DataFrame:
    """Published SRP of segments that start at one position of the text.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}

    Returns
    -------
    DataFrame
        A row per model and position: model, start (from 0), srp, and relative (to the model's mean
        over published positions from 32 on, less 1).

    Raises
    ------
    LrcError
        Nothing is published for this segment length.
    """
    table = _at(published.table("position"), segment_length)
    table = table.rename(columns={"start_pos": "start"})
    later = table[table["start"] >= 32].groupby("model")["srp"].mean().rename("later")
    table = table.join(later, on="model")
    table["relative"] = table["srp"] / table["later"] - 1
    return table[["model", "start", "srp", "relative"]].reset_index(drop=True)


def starts(segment_length: int = 16, *, settled: int = 8) -> pd.DataFrame:
    """How the start of a text differs from what follows, in each published model.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
    settled : int, default 8
        Position from which on SRP should have settled.

    Returns
    -------
    DataFrame
        A row per model, the lowest start first: first and second (SRP at positions 0 and 1 relative
        to later ones, less 1), largest_later (the largest such distance at position `settled` and
        after) and deviation (standard deviation of SRP over all positions).
    """
    table = positions(segment_length)
    wide = table.pivot_table("relative", "model", "start")
    known = _at(published.table("position_std").query("dataset == 'all'"), segment_length)
    result = pd.DataFrame(
        {
            "first": wide[0],
            "second": wide[1],
            "largest_later": wide.loc[:, wide.columns >= settled].abs().max(axis=1),
            "deviation": known.set_index("model")["srp_std_over_positions"],
        }
    )
    return result.sort_values("first")


def toy_layers(segment_length: int = 16) -> pd.DataFrame:
    """SRP, chance level and excess of each layer of every shipped toy.

    Parameters
    ----------
    segment_length : int, default 16

    Returns
    -------
    DataFrame
        model, seed, and the columns of `lrc.excess` at level "layer".
    """
    parts = []
    for name, seed in toys.shipped():
        trace = toys.load_trace(name, seed)
        level = chance(trace, (segment_length,), level="layer")
        row = excess(srp(trace, segment_length, level="layer"), level)
        parts.append(row.assign(model=name, seed=seed))
    return pd.concat(parts, ignore_index=True)


def domains(toy: bool = False) -> pd.DataFrame:
    """Published SRP of each domain at 16 tokens, relative to that of the whole corpus.

    Parameters
    ----------
    toy : bool, default False
        That of the paper's ten toys, under the names of ours, rather than of its 20 models.

    Returns
    -------
    DataFrame
        A row per model and domain: model, dataset (display name), technical (code, mathematics,
        and papers and questions about them: the five domains that the paper names as those some
        models favour), srp and difference (relative, less 1).
    """
    if toy:
        table = published.table("toy_domain").rename(columns={"srp16": "srp"})
        names = published.table("toy_models").set_index("key")["name"]
        table["model"] = table["model"].map(names)
    else:
        table = published.table("srp_model_dataset")
        table["model"] = stacks(table)
    table["technical"] = table["dataset"].isin(_TECHNICAL)
    names = published.table("datasets").set_index("key")["name"]
    table["dataset"] = table["dataset"].map(names)
    table = table.rename(columns={"rel_diff": "difference"})
    return table[["model", "dataset", "technical", "srp", "difference"]]


def technical(table: pd.DataFrame) -> pd.DataFrame:
    """How far technical text is above the other domains, in each model by itself.

    Parameters
    ----------
    table : DataFrame
        What `domains` returns.

    Returns
    -------
    DataFrame
        A row per model, the largest difference first: model, what `lrc.contrasts.contrast` says of
        technical against other domains (all but the measure), and highest and lowest, the names of
        domains.
    """
    rows = []
    for model, part in table.groupby("model"):
        found = contrast(part, "technical", ["difference"]).drop(columns="measure").iloc[0]
        ends = part.loc[[part["difference"].idxmax(), part["difference"].idxmin()], "dataset"]
        rows.append({"model": model, **found, "highest": ends.iloc[0], "lowest": ends.iloc[1]})
    result = pd.DataFrame(rows).rename(
        columns={"models_with": "technical", "models_without": "others"}
    )
    return result.sort_values("difference", ascending=False, ignore_index=True)


def toy_domains(segment_length: int = 16, *, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """SRP of each domain of every shipped toy, and its excess over the domain's own chance level.

    Parameters
    ----------
    segment_length : int, default 16
    bootstrap, seed
        As in `lrc.srp`.

    Returns
    -------
    DataFrame
        model, run (number of the training seed), and the columns of `lrc.excess` by dataset;
        whole, the SRP of all domains together, and whole_excess.
    """
    parts = []
    for name, run in toys.shipped():
        trace = toys.load_trace(name, run)
        whole, each = (
            excess(
                srp(trace, segment_length, by_dataset=split, bootstrap=bootstrap, seed=seed),
                chance(trace, (segment_length,), by_dataset=split),
            )
            for split in (False, True)
        )
        total = {"whole": whole["srp"].item(), "whole_excess": whole["excess"].item()}
        parts.append(each.assign(model=name, run=run, **total))
    return pd.concat(parts, ignore_index=True)


def alike(trace, segment_length: int = 16) -> pd.DataFrame:
    """Are the experts that are consistent in one domain so in another?

    Parameters
    ----------
    trace : Trace
        With datasets.
    segment_length : int, default 16

    Returns
    -------
    DataFrame
        A row per pair of domains, as the paper takes them: first, second, and the correlations over
        experts of activation_rate, srp and excess (over the expert's own chance level in that
        domain). Experts that a domain of the pair never uses are left out of it.
    """
    measured = srp(trace, segment_length, level="expert", by_dataset=True)
    level = chance(measured, (segment_length,), level="expert", by_dataset=True)
    measured = excess(measured, level)
    measured = measured[measured["activation_rate"] > 0]
    columns = {
        name: measured.pivot_table(name, ["layer", "expert"], "dataset")
        for name in ("activation_rate", "srp", "excess")
    }
    names = trace.dataset_names
    return pd.DataFrame(
        {"first": first, "second": second}
        | {name: wide[first].corr(wide[second]) for name, wide in columns.items()}
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    )


def post_training(dataset: str | None = None) -> pd.DataFrame:
    """How SRP differs between post-trained models and their base, under the notebook's labels.

    Parameters
    ----------
    dataset : str, optional
        "all" keeps the whole corpus (published at all segment lengths), "each" single domains (16
        tokens only).

    Returns
    -------
    DataFrame
        A row per post-trained model, segment_length and dataset (display name of the domain, or
        "all"): base_model (key), model (name), srp, base (SRP of the base model), change (in
        points, hundredths of SRP), and above (how far the base model's SRP there is above its
        mean over domains, less 1; empty for "all").
    """
    table = published.table("posttrain").rename(columns={"seg_len": "segment_length"})
    keys = ["base_model", "segment_length", "dataset"]
    base = table[table["model"] == table["base_model"]]
    mean = base[base["dataset"] != "all"].groupby(["base_model", "segment_length"])["srp"].mean()
    base = base[[*keys, "srp"]].rename(columns={"srp": "base"})
    base = base.join(mean.rename("mean"), on=["base_model", "segment_length"])
    table = table[table["model"] != table["base_model"]].merge(base, on=keys)
    table["change"] = 100 * (table["srp"] - table["base"])
    table["above"] = (table["base"] / table["mean"] - 1).where(table["dataset"] != "all")
    if dataset is not None:
        table = table[(table["dataset"] == "all") == (dataset == "all")]
    models = published.table("models").set_index("key")["name"]
    domains = published.table("datasets").set_index("key")["name"]
    table["model"] = table["model"].map(models).str.replace("-1B-7B-0125", "")
    table["dataset"] = table["dataset"].map(domains).fillna("all")
    columns = ["base_model", "model", "segment_length", "dataset", "srp", "base", "change", "above"]
    return table[columns].reset_index(drop=True)


def yardsticks() -> pd.DataFrame:
    """Changes by post-training at 16 tokens, beside what else moves SRP.

    Returns
    -------
    DataFrame
        A row per post-trained model, all in points: change; reach (half the 95 % interval of a
        difference of two independent measurements as precise as that of the base model; both read
        the same texts, so their difference is known better); domains (standard deviation of the
        base model over domains); models (that over the paper's twenty); seeds (that of toys over
        training runs, pooled). Last, change_over_reach.
    """
    from lrc.toy_comparison import seed_noise

    table = post_training("all").query("segment_length == 16").set_index("model")
    known = published.table("srp_model").query("seg_len == 16 and is_decoder == 1")
    known = known.set_index("model")
    half = (known["ci_hi"] - known["ci_lo"]) / 2
    each = post_training("each").drop_duplicates(["base_model", "dataset"])
    runs = [
        {"model": name, "seed": seed, "srp": srp(toys.load_trace(name, seed), 16)["srp"].item()}
        for name, seed in toys.shipped()
    ]
    base = table["base_model"]
    result = pd.DataFrame(
        {
            "change": table["change"],
            "reach": base.map(100 * np.sqrt(2) * half),
            "domains": base.map(100 * each.groupby("base_model")["base"].std()),
            "models": 100 * known["srp"].std(),
            "seeds": 100 * seed_noise(pd.DataFrame(runs))[0],
        }
    )
    return result.assign(change_over_reach=result["change"].abs() / result["reach"])


def domain_profiles() -> pd.DataFrame:
    """Does post-training move all domains, and does it sharpen what was there?

    Returns
    -------
    DataFrame
        A row per post-trained model, over domains at 16 tokens: change (mean, points), ci_low,
        ci_high and p (`lrc.contrasts.paired`), general (mean change over C4, CommonCrawl, Books and
        Wikipedia), and correlation and p_ranks (`lrc.contrasts.rank_correlation` of the change with
        how consistent the base model is in the domain).
    """
    names = published.table("datasets").set_index("key")["name"]
    rows = []
    for model, part in post_training("each").groupby("model", sort=False):
        mean = paired(part, ["change"]).iloc[0]
        ranks = rank_correlation(part, "above", ["change"]).iloc[0]
        general = part.loc[part["dataset"].isin(names[list(_GENERAL)]), "change"].mean()
        row = {"model": model, "change": mean["difference"], "general": general}
        row |= mean[["ci_low", "ci_high", "p"]].to_dict()
        rows.append(row | {"correlation": ranks["correlation"], "p_ranks": ranks["p"]})
    return pd.DataFrame(rows).set_index("model")


def _differences(names):
    """Titles of the columns of `middle`, each with the value and the third that it is about."""
    return {
        f"{name}, less {other} third": (value, other)
        for value, name in names.items()
        for other in ("first", "last")
    }


def _at(table, segment_length):
    """Rows of a published table at one segment length, under the names of the stacks."""
    lengths = sorted(table["seg_len"].unique().tolist())
    if segment_length not in lengths:
        raise LrcError(
            f"published for segments of {', '.join(map(str, lengths))} tokens, "
            f"not of {segment_length!r}"
        )
    table = table[table["seg_len"] == segment_length]
    return table.assign(model=stacks(table)).rename(columns={"seg_len": "segment_length"})
