"""What offloading costs in time, and whether routing consistency saves some of it."""

from pathlib import Path

import numpy as np
import pandas as pd

from lrc import curves, published, toys
from lrc.chance import shuffle
from lrc.errors import LrcError

MEASURED = Path(__file__).parent / "data" / "offload.csv"

KINDS = ("decode_overhead", "prefill_overhead", "decode_overhead_ratio", "prefill_overhead_ratio")
# The paper leaves out the toys that load other numbers of experts, in its own names and ours.
LEFT_OUT = ("more_active", "fewer_active", "top16", "top2")


def measured() -> pd.DataFrame:
    """What ``python -m benchmarks offload`` measured of `lrc.Offloader` on the toy models.

    Returns
    -------
    DataFrame
        A row per model, policy, cache size and link; ``cache_ratio`` is infinite where all experts
        were in fast memory. ``hit_rate`` and ``loads`` (a token) are both predicted and measured:
        they are the same. Times are milliseconds a token: ``predicted_ms`` and ``decode_ms``
        while decoding, ``prefill_ms`` of the prompt. ``machine`` names the machine.
    """
    return pd.read_csv(MEASURED)


def overheads(times: pd.DataFrame) -> pd.DataFrame:
    """What offloading costs, against the same model with all experts in fast memory.

    Parameters
    ----------
    times : DataFrame
        Columns model, cache_ratio (infinite without offloading), decode_ms and prefill_ms; others
        are kept.

    Returns
    -------
    DataFrame
        The rows with a cache, with ``decode_overhead`` and ``prefill_overhead`` (milliseconds a
        token more) and ``decode_overhead_ratio`` and ``prefill_overhead_ratio`` (over the time
        without offloading), as in the paper's appendix on throughput.

    Raises
    ------
    LrcError
        A model without a row of its time without offloading.
    """
    whole = np.isinf(times["cache_ratio"])
    resident = times[whole].set_index("model")
    rows = times[~whole].reset_index(drop=True)
    if missing := set(rows["model"]) - set(resident.index):
        raise LrcError(f"the time without offloading is missing of {', '.join(sorted(missing))}")
    for stage in ("decode", "prefill"):
        without = rows["model"].map(resident[f"{stage}_ms"])
        rows[f"{stage}_overhead"] = rows[f"{stage}_ms"] - without
        rows[f"{stage}_overhead_ratio"] = rows[f"{stage}_overhead"] / without
    return rows


def published_overheads(mode: str = "old_doc") -> pd.DataFrame:
    """The overheads of the paper's toys, from its published tokens per second.

    Parameters
    ----------
    mode : {"old_doc", "new_gen"}
        A document that is read, or one that the model writes.

    Returns
    -------
    DataFrame
        As `overheads`.
    """
    table = published.table("toy_throughput")
    table = table[table["mode"] == mode]
    times = table[["model", "cache_ratio"]].assign(
        decode_ms=1e3 / table["decode_tok_s"], prefill_ms=1e3 / table["prefill_tok_s"]
    )
    return overheads(times.astype({"cache_ratio": float}))


def toy_hit_rates(cache_ratios=(1, 2, 3), segment_length: int = 16, seed: int = 0) -> pd.DataFrame:
    """Hit rates of our toys under the contract "paper", and those of shuffled tokens.

    Parameters
    ----------
    cache_ratios : sequence of float
    segment_length : int
        Of SCH.
    seed : int
        Of the shuffling.

    Returns
    -------
    DataFrame
        model, cache_ratio, measure ("LRU", "SCH", and both with ", chance": tokens shuffled over
        all texts, which leaves popularity), hit_rate.
    """
    parts = []
    for model in toys.VARIANTS:
        toy = toys.load_trace(model)
        for order, routed in {"": toy, ", chance": shuffle(toy, seed=seed)}.items():
            rates = curves.compare(routed, ("lru", "sch"), segment_length=segment_length)
            rates = curves.at_ratios(rates, cache_ratios)
            names = rates["policy"].str.upper() + order
            parts.append(rates[["cache_ratio", "hit_rate"]].assign(model=model, measure=names))
    return pd.concat(parts, ignore_index=True)


def published_hit_rates() -> pd.DataFrame:
    """Published hit rates of the paper's toys: LRU, and SCH of segments of 16 tokens.

    Returns
    -------
    DataFrame
        model, cache_ratio, measure, hit_rate.
    """
    lru = published.table("toy_chr")
    sch = published.table("toy_sch")
    lru = lru[lru["policy"] == "LRU"].rename(columns={"rho": "cache_ratio"})
    sch = sch[sch["seg_len"] == 16].rename(columns={"rho": "cache_ratio", "sch": "hit_rate"})
    parts = {"LRU": lru, "SCH": sch}
    table = pd.concat(parts, names=["measure"]).reset_index("measure")
    return table[["model", "cache_ratio", "measure", "hit_rate"]].reset_index(drop=True)


def cost_correlations(costs: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Correlation of overheads with hit rates over models, as in the paper's appendix.

    Parameters
    ----------
    costs : DataFrame
        What `overheads` returns, one row per model and cache ratio.
    rates : DataFrame
        model, cache_ratio, measure, hit_rate. Models with other numbers of active experts
        (`LEFT_OUT`) are left out, as in the paper.

    Returns
    -------
    DataFrame
        measure, cache_ratio, models (how many), and a Pearson correlation for each of `KINDS`.
    """
    joined = costs[["model", "cache_ratio", *KINDS]].merge(rates, on=["model", "cache_ratio"])
    joined = joined[~joined["model"].isin(LEFT_OUT)]
    if joined.duplicated(["model", "cache_ratio", "measure"]).any():
        raise LrcError(
            "costs have several rows of a model and cache ratio: choose a policy, a link"
        )
    rows = []
    for (measure, ratio), part in joined.groupby(["measure", "cache_ratio"]):
        found = {kind: part[kind].corr(part["hit_rate"]) for kind in KINDS}
        rows.append({"measure": measure, "cache_ratio": ratio, "models": len(part)} | found)
    return pd.DataFrame(rows)
