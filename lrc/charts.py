"""Figures of the book: tidy tables in, charts out, all in one style.

Every function returns a :class:`Chart`. In a notebook it shows as a picture; its text is the table
it plots, rounded, so that comparing a notebook's outputs as text (nbval) guards the picture too.
A table that lacks a column, or holds nothing to draw, is an :class:`lrc.LrcError`.
"""

from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrc.errors import LrcError
from lrc.figure import (
    WIDTH,
    Chart,
    describe,
    drawing,
    emphasis,
    freeze,
    heading,
    label_ends,
    label_points,
    legend,
    make_panels,
    name_ticks,
    plotted,
    rows_of,
    scale,
    values_of,
)
from lrc.routing_map import routing_map
from lrc.style import FAINT, INK, QUIET, Style, axis, styles

__all__ = ["Chart", "bars", "heatmap", "lines", "ranking", "routing_map", "scatter"]


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    group: str | None = None,
    panel: str | None = None,
    highlight: Sequence | None = None,
    marks: Sequence[float] | None = None,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw one line per group: hit rate against cache ratio, SRP against segment length, ….

    Parameters
    ----------
    frame
        A row per point. Columns ``ci_low`` and ``ci_high``, where there, are drawn as a ribbon
        (as bars, for lines of up to eight points).
    x, y
        Columns. ``segment_length`` and ``cache_ratio`` have a logarithmic axis.
    group
        Column that tells lines apart.
    panel
        Column with a panel for each of its values, side by side, on common axes.
    highlight
        Groups to draw in colour and with a label, before all others in grey.
    marks
        Values of `x` to mark with an upright line; by default 1, 2 and 4 for ``cache_ratio``.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
    """
    table = plotted(frame, [panel, group, x, y], interval=True)
    groups = values_of(table, group)
    drawn = emphasis(groups, group, highlight)
    panels = values_of(table, panel)
    with drawing():
        figure, grid = make_panels(panels, panel, height=3.6 if len(panels) == 1 else 2.35)
        for axes, name in zip(grid, panels, strict=True):
            part = rows_of(table, panel, name)
            for key in sorted(groups, key=lambda key: drawn[key].color != FAINT):
                _line(axes, rows_of(part, group, key).sort_values(x), x, y, drawn[key])
            for mark in axis(x).marks if marks is None else marks:
                axes.axvline(mark, color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        scale(grid, table, x, y)
        known = set(table.dropna(subset=[y])[group]) if group is not None else {None}
        named = [key for key in groups if drawn[key].color != FAINT and key in known]
        if group is None or len(panels) == 1:
            heading(figure, title)
        if group is not None and len(panels) == 1:
            label_ends(figure, grid[0], table, x, y, group, {key: drawn[key] for key in named})
        elif group is not None:
            legend(figure, [drawn[key] for key in named], title)
    told = alt or describe("Lines", f"{axis(y).label} against {axis(x).label}", drawn, group, panel)
    return Chart(figure, table, told)


def ranking(
    frame: pd.DataFrame,
    value: str,
    name: str = "model",
    *,
    series: str | None = None,
    sort: bool = True,
    reference: float | None = None,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw a dot and an interval per model, the best on top.

    Parameters
    ----------
    frame
        A row per dot, with ``ci_low`` and ``ci_high`` where known.
    value, name
        Columns: the number, and what it belongs to.
    series
        Column that tells several dots of a line apart; lines are sorted by the first of them.
    sort
        False keeps the order of the table.
    reference
        A value to mark with an upright line.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
    """
    table = plotted(frame, [series, name, value], interval=True)
    several = values_of(table, series)
    if sort:
        first = rows_of(table, series, several[0]).sort_values(
            value, ascending=False, kind="stable"
        )
        rank = {key: place for place, key in enumerate(first[name])}
        table = table.sort_values(
            name, key=lambda names: names.map(lambda key: rank.get(key, len(rank))), kind="stable"
        )
    names = values_of(table, name)
    drawn = styles(names)
    told_apart = styles(several, series) if series else {}
    step = 0.62 / len(several)
    with drawing():
        figure = Figure(figsize=(WIDTH, 0.75 + len(names) * max(0.235, 0.15 * len(several))))
        axes = figure.subplots()
        for place, key in enumerate(names):
            for turn, kind in enumerate(several):
                row = rows_of(rows_of(table, name, key), series, kind)
                look = told_apart.get(kind, drawn[key])
                height = place + (turn - (len(several) - 1) / 2) * step
                _dot(axes, row, value, height, look)
        if reference is not None:
            axes.axvline(reference, color=QUIET, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), [drawn[key].label for key in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis(value).label)
        if series:
            legend(figure, [told_apart[kind] for kind in several], title, line=False)
        else:
            heading(figure, title)
    told = alt or f"{axis(value).label} of {', '.join(drawn[key].label for key in names)}."
    return Chart(figure, table, told)


def scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    name: str = "model",
    *,
    label: bool = True,
    group: str | None = None,
    panel: str | None = None,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw a labelled point per model, or an unlabelled cloud of experts.

    Parameters
    ----------
    frame
        A row per point.
    x, y
        Columns of numbers.
    name
        Column that names the points.
    label
        False leaves the names out, for many points.
    group
        Column that gives the colour; by default `name` does.
    panel
        Column with a panel for each of its values, on common axes.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
    """
    table = plotted(frame, [panel, group, name if label or not group else None, x, y])
    by = group or name
    drawn = styles(values_of(table, by), by)
    names = styles(values_of(table, name)) if label else {}
    panels = values_of(table, panel)
    with drawing():
        figure, grid = make_panels(panels, panel, height=4.4 if len(panels) == 1 else 2.5)
        small = {} if label else {"markersize": 3, "alpha": 0.55, "markeredgewidth": 0}
        for axes, part_name in zip(grid, panels, strict=True):
            part = rows_of(table, panel, part_name)
            for key in values_of(part, by):
                points, look = rows_of(part, by, key), drawn[key]
                mark = {"color": look.color, "marker": look.marker, "linestyle": "none"}
                axes.plot(points[x], points[y], **(mark | small))
            axes.margins(0.06)
        scale(grid, table, x, y, fit=False)
        if group and group != panel:
            legend(figure, list(drawn.values()), title, line=False)
        else:
            heading(figure, title)
        if label:
            freeze(figure)
            for axes, part_name in zip(grid, panels, strict=True):
                part = rows_of(table, panel, part_name)
                texts = [names[key].label for key in part[name]]
                colors = [drawn[key].color for key in part[by]]
                label_points(figure, axes, part[[x, y]].to_numpy(float), texts, colors)
    told = alt or describe("Points", f"{axis(y).label} against {axis(x).label}", drawn, by, panel)
    return Chart(figure, table, told)


def bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    group: str | None = None,
    panel: str | None = None,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw bars from zero: SRP per domain, activations per layer, ….

    Parameters
    ----------
    frame
        A row per bar, with ``ci_low`` and ``ci_high`` where known.
    x, y
        Columns: what a bar stands for, and its height.
    group
        Column with a bar beside the other for each of its values.
    panel
        Column with a panel for each of its values, on common axes.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
    """
    table = plotted(frame, [panel, x, group, y], interval=True)
    places = {key: place for place, key in enumerate(values_of(table, x))}
    groups = values_of(table, group)
    drawn = styles(groups, group) if group else {None: Style("", "#0072b2")}
    panels = values_of(table, panel)
    width = 0.8 / len(groups)
    named = styles(list(places))
    with drawing():
        figure, grid = make_panels(panels, panel, height=3.0 if len(panels) == 1 else 2.2)
        for axes, name in zip(grid, panels, strict=True):
            part = rows_of(table, panel, name)
            for turn, key in enumerate(groups):
                rows = rows_of(part, group, key)
                at = rows[x].map(places) + (turn - (len(groups) - 1) / 2) * width
                axes.bar(at, rows[y], width * 0.92, color=drawn[key].color)
                if "ci_low" in rows:
                    axes.vlines(at, rows["ci_low"], rows["ci_high"], color=INK, linewidth=1)
            name_ticks(axes, [named[key].label for key in places], 6.3 / min(3, len(panels)))
            axes.grid(visible=False, axis="x")
            axes.axhline(0, color=QUIET, linewidth=0.8)
        for axes in grid:
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel(axis(y).label)
        if group:
            legend(figure, [replace(drawn[key], marker="s") for key in groups], title, line=False)
        else:
            heading(figure, title)
    told = alt or describe("Bars", f"{axis(y).label} for each {axis(x).label}", drawn, group, panel)
    return Chart(figure, table, told)


