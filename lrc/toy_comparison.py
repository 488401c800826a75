"""Our toy family, measured: what one change of architecture does, and what only a seed does."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lrc import toys
from lrc.balance import balance
from lrc.chance import chance, excess
from lrc.local_balance import local_balance
from lrc.shuffling import shuffle
from lrc.srp import srp

__all__ = [
    "TOY_FINDINGS",
    "noise_of_difference",
    "over_seeds",
    "seed_noise",
    "toy_balance",
    "toy_findings",
    "toy_runs",
]


def toy_runs(segment_length: int = 16, *, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Measure every shipped toy trace.

    Parameters
    ----------
    segment_length : int, default 16
    bootstrap : int, default 0
        Resamples of the sequences, for intervals over texts (0 = no interval).
    seed : int, default 0
        Of resampling and shuffling.

    Returns
    -------
    DataFrame
        A row per variant and training seed: ``model``, ``seed``, ``srp``, ``ci_low``, ``ci_high``
        (if asked for), ``chance``, ``excess``, ``topic`` (how much of srp - chance remains when
        tokens change places within their domain), ``activation_sd`` (all layers pooled) and
        ``loss`` (held-out, mean of the domains at the end of training, nats per token).
    """
    losses = toys.losses()
    losses = losses[losses["split"] == "held-out"]
    ends = losses.groupby(["model", "seed"])["step"].transform("max")
    final = losses[losses["step"] == ends].groupby(["model", "seed"])["loss"].mean()
    rows = []
    for name, run in toys.shipped():
        trace = toys.load_trace(name, run)
        measured = srp(trace, segment_length, bootstrap=bootstrap, seed=seed)
        row = excess(measured, chance(trace, (segment_length,))).iloc[0]
        mixed = srp(shuffle(trace, "domain", seed=seed), segment_length)["srp"].item()
        spread = balance(trace, level="model", segment_length=segment_length)["activation_sd"]
        rows.append(
            {"model": name, "seed": run}
            | {c: row[c] for c in ("srp", "ci_low", "ci_high", "chance", "excess") if c in row}
            | {
                "topic": (mixed - row["chance"]) / (row["srp"] - row["chance"]),
                "activation_sd": spread.item(),
                "loss": final[name, run],
            }
        )
    return pd.DataFrame(rows)


def toy_balance(segment_lengths=(16,)) -> pd.DataFrame:
    """Measure local load balance of every shipped toy trace, and its SRP beside it.

    Parameters
    ----------
    segment_lengths : sequence of int, default (16,)
        Tokens in a window.

    Returns
    -------
    DataFrame
        A row per variant, training seed and segment length: ``model``, ``seed``, the columns of
        `lrc.local_balance`, ``srp``, ``chance``, ``excess``, and ``global_cv``: the coefficient of
        variation of the experts' loads in all windows together.
    """
    parts = []
    for name, run in toys.shipped():
        trace = toys.load_trace(name, run)
        found = excess(srp(trace, segment_lengths), chance(trace, segment_lengths))
        found = local_balance(trace, segment_lengths).merge(
            found[["segment_length", "srp", "chance", "excess"]]
        )
        experts = trace.num_experts * trace.num_layers
        spread = found["uneven"].clip(lower=0) / found["share"] * experts / (experts - 1)
        found.insert(0, "model", name)
        found.insert(1, "seed", run)
        parts.append(found.assign(global_cv=np.sqrt(spread)))
    return pd.concat(parts, ignore_index=True)


def over_seeds(runs: pd.DataFrame, value: str = "srp", *, confidence: float = 0.95) -> pd.DataFrame:
    """Means of the runs of each variant, with the interval that its seeds allow.

    Parameters
    ----------
    runs : DataFrame
        What `toy_runs` returns.
    value : str, default "srp"
        Column that the interval is for.
    confidence : float, default 0.95

    Returns
    -------
    DataFrame
        A row per variant, in the order of `runs`: ``model``, ``seeds`` (how many), the means of
        all other columns, and ``ci_low``, ``ci_high``: with several seeds the t-interval over
        them; with one the run's own interval over texts for SRP, if it has one, else NaN.
    """
    from scipy import stats

    grouped = runs.groupby("model", sort=False)
    table = grouped.mean().drop(columns="seed")
    seeds = grouped.size()
    table.insert(0, "seeds", seeds)
    single = seeds == 1
    if value != "srp" or "ci_low" not in table:
        table["ci_low"] = table["ci_high"] = np.nan
    reach = stats.t.ppf((1 + confidence) / 2, (seeds - 1).where(~single, 1))
    reach = reach * grouped[value].std() / np.sqrt(seeds)
    table["ci_low"] = table["ci_low"].where(single, table[value] - reach)
    table["ci_high"] = table["ci_high"].where(single, table[value] + reach)
    return table.reset_index()


