"""The optimizer of a run: a frozen dataclass that builds an optax transformation."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.fields import OptionFields

TRACEABLE_FIELDS = ("learning_rate", "weight_decay", "momentum", "clip_norm")
"""Fields of `Optimizer` that may be traced arrays, so that runs can be vectorized over them."""
SHORT_NAMES = {
    "constant": "constant_schedule",
    "cosine": "cosine_decay_schedule",
    "linear": "linear_schedule",
}
"""Schedules that have a short name in `Optimizer`."""
PEAK_NAMES = ("peak_value", "init_value", "value")
"""Arguments of a schedule of optax that may be the learning rate; the first one that it has."""
STEP_NAMES = ("decay_steps", "transition_steps")
"""Arguments of a schedule of optax that are the steps of the run by default."""
OWN_FIELDS = ("learning_rate", "weight_decay", "momentum")
"""Arguments of an algorithm of optax that are fields of `Optimizer`."""

Value = int | float | bool | str
Options = tuple[tuple[str, Value], ...]
"""Names and values of arguments."""


@dataclass(frozen=True)
class Optimizer(OptionFields):
    """Options of the optimizer: an algorithm, a learning rate schedule and gradient clipping.

    The learning rate at training step t = 0, ..., T - 1, with w = round(warmup * T) warm-up steps
    and s = (t - w) / (T - w), is::

        rate(t) = learning_rate * t / w                        if t < w, else
                  learning_rate                                for "constant"
                  learning_rate * (1 + cos(pi * s)) / 2        for "cosine"
                  learning_rate * (1 - s)                      for "linear"
                  optax.NAME(...)(t - w)                       for another schedule of optax

    Args:
      learning_rate: the maximum of the learning rate, above 0.
      algorithm: the name of an optimizer of optax, such as "adam", "adamw", "sgd" or "lion".
      schedule: "constant", "cosine" or "linear", or the name of a schedule of optax, such as
        "exponential_decay". `learning_rate` is its `peak_value`, else its `init_value`; its
        `decay_steps` or `transition_steps` are by default the T - w steps after the warm-up, and
        an `init_value` or `end_value` that optax requires is 0.
      warmup: fraction of all training steps with linear warm-up from 0, in [0, 1).
      weight_decay: decoupled weight decay, at least 0; only for algorithms that have it, such as
        "adamw" and "lion".
      momentum: momentum, in [0, 1); only for algorithms that have it, such as "sgd" and "rmsprop";
        0 means the default of optax.
      clip_norm: maximum global norm of the gradient, above 0; None disables clipping.
      options: other arguments of the algorithm, such as (("b1", 0.95), ("b2", 0.98)).
      schedule_options: other arguments of the schedule, such as (("decay_rate", 0.5),); for
        "piecewise_constant_schedule" also steps and factors, such as (("1000", 0.1),).

    Raises:
      ValueError: a name is unknown, a number is out of range, or the algorithm or the schedule does
        not support an option or lacks one.
    """

    learning_rate: float = 1e-3
    algorithm: str = "adam"
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float | None = 1.0
    options: Options = ()
    schedule_options: Options = ()

    def __post_init__(self) -> None:
        checks.one_of("Optimizer", "algorithm", self.algorithm, algorithms())
        checks.one_of("Optimizer", "schedule", self.schedule, schedules())
        checks.rate("Optimizer", "warmup", self.warmup)
        checks.rate("Optimizer", "momentum", self.momentum)
        checks.positive_number("Optimizer", "learning_rate", self.learning_rate)
        checks.non_negative_number("Optimizer", "weight_decay", self.weight_decay)
        if self.clip_norm is not None:
            checks.positive_number("Optimizer", "clip_norm", self.clip_norm)
        for name in ("weight_decay", "momentum"):
            if getattr(self, name) and name not in _parameters(algorithms()[self.algorithm]):
                known = [key for key, each in algorithms().items() if name in _parameters(each)]
                raise ValueError(
                    f"Optimizer: {name}={getattr(self, name)} needs one of the algorithms "
                    f"{', '.join(known)}, got {self.algorithm!r}"
                )
        for name in ("options", "schedule_options"):
            _check_pairs(name, getattr(self, name))
        _check_options(self.algorithm, self.options)
        if not self.accepts_schedule and not self._is_constant:
            raise ValueError(
                f"Optimizer: algorithm={self.algorithm!r} needs schedule='constant' and no warmup, "
                f"got schedule={self.schedule!r} and warmup={self.warmup}"
            )
        _check_schedule(self.schedule, self.schedule_options)

    @property
    def _is_constant(self) -> bool:
        return self.warmup == 0 and schedules()[self.schedule] is optax.constant_schedule

    @property
    def accepts_schedule(self) -> bool:
        """Whether the learning rate of the algorithm may change during the training."""
        return _accepts_schedule(self.algorithm, self.options)

    @property
    def has_weight_decay(self) -> bool:
        """Whether the algorithm has the option `weight_decay`."""
        return "weight_decay" in _parameters(algorithms()[self.algorithm])

    @property
    def depends_on_steps(self) -> bool:
        """Whether the learning rate at a step depends on the number of steps of the run."""
        given = {name for name, _ in self.schedule_options}
        return self.warmup > 0 or any(
            name in _parameters(schedules()[self.schedule]) and name not in given
            for name in STEP_NAMES
        )

    def make_schedule(self, steps: int, peak: ArrayLike | None = None) -> optax.Schedule:
        """Returns the learning rate as a function of the training step.

        Args:
          steps: number of training steps of the run.
          peak: the maximum of the learning rate, which may be traced; None means `learning_rate`.

        Raises:
          ValueError: an option of the schedule is invalid for this number of steps.
        """
        peak = self.learning_rate if peak is None else peak
        warmup_steps = round(self.warmup * steps)
        decay_steps = max(steps - warmup_steps, 1)
        decay = _make_schedule(self.schedule, self.schedule_options, peak, decay_steps)
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

        Raises:
          ValueError: as for `make_schedule`.
        """
        value: Any = lambda name: arrays.get(name, getattr(self, name))
        arguments: dict[str, Any] = dict(self.options)
        rate = value("learning_rate")
        arguments["learning_rate"] = (
            self.make_schedule(steps, rate) if self.accepts_schedule else rate
        )
        if self.has_weight_decay:
            arguments["weight_decay"] = value("weight_decay")
        if self.momentum:
            arguments["momentum"] = value("momentum")
        algorithm = algorithms()[self.algorithm](**arguments)
        if self.clip_norm is None:
            return algorithm
        return optax.chain(optax.clip_by_global_norm(value("clip_norm")), algorithm)


