"""Helpers for figures. matplotlib is an optional dependency, imported on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Creates an empty figure that is not registered with pyplot, and needs no `pyplot.close`.

    Args:
      width: width in inches.
      height: height in inches.

    Returns:
      A figure with constrained layout.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib; install it with: pip install 'jrnn[demo]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def hide_spines(*axes: "Axes") -> None:
    """Hides the top and right spines of the axes."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