def heatmap(
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    center: float | None = None,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw a coloured cell per pair, with its number where it is readable.

    Parameters
    ----------
    frame
        A row per cell. Columns and rows of the map keep the order of the table.
    x, y, value
        Columns of the table: the map's columns, its rows, and the number in a cell.
    center
        Number in the middle of a two-sided colour scale, such as 0 for correlations.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
    """
    table = plotted(frame, [y, x, value])
    across, down = values_of(table, x), values_of(table, y)
    if table.duplicated([x, y]).any():
        raise LrcError(f"heatmap: several rows of the table have the same {x} and {y}")
    cells = table.set_index([y, x])[value].unstack().loc[down, across].to_numpy(float)  # noqa: PD010
    if center is None:
        colors, low, high = mpl.colormaps["YlGnBu"], np.nanmin(cells), np.nanmax(cells)
    else:
        reach = np.nanmax(np.abs(cells - center))
        colors, low, high = mpl.colormaps["PuOr_r"], center - reach, center + reach
    named_x, named_y = styles(across), styles(down)
    with drawing():
        figure = Figure(figsize=(WIDTH, min(8.5, 1.2 + 0.3 * max(len(down), 3))))
        axes = figure.subplots()
        image = axes.imshow(cells, cmap=colors, vmin=low, vmax=high, aspect="auto")
        name_ticks(axes, [named_x[key].label for key in across], 4.6)
        axes.set_yticks(range(len(down)), [named_y[key].label for key in down])
        axes.set_xlabel(axis(x).label)
        axes.set_ylabel(axis(y).label)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if len(across) <= 14 and len(down) <= 30:
            for (row, column), number in np.ndenumerate(cells):
                if not np.isnan(number):
                    red, green, blue, _ = image.cmap(image.norm(number))
                    bright = 0.299 * red + 0.587 * green + 0.114 * blue
                    ink = INK if bright > 0.55 else "white"
                    text = {"ha": "center", "va": "center", "color": ink, "size": 8.5}
                    axes.text(column, row, f"{round(number, 2) + 0.0:.2f}", **text)
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, label=axis(value).label)
        bar.outline.set_visible(False)
        heading(figure, title)
    told = alt or f"Map of {axis(value).label}, {axis(y).label} by {axis(x).label}."
    return Chart(figure, table, told)


def _line(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Style) -> None:
    few = len(rows) <= 8
    quiet = look.color == FAINT
    axes.plot(
        rows[x],
        rows[y],
        color=look.color,
        linestyle=look.dash,
        marker=look.marker if few else "",
        linewidth=1 if quiet else None,
    )
    if "ci_low" not in rows or quiet:
        return
    if few:
        axes.vlines(
            rows[x], rows["ci_low"], rows["ci_high"], color=look.color, linewidth=3, alpha=0.35
        )
    else:
        axes.fill_between(
            rows[x], rows["ci_low"], rows["ci_high"], color=look.color, alpha=0.2, linewidth=0
        )


def _dot(axes: Axes, row: pd.DataFrame, value: str, height: float, look: Style) -> None:
    heights = np.full(len(row), height)
    if "ci_low" in row:
        axes.hlines(
            heights, row["ci_low"], row["ci_high"], color=look.color, linewidth=2.2, alpha=0.5
        )
    axes.plot(row[value], heights, color=look.color, marker=look.marker, linestyle="none")
