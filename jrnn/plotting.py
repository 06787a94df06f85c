"""Helpers for figures. matplotlib is an optional dependency, imported on first use."""

from contextlib import AbstractContextManager
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


COLUMN_WIDTH = 3.5
"""Width in inches of one column of a paper."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors that color-blind readers can distinguish, of Okabe and Ito."""


def paper_style() -> AbstractContextManager[None]:
    """Returns a context manager with settings of matplotlib for figures of `COLUMN_WIDTH`.

    Fonts are embedded in PDF files as TrueType, as journals require.

    Raises:
      ImportError: matplotlib is not installed.
    """
    new_figure(1, 1)  # raises the ImportError with the advice
    import matplotlib
    from matplotlib import rcsetup

    return matplotlib.rc_context(
        {
            "font.size": 7,
            "axes.titlesize": 7,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1,
            "lines.markersize": 3,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "legend.fontsize": 6,
            "legend.edgecolor": "none",
            "legend.handlelength": 1.6,
            "axes.prop_cycle": rcsetup.cycler("color", COLORS),
            "pdf.fonttype": 42,
            "savefig.dpi": 300,
        }
    )


def escape_math(text: str) -> str:
    r"""Escapes `$` in a name of a user, which would begin a formula of matplotlib.

    >>> print(escape_math("price in $"))
    price in \$
    """
    return text.replace("$", r"\$")


def set_log_scale(ax: "Axes") -> None:
    """Makes the y axis of data that are drawn already logarithmic, with labels such as 0.1."""
    from matplotlib import ticker

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 5:
        ax.yaxis.set_major_locator(ticker.MaxNLocator(4))
    else:
        subs = (1,) if high / low > 100 else (1, 3) if high / low > 20 else (1, 2, 5)
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def hide_spines(*axes: "Axes") -> None:
    """Hides the top and right spines of the axes."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
