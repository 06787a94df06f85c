"""What a run minimises and what it reports, by the kind of target."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jrnn.tasks.task import Data, Split

HIGHER_IS_BETTER = {"accuracy": True, "mse": False, "bits_per_character": False}


def better(metric: str, one: float, other: float) -> bool:
    """Whether one value of a metric is better than another."""
    return one > other if HIGHER_IS_BETTER[metric] else one < other


class Sums(NamedTuple):
    """Loss and metric, summed, with the weights to divide by: sums over batches add up exactly."""

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


class Objective(NamedTuple):
    """The loss for a kind of target, and the metric.

    ::

        "class", "class_per_step":   loss = cross-entropy in nats
        "value", "value_per_step":   loss = mean over values of (output - target)^2

        accuracy = share of right classes;  mse = loss;  bits_per_character = loss / log 2

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

    def sums(self, outputs: jax.Array, batch: Split, present: jax.Array | None = None) -> Sums:
        """Sums of loss and metric over a batch.

        Args:
          outputs: what the network gave: `[B, K]`, or `[B, T, K]` for targets at each step.
          batch: targets, lengths and scored steps.
          present: `[B]` bool, False for rows that only fill up the batch.
        """
        outputs = outputs.astype(jnp.float32)
        ys = jnp.asarray(batch.ys)
        valid = None
        if self.target.endswith("per_step") and batch.lengths is not None:
            valid = jnp.arange(ys.shape[1]) < jnp.asarray(batch.lengths)[:, None]
        if self.target.startswith("class"):
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, ys)
        else:
            # A NaN on padding would come back in the gradient, which multiplies it by zero.
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
        scored = counted if batch.scored is None else counted & jnp.asarray(batch.scored)
        return Sums(
            jnp.where(counted, losses, 0).sum(),
            counted.sum(),
            jnp.where(scored, metrics, 0).sum(),
            scored.sum(),
        )
