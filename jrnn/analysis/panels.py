"""Parts of the pictures in `plots`: heat maps, lines, and what stands below the axis of time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jrnn.plotting import hide_spines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # of a figure, in inches
MOST_LABELS = 72  # characters that fit side by side below the axis of time

Beneath = list[str] | np.ndarray | None
"""What stands below the axis of time: one label a step, features `[T, features]`, or nothing."""


def root(ax: "Axes") -> "Figure":
    """The figure that an axes is in, however deep."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("plot_forgetting: ax must belong to a figure")
    return figure


def height(units: int) -> float:
    """Inches for a heat map of so many units."""
    return float(np.clip(0.09 * units, 0.9, 2.6))


def panels_of(
    heights: list[float], beneath: Beneath
) -> tuple["Figure", list["Axes"], "Axes | None"]:
    """A figure of two axes with a shared time axis, and a strip below for features."""
    if isinstance(beneath, np.ndarray):
        heights = [*heights, float(np.clip(0.09 * beneath.shape[-1], 0.35, 1.2))]
    figure = new_figure(WIDTH, sum(heights) + 0.25 * len(heights) + 0.4)
    grid = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
    panels = list(grid[:, 0])
    return figure, panels, panels.pop() if isinstance(beneath, np.ndarray) else None


def scale_of(values: np.ndarray) -> tuple[float, float, str]:
    """The limits and colours of a gate, over all examples, so that pictures can be compared."""
    limit = float(np.nanmax(np.abs(values), initial=1.0))
    if np.nanmin(values, initial=0.0) < 0:
        return -limit, limit, "RdBu_r"
    return 0.0, limit, "viridis"


def heat(ax: "Axes", values: np.ndarray, scale: tuple[float, float, str], bar: bool = True) -> Any:
    """An image of the values, rows down and steps across."""
    low, high, colours = scale
    image = ax.imshow(
        values, vmin=low, vmax=high, cmap=colours, aspect="auto", interpolation="nearest"
    )
    if bar:
        ax.figure.colorbar(image, ax=ax, pad=0.01, fraction=0.02)
    return image


def by_time(values: np.ndarray) -> np.ndarray:
    """Units in the order of the step at which each is furthest from its mean over time."""
    return np.argsort(np.abs(values - values.mean(axis=0)).argmax(axis=0), kind="stable")


def label_units(ax: "Axes", rows: np.ndarray) -> None:
    """Numbers of the units at the left, as many as are legible."""
    every = -(-len(rows) // 16)
    labels = [str(row) for row in rows[::every]]
    ax.set_yticks(np.arange(len(rows))[::every], labels, fontsize="xx-small")


def lines(ax: "Axes") -> None:
    """What all axes with lines have: a line at zero, and the legend at the right."""
    ax.axhline(0.0, color="0.7", linewidth=0.8, zorder=0)
    hide_spines(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")


def finish(
    panels: list["Axes"],
    strip: "Axes | None",
    steps: int,
    beneath: Beneath,
    breaks: np.ndarray,
) -> None:
    """The axis of time, what stands below it, and a dashed line at each of `breaks`."""
    lowest = panels[-1] if strip is None else strip
    if strip is not None and isinstance(beneath, np.ndarray):
        strip.imshow(beneath.T, aspect="auto", cmap="Greys", interpolation="nearest")
        strip.set_ylabel("x", rotation=0, fontsize="large", labelpad=14)
        strip.set_yticks([])
    if isinstance(beneath, list) and steps <= MOST_LABELS:
        lowest.set_xticks(np.arange(steps), beneath, family="monospace", fontsize="medium")
        for axes in (*panels, lowest):
            axes.tick_params(axis="x", length=0)
    else:
        lowest.set_xlabel("step")
    lowest.set_xlim(-0.5, steps - 0.5)
    for panel in panels:
        for where in breaks:
            panel.axvline(where, color="magenta", linewidth=1.2, linestyle="--")
