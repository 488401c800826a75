"""Numbers and still figures of the interactive pages, computed when the book is built.

Run as a program it draws the figure of the README anew, `book/_static/published-maps.png`.

A page's script (`book/_static/explorer.js`, `window.js`) only shows what is written here. Rates are
whole millionths, rounded down, so that a script finds the same smallest cache for a hit rate in
percent as `lrc.curves.smallest` does.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

import lrc
from lrc import architectures, charts, curves, published, toys
from lrc.figure import drawing
from lrc.style import style

LENGTHS = (4, 16, 64, 256)
POLICIES = ("sch", "belady", "lru", "lfu")
UNIT = 1_000_000
# What the pages show first, and what stands in for them where no script runs.
SHOWN, SHOWN_LENGTH = ("qwen3", "jamba"), 16

KINDS = {
    "published": (
        "Published figures",
        "The paper's models on its texts; cache figures of its later version, read up to 4 times "
        "the active experts.",
    ),
    "toy": (
        "Toy models",
        "Trained for this book, traces included; means over seeds where there are several.",
    ),
}
CASES = (("GRIN-MoE", "grin", 21), ("Jamba-Mini", "jamba", 25))


def write(folder: Path) -> dict[Path, Path]:
    """Write all of it into `folder`: the files, by the place they have in the book's sources."""
    scripts = {"explorer-data.js": ("lrcExplorerData", explorer())}
    scripts["window-data.js"] = ("lrcWindowData", windows())
    written = {}
    for name, (variable, content) in scripts.items():
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        (folder / name).write_text(f"window.{variable} = {text};\n", encoding="utf-8")
        written[Path("book/_static") / name] = folder / name
    still = folder / "fig-explorer.png"
    save(still_figure(), still)
    written[Path("book/figures") / still.name] = still
    return written


def save(chart: charts.Chart, path: Path) -> None:
    """Write a chart as a PNG that is the same every time."""
    with drawing():
        chart.figure.savefig(path, metadata={"Software": None})


def explorer() -> dict:
    """What the explorer shows: a table of models for each kind of evidence."""
    grids = {}
    models = [
        _model(kind, scores, lines, grids)
        for kind, measured in {"published": of_published(), "toy": of_toys()}.items()
        for scores, lines in measured
    ]
    looks = {policy: style(policy) for policy in POLICIES}
    return {
        "unit": UNIT,
        "lengths": LENGTHS,
        "kinds": [{"key": key, "label": kind[0], "about": kind[1]} for key, kind in KINDS.items()],
        "policies": [
            {"key": key, "label": look.label, "color": look.color, "dashed": look.dash != "-"}
            for key, look in looks.items()
        ],
        "shown": {"models": SHOWN, "length": SHOWN_LENGTH},
        "grids": [list(grid) for grid in grids],
        "models": models,
    }


def of_published() -> list[tuple[dict, pd.DataFrame]]:
    """Published models: scores by segment length, and curves of one vintage."""
    parts = [
        architectures.published_models(m, parts=True).assign(segment_length=m) for m in LENGTHS
    ]
    scores = pd.concat(parts)
    lines = [curves.of_published_models(m) for m in LENGTHS]
    replayed = lines[0][lines[0]["policy"] != "sch"]
    ahead = [
        table[table["policy"] == "sch"].assign(policy=f"sch{m}")
        for m, table in zip(LENGTHS, lines, strict=True)
    ]
    table = pd.concat([replayed, *ahead])
    return [
        (
            {
                "key": key,
                "label": style(key).label,
                "experts": rows["experts"].iloc[0],
                "top_k": rows["top_k"].iloc[0],
                "scores": rows,
            },
            table[table["model"] == key],
        )
        for key, rows in scores.groupby("model", sort=False)
    ]


