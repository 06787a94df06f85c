"""Charts of a report: the JSON from which `page.js` draws lines, heat maps, parallel coordinates.

Each function returns a `Spec`; `Page.chart` puts it on a page.
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jrnn.report.page import Spec

MAX_POINTS = 1000
"""Maximum number of points of a line; see `decimate`."""
NUM_COLORS = 8
"""Number of colors in `page.css`."""


class Series(NamedTuple):
    """One line of a chart.

    Attributes:
      name: its name in the legend.
      x: `[N]` numbers, or NumPy `datetime64` values.
      y: `[N]` numbers; values that are not finite are gaps.
      color: index of a color; lines of the same color differ in `dash`.
      dash: index of a dash pattern, 0 for a solid line.
      points: whether to draw points instead of a line.
      strong: whether to draw a thick line.
      texts: for points, the text of each of them; None means `name`.
    """

    name: str
    x: Any
    y: Any
    color: int = 0
    dash: int = 0
    points: bool = False
    strong: bool = False
    texts: Sequence[str] | None = None


class Band(NamedTuple):
    """An interval around a line.

    Attributes:
      name: its name, such as "95% interval".
      x: `[N]` numbers, or NumPy `datetime64` values.
      low: `[N]` numbers, the lower ends.
      high: `[N]` numbers, the upper ends.
      color: index of a color.
    """

    name: str
    x: Any
    low: Any
    high: Any
    color: int = 0


class Mark(NamedTuple):
    """A dotted reference line, such as a baseline.

    Attributes:
      axis: the axis on which it has a value: "x" for a vertical line, "y" for a horizontal one.
      value: the value.
      name: a short text beside it.
    """

    axis: Literal["x", "y"]
    value: float
    name: str


def lines(
    xlabel: str,
    ylabel: str,
    series: Sequence[Series],
    *,
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
    log: bool | None = None,
    height: int = 300,
) -> Spec:
    """Makes a chart of lines or points, which can be zoomed.

    Args:
      xlabel: the label of the x axis.
      ylabel: the label of the y axis, with its unit.
      series: the lines.
      bands: intervals, drawn below the lines.
      marks: reference lines.
      log: whether the y axis is logarithmic at first; None means that it is always linear.
      height: maximum height in CSS pixels.
    """
    is_time = any(np.asarray(s.x).dtype.kind == "M" for s in series)
    is_integer = all(np.asarray(s.x).dtype.kind in "iu" for s in series)
    encoded = []
    for each in series:
        x, y = _to_numbers(each.x), np.asarray(each.y, np.float64)
        keep = np.arange(len(x)) if each.points else decimate(x, y)
        texts = None if each.texts is None else list(each.texts)
        encoded.append({**each._asdict(), "x": _exact(x[keep]), "y": y[keep], "texts": texts})
    if log is not None and not any((one["y"] > 0).any() for one in encoded):
        log = None
    x_axis = {"label": xlabel, "type": "time" if is_time else "linear", "integers": is_integer}
    return {
        "kind": "lines",
        "x": x_axis,
        "y": {"label": ylabel} if log is None else {"label": ylabel, "log": log},
        "series": encoded,
        "bands": [{**band._asdict(), "x": _exact(_to_numbers(band.x))} for band in bands],
        "marks": [mark._asdict() for mark in marks],
        "height": height,
    }


def decimate(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Returns the indices of at most `limit` points, with the extremes of each part of a line.

    >>> y = np.zeros(10_000)
    >>> y[1234] = 1
    >>> kept = decimate(np.arange(10_000), y, 100)
    >>> len(kept) <= 100, 1234 in kept, kept[0], kept[-1]
    (True, True, np.int64(0), np.int64(9999))
    """
    if len(x) <= limit:
        return np.arange(len(x))
    finite = np.where(np.isfinite(y), y, 0)
    parts = np.array_split(np.arange(len(x)), (limit - 2) // 2)
    extremes = [k for p in parts for k in (p[finite[p].argmin()], p[finite[p].argmax()])]
    return np.unique([0, *extremes, len(x) - 1])


def _to_numbers(x: Any) -> np.ndarray:
    """Returns x values as float64; times are milliseconds since 1970 in UTC."""
    x = np.asarray(x)
    if x.dtype.kind != "M":
        return x.astype(np.float64)
    milliseconds = x.astype("datetime64[ms]").astype(np.int64).astype(np.float64)
    return np.where(np.isnat(x), np.nan, milliseconds)


def _exact(x: np.ndarray) -> list[int | float]:
    """Returns ints where possible, since a page rounds floats, and times have many digits."""
    return [int(v) if np.isfinite(v) and v == int(v) else v for v in x.tolist()]


def heat_map(
    values: Any,
    xlabel: str,
    ylabel: str,
    *,
    low: float | None = None,
    high: float | None = None,
    total: int | None = None,
) -> Spec:
    """Makes a heat map; values of both signs get a diverging color map around 0.

    Args:
      values: `[rows, columns]` numbers; they are rounded to 256 levels.
      xlabel: what a column is, such as "step".
      ylabel: what a row is, such as "unit".
      low: the lower end of the scale; None means the minimum.
      high: the upper end of the scale; None means the maximum.
      total: number of rows before rows were left out; None means all are there.
    """
    values = np.nan_to_num(np.asarray(values, np.float64))
    low = float(values.min(initial=np.inf)) if low is None else low
    high = float(values.max(initial=-np.inf)) if high is None else high
    is_diverging = low < 0 < high
    if is_diverging:
        low, high = -max(-low, high), max(-low, high)
    return {
        "map": "diverging" if is_diverging else "viridis",
        "xlabel": xlabel,
        "ylabel": ylabel,
        "total": len(values) if total is None else total,
        **_encode_levels(values, low, high),
    }


def image(values: Any, name: str) -> Spec:
    """Makes an image `[rows, columns]`, on which high values are dark."""
    values = np.nan_to_num(np.asarray(values, np.float64))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return {
        "map": "gray",
        "xlabel": "column",
        "ylabel": "row",
        "label": name,
        "total": len(values),
        **_encode_levels(values, low, high),
    }


def _encode_levels(values: np.ndarray, low: float, high: float) -> Spec:
    fractions = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    levels = np.round(np.clip(fractions, 0, 1) * 255).astype(np.uint8)
    return {
        "kind": "heat",
        "shape": list(values.shape),
        "low": low,
        "high": high,
        "data": base64.b64encode(levels.tobytes()).decode(),
    }


class Axis(NamedTuple):
    """One axis of parallel coordinates.

    Attributes:
      name: its name.
      values: the value of each run: a number, a text or None.
    """

    name: str
    values: Sequence[float | str | None]


def parallel(axes: Sequence[Axis], runs: Sequence[str], best: int | None) -> Spec:
    """Makes parallel coordinates: one line for each run across all axes.

    An axis of numbers that are positive and differ by a factor above 20 is logarithmic.

    Args:
      axes: the axes, from left to right.
      runs: the names of the runs.
      best: index of the run that is emphasized, or None.
    """
    return {
        "kind": "parallel",
        "axes": [_encode_axis(axis) for axis in axes],
        "runs": list(runs),
        "best": best,
    }


def _encode_axis(axis: Axis) -> Spec:
    present = [value for value in axis.values if value is not None]
    if any(isinstance(value, str) for value in present):
        names = list(dict.fromkeys(str(value) for value in present))
        ids = {name: index for index, name in enumerate(names)}
        values = [None if value is None else ids[str(value)] for value in axis.values]
        return {"name": axis.name, "names": names, "values": values}
    numbers = [float(value) for value in present]
    is_log = bool(numbers) and min(numbers) > 0 and max(numbers) > 20 * min(numbers)
    return {"name": axis.name, "values": list(axis.values), "log": is_log}
