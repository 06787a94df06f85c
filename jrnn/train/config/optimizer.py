"""The optimizer of a run: a frozen dataclass that builds an optax transformation."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
from jax.typing import ArrayLike

from jrnn import checks

Algorithm = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["constant", "cosine", "linear"]
ARRAYS = ("learning_rate", "weight_decay", "momentum", "clip_norm")
"""Fields of `Optimizer` that may be traced: trials that differ only in them share a compilation."""


@dataclass(frozen=True)
class Optimizer:
    """Clip by global norm, then an algorithm, with a schedule for its learning rate.

    ::

        rate(t) = learning_rate * t / w                        over the w warm-up steps, then
                  learning_rate                                "constant"
                  learning_rate * (1 + cos(pi s)) / 2          "cosine", s from 0 to 1 over the rest
                  learning_rate * (1 - s)                      "linear"

    Args:
      learning_rate: the highest rate.
      algorithm: "adam", "adamw", "sgd" or "rmsprop".
      schedule: "constant", "cosine" or "linear".
      warmup: fraction of all steps, in [0, 1), over which the rate rises from 0.
      weight_decay: decoupled weight decay, for adamw only.
      momentum: for sgd and rmsprop only.
      clip_norm: maximum global norm of the gradient; None does not clip.

    Raises:
      ValueError: a name is unknown, a number is out of range, or the algorithm lacks an option.
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
        if not self.learning_rate > 0:
            raise ValueError(f"Optimizer: learning_rate must be above 0, got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"Optimizer: weight_decay must be at least 0, got {self.weight_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                "Optimizer: clip_norm must be above 0, or None for no clipping, got "
                f"{self.clip_norm}"
            )
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

    def rate(self, steps: int, peak: ArrayLike | None = None) -> optax.Schedule:
        """The learning rate as a function of the step, over a run of `steps` steps.

        Args:
          steps: number of steps of the run.
          peak: the highest rate; by default `learning_rate`.
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
        """The optax chain for a run of `steps` steps.

        Args:
          steps: number of steps of the run.
          **arrays: values for the fields in `ARRAYS`, which may be traced; the values of the fields
            themselves then only determine whether the chain has such a part.
        """
        value: Any = lambda name: arrays.get(name, getattr(self, name))
        rate = self.rate(steps, value("learning_rate"))
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
