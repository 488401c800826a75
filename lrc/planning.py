"""Plan a recording before it is made: bytes, memory and time, from rates that were measured.

The rates are those of one machine, named in ``lrc/data/recording_rates.json``;
``python -m benchmarks.recording_rates`` in the repository measures them anew.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from math import log2
from pathlib import Path

import pandas as pd

from lrc.errors import LrcError
from lrc.trace_file import ROW_GROUP_IDS

RATES = Path(str(resources.files("lrc"))) / "data" / "recording_rates.json"
# Qwen3-30B-A3B over as many tokens as the paper routes.
QWEN3 = {"num_tokens": 11_500_000, "num_layers": 48, "num_experts": 128, "top_k": 8}
COMPUTED = "computed"
EXTRAPOLATED = "extrapolated"
_STEPS = {
    "hooks": "hooks in the forward pass",
    "trace": "traces of what they saw",
    "part": "parts",
    "file": "the file from its parts",
    "srp": "SRP, four segment lengths",
    "sch": "SCH, four segment lengths, every cache size",
    "hit_rates": "LRU, LFU and Belady, every cache size",
}


def plan_recording(num_tokens: int, num_layers: int, num_experts: int, top_k: int) -> pd.DataFrame:
    """Bytes, memory and CPU time of a recording, and of the measures, beside the model's own.

    Parameters
    ----------
    num_tokens : int
        Of all texts.
    num_layers : int
        MoE layers.
    num_experts, top_k : int
        Of a layer.

    Returns
    -------
    DataFrame
        ``what``, ``amount``, ``unit`` and ``from``, which is

        - "computed": follows from the numbers given;
        - "extrapolated": a rate per expert id, measured on other traces or a rehearsal, times the
          number of ids. On the disk an id takes its share of the ``log2(num_experts)`` bits that
          tell one expert from all: from the smallest share of a measured trace to the largest.

    Raises
    ------
    LrcError
        Numbers that are not positive, or more experts a token than there are.

    Examples
    --------
    >>> plan = lrc.plan_recording(11_500_000, num_layers=48, num_experts=128, top_k=8)
    >>> plan.loc[plan["what"] == "expert ids", "amount"].item()
    4416.0
    """
    if min(num_tokens, num_layers, top_k) < 1 or top_k > num_experts:
        raise LrcError(
            f"cannot plan {num_tokens} tokens, {num_layers} layers, top-{top_k} of {num_experts} "
            "experts: all must be at least 1, and top_k no more than num_experts"
        )
    rates = _rates()
    ids = num_tokens * num_layers * top_k
    shares = [bits["per_id"] / bits["all"] for bits in rates["bits"].values()]
    beside = num_tokens * rates["file"]["token_bytes"]
    raw = log2(max(num_experts, 2)) / 8 * ids
    low, high = min(shares) * raw, max(shares) * raw
    group = min(ROW_GROUP_IDS, ids)
    rows = [
        ("expert ids", ids / 1e6, "million", COMPUTED),
        ("expert ids of a token, in memory", 2 * num_layers * top_k, "bytes", COMPUTED),
        ("the whole trace, in memory", 2 * ids / 1e9, "GB", COMPUTED),
        ("expert ids of a token, in the file, at least", low / num_tokens, "bytes", EXTRAPOLATED),
        ("expert ids of a token, in the file, at most", high / num_tokens, "bytes", EXTRAPOLATED),
        ("input and predicted tokens in the file", beside / 1e9, "GB", EXTRAPOLATED),
        ("the file, at least", (low + beside) / 1e9, "GB", EXTRAPOLATED),
        ("the file, at most", (high + beside) / 1e9, "GB", EXTRAPOLATED),
        (
            "on the disk before the parts are joined, at most",
            (1 + rates["file"]["part_to_file"]) * (high + beside) / 1e9,
            "GB",
            EXTRAPOLATED,
        ),
        ("memory beside the model", rates["peak_bytes_per_id"] * group / 1e9, "GB", EXTRAPOLATED),
    ]
    rows += [
        (f"CPU time: {name}", rates["cpu_s_per_million_ids"][step] * ids / 6e7, "min", EXTRAPOLATED)
        for step, name in _STEPS.items()
    ]
    return pd.DataFrame(rows, columns=["what", "amount", "unit", "from"])


def write_tables(folder: Path) -> None:
    """Write the tables of the book's page on planning."""
    folder.mkdir(exist_ok=True)
    for name, table in tables().items():
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def tables() -> dict[str, pd.DataFrame]:
    """Tables of the book's page on planning, as text."""
    rates = _rates()
    plan = plan_recording(**QWEN3)
    plan["amount"] = [_rounded(amount) for amount in plan["amount"]]
    names = {"what": "", "from": "Evidence", "amount": "Amount", "unit": "Unit"}
    bits = pd.DataFrame(
        [
            (name, one["experts"], one["top_k"], f"{one['ids']:,}", _rounded(one["per_id"]),
             f"{one['per_id'] / one['all']:.0%}")
            for name, one in rates["bits"].items()
        ],
        columns=["Trace", "Experts", "Top-k", "Ids", "Bits an id", "Of log2(experts)"],
    )  # fmt: skip
    speeds = pd.DataFrame(
        [(name, _rounded(rates["cpu_s_per_million_ids"][step])) for step, name in _STEPS.items()],
        columns=["Step", "CPU seconds per million ids"],
    )
    machine = rates["machine"]
    hardware = pd.DataFrame(
        [
            ("Processor", machine["cpu"]),
            ("Cores", str(machine["cores"])),
            ("Memory", f"{machine['memory_gb']} GB"),
            ("System", machine["system"]),
            *machine["versions"].items(),
        ],
        columns=["Machine", ""],
    )
    return {
        "recording_plan": plan.rename(columns=names),
        "recording_bits": bits,
        "recording_speeds": speeds,
        "recording_machine": hardware,
    }


def _rounded(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@cache
def _rates() -> dict:
    return json.loads(RATES.read_text(encoding="utf-8"))
