"""Losses and metrics: those of tasks, and functions that users write."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jrnn.cell import Carry
from jrnn.nn import Classifier
from jrnn.tasks.forecast import MIN_STD, Forecast
from jrnn.tasks.task import Data, Split
from jrnn.train.data.sampler import num_examples

HIGHER_IS_BETTER = {"accuracy": True, "mse": False, "bits_per_character": False}
"""For each metric of a task, whether a higher value is better."""


class MetricSums(NamedTuple):
    """Weighted sums of loss and metric, and the sums of the weights.

    Means over several batches are exact even if the batches have different weights: add the sums of
    the batches, then divide.

    Attributes:
      loss: the weighted sum of losses, a float32 scalar.
      loss_weight: the sum of their weights, such as the number of valid steps.
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

        "class", "class_per_step":   loss = cross-entropy in nats
        "value", "value_per_step":   loss = mean over the K values of (output - target)^2

        accuracy = fraction of correct classes;  mse = loss;  bits_per_character = loss / log 2

    For a forecast, the loss and the mean squared error are means over the targets that are not NaN.
    The loss is that of `forecast_losses`, and the metric is of the mean or median.

    Attributes:
      target: the kind of target, as in `jrnn.tasks.Data`.
      metric: the name of the metric, as in `jrnn.tasks.Data`.
      forecast: the properties of a forecast, or None.
    """

    target: str
    metric: str
    forecast: Forecast | None = None

    @classmethod
    def from_data(cls, data: Data) -> "Objective":
        """Returns the objective of a task."""
        return cls(data.target, data.metric, data.forecast)

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
        valid = self._valid_steps(batch, ys)
        if self.forecast is not None:
            masks = self._masks(batch, ys, row_mask)
            return self._forecast_sums(self.forecast, outputs, ys, batch, masks)
        if self.target.startswith("class"):
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, ys)
        else:
            # Without this, a NaN in padding makes the gradient NaN, since 0 * NaN is NaN.
            ys = ys if valid is None else jnp.where(valid[..., None], ys, 0)
            losses = optax.squared_error(outputs, ys).mean(axis=-1)
        metrics = {
            "accuracy": lambda: (outputs.argmax(axis=-1) == ys).astype(jnp.float32),
            "mse": lambda: losses,
            "bits_per_character": lambda: losses / math.log(2),
        }[self.metric]()
        loss_mask, metric_mask = self._masks(batch, losses, row_mask)
        return MetricSums(
            jnp.where(loss_mask, losses, 0).sum(),
            loss_mask.sum(),
            jnp.where(metric_mask, metrics, 0).sum(),
            metric_mask.sum(),
        )

    def _valid_steps(self, batch: Split, ys: jax.Array) -> jax.Array | None:
        """Returns a mask `[B, T]` of the valid steps; None if all are valid."""
        if not self.target.endswith("per_step") or batch.lengths is None:
            return None
        return jnp.arange(ys.shape[1]) < jnp.asarray(batch.lengths)[:, None]

    def _masks(
        self, batch: Split, items: jax.Array, row_mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns which items loss and metric include; `items` begins with the axes of items."""
        loss_mask = jnp.ones(items.shape[: 2 if self.target.endswith("per_step") else 1], bool)
        valid = self._valid_steps(batch, items)
        if valid is not None:
            loss_mask &= valid
        if row_mask is not None:
            loss_mask &= row_mask.reshape(row_mask.shape + (1,) * (loss_mask.ndim - 1))
        if batch.metric_mask is None:
            return loss_mask, loss_mask
        return loss_mask, loss_mask & jnp.asarray(batch.metric_mask)

    def _forecast_sums(
        self,
        forecast: Forecast,
        outputs: jax.Array,
        ys: jax.Array,
        batch: Split,
        masks: tuple[jax.Array, jax.Array],
    ) -> MetricSums:
        """Sums loss and metric over the valid targets that are not missing."""
        observed = ~jnp.isnan(ys)
        valid = self._valid_steps(batch, ys)
        if valid is not None:
            observed &= valid[..., None]
        # Without this, a NaN makes the gradient NaN, since 0 * NaN is NaN.
        ys = jnp.where(observed, ys, 0)
        losses, squares = forecast_losses(forecast, outputs, ys)
        in_loss, in_metric = (observed & mask[..., None] for mask in masks)
        size = ys.shape[-1]
        return MetricSums(
            jnp.where(in_loss, losses, 0).sum() / size,
            in_loss.sum() / size,
            jnp.where(in_metric, squares, 0).sum() / size,
            in_metric.sum() / size,
        )


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
          ValueError: the loss is not a real scalar, or the metric is not a scalar.
        """
        result = self.function(model, batch)
        loss, metric = result if isinstance(result, tuple) else (result, result)
        for name, value in {"loss": loss, "metric": metric}.items():
            is_real = jnp.issubdtype(jnp.result_type(value), jnp.floating)
            if jnp.shape(value) != () or (name == "loss" and not is_real):
                raise ValueError(
                    "fit: loss must return a real scalar, or a tuple (loss, metric) of scalars, "
                    f"got a {name} of shape {jnp.shape(value)} and dtype {jnp.result_type(value)}; "
                    "return means over the batch"
                )
        weight = jnp.asarray(num_examples(batch), jnp.float32)
        loss, metric = (jnp.asarray(value, jnp.float32) for value in (loss, metric))
        return carry, MetricSums(loss * weight, weight, metric * weight, weight)


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