@lru_cache
def algorithms() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Returns the optimizers of optax by name: its functions that take a learning rate."""
    return {
        name: function
        for name, function in inspect.getmembers(optax, inspect.isfunction)
        if "learning_rate" in _parameters(function) and not name.startswith(("scale_by_", "_"))
    }


@lru_cache
def schedules() -> dict[str, Callable[..., optax.Schedule]]:
    """Returns the schedules of optax by name: its functions that take a value at some step."""
    functions = dict(inspect.getmembers(optax.schedules, inspect.isfunction))
    named = {n: f for n, f in functions.items() if {*PEAK_NAMES} & _parameters(f).keys()}
    return {short: functions[name] for short, name in SHORT_NAMES.items()} | named


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _check_pairs(name: str, pairs: Any) -> None:
    """Raises unless the value is a tuple of names and values, each name once."""
    is_pair = lambda pair: isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
    if not isinstance(pairs, tuple) or not all(map(is_pair, pairs)):
        raise TypeError(
            f"Optimizer: {name} must be a tuple of names and values such as (('b1', 0.9),), got "
            f"{checks.describe(pairs)}"
        )
    names = [key for key, _ in pairs]
    if repeated := [key for key in names if names.count(key) > 1]:
        raise ValueError(f"Optimizer: {name} must have each name once, got {repeated[0]!r} twice")


def _check_options(name: str, options: Options) -> None:
    """Raises ValueError unless the options are those of the algorithm."""
    names = [key for key in _parameters(algorithms()[name]) if key not in OWN_FIELDS]
    for key, value in options:
        if key in OWN_FIELDS:
            raise ValueError(f"Optimizer: options must not have {key!r}; set the field {key}")
        checks.one_of("Optimizer", f"an option of {name}", key, names)
        _check_value("options", key, value)


@cache
def _accepts_schedule(name: str, options: Options) -> bool:
    """Returns whether the learning rate of the algorithm may be a schedule.

    Raises:
      ValueError: the algorithm cannot be built, or needs more than gradients, such as the loss.
    """

    def update_once(rate: Any) -> None:
        params = {"w": jnp.zeros((2, 2))}
        optimizer = algorithms()[name](**{"learning_rate": rate, **dict(options)})
        optimizer.update(params, optimizer.init(params), params)

    try:
        jax.eval_shape(lambda: update_once(optax.constant_schedule(1e-3)))
    except Exception:
        try:
            jax.eval_shape(lambda: update_once(1e-3))
        except Exception as error:  # optax does not check its arguments
            raise ValueError(
                f"Optimizer: algorithm={name!r} must need only gradients, and options={options} "
                f"must be valid, got {type(error).__name__}: {error}; use another algorithm, or "
                "other options"
            ) from error
        return False
    return True


@cache
def _check_schedule(name: str, options: Options) -> None:
    """Raises ValueError unless the options are those of the schedule, and none is missing."""
    parameters = _parameters(schedules()[name])
    peak = _peak_name(parameters)
    names = [key for key in parameters if key not in (peak, "boundaries_and_scales")]
    for key, value in options:
        if not ("boundaries_and_scales" in parameters and key.isdecimal()):
            checks.one_of("Optimizer", f"an option of the schedule {name}", key, names)
        _check_value("schedule_options", key, value)
    defaults = (peak, *STEP_NAMES, "end_value", "init_value")
    given = {key for key, _ in options}
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in (*defaults, *given):
            raise ValueError(
                f"Optimizer: schedule={name!r} needs the option {key!r}; add it to "
                f"schedule_options: --optimizer.schedule-options {key} VALUE"
            )


def _check_value(field: str, key: str, value: Any) -> None:
    if not isinstance(value, bool | str):
        checks.finite_number("Optimizer", f"{key} in {field}", value)


def _peak_name(parameters: dict[str, Any]) -> str:
    return next(name for name in PEAK_NAMES if name in parameters)


def _make_schedule(name: str, options: Options, peak: Any, steps: int) -> optax.Schedule:
    """Builds a schedule of optax; `steps` is the default of its number of steps."""
    function = schedules()[name]
    parameters = _parameters(function)
    arguments: dict[str, Any] = {key: steps for key in STEP_NAMES if key in parameters}
    for key in ("end_value", "init_value"):
        if key in parameters and parameters[key].default is inspect.Parameter.empty:
            arguments[key] = 0.0
    arguments |= {_peak_name(parameters): peak}
    arguments |= {key: value for key, value in options if key in parameters}
    if factors := {int(key): value for key, value in options if key not in parameters}:
        arguments["boundaries_and_scales"] = factors
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Optimizer: schedule={name!r} must have valid options for {steps} steps, got "
            f"{options}: {error}"
        ) from error
