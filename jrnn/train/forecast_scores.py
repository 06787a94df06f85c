"""Scores of forecasts: errors by target and horizon, coverage of intervals, CRPS, and baselines."""

import math
from typing import Any

import numpy as np
import scipy.stats

from jrnn.tasks import forecast as forecasts
from jrnn.tasks.conversion import decode_forecast
from jrnn.tasks.forecast import Forecast
from jrnn.tasks.task import DataSpec, Split


def losses_and_squares(
    forecast: Forecast, ys: np.ndarray, outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns loss and squared error of each target, NaN where it is missing.

    Args:
      forecast: the properties of the forecast.
      ys: normalized targets, `[..., num_targets]`.
      outputs: outputs of the network, `[..., num_outputs]`.

    Returns:
      Two float64 arrays `[..., num_targets]`; see `jrnn.train.step.loss.forecast_losses`.
    """
    squares = np.square(forecasts.point(forecast, outputs) - ys)
    if forecast.distribution == "point":
        return squares, squares
    if forecast.distribution == "gaussian":
        center, std = forecasts.gaussian(forecast, outputs)
        z = (ys - center) / std
        return 0.5 * z**2 + np.log(std) + 0.5 * math.log(2 * math.pi), squares
    predicted = forecasts.split_outputs(forecast, outputs.astype(np.float64))
    return pinball(forecast.quantiles, predicted, ys), squares


def pinball(quantiles: tuple[float, ...], predicted: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Returns the mean pinball loss over the quantiles.

    Args:
      quantiles: Q probabilities.
      predicted: predicted quantiles, `[..., Q, K]`.
      ys: targets, `[..., K]`.
    """
    q = np.asarray(quantiles)[:, None]
    errors = ys[..., None, :] - predicted
    return np.maximum(q * errors, (q - 1) * errors).mean(axis=-2)


def crps(forecast: Forecast, ys: np.ndarray, outputs: np.ndarray) -> np.ndarray | None:
    """Returns the continuous ranked probability score of each target; None for points.

    For a Gaussian it is exact. For quantiles it is twice the mean pinball loss, which approximates
    it. For a point forecast the CRPS is the absolute error.

    Args:
      forecast: the properties of the forecast.
      ys: normalized targets, `[..., num_targets]`.
      outputs: outputs of the network, `[..., num_outputs]`.

    References:
      Gneiting and Raftery, 2007, Strictly proper scoring rules, prediction, and estimation.
    """
    if forecast.distribution == "point":
        return None
    if forecast.distribution == "quantiles":
        predicted = forecasts.sorted_quantiles(forecast, outputs)
        return 2 * pinball(forecast.quantiles, predicted, ys)
    center, std = forecasts.gaussian(forecast, outputs)
    z = (ys - center) / std
    cdf, pdf = scipy.stats.norm.cdf(z), scipy.stats.norm.pdf(z)
    return std * (z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))


def half_widths(errors: np.ndarray, level: float) -> np.ndarray:
    """Returns the half-widths of intervals around points: a quantile of their absolute errors.

    This is split conformal prediction: with n exchangeable errors, and a later error exchangeable
    with them, its interval covers it with a probability of at least `level`. Errors of a time
    series are not exchangeable, so that the coverage is approximate.

    Args:
      errors: `[n, ...]`, errors on data that were not used for training; NaN is ignored.
      level: the nominal coverage.

    Returns:
      `[...]`; the largest error if there are too few for the level, and NaN if there are none.

    References:
      Lei et al., 2018, Distribution-free predictive inference for regression.
    """
    sizes = np.sort(np.abs(errors), axis=0)  # NaN is last
    counts = (~np.isnan(errors)).sum(axis=0)
    ranks = np.minimum(np.ceil((counts + 1) * level).astype(int), counts)
    widths = np.take_along_axis(sizes, np.maximum(ranks - 1, 0)[None], axis=0)[0]
    return np.where(counts > 0, widths, np.nan)


def residual_half_widths(
    spec: DataSpec, split: Split, outputs: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Returns `half_widths` in original units for each target, from the scored ones of a split.

    Args:
      spec: the properties of the data.
      split: examples that were not used for training.
      outputs: outputs of the network, `[N, T, num_outputs]`.
      mask: `[N, T, num_targets]` bool, which targets are used.
    """
    forecast, scaler = spec.forecast, spec.target_scaler
    if forecast is None or scaler is None:
        raise ValueError("score: the task must be a forecast, got another one")
    errors = (forecasts.point(forecast, outputs) - split.ys) * np.asarray(scaler.std)
    errors = np.where(mask, errors, np.nan)[mask.any(axis=-1)]
    return half_widths(errors, forecast.level)


def covered(
    spec: DataSpec, split: Split, outputs: np.ndarray, widths: np.ndarray | None
) -> np.ndarray | None:
    """Returns whether each target is in its interval, NaN where it is missing.

    Args:
      spec: the properties of the data.
      split: the examples.
      outputs: outputs of the network, `[N, T, num_outputs]`.
      widths: half of the widths of the intervals of a point forecast, in original units.

    Returns:
      `[N, T, num_targets]` float64, 1 if it is, 0 if not; None if there are no intervals.
    """
    points, low, high = decode_forecast(spec, outputs, split.xs, widths)
    if low is None or high is None or spec.forecast is None or spec.target_scaler is None:
        return None
    errors = split.ys - forecasts.point(spec.forecast, outputs)
    truth = points + errors * np.asarray(spec.target_scaler.std)
    inside = (low <= truth) & (truth <= high)
    return np.where(np.isnan(truth), np.nan, inside)


def horizon_scores(
    forecast: Forecast, sizes: np.ndarray, squares: np.ndarray, inside: np.ndarray | None
) -> list[dict[str, Any]]:
    """Returns the errors of each row ahead.

    Args:
      forecast: the properties of the forecast.
      sizes: absolute errors in original units, `[n, steps, K]`; NaN is ignored.
      squares: their squares.
      inside: whether each target is in its interval, of the same shape, or None.

    Returns:
      A dict for each row ahead and target: "horizon", "target", "mae", "rmse", and "coverage" if
      there are intervals.
    """
    scores = []
    for ahead in range(sizes.shape[1]):
        for index, name in enumerate(forecast.targets):
            entry = {
                "horizon": ahead + 1,
                "target": name,
                "mae": mean(sizes[:, ahead, index]),
                "rmse": mean(squares[:, ahead, index]) ** 0.5,
            }
            if inside is not None:
                entry["coverage"] = mean(inside[:, ahead, index])
            scores.append(entry)
    return scores


def mean(values: np.ndarray) -> float:
    """Returns the mean of the entries that are not NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
