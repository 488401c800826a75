"""The results of the last run, as a file and as a page of the book.

``python -m benchmarks.page`` writes the page anew from the results.
"""

import json
import os
from pathlib import Path

import pandas as pd

from lrc import charts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "book" / "benchmarks.md"
FIGURE = ROOT / "book" / "_static" / "benchmark-scaling.png"
TITLES = {
    "against_definition": "Against the definition",
    "against_libcachesim": "Against libcachesim",
    "against_paper": "Caches, against the paper's scripts",
    "srp": "SRP, against the paper's scripts",
    "first_call": "The first call",
    "memory": "Memory",
    "roofline": "What the hardware would allow",
    "scaling": "Growth",
    "offload": "Offloading: predicted and measured",
}
COLUMNS = {
    "ours_s": "ours",
    "baseline_s": "baseline",
    "ratio": "baseline / ours",
    "accesses_per_s": "accesses a second",
    "bound_s": "least time",
    "share": "share of the limit",
    "peak_mb": "memory",
}


def read():
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def write(results):
    """Write results, page and figure, each whole or not at all."""
    replace(RESULTS, json.dumps(results, indent=1) + "\n")
    replace(PAGE, render(results))
    if chart := growth(results):
        chart.save(FIGURE)


def replace(path, text):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def growth(results):
    """How times grow, each as a multiple of that of the smallest trace."""
    rows = results["benchmarks"].get("scaling", {}).get("rows")
    if not rows:
        return None
    table = pd.DataFrame(rows)
    first = table.groupby(["measure", "grows"]).ours_s.transform("first")
    table["times_as_long"] = table.ours_s / first
    table["times_as_many"] = table.factor
    names = {"top_k": "top-k"}
    table["grows"] = table.grows.map(lambda name: names.get(name, name))
    return charts.lines(
        table,
        "times_as_many",
        "times_as_long",
        group="measure",
        panel="grows",
        title="Time as tokens, layers, experts, top-k and threads grow",
    )


def render(results):
    """The page, from the results alone."""
    here = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    lines = [
        "<!-- Written by `make bench` from benchmarks/results.json; edit benchmarks/page.py. -->",
        "(benchmarks)=",
        "# Benchmarks",
        "",
        "How fast are the measures, and against what? This page is the last run of `make bench`. "
        "Times are medians; a ratio is the median of ratios taken in turns, with the lowest and "
        "the highest. Nothing here is a test: the tests compare integers.",
        "",
        f"Machine: {here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB; {here['system']}; "
        f"{versions}.",
        "",
    ]
    known = [name for name in TITLES if name in results["benchmarks"]]
    for name in known + sorted(set(results["benchmarks"]) - set(known)):
        part = results["benchmarks"][name]
        title = TITLES.get(name, name.replace("_", " ").capitalize())
        lines += [f"## {title}", "", part["about"], ""]
        if name == "scaling":
            lines += figure(growth(results).table)
        lines += [*table_of(part["rows"]), "", f"Measured on {part['date']}.", ""]
    return "\n".join(lines)


def figure(table):
    """The figure of growth; its caption says what the numbers say."""
    most = table[table.grows != "threads"].groupby("grows").times_as_long.max()
    largest = table[table.grows != "threads"].times_as_many.max()
    worst = f"{most.idxmax()} ({most.max():.1f} times)"
    threads = table[table.grows == "threads"]
    number = threads.times_as_many.max()
    gained = 1 / threads[threads.times_as_many == number].times_as_long.median()
    return [
        f"```{{figure}} _static/{FIGURE.name}",
        ":name: fig-benchmark-scaling",
        ":alt: Time against the growth of tokens, layers, experts, top-k and threads.",
        "",
        f"Time grows no faster than the trace: {largest} times as many tokens, layers, experts or "
        f"experts a token take at most {most.max():.1f} times as long, most for {worst}. "
        f"{number} threads are {gained:.1f} times as fast as one."
        if most.max() <= 1.25 * largest
        else f"With {largest} times as many of something time grows up to {most.max():.1f} times, "
        f"most for {worst}. {number} threads are {gained:.1f} times as fast as one.",
        "```",
        "",
    ]


def table_of(rows):
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    baselines = {row["baseline"] for row in rows if row.get("baseline")}
    names = dict(COLUMNS)
    if len(baselines) == 1:
        names["baseline_s"] = baselines.pop()
    lines = [
        "| " + " | ".join(["", *(names[key] for key in columns), "note"]) + " |",
        "|" + "---|" + "--:|" * len(columns) + "---|",
    ]
    for row in rows:
        cells = [row["name"], *(shown(row, key) for key in columns), row.get("note", "")]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines


def shown(row, key):
    """A number in words."""
    number = row.get(key)
    if number is None:
        return ""
    if key.endswith("_s") and not key.endswith("per_s"):
        for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
            if number >= size:
                return f"{_three_digits(number / size)} {unit}"
        return f"{_three_digits(number / 1e-9)} ns"
    if key == "ratio":
        if "ratio_low" in row:
            ends = f"{_three_digits(row['ratio_low'])}–{_three_digits(row['ratio_high'])}"
            return f"{_three_digits(number)} ({ends})"
        # Benchmarks of overheads have theirs the other way round.
        return _three_digits(row["baseline_s"] / row["ours_s"] if row.get("ours_s") else number)
    if key == "accesses_per_s":
        return f"{_three_digits(number / 1e6)} million"
    return f"{number:.0%}" if key == "share" else f"{_three_digits(number)} MB"


def _three_digits(number):
    """Three digits that count, never as a power of ten."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def in_words(row):
    """One line for the terminal."""
    parts = [f"{COLUMNS[key]} {shown(row, key)}" for key in COLUMNS if row.get(key) is not None]
    return f"{row['name']}: {'; '.join(parts) or row.get('note', '')}"


if __name__ == "__main__":
    write(read())
