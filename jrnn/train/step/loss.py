"""Losses and metrics: those of tasks, and functions that users write."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry
from jrnn.nn import Classifier
from jrnn.tasks.forecast import MIN_STD, Forecast
from jrnn.tasks.labels import IGNORED_LABEL
from jrnn.tasks.task import Data, Split
from jrnn.train.config.experiment import RunOptions
from jrnn.train.data.sampler import num_examples

HIGHER_IS_BETTER = {"accuracy": True, "mse": False, "bits_per_character": False}
"""For each metric of a task, whether a higher value is better."""


class MetricSums(NamedTuple):
    """Weighted sums of loss and metric, and the sums of the weights.

    Means over several batches are exact even if the batches have different weights: add the sums of
    the batches, then divide.

    Attributes:
      loss: the weighted sum of losses, a float32 scalar.
      loss_weight: the sum of their weights, such as the number of labels, or of values.
      metric: the weighted sum of metrics, a float32 scalar.
      metric_weight: the sum of their weights.
    """

    loss: jax.Array
    loss_weight: jax.Array
    metric: jax.Array
    metric_weight: jax.Array

    def means(self) -> dict[str, float]:
        """Returns the mean loss and the mean metric."""
        return {
            "loss": float(self.loss / self.loss_weight),
            "metric": float(self.metric / self.metric_weight),
        }


def divide_or_zero(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns `total / weight`, or 0 if the weight is 0."""
    return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight))


