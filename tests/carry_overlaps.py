"""Measure how alike tokens' experts are in traces of real models, for the book, which lacks them.

The traces are not part of this repository, the tables made of them are. Where the traces are:

    LRC_TRACES=... python tests/carry_overlaps.py
"""

import os
from pathlib import Path

import pandas as pd

import lrc
from lrc import public_traces

DATA = Path(lrc.__file__).parent / "data" / "overlaps"
TRACES = ("deepseek-v2-lite", "gpt-oss-20b")
RESAMPLES = 200


def tables() -> dict[str, pd.DataFrame]:
    """Each kind's table, a column `model` first."""
    found = {}
    for name in TRACES:
        trace = public_traces.load(name)
        by_layer = lrc.overlap_half_life(trace, level="layer", bootstrap=RESAMPLES)
        whole = lrc.overlap_half_life(trace, bootstrap=RESAMPLES).assign(layer="all")
        domains = {part: trace.select(datasets=part) for part in trace.dataset_names}
        kinds = {
            "by_distance": lrc.overlap_by_distance(trace, bootstrap=RESAMPLES),
            "half_life": pd.concat([by_layer, whole]),
            "sources": lrc.overlap_sources(trace, (4, 16, 64), bootstrap=RESAMPLES),
            "by_domain": pd.concat(
                lrc.overlap_by_distance(part, range(1, 33)).assign(dataset=label)
                for label, part in domains.items()
            ),
        }
        for kind, table in kinds.items():
            table.insert(0, "model", name)
            found.setdefault(kind, []).append(table.round(6))
    return {kind: pd.concat(parts, ignore_index=True) for kind, parts in found.items()}


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for kind, table in tables().items():
        temporary = DATA / f".{kind}.csv.tmp"
        table.to_csv(temporary, index=False)
        os.replace(temporary, DATA / f"{kind}.csv")
