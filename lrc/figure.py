"""What charts are made of: panels, axes, legends, labels, and the chart that holds the result."""

import base64
import io
import math
import os
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrc import labels
from lrc.errors import LrcError
from lrc.style import FAINT, INK, QUIET, RC, Style, axis, styles

WIDTH = 7.2  # inches, the width of the book's text
HEADING = {"family": RC["font.family"], "weight": "bold", "size": 10.5}
DECIMALS = 4
FULL_TABLE = 60  # a longer table is printed in part, with a checksum of all of it


class Chart:
    """A figure and the table it plots.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        To adjust before it is shown.
    table : pandas.DataFrame
        What is plotted, a row a mark, unrounded.
    alt : str
        What the picture shows, for those who cannot see it.
    """

    def __init__(self, figure: Figure, table: pd.DataFrame, alt: str):
        self.figure = figure
        self.table = table.reset_index(drop=True)
        self.alt = alt

    def save(self, path: str | os.PathLike) -> None:
        """Write the figure to a file; its ending (png, pdf, svg) says in which format."""
        with drawing():
            self.figure.savefig(path, dpi="figure")

    def __repr__(self) -> str:
        rounded = self.table.copy()
        for name in rounded.select_dtypes("floating"):
            # Adding zero turns -0.0 into 0.0.
            rounded[name] = rounded[name].astype("float64").round(DECIMALS) + 0.0
        shown = rounded
        footer = ""
        if len(rounded) > FULL_TABLE:
            step = math.ceil(len(rounded) / (FULL_TABLE // 2))
            shown = rounded.iloc[::step]
            content = rounded.to_csv(
                index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n"
            )
            footer = (
                f"\n(every {step}th of {len(rounded)} rows; "
                f"checksum of all: {zlib.crc32(content.encode()):08x})"
            )
        with pd.option_context("display.max_colwidth", None):
            text = shown.to_string(index=False, float_format=f"{{:.{DECIMALS}f}}".format)
        return text + footer

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        picture = io.BytesIO()
        with drawing():
            self.figure.savefig(picture, format="png", dpi="figure", metadata={"Software": None})
        width, height = (round(size * 100) for size in self.figure.get_size_inches())
        png = base64.b64encode(picture.getvalue()).decode("ascii")
        return (
            {"image/png": png, "text/plain": repr(self)},
            {"image/png": {"width": width, "height": height, "alt": self.alt}},
        )


@contextmanager
def drawing():
    """Draw in the book's style, whatever the user's own matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def plotted(frame: pd.DataFrame, columns: list[str | None], interval: bool = False):
    """Return the columns that a chart plots, or say which are missing."""
    wanted = list(dict.fromkeys(column for column in columns if column is not None))
    missing = [column for column in wanted if column not in frame]
    if missing:
        raise LrcError(f"the table has no column {missing[0]!r}; it has {', '.join(frame.columns)}")
    if interval and {"ci_low", "ci_high"} <= set(frame.columns):
        wanted += ["ci_low", "ci_high"]
    if frame.empty:
        raise LrcError("there is nothing to draw: the table has no rows")
    table = frame[wanted].reset_index(drop=True)
    if table[columns[-1]].isna().all():
        raise LrcError(f"there is nothing to draw: column {columns[-1]!r} holds no number")
    return table


def values_of(table: pd.DataFrame, column: str | None) -> list:
    """Return what a column holds, each once, in order of appearance; [None] without a column."""
    return [None] if column is None else list(pd.unique(table[column]))


def rows_of(table: pd.DataFrame, column: str | None, value: Any) -> pd.DataFrame:
    """Return the rows that hold `value`; all of them without a column."""
    return table if column is None else table[table[column] == value]


def emphasis(groups: list, column: str | None, highlight: Sequence | None) -> dict[Any, Style]:
    """Return the groups' styles, faint where others are highlighted."""
    if groups == [None]:
        return {None: Style("", "#0072b2")}
    if highlight is None:
        return styles(groups, column)
    if not len(highlight):
        raise LrcError("highlight names no group: leave it out to draw all in colour")
    unknown = [key for key in highlight if key not in groups]
    if unknown:
        raise LrcError(f"cannot highlight {unknown[0]!r}: the table has {groups}")
    return {key: Style(str(key), FAINT, "") for key in groups} | styles(list(highlight), column)


def make_panels(panels: list, column: str | None, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure with a titled panel, `height` inches high, for each value of a column."""
    across = min(len(panels), 3 if len(panels) != 4 else 2)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(WIDTH, height * down + 0.25))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(grid, panels, strict=False):
        if name is not None:
            axes.set_title(styles([name], column)[name].label)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
        grid[list(grid).index(axes) - across].tick_params(labelbottom=True)
    return figure, list(grid[: len(panels)])


def scale(grid: list[Axes], table: pd.DataFrame, x: str, y: str, fit: bool = True) -> None:
    """Set scales, ticks and labels of all panels from what their columns hold."""
    across, up = axis(x), axis(y)
    for axes in grid:
        if across.log2 and (table[x] > 0).all():
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            seen = sorted(set(table[x]))
            if len(seen) <= 8:
                axes.set_xticks(seen)
            axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        elif pd.api.types.is_integer_dtype(table[x]):
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        if fit and up.limits:
            axes.set_ylim(*up.limits)
        row = axes.get_subplotspec()
        if row.is_last_row() or axes.xaxis.get_tick_params().get("labelbottom"):
            axes.set_xlabel(across.label)
        if row.is_first_col():
            axes.set_ylabel(up.label)


def legend(figure: Figure, looks: list[Style], title: str | None, line: bool = True) -> None:
    """Write a legend above the panels, as wide as the figure, below the figure's title."""
    handles = [
        mpl.lines.Line2D(
            [], [], color=look.color, marker=look.marker, linestyle=look.dash if line else "none"
        )
        for look in looks
    ]
    texts = [look.label for look in looks]
    box = figure.legend(
        handles,
        texts,
        loc="outside upper left",
        ncols=max(1, min(len(texts), 80 // (max(map(len, texts)) + 5))),
        title=title,
        title_fontproperties=HEADING,
        alignment="left",
        handlelength=1.8 if line else 0.8,
        columnspacing=1.4,
    )
    box.get_title().set_color(INK)


def heading(figure: Figure, title: str | None) -> None:
    """Write a title above everything else, flush left; a figure with a legend has it there."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontproperties=HEADING)


def name_ticks(axes: Axes, texts: list[str], inches: float) -> None:
    """Name the places 0, 1, … along a horizontal axis; slanted where they would touch."""
    step = math.ceil(len(texts) * 0.16 / inches)
    room = inches / math.ceil(len(texts) / step)
    slanted = max(map(len, texts)) * 0.082 > room
    turn: dict[str, Any] = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    )
    axes.set_xticks(range(0, len(texts), step), texts[::step], **turn)
    axes.tick_params(axis="x", length=0)


def freeze(figure: Figure) -> None:
    """Lay the figure out now, so that places in it are known and stay."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def label_ends(
    figure: Figure,
    axes: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    group: str,
    drawn: dict[Any, Style],
) -> None:
    """Write each line's name at the right, level with its end; call it last."""
    longest = max(len(look.label) for look in drawn.values())
    figure.get_layout_engine().set(rect=(0, 0, 1 - min(0.3, 0.035 + 0.0112 * longest), 1))
    freeze(figure)
    last = [rows_of(table, group, key).dropna(subset=[y]).sort_values(x).iloc[-1] for key in drawn]
    ends = axes.transData.transform([(row[x], row[y]) for row in last])
    box = axes.get_window_extent()
    line = 12.5 * figure.dpi / 72
    heights = labels.spread(ends[:, 1], line, box.y0 + line / 2, box.y1 - line / 2)
    left = np.full(len(heights), box.x1 + 0.16 * figure.dpi)
    # Fractions of the figure, unlike pixels, are the same at every resolution.
    places = figure.transFigure.inverted().transform(np.column_stack([left, heights]))
    for look, row, place in zip(drawn.values(), last, places, strict=True):
        axes.annotate(
            look.label,
            (row[x], row[y]),
            xytext=place,
            textcoords="figure fraction",
            color=look.color,
            va="center",
            size=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.color, "linewidth": 0.6, "alpha": 0.6},
        )


def label_points(
    figure: Figure, axes: Axes, points: np.ndarray, texts: list[str], colors: list[str]
) -> None:
    """Write the name of each point `[points, 2]` beside it; call it last, on a frozen figure."""
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    drawn = [axes.text(0, 0, texts[index], size=8.5) for index in known]
    renderer = figure.canvas.get_renderer()
    sizes = np.array([text.get_window_extent(renderer).size for text in drawn])
    for text in drawn:
        text.remove()
    box = axes.get_window_extent()
    bounds = (box.x0, box.y0, box.x1, box.y1)
    pixels = axes.transData.transform(points[known])
    corners, far = labels.place(pixels, sizes, bounds, 0.055 * figure.dpi)
    places = figure.transFigure.inverted().transform(corners)
    thread = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    for index, place, distant in zip(known, places, far, strict=True):
        axes.annotate(
            texts[index],
            points[index],
            xytext=place,
            textcoords="figure fraction",
            size=8.5,
            color=colors[index],
            arrowprops=thread if distant else None,
        )


def describe(
    kind: str, what: str, drawn: dict[Any, Style], group: str | None, panel: str | None
) -> str:
    """Describe a chart for those who cannot see it."""
    named = [look.label for look in drawn.values() if look.color != FAINT]
    of = f", for {', '.join(named)}" if group and len(named) <= 12 else ""
    return f"{kind}: {what}{of}{f', a panel per {axis(panel).label}' if panel else ''}."
