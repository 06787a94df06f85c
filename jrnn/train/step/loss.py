"""The loss and metric of a training step: those of tasks, and those of users."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jrnn.cell import Carry
from jrnn.nn import Classifier
from jrnn.tasks.task import Data, Split
from jrnn.train.data.sampler import num_examples

HIGHER_IS_BETTER = {"accuracy": True, "mse": False, "bits_per_character": False}


class MetricSums(NamedTuple):
    """Weighted sums of loss and metric, and their weights: sums over batches add up exactly."""

    loss: jax.Array
    loss_weight: jax.Array
    metric: jax.Array
    metric_weight: jax.Array

    def means(self) -> dict[str, float]:
        """The mean loss and metric."""
        return {
            "loss": float(self.loss / self.loss_weight),
            "metric": float(self.metric / self.metric_weight),
        }


class Loss(Protocol):
    """The loss and metric of a model on a batch."""

    def __call__(
        self, model: Any, carry: Carry, batch: Any, present: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch.

        Args:
          model: an `nnx.Module` in training or evaluation mode.
          carry: the carry of the previous batch, if it is passed on; else empty.
          batch: the examples.
          present: `[B]` bool, False for rows that pad the batch; None if there are none.

        Returns:
          The carry for the next batch, and the sums of loss and metric.
        """
        ...


class Objective(NamedTuple):
    """The loss and metric of a kind of target.

    ::

        "class", "class_per_step":   loss = cross-entropy in nats
        "value", "value_per_step":   loss = mean over values of (output - target)^2

        accuracy = fraction of correct classes;  mse = loss;  bits_per_character = loss / log 2

    Attributes:
      target: as in `jrnn.tasks.Data`.
      metric: as in `jrnn.tasks.Data`.
    """

    target: str
    metric: str

    @classmethod
    def of(cls, data: Data) -> "Objective":
        """The objective of a task."""
        return cls(data.target, data.metric)

    def sums(
        self, outputs: jax.Array, batch: Split, present: jax.Array | None = None
    ) -> MetricSums:
        """Sums of loss and metric over a batch.

        Args:
          outputs: of the model: `[B, K]`, or `[B, T, K]` for targets at each step.
          batch: targets, lengths and scored steps.
          present: `[B]` bool, False for rows that pad the batch.
        """
        outputs = outputs.astype(jnp.float32)
        ys = jnp.asarray(batch.ys)
        valid = None
        if self.target.endswith("per_step") and batch.lengths is not None:
            valid = jnp.arange(ys.shape[1]) < jnp.asarray(batch.lengths)[:, None]
        if self.target.startswith("class"):
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, ys)
        else:
            # A NaN in padding would reach the gradient, in which it is multiplied by zero.
            ys = ys if valid is None else jnp.where(valid[..., None], ys, 0)
            losses = optax.squared_error(outputs, ys).mean(axis=-1)
        metrics = {
            "accuracy": lambda: (outputs.argmax(axis=-1) == ys).astype(jnp.float32),
            "mse": lambda: losses,
            "bits_per_character": lambda: losses / math.log(2),
        }[self.metric]()
        counted = jnp.ones(losses.shape, bool)
        if valid is not None:
            counted &= valid
        if present is not None:
            counted &= present.reshape(present.shape + (1,) * (losses.ndim - 1))
        scored = counted if batch.metric_mask is None else counted & jnp.asarray(batch.metric_mask)
        return MetricSums(
            jnp.where(counted, losses, 0).sum(),
            counted.sum(),
            jnp.where(scored, metrics, 0).sum(),
            scored.sum(),
        )


@dataclass(frozen=True)
class SequenceLoss:
    """The objective of a task on whole examples; no carry is passed on."""

    objective: Objective

    def __call__(
        self, model: Any, carry: Carry, batch: Split, present: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch; see `Loss`."""
        return carry, self.objective.sums(apply_model(model, batch), batch, present)


UserLoss = Callable[[Any, Any], Any]
"""`loss(model, batch) -> mean loss` or `-> (mean loss, mean metric)`, both scalars."""


@dataclass(frozen=True)
class BatchLoss:
    """A loss that a user wrote, the mean over the examples of a batch."""

    function: UserLoss

    def __call__(
        self, model: Any, carry: Carry, batch: Any, present: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch; see `Loss`.

        Raises:
          ValueError: the loss or the metric is not a real scalar.
        """
        result = self.function(model, batch)
        loss, metric = result if isinstance(result, tuple) else (result, result)
        for name, value in {"loss": loss, "metric": metric}.items():
            is_real = jnp.issubdtype(jnp.result_type(value), jnp.floating)
            if jnp.shape(value) != () or (name == "loss" and not is_real):
                raise ValueError(
                    f"fit: loss must return a real scalar, or a tuple (loss, metric) of two; got "
                    f"a {name} of shape {jnp.shape(value)} and dtype {jnp.result_type(value)}"
                )
        weight = jnp.asarray(num_examples(batch), jnp.float32)
        loss, metric = (jnp.asarray(value, jnp.float32) for value in (loss, metric))
        return carry, MetricSums(loss * weight, weight, metric * weight, weight)


def apply_model(model: Any, batch: Split) -> jax.Array:
    """The outputs of a `Classifier` or `SequenceToSequence` for a batch."""
    lengths = None if batch.lengths is None else jnp.asarray(batch.lengths)
    if isinstance(model, Classifier):
        return model(jnp.asarray(batch.xs), lengths=lengths)
    return model(jnp.asarray(batch.xs), lengths=lengths, resets=batch.resets)[1]
