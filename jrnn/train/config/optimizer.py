"""The optimizer of a run: a frozen dataclass that builds an optax transformation."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
from jax.typing import ArrayLike

from jrnn import checks

Algorithm = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["constant", "cosine", "linear"]
TRACEABLE_FIELDS = ("learning_rate", "weight_decay", "momentum", "clip_norm")
"""Fields of `Optimizer` that may be traced arrays, so that runs can be vectorized over them."""


@dataclass(frozen=True)
class Optimizer(checks.ConvertsFields):
    """Options of the optimizer: an algorithm, a learning rate schedule and gradient clipping.

    The learning rate at training step t = 0, ..., T - 1, with w = round(warmup * T) warm-up steps
    and s = (t - w) / (T - w), is::

        rate(t) = learning_rate * t / w                        if t < w, else
                  learning_rate                                for "constant"
                  learning_rate * (1 + cos(pi * s)) / 2        for "cosine"
                  learning_rate * (1 - s)                      for "linear"

    Args:
      learning_rate: the maximum of the learning rate, above 0.
      algorithm: "adam", "adamw", "sgd" or "rmsprop".
      schedule: "constant", "cosine" or "linear".
      warmup: fraction of all training steps with linear warm-up from 0, in [0, 1).
      weight_decay: decoupled weight decay, at least 0; only for "adamw".
      momentum: momentum, in [0, 1); only for "sgd" and "rmsprop".
      clip_norm: maximum global norm of the gradient, above 0; None disables clipping.

    Raises:
      ValueError: a name is unknown, a number is out of range, or the algorithm does not support an
        option.
    """

    learning_rate: float = 1e-3
    algorithm: Algorithm = "adam"
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        checks.one_of("Optimizer", "algorithm", self.algorithm, get_args(Algorithm))
        checks.one_of("Optimizer", "schedule", self.schedule, get_args(Schedule))
        checks.rate("Optimizer", "warmup", self.warmup)
        checks.rate("Optimizer", "momentum", self.momentum)
        checks.positive_number("Optimizer", "learning_rate", self.learning_rate)
        checks.non_negative_number("Optimizer", "weight_decay", self.weight_decay)
        if self.clip_norm is not None:
            checks.positive_number("Optimizer", "clip_norm", self.clip_norm)
        if self.weight_decay and self.algorithm != "adamw":
            raise ValueError(
                f"Optimizer: weight_decay={self.weight_decay} needs algorithm='adamw', "
                f"got {self.algorithm!r}"
            )
        if self.momentum and self.algorithm not in ("sgd", "rmsprop"):
            raise ValueError(
                f"Optimizer: momentum={self.momentum} needs algorithm='sgd' or 'rmsprop', "
                f"got {self.algorithm!r}"
            )

    def make_schedule(self, steps: int, peak: ArrayLike | None = None) -> optax.Schedule:
        """Returns the learning rate as a function of the training step.

        Args:
          steps: number of training steps of the run.
          peak: the maximum of the learning rate, which may be traced; None means `learning_rate`.
        """
        peak = self.learning_rate if peak is None else peak
        warmup_steps = round(self.warmup * steps)
        decay_steps = max(steps - warmup_steps, 1)
        decay = {
            "constant": optax.constant_schedule(peak),
            "cosine": optax.cosine_decay_schedule(peak, decay_steps),
            "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        }[self.schedule]
        if warmup_steps == 0:
            return decay
        warmup = optax.linear_schedule(0.0, peak, warmup_steps)
        return optax.join_schedules([warmup, decay], [warmup_steps])

    def build(self, steps: int, **arrays: jax.Array) -> optax.GradientTransformation:
        """Builds the optax transformation for a run of `steps` training steps.

        Args:
          steps: number of training steps of the run.
          **arrays: scalar arrays, which may be traced, that replace fields in `TRACEABLE_FIELDS`.
            The field itself then only determines whether the transformation has momentum or
            clipping.
        """
        value: Any = lambda name: arrays.get(name, getattr(self, name))
        rate = self.make_schedule(steps, value("learning_rate"))
        momentum = value("momentum") if self.momentum else None
        algorithm = {
            "adam": lambda: optax.adam(rate),
            "adamw": lambda: optax.adamw(rate, weight_decay=value("weight_decay")),
            "sgd": lambda: optax.sgd(rate, momentum=momentum),
            "rmsprop": lambda: optax.rmsprop(rate, momentum=momentum),
        }[self.algorithm]()
        if self.clip_norm is None:
            return algorithm
        return optax.chain(optax.clip_by_global_norm(value("clip_norm")), algorithm)
