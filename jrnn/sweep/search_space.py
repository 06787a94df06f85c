"""The search space of a sweep: values of the fields of an experiment, as a grid or random.

seed=0:16                                 the ints from 0 to 15
optimizer.learning_rate=1e-4:1e-2:log8    eight values, evenly spaced on a logarithmic scale
network.dropout=0:0.5:lin6                six values, evenly spaced
optimizer.algorithm=adam,sgd              a list of values
cell=lstm,gru                             an argument of the config
optimizer.learning_rate=1e-4:1e-2:log     a range for random search only; or :lin
"""

import contextlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jrnn import checks
from jrnn.train.config.experiment import Experiment

RANGE = re.compile(
    r"(?P<ints>-?\d+:-?\d+)|(?P<first>[^:]+):(?P<last>[^:]+):(?P<scale>log|lin)(?P<count>\d*)"
)
DIGITS = 6
"""Significant digits of the values of a range."""


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      values: the values chosen for it as text, by name.
      experiment: the run.
    """

    values: dict[str, str]
    experiment: Experiment


class ExperimentSource(Protocol):
    """A config file, which makes an experiment from arguments and flags.

    Attributes:
      path: of the file.
      argument_names: of its function.
    """

    @property
    def path(self) -> Path: ...
    @property
    def argument_names(self) -> list[str]: ...

    def load(self, arguments: dict[str, str], flags: Sequence[str]) -> Experiment:
        """The experiment, with arguments of the function and with flags for its fields."""
        ...


@dataclass(frozen=True)
class Axis:
    """One dimension of the search space: a name and its values.

    Args:
      name: of a field of an experiment, such as "optimizer.learning_rate", or of an argument of
        the config.
      choices: values as text; empty for a range.
      scale: "log" or "lin", for a range that values are drawn from.
      ends: the ends of this range.
    """

    name: str
    choices: tuple[str, ...] = ()
    scale: str = ""
    ends: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Reads `name=values`; see the docstring of this module.

        Raises:
          ValueError: the text has another form.
        """
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not name or not values:
            raise ValueError(f"sweep: --over must be name=values such as seed=0:16, got {text!r}")
        if ":" not in values:
            return cls(name, tuple(values.split(",")))
        match = RANGE.fullmatch(values)
        if match is None:
            raise ValueError(
                "sweep: a range must be first:last with ints, first:last:log8 or first:last:lin8 "
                "for eight values, or first:last:log or first:last:lin for random search, got "
                f"{text!r}"
            )
        if match["ints"]:
            ints = range(*map(int, match["ints"].split(":")))
            return cls(name, tuple(map(str, ints))).require_choices(text)
        first, last = map(_parse_float, (match["first"], match["last"]))
        if not (math.isfinite(first + last) and (match["scale"] == "lin" or min(first, last) > 0)):
            raise ValueError(
                "sweep: the ends of a range must be finite, and positive on a log scale, got "
                f"{text!r}"
            )
        if not match["count"]:
            return cls(name, (), match["scale"], (first, last))
        spaced = np.geomspace if match["scale"] == "log" else np.linspace
        values = spaced(first, last, int(match["count"])).tolist()
        return cls(name, tuple(map(_format_float, values))).require_choices(text)

    def require_choices(self, text: str) -> "Axis":
        """The axis; raises ValueError if it has no values."""
        if not self.choices:
            raise ValueError(
                f"sweep: a range must have values, got {text!r}; write the lower end first"
            )
        return self

    def draw(self, rng: np.random.Generator) -> str:
        """A random value, uniform on the scale of the range."""
        if not self.scale:
            return self.choices[rng.integers(len(self.choices))]
        low, high = sorted(self.ends)
        if self.scale == "lin":
            return _format_float(rng.uniform(low, high))
        return _format_float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _parse_float(text: str) -> float:
    """The number, or NaN if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _format_float(value: float) -> str:
    return repr(float(f"{value:.{DIGITS}g}"))


def make_trials(
    source: ExperimentSource,
    flags: Sequence[str],
    over: Sequence[str],
    random: int | None = None,
    draw_seed: int = 0,
) -> list[Trial]:
    """The trials of a sweep.

    Args:
      source: the config file.
      flags: for the fields of its experiment, the same for all trials.
      over: axes as text; see the docstring of this module.
      random: number of random trials; None takes all combinations of values, the last name changing
        fastest.
      draw_seed: of the random trials.

    Raises:
      ValueError: a text has another form, a name is neither a field of the experiment nor an
        argument of the config, or a value is invalid.
      SystemExit: a value has the wrong type, with code 2; the message is on standard error.
    """
    axes = [Axis.parse(text) for text in over]
    names = [axis.name for axis in axes]
    if not axes:
        raise ValueError("sweep: --over must be given at least once, as in --over seed=0:16")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sweep: --over must give each name once, got {', '.join(repeated)} twice")
    if random is None:
        ranges = [axis.name for axis in axes if axis.scale]
        if ranges:
            raise ValueError(
                f"sweep: the range of {', '.join(ranges)} must have a number of values, as in "
                "1e-4:1e-2:log8; or draw random trials with --random 16"
            )
        rows = itertools.product(*(axis.choices for axis in axes))
    else:
        checks.positive_int("sweep", "random", random)
        rng = np.random.default_rng(draw_seed)
        rows = [tuple(axis.draw(rng) for axis in axes) for _ in range(random)]
    builder = _TrialBuilder(source, flags, names)
    return [builder.build(dict(zip(names, row, strict=True))) for row in rows]


class _TrialBuilder:
    """Builds trials, and parses each value once, in the same way as a flag of this name."""

    def __init__(self, source: ExperimentSource, flags: Sequence[str], names: Sequence[str]):
        self._source, self._flags = source, list(flags)
        self._base = lru_cache(maxsize=None)(self._load)
        self._value = lru_cache(maxsize=None)(self._parse)
        # Fields come first: `seed` is one, whatever arguments a config has.
        arguments = source.argument_names
        first = source.load({}, flags)
        self._config_arguments = {n for n in names if n in arguments and not _has(first, n)}
        for name in names:
            if name in self._config_arguments or "." in name or _has(first, name):
                continue
            choices = [*arguments, *(f.name for f in fields(first))]
            raise ValueError(
                f"sweep: --over must name a field of the experiment or an argument of "
                f"{source.path}, got {name}"
                + (checks.suggestion(name, choices) or f"; the names are {', '.join(choices)}")
            )

    def build(self, values: dict[str, str]) -> Trial:
        arguments = tuple((n, v) for n, v in values.items() if n in self._config_arguments)
        experiment = self._base(arguments)
        for name, text in values.items():
            if name not in self._config_arguments:
                experiment = _replace(experiment, name, self._value(arguments, name, text))
        return Trial(values, experiment)

    def _load(self, arguments: tuple[tuple[str, str], ...], *more: str) -> Experiment:
        return self._source.load(dict(arguments), [*self._flags, *more])

    def _parse(self, arguments: tuple[tuple[str, str], ...], name: str, text: str) -> Any:
        kind = type(_field(self._base(arguments), name))
        if kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)  # the same as by the flag, and 1000 times faster
        flag = f"--{name.replace('_', '-')}={text}"
        return _field(self._load(arguments, flag), name)


def _field(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _has(experiment: Experiment, name: str) -> bool:
    value: Any = experiment
    for part in name.split("."):
        if not is_dataclass(value) or part not in {f.name for f in fields(value)}:
            return False
        value = getattr(value, part)
    return True


def _replace(tree: Any, name: str, value: Any) -> Any:
    """A frozen dataclass with one field replaced, which may be nested."""
    first, dot, rest = name.partition(".")
    return replace(tree, **{first: _replace(getattr(tree, first), rest, value) if dot else value})