def of_toys(runs=None) -> list[tuple[dict, pd.DataFrame]]:
    """Our toy models: means over the seeds of each variant, of scores and of curves."""
    runs = pd.DataFrame(runs or toys.shipped(), columns=["name", "seed"])
    found = []
    for name, seeds in runs.groupby("name", sort=False)["seed"]:
        traces = [toys.load_trace(name, seed) for seed in seeds]
        scores = [lrc.excess(lrc.srp(t, LENGTHS), lrc.chance(t, LENGTHS)) for t in traces]
        scores = pd.concat(scores).groupby("segment_length", as_index=False).mean()
        lines = pd.concat([_lines(trace) for trace in traces])
        keys = ["policy", "cache_ratio"]
        lines = lines.groupby(keys, as_index=False, sort=False)["hit_rate"].mean()
        facts = {
            "key": f"toy:{name}",
            "label": toys.VARIANTS[name].label,
            "experts": traces[0].num_experts,
            "top_k": traces[0].top_k,
            "seeds": len(traces),
            "change": toys.VARIANTS[name].change,
            "scores": scores,
        }
        found.append((facts, lines))
    return found


def maps() -> dict[str, np.ndarray]:
    """The two published routing maps: ids `[tokens, top_k]` by what they are of."""
    found = {}
    for label, key, layer in CASES:
        active = published.table(f"case_{key}_layer{layer}_github").filter(regex=r"^e\d").to_numpy()
        found[f"{label}, layer {layer}"] = np.nonzero(active)[1].reshape(len(active), -1)
    return found


def maps_figure() -> charts.Chart:
    """The two maps as a chart, for the README."""
    return charts.routing_map(maps(), 16, segment_length=16)


def windows() -> dict:
    """The two published routing maps, and one of them with its tokens shuffled."""
    routing = {label: ("published", ids) for label, ids in maps().items()}
    first, (_, ids) = next(iter(routing.items()))
    mixed = lrc.shuffle(lrc.Trace(ids[None, :, None], 16)).experts[0, :, 0]
    routing[f"{first}, tokens shuffled"] = ("published, then shuffled", np.sort(mixed))
    return {
        "experts": 16,
        "chance": lrc.chance((16, 2), range(1, 33))["srp"].round(6).tolist(),  # by window length
        "cases": [
            {"label": label, "kind": kind, "routing": ids.tolist()}
            for label, (kind, ids) in routing.items()
        ],
    }


def still_figure() -> charts.Chart:
    """The explorer's first view as a chart."""
    table = curves.of_published_models(SHOWN_LENGTH)
    table = table[table["model"].isin(SHOWN) & (table["cache_ratio"] <= 4)]
    table = table.sort_values("model", key=lambda names: names.map(SHOWN.index), kind="stable")
    return charts.lines(table, "cache_ratio", "hit_rate", group="policy", panel="model")


def _lines(trace: lrc.Trace) -> pd.DataFrame:
    ahead = lrc.sch(trace, LENGTHS)
    ahead["policy"] = "sch" + ahead["segment_length"].astype(str)
    return pd.concat([lrc.hit_rates(trace), ahead])


def _model(kind: str, facts: dict, lines: pd.DataFrame, grids: dict) -> dict:
    """One model as the script reads it; its curves' cache ratios go to the common `grids`."""
    scores = facts.pop("scores").set_index("segment_length").reindex(LENGTHS)
    bends = {
        criterion: curves.bends(lines[["policy", "cache_ratio", "hit_rate"]], criterion)
        for criterion in ("chord", "gain")
    }
    bends = {key: table.set_index("policy")["cache_ratio"] for key, table in bends.items()}
    told = {}
    for policy, line in lines.groupby("policy", sort=False):
        line = line.sort_values("cache_ratio")
        grid = tuple(line["cache_ratio"].round(6))
        told[policy] = {
            "grid": grids.setdefault(grid, len(grids)),
            "rates": np.floor(line["hit_rate"] * UNIT + 1e-3).astype(int).tolist(),
            **{key: _number(table[policy]) for key, table in bends.items()},
        }
    numbers = {"experts": int(facts.pop("experts")), "top_k": int(facts.pop("top_k"))}
    measures = {name: [*map(_number, scores[name])] for name in ("srp", "chance", "excess")}
    return {"kind": kind, **facts, **numbers, **measures, "curves": told}


def _number(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 6)


if __name__ == "__main__":
    save(maps_figure(), Path(__file__).parent / "_static" / "published-maps.png")
