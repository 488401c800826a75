"""What the paper published of its models, a row each, and how far they are above chance.

Its real models and its toys stay two tables; those of our own toys are in `lrc.toy_comparison`.
"""

import numpy as np
import pandas as pd

from lrc import published, toys
from lrc.chance import chance, excess
from lrc.errors import LrcError

__all__ = ["chance_from_spread", "published_models", "published_toys"]

_MEASURED = ["srp", "chance", "excess", "activation_sd"]
_INTERVAL = ["srp_low", "srp_high"]


def published_models(segment_length: int = 16, *, parts: bool = False) -> pd.DataFrame:
    """The paper's twenty models: SRP, its chance level, and how each is built.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
    parts : bool, default False
        Two rows for a model of encoder and decoder, named "switch encoder" and so on, instead of
        their mean.

    Returns
    -------
    DataFrame
        A row per model, the highest SRP first:

        - ``model``: key in all published tables;
        - ``srp``, and ``chance`` and ``excess`` (see `lrc.excess`) at the published activation
          rates of its experts;
        - ``srp_low``, ``srp_high``: the published 95 % interval of ``srp`` over texts, NaN where
          there is none (it is for 16 tokens only); for a mean of two parts the means of its ends;
        - ``srp_rank``, ``excess_rank``: place, 1 the highest;
        - ``activation_sd``: standard deviation of these rates, all layers pooled;
        - ``experts``, ``top_k``, ``active_share`` (their ratio), ``shared_experts``;
        - ``moe_everywhere`` (on every layer), ``no_shared``, ``decoder_only``: truth values.

    Raises
    ------
    LrcError
        Nothing is published for this segment length.

    Notes
    -----
    Activation rates were published once, over windows of 16 tokens; a longer window leaves out
    some more tokens at the ends of a text, which moves a rate by far less than the models differ.
    """
    scores = published.table("srp_model").rename(
        columns={"seg_len": "segment_length", "ci_lo": "srp_low", "ci_hi": "srp_high"}
    )
    lengths = sorted(scores["segment_length"].unique())
    scores = scores.loc[scores["segment_length"] == segment_length]
    if scores.empty:
        raise LrcError(
            f"SRP is published for segments of {', '.join(map(str, lengths))} tokens, "
            f"not of {segment_length!r}"
        )
    rates = published.table("experts").rename(columns={"act_freq": "activation_rate"})
    key = ["model", "is_decoder"]
    levels = [
        chance(part, (segment_length,)).assign(**dict(zip(key, names, strict=True)))
        for names, part in rates.groupby(key)
    ]
    table = excess(scores[[*key, "segment_length", "srp", *_INTERVAL]], pd.concat(levels))
    spread = rates.groupby(key)["activation_rate"].std().rename("activation_sd").reset_index()
    table = table.merge(spread, on=key).merge(_designs(), on="model")
    if parts:
        part = table["is_decoder"].map({0: " encoder", 1: " decoder"})
        table["model"] += part.where(~table["decoder_only"], "")
    else:
        design = [name for name in _designs() if name != "model"]
        table = table.groupby(["model", *design], as_index=False)[[*_MEASURED, *_INTERVAL]].mean()
    table = table.sort_values("srp", ascending=False, kind="stable", ignore_index=True)
    for value in ("srp", "excess"):
        table[f"{value}_rank"] = table[value].rank(ascending=False, method="min").astype(int)
    columns = ["model", *_MEASURED[:3], *_INTERVAL, "srp_rank", "excess_rank", "activation_sd"]
    return table[[*columns, *_designs().columns.drop("model")]]


def published_toys(segment_length: int = 16) -> pd.DataFrame:
    """The paper's ten toys under the names of ours, with an estimate of their chance level.

    Parameters
    ----------
    segment_length : {4, 16, 64, 256}
        Other than 16: the mean over start positions, which is within 0.001 of SRP; three variants
        have none.

    Returns
    -------
    DataFrame
        A row per variant in the order of `lrc.toys.VARIANTS`: ``model``, ``srp``, ``chance``
        (estimated by `chance_from_spread`: rates of single experts are not published),
        ``excess``, ``activation_sd`` and ``loss`` (nats per token). One training run each; the
        paper gives no intervals.

    Raises
    ------
    LrcError
        Nothing is published for this segment length.
    """
    table = published.table("toy_srp").merge(
        published.table("toy_models")[["name", "experts", "top_k"]], on="name"
    )
    column = "srp16" if segment_length == 16 else f"srp{segment_length}_position_mean"
    if column not in table:
        raise LrcError(
            "SRP of the paper's toys is published for segments of 4, 16, 64, 256 tokens, "
            f"not of {segment_length!r}"
        )
    names = {variant.label: name for name, variant in toys.VARIANTS.items()}
    table = table.rename(columns={column: "srp", "act_freq_sd": "activation_sd", "log_ppl": "loss"})
    table["model"] = table["name"].map(names)
    table["chance"] = [
        chance_from_spread(row.experts, row.top_k, row.activation_sd, segment_length)
        for row in table.itertuples()
    ]
    table["excess"] = (table["srp"] - table["chance"]) / (1 - table["chance"])
    table = table.set_index("model").loc[list(names.values())].reset_index()
    return table[["model", *_MEASURED, "loss"]]


def chance_from_spread(
    num_experts: int, top_k: int, activation_sd: float, segment_length: int = 16
) -> float:
    """Chance level of SRP where only the spread of the activation rates is known.

    The rates are taken to follow a beta distribution of mean top_k / num_experts and the given
    standard deviation. For the paper's real models, whose rates are known, this is off by at most
    0.012 at 16 tokens, and mostly in the fourth digit.

    Parameters
    ----------
    num_experts, top_k : int
    activation_sd : float
        Standard deviation of the experts' activation rates.
    segment_length : int, default 16

    Returns
    -------
    float

    Raises
    ------
    LrcError
        No rates between 0 and 1 have this mean and standard deviation.

    Examples
    --------
    >>> round(chance_from_spread(64, 8, 0.0), 4), round(chance_from_spread(64, 8, 0.13), 4)
    (0.3214, 0.4637)
    """
    from scipy.stats import beta

    mean = top_k / num_experts
    if not 0 <= activation_sd < np.sqrt(mean * (1 - mean)):
        raise LrcError(
            f"no activation rates have mean {mean:g} and standard deviation {activation_sd:g}"
        )
    count = 1000
    rates = np.full(count, mean)
    if activation_sd > 0:
        concentration = mean * (1 - mean) / activation_sd**2 - 1
        middle = (np.arange(count) + 0.5) / count
        rates = beta.ppf(middle, mean * concentration, (1 - mean) * concentration)
    table = pd.DataFrame({"expert": range(count), "activation_rate": rates})
    return chance(table, (segment_length,))["srp"].item()


def _designs():
    """How the twenty models are built, a row each."""
    table = published.table("models").query("main == 1").rename(columns={"key": "model"})
    return pd.DataFrame(
        {
            "model": table["model"],
            "experts": table["experts"],
            "top_k": table["top_k"],
            "active_share": table["active_ratio"],
            "shared_experts": table["shared_experts"],
            "moe_everywhere": table["moe_every_layer"] == 1,
            "no_shared": table["shared_experts"] == 0,
            "decoder_only": table["type"] == "causal",
        }
    )
