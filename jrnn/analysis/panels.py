"""Parts of the figures in `plots`: heat maps, lines, and annotations of the time axis."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jrnn.plotting import hide_spines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # width of a figure in inches
MAX_LABELS = 72  # the largest number of steps for which labels are drawn

Annotation = list[str] | np.ndarray | None
"""The annotation of the time axis: one label per drawn step, features `[steps, features]`, or
None."""


def root_figure(ax: "Axes") -> "Figure":
    """Returns the top-level figure of an axes, which may be in a subfigure.

    Raises:
      ValueError: the axes does not belong to a figure.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError(
            "plot_retention: ax must belong to a figure, got an axes without one; create it by "
            "figure.add_subplot()"
        )
    return figure


def heatmap_height(units: int) -> float:
    """Returns the height in inches of a heat map with `units` rows."""
    return float(np.clip(0.09 * units, 0.9, 2.6))


def make_panels(
    heights: list[float], annotation: Annotation
) -> tuple["Figure", list["Axes"], "Axes | None"]:
    """Creates a figure of panels with a shared time axis.

    Args:
      heights: the height of each panel in inches.
      annotation: the annotation of the time axis.

    Returns:
      The figure, the panels, and an axes for the features below them if `annotation` has features.
    """
    if isinstance(annotation, np.ndarray):
        heights = [*heights, float(np.clip(0.09 * annotation.shape[-1], 0.35, 1.2))]
    figure = new_figure(WIDTH, sum(heights) + 0.25 * len(heights) + 0.4)
    grid = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
    panels = list(grid[:, 0])
    return figure, panels, panels.pop() if isinstance(annotation, np.ndarray) else None


def color_scale(values: np.ndarray) -> tuple[float, float, str]:
    """Returns the lower limit, upper limit and color map for the values of a gate.

    The values of all examples are passed, so that figures of different examples have one scale.
    """
    limit = float(np.nanmax(np.abs(values), initial=1.0))
    if np.nanmin(values, initial=0.0) < 0:
        return -limit, limit, "RdBu_r"
    return 0.0, limit, "viridis"


def draw_heatmap(
    ax: "Axes", values: np.ndarray, scale: tuple[float, float, str], colorbar: bool = True
) -> Any:
    """Draws the values `[rows, columns]` as an image.

    Args:
      ax: the axes.
      values: the values.
      scale: minimum, maximum and color map, such as from `color_scale`.
      colorbar: whether to draw a color bar.
    """
    vmin, vmax, cmap = scale
    image = ax.imshow(
        values, vmin=vmin, vmax=vmax, cmap=cmap, aspect="auto", interpolation="nearest"
    )
    if colorbar:
        ax.figure.colorbar(image, ax=ax, pad=0.01, fraction=0.02)
    return image


def order_by_peak(values: np.ndarray) -> np.ndarray:
    """Sorts units by the step at which their value is furthest from its mean over time.

    Args:
      values: `[T, units]`.

    Returns:
      `[units]`, the indices of the units in this order.
    """
    return np.argsort(np.abs(values - values.mean(axis=0)).argmax(axis=0), kind="stable")


def label_units(ax: "Axes", rows: np.ndarray) -> None:
    """Labels at most 16 rows of a heat map with the indices of their units."""
    stride = -(-len(rows) // 16)
    labels = [str(row) for row in rows[::stride]]
    ax.set_yticks(np.arange(len(rows))[::stride], labels, fontsize="xx-small")


def format_line_plot(ax: "Axes") -> None:
    """Adds a horizontal line at zero, and a legend to the right of the axes."""
    ax.axhline(0.0, color="0.7", linewidth=0.8, zorder=0)
    hide_spines(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")


def draw_time_axis(
    panels: list["Axes"],
    feature_axes: "Axes | None",
    steps: int,
    annotation: Annotation,
    reset_positions: np.ndarray,
) -> None:
    """Draws the time axis with its annotation, and a dashed line at each reset.

    Args:
      panels: the axes that share the time axis, from top to bottom.
      feature_axes: the axes below the panels for an annotation by features, or None.
      steps: the number of drawn steps.
      annotation: the annotation; labels are only drawn for at most `MAX_LABELS` steps.
      reset_positions: the positions of the resets on the time axis.
    """
    bottom_axes = panels[-1] if feature_axes is None else feature_axes
    if feature_axes is not None and isinstance(annotation, np.ndarray):
        feature_axes.imshow(annotation.T, aspect="auto", cmap="Greys", interpolation="nearest")
        feature_axes.set_ylabel("x", rotation=0, fontsize="large", labelpad=14)
        feature_axes.set_yticks([])
    if isinstance(annotation, list) and steps <= MAX_LABELS:
        bottom_axes.set_xticks(np.arange(steps), annotation, family="monospace", fontsize="medium")
        for axes in (*panels, bottom_axes):
            axes.tick_params(axis="x", length=0)
    else:
        bottom_axes.set_xlabel("step")
    bottom_axes.set_xlim(-0.5, steps - 0.5)
    for panel in panels:
        for position in reset_positions:
            panel.axvline(position, color="magenta", linewidth=1.2, linestyle="--")
