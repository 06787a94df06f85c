"""Examples of a forecast: windows of time series, their targets, and the trivial forecasts."""

from typing import NamedTuple

import numpy as np

from jrnn.tasks import common, dates
from jrnn.tasks.common import StandardScaler
from jrnn.tasks.forecast import Forecast
from jrnn.tasks.series import Series, fill_forward, observation_intervals

MAX_BYTES = 2**28
"""Size of the training windows above which their default stride is larger than 1."""
PERSISTENCE = "persistence"
SEASONAL = "seasonal naive"


class Windows(NamedTuple):
    """Windows of one series.

    Attributes:
      starts: `[windows]`, the first row of each.
      first_scored: `[windows]`, the first row of each whose forecast is scored.
    """

    starts: np.ndarray
    first_scored: np.ndarray


class Examples(NamedTuple):
    """Windows of several series.

    Attributes:
      xs: inputs, `[N, T, input]`.
      ys: the changes from the current row to the next rows, `[N, T, steps * K]`; NaN where a value
        is missing.
      metric_mask: `[N, T]` bool, which forecasts are scored.
      seasonal: the changes that the seasonal-naive forecasts predict, like `ys`, by their periods
        in rows; empty if they were not computed.
    """

    xs: np.ndarray
    ys: np.ndarray
    metric_mask: np.ndarray
    seasonal: dict[int, np.ndarray]


def training_windows(forecast: Forecast, rows: int, stride: int) -> Windows:
    """Returns windows whose targets are among the first `rows` rows."""
    starts = np.arange(0, rows - forecast.steps - forecast.window + 1, stride)
    return Windows(starts, starts + forecast.warmup)


def evaluation_windows(forecast: Forecast, first: int, end: int) -> Windows:
    """Returns windows that score the forecasts for the rows from `first` to `end` exactly once.

    The forecasts are made at the rows from `first - 1`, or from `warmup` if this is later, to
    `end - steps - 1`. Each has at least `warmup` rows before it in its window; these may be before
    `first`.
    """
    window, warmup = forecast.window, forecast.warmup
    begin, last = max(first - 1, warmup), end - forecast.steps - 1
    scored = np.arange(begin, last + 1, window - warmup)
    starts = np.minimum(scored - warmup, last + 1 - window)
    return Windows(starts, scored)


def make_inputs(forecast: Forecast, series: Series, initial: np.ndarray) -> np.ndarray:
    """Returns the inputs of a network for each row, `[rows, input]`, in original units.

    Args:
      forecast: the properties of the forecast.
      series: the series.
      initial: `[columns]`, in place of missing values before the first value.
    """
    values = fill_forward(series.values, initial)
    observed = ~np.isnan(series.values)
    if forecast.calendar and series.dates is not None:
        features = dates.calendar_features(series.dates, forecast.calendar)
        values = np.concatenate([values, features], axis=-1)
        observed = np.concatenate([observed, np.ones(features.shape, bool)], axis=-1)
    if not forecast.masks:
        return values
    steps = np.ones(len(values))
    if forecast.spacing is not None and series.dates is not None:
        steps = forecast.spacing.intervals(series.dates)
    intervals = observation_intervals(observed, steps)
    return np.concatenate([values, observed, intervals, steps[:, None]], axis=-1)


def make_examples(
    forecast: Forecast,
    series: list[Series],
    windows: list[Windows],
    initial: np.ndarray,
    scalers: tuple[StandardScaler, StandardScaler] | None = None,
    *,
    seasonal: bool = False,
) -> Examples:
    """Returns the examples of windows of several series.

    Args:
      forecast: the properties of the forecast.
      series: the series.
      windows: the windows of each.
      initial: as in `make_inputs`.
      scalers: the scalers of inputs and targets, which are then normalized float32; None means
        original units in float64.
      seasonal: whether to compute the seasonal-naive forecasts.
    """
    scale_xs, scale_ys = (s.transform for s in scalers) if scalers else (np.asarray, np.asarray)
    size = forecast.num_targets + len(forecast.input_names)
    count = sum(len(each.starts) for each in windows)
    common.check_size("Table", count, forecast.window, 4 * size)
    seasons = forecast.seasons if seasonal else ()
    parts, naive = [], {season: [] for season in seasons}
    for each, (starts, first_scored) in zip(series, windows, strict=True):
        rows = starts[:, None] + np.arange(forecast.window)
        inputs = make_inputs(forecast, each, initial)
        current = inputs[:, list(forecast.current)]
        observed = each.values[:, list(forecast.current)]
        changes = scale_ys(_changes(_future_rows(observed, forecast.steps), current))
        for season in seasons:
            last = seasonal_forecast(current, season, forecast.steps)
            naive[season].append(scale_ys(_changes(last, current))[rows])
        is_scored = rows >= first_scored[:, None]
        parts.append((scale_xs(inputs)[rows], changes[rows], is_scored))
    xs, ys, mask = zip(*parts, strict=True)
    return Examples(
        np.concatenate(xs),
        np.concatenate(ys),
        np.concatenate(mask),
        {season: np.concatenate(each) for season, each in naive.items()},
    )


def _future_rows(values: np.ndarray, steps: int) -> np.ndarray:
    """Returns the values of the next rows, `[rows, steps, K]`; NaN after the last row."""
    padded = np.concatenate([values[1:], np.full((steps, values.shape[1]), np.nan)])
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, steps, axis=0), -1, 1)


def seasonal_forecast(values: np.ndarray, season: int, steps: int) -> np.ndarray:
    """Returns the seasonal-naive forecast at each row, `[rows, steps, K]`.

    The forecast for a row is the value of the latest row before the forecast that is a multiple of
    `season` rows earlier; without such a row it is the current value.

    Args:
      values: `[rows, K]`.
      season: the period in rows.
      steps: number of rows ahead.
    """
    ahead = np.arange(1, steps + 1)
    back = season * -(-ahead // season) - ahead
    rows = np.arange(len(values))[:, None] - back
    rows = np.where(rows < 0, np.arange(len(values))[:, None], rows)
    return values[rows]


def _changes(future: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Returns `[rows, steps * K]`, the differences of `[rows, steps, K]` and `[rows, K]`."""
    return (future - current[:, None]).reshape(len(current), -1)