class Loss(Protocol):
    """The loss and metric of a model on a batch."""

    def __call__(
        self, model: Any, carry: Carry, batch: Any, row_mask: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch.

        Args:
          model: an `nnx.Module` in training or evaluation mode.
          carry: for a loss that passes the carry from batch to batch, the final carry of the
            previous batch, and at first that of `DataPlan.init_carry`; otherwise `()`.
          batch: the examples of the batch.
          row_mask: `[B]` bool, False for rows of padding; None means that all rows are valid.

        Returns:
          The carry for the next batch, and the sums of loss and metric.
        """
        ...


class Objective(NamedTuple):
    """The loss and metric of a task, by the kind of its target.

    ::

        "class", "class_per_step":   loss = -log p[label], the cross-entropy in nats
        "value", "value_per_step":   loss = (output - target)^2

        accuracy = fraction of correct classes;  mse = loss;  bits_per_character = loss / log 2

    Both are means over all labels, or over all K values of all targets. Labels of
    `jrnn.tasks.labels.IGNORED_LABEL` and values that are NaN are not included. For a forecast, the
    loss is that of `forecast_losses`, and the metric is of the mean or median. With label smoothing
    s and class weights w, the loss is that of PyTorch's `CrossEntropyLoss`, with K classes, where
    the weights are also those of the classes over which smoothing distributes the label::

        loss = sum of ((1 - s) w[label] (-log p[label]) + s/K sum_k w[k] (-log p[k]))
               / sum of w[label]

    Attributes:
      target: the kind of target, as in `jrnn.tasks.Data`.
      metric: the name of the metric, as in `jrnn.tasks.Data`.
      forecast: the properties of a forecast, or None.
      label_smoothing: s, in [0, 1), which may be traced.
      class_weights: w, one number for each class; None means 1.
    """

    target: str
    metric: str
    forecast: Forecast | None = None
    label_smoothing: ArrayLike = 0.0
    class_weights: tuple[float, ...] | None = None

    @classmethod
    def from_data(
        cls, data: Data, options: RunOptions | None = None, owner: str = "train"
    ) -> "Objective":
        """Returns the objective of a task.

        Args:
          data: the data of the task.
          options: label smoothing and class weights; None means the objective of evaluations, which
            has neither, so that runs with other options can be compared.
          owner: the function that the user called, for messages.

        Raises:
          ValueError: the options need classes, or there is another number of class weights than of
            classes.
        """
        if options is None:
            return cls(data.target, data.metric, data.forecast)
        if not data.has_classes:
            for name in ("label_smoothing", "class_weights"):
                if getattr(options, name):
                    raise ValueError(
                        f"{owner}: {name} needs a task with classes, got target={data.target!r}; "
                        f"remove {name}"
                    )
        weights = _class_weights(owner, options.class_weights, data)
        return cls(data.target, data.metric, data.forecast, options.label_smoothing, weights)

    def compute_sums(
        self, outputs: jax.Array, batch: Split, row_mask: jax.Array | None = None
    ) -> MetricSums:
        """Sums loss and metric over the valid items of a batch.

        An item is one example, or one time step of it for targets at each time step.

        Args:
          outputs: outputs of the model: `[B, K]`, or `[B, T, K]` for targets at each time step.
          batch: the targets, with `lengths` and `metric_mask` if there are any.
          row_mask: `[B]` bool, False for rows of padding; None means that all rows are valid.
        """
        outputs = outputs.astype(jnp.float32)
        ys = jnp.asarray(batch.ys)
        if has_classes := self.target.startswith("class"):
            ys = ys.astype(jnp.int32)  # JAX compares 156 in uint8 as equal to -100
        loss_mask = ys != IGNORED_LABEL if has_classes else ~jnp.isnan(ys)
        add_axes = lambda mask: mask.reshape(mask.shape + (1,) * (loss_mask.ndim - mask.ndim))
        if self.target.endswith("per_step") and batch.lengths is not None:
            valid = jnp.arange(ys.shape[1]) < jnp.asarray(batch.lengths)[:, None]
            loss_mask &= add_axes(valid)
        if row_mask is not None:
            loss_mask &= add_axes(row_mask)
        metric_mask = loss_mask
        if batch.metric_mask is not None:
            metric_mask = loss_mask & add_axes(jnp.asarray(batch.metric_mask))
        # Without this, a NaN makes the gradient NaN, since 0 * NaN is NaN.
        ys = jnp.where(loss_mask, ys, 0)
        if has_classes:
            plain = optax.softmax_cross_entropy_with_integer_labels(outputs, ys)
            losses = self._smooth_and_weight(plain, outputs, ys)
        elif self.forecast is not None:
            losses, plain = forecast_losses(self.forecast, outputs, ys)
        else:
            plain = losses = optax.squared_error(outputs, ys)
        metrics = {
            "accuracy": lambda: (outputs.argmax(axis=-1) == ys).astype(jnp.float32),
            "mse": lambda: plain,
            "bits_per_character": lambda: plain / math.log(2),
        }[self.metric]()
        weights: jax.Array = loss_mask
        if self.class_weights is not None:
            weights = jnp.where(loss_mask, jnp.asarray(self.class_weights, jnp.float32)[ys], 0)
        return MetricSums(
            jnp.where(loss_mask, losses, 0).sum(),
            weights.sum(),
            jnp.where(metric_mask, metrics, 0).sum(),
            metric_mask.sum(),
        )

    def _smooth_and_weight(self, plain: jax.Array, outputs: jax.Array, ys: jax.Array) -> jax.Array:
        """Returns the weighted cross-entropies of smoothed labels, from those of the labels."""
        weights: Any = 1.0
        if self.class_weights is not None:
            weights = jnp.asarray(self.class_weights, jnp.float32)
        if isinstance(self.label_smoothing, float | int) and self.label_smoothing == 0:
            return plain if self.class_weights is None else plain * weights[ys]
        smoothing: Any = self.label_smoothing
        labels = optax.smooth_labels(jax.nn.one_hot(ys, outputs.shape[-1]), smoothing)
        return optax.softmax_cross_entropy(outputs, labels * weights)


def _class_weights(owner: str, weights: Any, data: Data) -> tuple[float, ...] | None:
    """Returns one weight for each class; see `RunOptions.class_weights`."""
    size = data.output_size
    if weights == "balanced":
        labels = np.asarray(data.train.ys)
        used = labels != IGNORED_LABEL
        if data.per_step and data.train.lengths is not None:
            used &= np.arange(labels.shape[1]) < np.asarray(data.train.lengths)[:, None]
        counts = np.bincount(labels[used], minlength=size)
        return tuple((counts.sum() / (size * np.maximum(counts, 1))).tolist())
    if weights is not None and len(weights) != size:
        raise ValueError(
            f"{owner}: class_weights must have one number for each of the {size} classes, got "
            f"{len(weights)}"
        )
    return weights


def forecast_losses(
    forecast: Forecast, outputs: jax.Array, ys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of each target of a forecast, and the squared error of mean or median.

    ::

        point:      (output - y)^2
        gaussian:   negative log-likelihood (y - mean)^2 / (2 std^2) + log std + log(2 pi) / 2
        quantiles:  mean over the quantiles q of max(q e, (q - 1) e), e = y - output (pinball loss)

    Args:
      forecast: the properties of the forecast.
      outputs: outputs of the model, `[..., num_outputs]`.
      ys: the targets, `[..., num_targets]`.

    Returns:
      Two arrays of the shape of `ys`.
    """
    parts = outputs.reshape(*outputs.shape[:-1], -1, forecast.num_targets)
    if forecast.distribution == "quantiles":
        q = jnp.asarray(forecast.quantiles, outputs.dtype)[:, None]
        errors = ys[..., None, :] - parts
        median = jnp.sort(parts, axis=-2)[..., forecast.quantiles.index(0.5), :]
        losses = jnp.maximum(q * errors, (q - 1) * errors).mean(axis=-2)
        return losses, optax.squared_error(median, ys)
    squares = optax.squared_error(parts[..., 0, :], ys)
    if forecast.distribution == "point":
        return squares, squares
    std = jax.nn.softplus(parts[..., 1, :]) + MIN_STD
    return squares / (2 * std**2) + jnp.log(std) + 0.5 * math.log(2 * math.pi), squares


@dataclass(frozen=True)
class SequenceLoss:
    """The objective of a task on whole examples. It returns the carry unchanged."""

    objective: Objective

    def __call__(
        self, model: Any, carry: Carry, batch: Split, row_mask: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch; see `Loss`."""
        return carry, self.objective.compute_sums(apply_model(model, batch), batch, row_mask)


def set_label_smoothing(loss: Any, value: ArrayLike) -> Any:
    """Returns the loss of a task, which has an `Objective`, with another label smoothing."""
    return replace(loss, objective=loss.objective._replace(label_smoothing=value))


UserLoss = Callable[[Any, Any], Any]
"""A function `loss(model, batch)` that returns the mean loss, or `(mean loss, mean metric)`."""


@dataclass(frozen=True)
class BatchLoss:
    """Wraps a `UserLoss`, which returns means over the examples of a batch.

    It does not support rows of padding, so `row_mask` is ignored.
    """

    function: UserLoss

    def __call__(
        self, model: Any, carry: Carry, batch: Any, row_mask: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch; see `Loss`.

        Raises:
          ValueError: the loss or the metric is not a real scalar.
        """
        loss, metric = _split_result(self.function(model, batch))
        weight = jnp.asarray(num_examples(batch), jnp.float32)
        loss, metric = (jnp.asarray(value, jnp.float32) for value in (loss, metric))
        return carry, MetricSums(loss * weight, weight, metric * weight, weight)


def _split_result(result: Any) -> tuple[Any, Any]:
    """Returns loss and metric from the result of a `UserLoss`; raises ValueError if invalid."""
    pair = result if isinstance(result, tuple) and len(result) == 2 else (result, result)
    for name, value, kinds in (("loss", pair[0], "f"), ("metric", pair[1], "biuf")):
        got = checks.describe(value)
        if isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
            shape, dtype = jnp.shape(value), jnp.result_type(value)
            is_real = dtype.kind in kinds or jnp.issubdtype(dtype, jnp.floating)
            if is_real and shape == ():
                continue
            got = f"a {name} of shape {shape} and dtype {dtype}"
        raise ValueError(
            "fit: loss must return a real scalar, or a tuple (loss, metric) of scalars, got "
            f"{got}; return means over the batch"
        )
    return pair


def apply_model(model: Any, batch: Split) -> jax.Array:
    """Runs a `Classifier` or `SequenceToSequence` on a batch.

    Args:
      model: the model, in training or evaluation mode.
      batch: the inputs, and `lengths` and `resets` if there are any; a `Classifier` ignores
        `resets`.

    Returns:
      The outputs: `[B, K]` of a `Classifier`, `[B, T, K]` of a `SequenceToSequence`.
    """
    lengths = None if batch.lengths is None else jnp.asarray(batch.lengths)
    if isinstance(model, Classifier):
        return model(jnp.asarray(batch.xs), lengths=lengths)
    return model(jnp.asarray(batch.xs), lengths=lengths, resets=batch.resets)[1]
