"""What a sweep goes over: values of the fields of an experiment, as a grid or drawn at random.

seed=0:16                               the ints from 0 to 15
optim.learning_rate=1e-4:1e-2:log8      eight values, evenly spaced on a logarithmic scale
network.dropout=0:0.5:lin6              six values, evenly spaced
optim.algorithm=adam,sgd                these
cell=lstm,gru                           an argument of the config
optim.learning_rate=1e-4:1e-2:log       anything between, for random search alone; or :lin
"""

import contextlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from jrnn import checks, config
from jrnn.train.experiment import Experiment

RANGE = re.compile(
    r"(?P<ints>-?\d+:-?\d+)|(?P<first>[^:]+):(?P<last>[^:]+):(?P<scale>log|lin)(?P<count>\d*)"
)
DIGITS = 6
"""Significant digits of the values between two ends."""


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
      values: the texts of the values that were chosen for it, by name.
      experiment: the run.
    """

    values: dict[str, str]
    experiment: Experiment


@dataclass(frozen=True)
class Axis:
    """One name and the values that it takes.

    Args:
      name: of a field of an experiment, such as "optim.learning_rate", or of the config's
        arguments.
      choices: texts of single values; empty for a range.
      scale: "log" or "lin", of a range that values are drawn from.
      ends: of this range.
    """

    name: str
    choices: tuple[str, ...] = ()
    scale: str = ""
    ends: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Reads `name=values`; see the top of this module.

        Raises:
          ValueError: it is not of this form.
        """
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not name or not values:
            raise ValueError(f"sweep: --over takes name=values such as seed=0:16, got {text!r}")
        if ":" not in values:
            return cls(name, tuple(values.split(",")))
        found = RANGE.fullmatch(values)
        if found is None:
            raise ValueError(
                "sweep: a range is first:last with ints, or first:last:log8 or first:last:lin8 for "
                f"so many values, or :log or :lin to draw from, got {text!r}"
            )
        if found["ints"]:
            ints = range(*map(int, found["ints"].split(":")))
            return cls(name, tuple(map(str, ints))).filled(text)
        first, last = map(_number, (found["first"], found["last"]))
        if not (math.isfinite(first + last) and (found["scale"] == "lin" or min(first, last) > 0)):
            raise ValueError(
                "sweep: the ends of a range must be numbers, and above 0 on a log scale, got "
                f"{text!r}"
            )
        if not found["count"]:
            return cls(name, (), found["scale"], (first, last))
        between = np.geomspace if found["scale"] == "log" else np.linspace
        values = between(first, last, int(found["count"])).tolist()
        return cls(name, tuple(map(_text, values))).filled(text)

    def filled(self, text: str) -> "Axis":
        """The axis, if there is any value on it."""
        if not self.choices:
            raise ValueError(f"sweep: there is no value in {text!r}; ranges go from low to high")
        return self

    def draw(self, rng: np.random.Generator) -> str:
        """A value at random, all being equally likely on the scale of the range."""
        if not self.scale:
            return self.choices[rng.integers(len(self.choices))]
        low, high = sorted(self.ends)
        if self.scale == "lin":
            return _text(rng.uniform(low, high))
        return _text(math.exp(rng.uniform(math.log(low), math.log(high))))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(value: float) -> str:
    return repr(float(f"{value:.{DIGITS}g}"))


def members(
    spec: str,
    flags: Sequence[str],
    over: Sequence[str],
    random: int | None = None,
    draw_seed: int = 0,
) -> list[Member]:
    """The runs of a sweep.

    Args:
      spec: config file with its arguments, as for `config.load`.
      flags: over the fields of its experiment, the same for all members.
      over: texts as at the top of this module.
      random: number of members that are drawn; None takes every combination of all values, the last
        name changing fastest.
      draw_seed: of the draw.

    Raises:
      ValueError: a text that cannot be read, a name that neither the experiment nor the config has,
        or a value that an experiment refuses.
      SystemExit: a value of the wrong type, with code 2; said on standard error.
    """
    axes = [Axis.parse(text) for text in over]
    names = [axis.name for axis in axes]
    if not axes:
        raise ValueError("sweep: name what it goes over, as in: --over seed=0:16")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sweep: --over names {', '.join(repeated)} more than once")
    if random is None:
        drawn = [axis.name for axis in axes if axis.scale]
        if drawn:
            raise ValueError(
                f"sweep: {', '.join(drawn)} has no number of values; write it as in "
                "1e-4:1e-2:log8, or draw members by --random 16"
            )
        rows = itertools.product(*(axis.choices for axis in axes))
    else:
        checks.positive_int("sweep", "random", random)
        rng = np.random.default_rng(draw_seed)
        rows = [tuple(axis.draw(rng) for axis in axes) for _ in range(random)]
    make = _Maker(spec, flags, names)
    return [make(dict(zip(names, row, strict=True))) for row in rows]


class _Maker:
    """Makes members, and reads each value once, as a flag of this name would be read."""

    def __init__(self, spec: str, flags: Sequence[str], names: Sequence[str]):
        path, self._arguments = config.split_spec(spec)
        self._path, self._flags = str(path), list(flags)
        self._base = lru_cache(maxsize=None)(self._load)
        self._value = lru_cache(maxsize=None)(self._read)
        # Fields come first: `seed` is one, whatever arguments a config has.
        known = config.arguments(spec)
        first = config.load(spec, flags)
        self._of_config = {n for n in names if n in known and not _has(first, n)}
        for name in names:
            if name in self._of_config or "." in name or _has(first, name):
                continue
            choices = [*known, *(f.name for f in fields(first))]
            raise ValueError(
                f"sweep: {name} is no field of an experiment and no argument of {self._path}"
                + (checks.suggestion(name, choices) or f"; there are {', '.join(choices)}")
            )

    def __call__(self, values: dict[str, str]) -> Member:
        arguments = tuple((n, v) for n, v in values.items() if n in self._of_config)
        experiment = self._base(arguments)
        for name, text in values.items():
            if name not in self._of_config:
                experiment = _replaced(experiment, name, self._value(arguments, name, text))
        return Member(values, experiment)

    def _load(self, arguments: tuple[tuple[str, str], ...], *more: str) -> Experiment:
        pairs = self._arguments | dict(arguments)
        spec = ",".join(f"{name}={value}" for name, value in pairs.items())
        return config.load(f"{self._path}:{spec}" if spec else self._path, [*self._flags, *more])

    def _read(self, arguments: tuple[tuple[str, str], ...], name: str, text: str) -> Any:
        kind = type(_field(self._base(arguments), name))
        if kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)  # what a flag would be read as, in a thousandth of the time
        flag = f"--{name.replace('_', '-')}={text}"
        return _field(self._load(arguments, flag), name)


def _field(experiment: Experiment, name: str) -> Any:
    found: Any = experiment
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _has(experiment: Experiment, name: str) -> bool:
    found: Any = experiment
    for part in name.split("."):
        if not is_dataclass(found) or part not in {f.name for f in fields(found)}:
            return False
        found = getattr(found, part)
    return True


def _replaced(tree: Any, name: str, value: Any) -> Any:
    """A frozen dataclass with one field of its, or of one within, replaced."""
    first, dot, rest = name.partition(".")
    return replace(tree, **{first: _replaced(getattr(tree, first), rest, value) if dot else value})
