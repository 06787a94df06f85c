"""The optimiser of a run: optax, chosen by a frozen dataclass."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
from jax.typing import ArrayLike

from jrnn import checks

Algorithm = Literal["adam", "adamw", "sgd", "rmsprop"]
Schedule = Literal["constant", "cosine", "linear"]
ARRAYS = ("learning_rate", "weight_decay", "momentum", "clip_norm")
"""Fields of `Optimizer` that may be arrays: trials that differ in them share a compilation."""


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
      warmup: share of all steps, in [0, 1), over which the rate rises from 0.
      weight_decay: decoupled decay for adamw alone.
      momentum: for sgd and rmsprop alone.
      clip_norm: largest global norm of a gradient; None does not clip.

    Raises:
      ValueError: an unknown name, a number out of range, or an option that the algorithm lacks.
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

    def rate(self, steps: int, highest: ArrayLike | None = None) -> optax.Schedule:
        """The learning rate as a function of the step, over a run of `steps` steps.

        Args:
          steps: of the run.
          highest: in place of `learning_rate`.
        """
        highest = self.learning_rate if highest is None else highest
        rising = round(self.warmup * steps)
        falling = max(steps - rising, 1)
        after = {
            "constant": optax.constant_schedule(highest),
            "cosine": optax.cosine_decay_schedule(highest, falling),
            "linear": optax.linear_schedule(highest, 0.0, falling),
        }[self.schedule]
        if rising == 0:
            return after
        rise = optax.linear_schedule(0.0, highest, rising)
        return optax.join_schedules([rise, after], [rising])

    def build(self, steps: int, **arrays: jax.Array) -> optax.GradientTransformation:
        """The optax chain for a run of `steps` steps.

        Args:
          steps: of the run.
          **arrays: in place of fields in `ARRAYS`, whose own values then only say whether there is
            such a part at all; they may be traced.
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
