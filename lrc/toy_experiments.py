"""Our toy experiments, measured from their shipped statistics, one question at a time."""

import numpy as np
import pandas as pd

from lrc import toy_statistics, toys
from lrc.toy_comparison import noise_of_difference, seed_noise, toy_balance

__all__ = ["answers", "experiment_runs", "final_losses", "seed_yardstick"]


def experiment_runs(steps: int = toys.SHORT, *, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Measure every shipped run of so many steps, in segments of 16 tokens.

    Parameters
    ----------
    steps : int, default 400
        Optimizer steps: only runs of the same length can be compared.
    bootstrap : int, default 0
        Resamples of the sequences, for intervals of SRP over texts (0 = no interval).
    seed : int, default 0
        Of resampling.

    Returns
    -------
    DataFrame
        A row per run: ``model``, ``seed``, ``label``, the columns of
        `lrc.toy_statistics.Statistics.measures`, ``hit_rate`` (of LRU caches with twice as many
        slots as active experts, mean of the layers) and ``loss`` (held-out, mean of the domains at
        the end, nats per token).
    """
    rows = []
    for name, run_seed, length in toy_statistics.shipped():
        if length == steps:
            run = toy_statistics.load(name, run_seed, steps)
            rates = run.end.hit_rates()
            twice = rates["cache_size"] == 2 * run.end.top_k
            rows.append(
                {"model": name, "seed": run_seed, "label": toys.variant(name).label}
                | run.end.measures(bootstrap=bootstrap, seed=seed).iloc[0].to_dict()
                | {"hit_rate": rates.loc[twice, "hit_rate"].mean(), "loss": run.loss}
            )
    return pd.DataFrame(rows)


def final_losses(names, steps: int = toys.SHORT) -> pd.DataFrame:
    """Return the held-out loss of each domain at the end of training, a row per run of seed 0."""
    rows = {}
    for name in names:
        losses = toy_statistics.load(name, 0, steps).losses
        last = losses[(losses["split"] == "held-out") & (losses["step"] == steps)]
        rows[name] = last.set_index("dataset")["loss"]
    return pd.DataFrame(rows).T


def seed_yardstick(measures=("srp", "chance", "excess", "uneven", "memory")) -> pd.Series:
    """How far two single runs that differ in their seed only may be apart, in 95 of 100 cases.

    From the variants of which three seeds were trained, at full length: see `seed_noise`. The
    experiments are a third as long and of one seed, so this is a yardstick and not their own noise.
    """
    runs = toy_balance()
    noise = {name: noise_of_difference(*seed_noise(runs, name), 1, 1) for name in measures}
    return pd.Series(noise)


def answers(
    runs: pd.DataFrame, question: str, measures=("srp", "chance", "excess", "memory")
) -> pd.DataFrame:
    """What the runs of one question have beyond the baseline.

    Parameters
    ----------
    runs : DataFrame
        What `experiment_runs` returns.
    question : str
        A key of `lrc.toys.QUESTIONS`.
    measures : sequence of str

    Returns
    -------
    DataFrame
        A row per run of the question that is shipped, the baseline left out, in the order of the
        question: ``model``, ``change``, and each measure less the baseline's (mean over its seeds).
    """
    measures = list(measures)
    baseline = runs.loc[runs["model"] == "baseline", measures].mean()
    rows = []
    for name in toys.QUESTIONS[question]:
        own = runs.loc[runs["model"] == name, measures]
        if name != "baseline" and len(own):
            change = {"model": name, "change": toys.variant(name).change}
            rows.append(change | (own.mean() - baseline).to_dict())
    return pd.DataFrame(rows, columns=["model", "change", *measures]).astype(
        dict.fromkeys(measures, np.float64)
    )
