"""The map of a layer's routing: which experts each token activates."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrc.errors import LrcError
from lrc.figure import WIDTH, Chart, drawing, heading
from lrc.style import INK, styles


def routing_map(
    routing: Any,
    num_experts: int | None = None,
    *,
    words: Sequence[str] | None = None,
    segment_length: int | None = None,
    by_use: bool = False,
    title: str | None = None,
    alt: str | None = None,
) -> Chart:
    """Draw which experts each token activates: tokens from left to right, experts upwards.

    Parameters
    ----------
    routing
        Expert ids of consecutive tokens, an integer array ``[tokens, top_k]`` such as
        ``trace.experts[0, :64, layer]`` (-1 = none); or a dict of such arrays, a panel each.
    num_experts
        Experts of the layer; by default as many as the ids show.
    words
        The tokens' texts, written below the map (for up to 64 tokens, one panel).
    segment_length
        Draw a line between every so many tokens.
    by_use
        Order experts by how often they are active, the busiest at the bottom, instead of by id.
    title, alt
        Heading, and description for those who cannot see the chart.

    Returns
    -------
    Chart
        Its table has a row a token: the experts it activates.
    """
    panels = routing if isinstance(routing, Mapping) else {None: routing}
    panels = {name: np.asarray(ids) for name, ids in panels.items()}
    for ids in panels.values():
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise LrcError(
                "routing_map needs expert ids [tokens, top_k], such as trace.experts[0, :64, 0]; "
                f"got {ids.dtype} {list(ids.shape)}"
            )
    count = num_experts or 1 + max(int(ids.max(initial=0)) for ids in panels.values())
    for ids in panels.values():
        if ids.max(initial=-1) >= count:
            raise LrcError(f"expert {ids.max()} is drawn, but num_experts is {count}")
    height = min(3.4, 0.55 + 0.085 * max(count, 10))
    extra = 0.55 if words is not None else 0
    looks = styles([name for name in panels if name is not None])
    rows = []
    with drawing():
        figure = Figure(figsize=(WIDTH, len(panels) * (height + 0.3) + 0.3 + extra))
        grid = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (name, ids) in zip(grid, panels.items(), strict=True):
            active = np.zeros((len(ids), count), dtype=bool)
            token, slot = np.nonzero(ids >= 0)
            active[token, ids[token, slot]] = True
            order = np.arange(count)
            if by_use:
                order = np.argsort(-active.sum(axis=0), kind="stable")
            color = looks[name].color if len(panels) > 1 else "#0072b2"
            _raster(axes, active[:, order], color)
            if segment_length:
                cuts = np.arange(segment_length, len(ids), segment_length) - 0.5
                axes.vlines(cuts, -0.5, count - 0.5, color=INK, linewidth=0.8)
            axes.set_ylabel("expert, busiest first" if by_use else "expert")
            if name is not None:
                axes.set_title(looks[name].label)
            rows += [
                {"panel": name, "token": place, "experts": " ".join(map(str, np.flatnonzero(mask)))}
                for place, mask in enumerate(active)
            ]
        grid[-1].set_xlabel("token")
        if words is not None and len(panels) == 1 and len(words) <= 64:
            texts = [str(word).strip().replace("\n", "⏎").replace("$", r"\$") for word in words]
            grid[-1].set_xticks(range(len(texts)), texts, rotation=90, size=7)
            grid[-1].set_xlabel("")
        heading(figure, title)
    table = pd.DataFrame(rows)
    if None in panels:
        table = table.drop(columns="panel")
    whose = " and ".join(look.label for look in looks.values())
    told = alt or (
        f"Map of the experts, of {count}, that each of {len(next(iter(panels.values())))} tokens "
        f"activates{', for ' + whose if whose else ''}."
    )
    return Chart(figure, table, told)


def _raster(axes: Axes, active: np.ndarray, color: str) -> None:
    """Draw `active` [tokens, experts] as filled cells."""
    tokens, count = active.shape
    colors = mpl.colors.ListedColormap(["#f4f4f4", color])
    axes.imshow(
        active.T, cmap=colors, vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="none"
    )
    if tokens <= 128 and count <= 64:
        axes.set_xticks(np.arange(tokens + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.4)
    axes.grid(visible=False, which="major")
    axes.tick_params(which="both", length=0)
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    axes.spines[:].set_visible(False)
