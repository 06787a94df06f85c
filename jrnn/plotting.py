"""Helpers for figures. matplotlib is optional and imported on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Creates an empty figure that pyplot does not manage; width and height are in inches.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'jrnn[demo]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def hide_spines(*axes: "Axes") -> None:
    """Hides the top and right spines of the given axes."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
