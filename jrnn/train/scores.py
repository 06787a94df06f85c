"""Scores of predictions on a split: intervals, tables per class and target, and the baseline."""

import math
from typing import Any

import numpy as np
import scipy.stats

from jrnn.tasks import forecast as forecasts
from jrnn.tasks.conversion import log_softmax
from jrnn.tasks.labels import IGNORED_LABEL
from jrnn.tasks.task import DataSpec, Split
from jrnn.train import forecast_scores

CONFIDENCE = 0.95
"""Confidence level of intervals."""
NUM_RESAMPLES = 1000
"""Number of bootstrap samples of the examples."""


def score(
    spec: DataSpec,
    split: Split,
    outputs: np.ndarray,
    baselines: dict[str, np.ndarray] | None = None,
    half_widths: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores the outputs of a network on a split.

    All scores are computed over the scored items of the split: its examples, or their scored steps.
    Intervals are bootstrap percentile intervals over examples, with a fixed seed. Labels of -100
    and values of NaN are not included. The loss has neither label smoothing nor class weights.

    Args:
      spec: the properties of the data.
      split: the examples with their targets, as for the network.
      outputs: outputs of the network, `[N, K]`, or `[N, T, K]` for targets at each step.
      baselines: for a forecast, the normalized outputs of trivial forecasts by name, like `ys`.
      half_widths: for a point forecast, half of the widths of its intervals in original units.

    Returns:
      JSON values: "examples", "items", "metric", "loss", "interval" (low and high of the metric);
      "baseline" with its "name" and "value", if its predictor has constant outputs; for classes
      "classes" (name, count, precision, recall, F1 score) and "confusion", the counts `[true,
      predicted]`; for values "targets" (name, and in original units MAE, RMSE and their intervals,
      and the MAE and RMSE of the baseline). A forecast also has "baselines", all of them, of which
      "baseline" is the best; "horizons", see `jrnn.train.forecast_scores.horizon_scores`;
      "coverage" and "level", the measured and the nominal coverage of its intervals, if it has
      intervals; and "crps" for each target in original units, if it predicts a distribution.
    """
    if spec.forecast is not None:
        return _score_forecast(spec, split, outputs, baselines or {}, half_widths)
    mask = scored_targets(spec, split)
    losses, metrics = losses_and_metrics(spec, split.ys, outputs)
    result = _summarize(spec, losses, metrics, mask)
    baseline = None
    if spec.baseline_outputs is not None:
        baseline = np.broadcast_to(np.asarray(spec.baseline_outputs), outputs.shape)
        value = _mean(losses_and_metrics(spec, split.ys, baseline)[1], mask)
        result["baseline"] = {"name": spec.baseline[0], "value": value}
    if spec.has_classes:
        result |= _class_scores(spec, split.ys[mask], outputs.argmax(axis=-1)[mask])
    else:
        result["targets"] = _target_scores(spec, split.ys, outputs, baseline, mask)
    return result


def _score_forecast(
    spec: DataSpec,
    split: Split,
    outputs: np.ndarray,
    baselines: dict[str, np.ndarray],
    half_widths: np.ndarray | None,
) -> dict[str, Any]:
    """Returns the scores of a forecast; see `score`."""
    forecast, scaler = spec.forecast, spec.target_scaler
    if forecast is None or scaler is None:
        raise ValueError("score: the task must be a forecast, got another one")
    mask = scored_targets(spec, split)
    items = mask.any(axis=-1)
    losses, squares = losses_and_metrics(spec, split.ys, outputs)
    result = _summarize(spec, losses, squares, mask)
    result["baselines"] = [
        {"name": name, "value": _mean(np.square(each - split.ys), mask)}
        for name, each in baselines.items()
    ]
    best = None
    if baselines:
        result["baseline"] = min(result["baselines"], key=lambda entry: entry["value"])
        best = baselines[result["baseline"]["name"]]
    shape = (*split.ys.shape[:-1], forecast.steps, len(forecast.targets))
    scale = np.asarray(scaler.std)
    by_target = lambda array: array.reshape(shape)
    errors = (forecasts.point(forecast, outputs) - split.ys) * scale
    scored = mask.reshape(shape)
    crps = forecast_scores.crps(forecast, split.ys, outputs)
    inside = forecast_scores.covered(spec, split, outputs, half_widths)
    if inside is not None:
        inside = by_target(inside)
        result |= {"coverage": _mean(inside, scored), "level": forecast.level}
    result["targets"] = []
    for index, name in enumerate(forecast.targets):
        entry = {"name": name} | _errors_in_units(by_target(errors)[..., index], scored[..., index])
        if best is not None:
            baseline = by_target((best - split.ys) * scale)[..., index]
            entry |= _errors_in_units(baseline, scored[..., index], "baseline_")
        if crps is not None:
            scores = by_target(crps * scale)[..., index]
            entry["crps"] = _mean(scores, scored[..., index])
        result["targets"].append(entry)
    missing = np.where(mask, errors, np.nan).reshape(shape)[items]
    result["horizons"] = forecast_scores.horizon_scores(
        forecast, np.abs(missing), np.square(missing), None if inside is None else inside[items]
    )
    return result


def _summarize(
    spec: DataSpec, losses: np.ndarray, metrics: np.ndarray, mask: np.ndarray
) -> dict[str, Any]:
    """Returns the scores that all tasks have."""
    return {
        "examples": len(mask),
        "items": int((mask if spec.has_classes else mask.any(axis=-1)).sum()),
        "metric": _mean(metrics, mask),
        "loss": _mean(losses, mask),
        "interval": bootstrap_interval(metrics, mask),
    }


def scored_targets(spec: DataSpec, split: Split) -> np.ndarray:
    """Returns which targets the metric includes, bools of the shape of `split.ys`.

    Padding, steps outside of `metric_mask`, ignored labels and NaN are not included.
    """
    ys = np.asarray(split.ys)
    mask = ys != IGNORED_LABEL if spec.has_classes else ~np.isnan(ys)
    steps = []
    if spec.per_step and split.lengths is not None:
        steps.append(np.arange(ys.shape[1]) < np.asarray(split.lengths)[:, None])
    if split.metric_mask is not None:
        steps.append(np.asarray(split.metric_mask))
    for each in steps:
        mask &= each if spec.has_classes else each[..., None]
    return mask


def bootstrap_interval(values: np.ndarray, mask: np.ndarray) -> list[float] | None:
    """Returns low and high of the mean of the items; None for fewer than two examples.

    Args:
      values: one value for each item, with the examples on the first axis.
      mask: which items are scored, of the same shape.
    """
    axes = tuple(range(1, values.ndim))
    sums = np.where(mask, values, 0).sum(axis=axes)
    counts = mask.sum(axis=axes)
    used = counts > 0
    sums, counts = sums[used], counts[used]
    if len(sums) < 2:
        return None
    interval = scipy.stats.bootstrap(
        (sums, counts),
        _ratio_of_sums,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, 10**7 // len(sums)),
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def _ratio_of_sums(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def losses_and_metrics(
    spec: DataSpec, ys: np.ndarray, outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss and the metric of each target, in float64; see `Objective`.

    They have the shape of `ys`. Those of ignored labels are meaningless, and those of NaN are NaN.
    """
    if spec.forecast is not None:
        return forecast_scores.losses_and_squares(spec.forecast, ys, outputs)
    if not spec.has_classes:
        losses = np.square(outputs.astype(np.float64) - ys)
        return losses, losses
    ys = np.where(ys == IGNORED_LABEL, 0, ys)
    log_probabilities = log_softmax(outputs)
    losses = -np.take_along_axis(log_probabilities, ys[..., None], axis=-1)[..., 0]
    if spec.metric == "bits_per_character":
        return losses, losses / math.log(2)
    return losses, (outputs.argmax(axis=-1) == ys).astype(np.float64)


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    return float(values[mask].mean()) if mask.any() else math.nan


def _class_scores(spec: DataSpec, ys: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    size = spec.output_size
    confusion = np.zeros((size, size), int)
    np.add.at(confusion, (ys, predicted), 1)
    correct = np.diag(confusion)
    names = spec.names_of_classes
    columns = {
        "count": confusion.sum(axis=1),
        "precision": _ratio(correct, confusion.sum(axis=0)),
        "recall": _ratio(correct, confusion.sum(axis=1)),
        "f1": _ratio(2 * correct, confusion.sum(axis=0) + confusion.sum(axis=1)),
    }
    classes = [
        {"name": names[index]} | {name: values[index].item() for name, values in columns.items()}
        for index in range(size)
    ]
    return {"classes": classes, "confusion": confusion.tolist()}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _target_scores(
    spec: DataSpec,
    ys: np.ndarray,
    outputs: np.ndarray,
    baseline: np.ndarray | None,
    mask: np.ndarray,
) -> list[dict[str, Any]]:
    """Returns the errors of each channel of the targets in original units."""
    size = ys.shape[-1]
    scale = np.ones(size) if spec.target_scaler is None else np.asarray(spec.target_scaler.std)
    scores = []
    for index, name in enumerate(spec.names_of_targets):
        errors = (outputs[..., index].astype(np.float64) - ys[..., index]) * scale[index]
        known = mask[..., index]
        scores.append({"name": name} | _errors_in_units(errors, known))
        if baseline is not None:
            errors = (baseline[..., index].astype(np.float64) - ys[..., index]) * scale[index]
            scores[-1] |= _errors_in_units(errors, known, "baseline_")
    return scores


def _errors_in_units(errors: np.ndarray, mask: np.ndarray, prefix: str = "") -> dict[str, Any]:
    """Returns MAE and RMSE, and their intervals unless they have a prefix."""
    scores: dict[str, Any] = {
        f"{prefix}mae": _mean(np.abs(errors), mask),
        f"{prefix}rmse": _mean(np.square(errors), mask) ** 0.5,
    }
    if not prefix:
        squares = bootstrap_interval(np.square(errors), mask)
        scores["mae_interval"] = bootstrap_interval(np.abs(errors), mask)
        scores["rmse_interval"] = None if squares is None else [value**0.5 for value in squares]
    return scores