def seed_noise(runs: pd.DataFrame, value: str = "srp") -> tuple[float, int]:
    """Standard deviation between runs that differ in their seed only, pooled over variants.

    Parameters
    ----------
    runs : DataFrame
        What `toy_runs` returns.
    value : str, default "srp"

    Returns
    -------
    tuple of float and int
        The deviation and its degrees of freedom: seeds less variants, of the variants that have
        several; NaN and 0 if none has. Takes all variants for equally noisy.
    """
    grouped = runs.groupby("model")[value]
    freedom = int((grouped.size() - 1).sum())
    squares = ((runs[value] - grouped.transform("mean")) ** 2).sum()
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), freedom


def noise_of_difference(
    deviation: float, freedom: int, first: int, second: int, *, confidence: float = 0.95
) -> float:
    """Difference of means of `first` and `second` runs that seeds alone rarely exceed.

    Parameters
    ----------
    deviation : float
    freedom : int
        What `seed_noise` returns.
    first, second : int
        Runs behind each of the means.
    confidence : float, default 0.95

    Returns
    -------
    float
        t times the deviation times sqrt(1 / first + 1 / second); NaN without degrees of freedom.
    """
    from scipy import stats

    quantile = stats.t.ppf((1 + confidence) / 2, freedom) if freedom else np.nan
    return float(quantile * deviation * np.sqrt(1 / first + 1 / second))


@dataclass(frozen=True)
class ToyFinding:
    """What the paper says of two of its toys: `variant` lies above or below `reference`."""

    text: str
    variant: str
    reference: str = "baseline"
    measures: tuple[str, ...] = ("srp", "excess")


TOY_FINDINGS = (
    ToyFinding("no balancing loss: higher", "no_balance"),
    ToyFinding("strong balancing loss: lower", "over_balance"),
    ToyFinding("one shared expert: lower", "one_shared"),
    ToyFinding("two shared experts: lower", "two_shared"),
    ToyFinding("more active experts: higher", "more_active"),
    ToyFinding("fewer active experts: lower", "fewer_active"),
    ToyFinding("fewer, wider experts: lower", "fewer_experts"),
    ToyFinding("first layer dense: higher", "dense_first"),
    ToyFinding("every other layer dense: higher", "dense_half"),
    ToyFinding("first layer dense: higher", "dense_first", measures=("loss",)),
    ToyFinding("every other layer dense: higher", "dense_half", measures=("loss",)),
)
"""The paper's statements about its toys that a second family can confirm or not."""


def toy_findings(
    runs: pd.DataFrame, paper: pd.DataFrame, *, confidence: float = 0.95
) -> pd.DataFrame:
    """Hold the paper's findings on its toys against our runs.

    Parameters
    ----------
    runs : DataFrame
        What `toy_runs` returns.
    paper : DataFrame
        What `published_toys` returns.
    confidence : float, default 0.95

    Returns
    -------
    DataFrame
        A row per measure (srp, excess, loss) and finding: ``measure``, ``finding``, ``paper`` and
        ``ours`` (variant less baseline), ``noise`` (half the interval of our difference, from
        `seed_noise`) and ``agrees``: "yes" or "no" where our difference exceeds the noise, else
        "within noise"; "one seed" where nothing tells the noise, "-" where a number is missing.
    """
    ours, theirs = over_seeds(runs).set_index("model"), paper.set_index("model")
    rows = []
    for measure in ("srp", "excess", "loss"):
        deviation, freedom = seed_noise(runs, measure)
        for finding in TOY_FINDINGS:
            pair = [finding.variant, finding.reference]
            if measure in finding.measures:
                here, there = (t[measure].reindex(pair).to_numpy() for t in (ours, theirs))
                seeds = ours["seeds"].reindex(pair)
                noise = noise_of_difference(deviation, freedom, *seeds, confidence=confidence)
                row = {"paper": there[0] - there[1], "ours": here[0] - here[1], "noise": noise}
                row["agrees"] = _verdict(**row)
                rows.append({"measure": measure, "finding": finding.text} | row)
    return pd.DataFrame(rows)


def _verdict(paper, ours, noise):
    if np.isnan(paper) or np.isnan(ours):
        return "-"
    if np.isnan(noise):
        return "one seed"
    if abs(ours) <= noise:
        return "within noise"
    return "yes" if (paper > 0) == (ours > 0) else "no"
