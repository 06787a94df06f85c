"""Forecasts of the rows after a series, their intervals, and rolling-origin backtests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jrnn.tasks.conversion import decode_forecast, encode_inputs
from jrnn.tasks.forecast import Forecast
from jrnn.tasks.task import Context, Data, DataSpec, Origins, Split, Task
from jrnn.train import forecast_scores
from jrnn.train.scores import scored_targets

Apply = Callable[[Split], np.ndarray]
"""A function that returns the outputs of a network for all examples, `[N, T, num_outputs]`."""
MAX_ORIGINS = 200
"""Number of forecasts from which the intervals of a recursive forecast are computed."""


class Rows(NamedTuple):
    """The forecast rows after N series, in original units.

    Attributes:
      points: `[N, horizon, K]`.
      low: the lower ends of intervals, of the same shape; None without intervals.
      high: the upper ends.
    """

    points: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def forecast_rows(
    spec: DataSpec, apply: Apply, context: Context, half_widths: np.ndarray | None = None
) -> Rows:
    """Forecasts the rows after the last row of each series.

    Args:
      spec: the properties of the training data, a forecast.
      apply: the network.
      context: the last rows of N series.
      half_widths: `[horizon * K]`, half of the widths of the intervals of a point forecast, in
        original units; None for no intervals.
    """
    forecast = _forecast_of(spec)
    shape = (len(context.xs), forecast.horizon, len(forecast.targets))
    if not forecast.recursive:
        outputs, last = _last_outputs(spec, apply, context.xs)
        points, low, high = decode_forecast(spec, outputs, last, half_widths)
        ends = (None if each is None else each.reshape(shape) for each in (low, high))
        return Rows(points.reshape(shape), *ends)
    points, xs = np.empty(shape), list(context.xs)
    for ahead in range(forecast.horizon):
        outputs, last = _last_outputs(spec, apply, xs)
        points[:, ahead] = decode_forecast(spec, outputs, last)[0]
        for index, rows in enumerate(xs):
            features = context.calendar[index][ahead]
            row = _next_input(forecast, rows[-1], points[index, ahead], features)
            xs[index] = np.concatenate([rows, row[None]])[-forecast.window :]
    if half_widths is None:
        return Rows(points, None, None)
    widths = half_widths.reshape(shape[1:])
    return Rows(points, points - widths, points + widths)


def fit_half_widths(task: Task, data: Data, apply: Apply) -> np.ndarray | None:
    """Returns half of the widths of the intervals of a point forecast, from the validation split.

    Args:
      task: the task of the run.
      data: its data.
      apply: the network.

    Returns:
      `[horizon * K]` in original units; None if the forecast is not of points, or the validation
      split has no errors.
    """
    forecast = data.forecast
    if forecast is None or forecast.distribution != "point":
        return None
    if forecast.recursive:
        origins = task.find_origins(data.spec, "validation", MAX_ORIGINS)
        errors = forecast_rows(data.spec, apply, origins.context).points - origins.truth
        widths = forecast_scores.half_widths(errors, forecast.level).reshape(-1)
    else:
        outputs, mask = apply(data.validation), scored_targets(data, data.validation)
        widths = forecast_scores.residual_half_widths(data, data.validation, outputs, mask)
    if np.isnan(widths).all() or data.target_scaler is None:
        return None
    std = np.asarray(data.target_scaler.std[: len(forecast.targets)])
    return _fill_missing_widths(widths.reshape(forecast.horizon, -1), std).reshape(-1)


def _fill_missing_widths(widths: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Replaces widths of targets that are always missing in a row ahead.

    Each gets the widest interval of the same target in another row or, if it has none, of the other
    targets, relative to the standard deviations.

    Args:
      widths: `[horizon, K]` in original units; NaN is replaced, and some are not NaN.
      std: `[K]`, the standard deviations of the targets.
    """
    is_missing = np.isnan(widths)
    relative = np.where(is_missing, 0, widths / std)
    widest = np.where(is_missing.all(axis=0), relative.max(), relative.max(axis=0))
    return np.where(is_missing, widest * std, widths)


def score_rows(spec: DataSpec, rows: Rows, origins: Origins) -> dict[str, Any]:
    """Scores forecasts from several origins.

    Args:
      spec: the properties of the training data.
      rows: the forecasts.
      origins: the origins, with the true rows.

    Returns:
      JSON values: "origins", their number; "targets": for each its name, MAE, RMSE, "coverage" if
      there are intervals, and the MAE of each baseline; "horizons", see
      `jrnn.train.forecast_scores.horizon_scores`; and "level", the nominal coverage, if there are
      intervals.
    """
    forecast = _forecast_of(spec)
    errors = rows.points - origins.truth
    inside = None
    if rows.low is not None and rows.high is not None:
        inside = (rows.low <= origins.truth) & (origins.truth <= rows.high)
        inside = np.where(np.isnan(origins.truth), np.nan, inside)
    targets = []
    for index, name in enumerate(forecast.targets):
        entry: dict[str, Any] = {
            "name": name,
            "mae": forecast_scores.mean(np.abs(errors[..., index])),
            "rmse": forecast_scores.mean(np.square(errors[..., index])) ** 0.5,
        }
        if inside is not None:
            entry["coverage"] = forecast_scores.mean(inside[..., index])
        entry["baselines"] = [
            {"name": key, "mae": forecast_scores.mean(np.abs(each - origins.truth)[..., index])}
            for key, each in origins.baselines.items()
        ]
        targets.append(entry)
    result = {
        "origins": len(errors),
        "targets": targets,
        "horizons": forecast_scores.horizon_scores(
            forecast, np.abs(errors), np.square(errors), inside
        ),
    }
    return result if inside is None else result | {"level": forecast.level}


def _forecast_of(spec: DataSpec) -> Forecast:
    if spec.forecast is None:
        raise ValueError("forecast: the task of the run must be a forecast, got another one")
    return spec.forecast


def _last_outputs(
    spec: DataSpec, apply: Apply, series: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the outputs and the normalized inputs at the last row of each series."""
    xs, lengths = encode_inputs(spec, series, None)
    outputs = apply(Split(xs, np.zeros(len(xs)), lengths))
    index = np.arange(len(xs)), lengths - 1
    return outputs[index], xs[index]


def _next_input(
    forecast: Forecast, last: np.ndarray, values: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Returns the input of the next row, `[input]` in original units, from predicted targets."""
    row = np.empty_like(last)
    row[list(forecast.current)] = values
    size, columns = forecast.num_values, len(forecast.columns)
    row[columns:size] = features
    if forecast.masks:
        observed, interval = last[size : 2 * size], last[2 * size : 3 * size]
        row[size : 2 * size] = 1
        row[2 * size : 3 * size] = 1 + np.where(observed > 0, 0, interval)
        row[-1] = 1
    return row
