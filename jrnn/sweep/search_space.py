"""The search space of a sweep: a grid, or random samples, of values for fields of an experiment.

The syntax of an axis is `NAME=VALUES`::

    optimizer.algorithm=adam,sgd              a list of values
    cell=lstm,gru                             a list of values for an argument of the config
    seed=0:16                                 the ints from 0 to 15
    optimizer.learning_rate=1e-4:1e-2:log8    8 values from 1e-4 to 1e-2, evenly spaced in the log
    network.dropout=0:0.5:lin6                6 values from 0 to 0.5, evenly spaced
    optimizer.learning_rate=1e-4:1e-2:log     a log-uniform distribution, for random search only
    network.dropout=0:0.5:lin                 a uniform distribution, for random search only
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
MAX_TRIALS = 10_000
"""Maximum number of trials of a sweep."""
NUM_DIGITS = 6
"""Number of significant digits of the floats in a range or from a distribution."""


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      values: the value of each axis as text, by name of the axis.
      experiment: the experiment with these values.
    """

    values: dict[str, str]
    experiment: Experiment


class ExperimentSource(Protocol):
    """A config file, which makes an experiment from arguments and flags; see `config.ConfigFile`.

    Attributes:
      path: path of the file.
      argument_names: names of the arguments of its `get_config`.
    """

    @property
    def path(self) -> Path: ...
    @property
    def argument_names(self) -> list[str]: ...

    def load(self, arguments: dict[str, str], flags: Sequence[str]) -> Experiment:
        """Returns the experiment for arguments of `get_config`, and flags that set fields."""
        ...


@dataclass(frozen=True)
class Axis:
    """One axis of the search space: a name, and a list or a distribution of values.

    Args:
      name: name of a field of an experiment, such as "optimizer.learning_rate", or of an argument
        of the config.
      choices: the values as text; empty for a distribution.
      scale: "log" for a log-uniform and "lin" for a uniform distribution; empty for a list.
      bounds: the bounds of the distribution.
    """

    name: str
    choices: tuple[str, ...] = ()
    scale: str = ""
    bounds: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Parses `NAME=VALUES`; see the docstring of this module.

        Raises:
          ValueError: the text has another form.
        """
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not name or not values:
            raise ValueError(f"sweep: --over must be NAME=VALUES such as seed=0:16, got {text!r}")
        if ":" not in values:
            return cls(name, tuple(values.split(",")))
        match = RANGE.fullmatch(values)
        if match is None:
            raise ValueError(
                "sweep: a range must have the form FIRST:LAST with ints, FIRST:LAST:log8 or "
                "FIRST:LAST:lin8 for eight values, or FIRST:LAST:log or FIRST:LAST:lin for random "
                f"search, got {text!r}"
            )
        if match["ints"]:
            ints = range(*map(int, match["ints"].split(":")))
            _check_count(text, ints.stop - ints.start)  # `len` fails for huge ranges
            return cls(name, tuple(map(str, ints))).require_choices(text)
        first, last = map(_parse_float, (match["first"], match["last"]))
        if not (math.isfinite(first + last) and (match["scale"] == "lin" or min(first, last) > 0)):
            raise ValueError(
                "sweep: the bounds of a range must be finite, and positive on a log scale, got "
                f"{text!r}"
            )
        if not match["count"]:
            return cls(name, (), match["scale"], (first, last))
        make_values = np.geomspace if match["scale"] == "log" else np.linspace
        count = int(match["count"])
        _check_count(text, count)
        values = make_values(first, last, count).tolist()
        return cls(name, tuple(map(_format_float, values))).require_choices(text)

    def require_choices(self, text: str) -> "Axis":
        """Returns the axis; raises ValueError if it has no values."""
        if not self.choices:
            raise ValueError(
                f"sweep: a range must not be empty, got {text!r}; write ints with the lower bound "
                "first, or a number of values above 0"
            )
        return self

    def sample(self, rng: np.random.Generator) -> str:
        """Samples a choice, or a value that is uniform on the scale of the distribution."""
        if not self.scale:
            return self.choices[rng.integers(len(self.choices))]
        low, high = sorted(self.bounds)
        if self.scale == "lin":
            return _format_float(rng.uniform(low, high))
        return _format_float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _check_count(text: str, count: int) -> None:
    """Raises ValueError if there are more than `MAX_TRIALS` values or trials."""
    if count > MAX_TRIALS:
        raise ValueError(
            f"sweep: there must be at most {MAX_TRIALS} trials, and values of a field, got {count} "
            f"for {text}; use fewer values, or a distribution such as 1e-4:1e-2:log with --random "
            "16"
        )


def _parse_float(text: str) -> float:
    """Returns the number, or NaN if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _format_float(value: float) -> str:
    return repr(float(f"{value:.{NUM_DIGITS}g}"))


def make_trials(
    source: ExperimentSource,
    flags: Sequence[str],
    over: Sequence[str],
    random: int | None = None,
    draw_seed: int = 0,
) -> list[Trial]:
    """Makes the trials of a sweep.

    Args:
      source: the config file.
      flags: flags for fields of the experiment, the same for all trials.
      over: the axes as text; see the docstring of this module.
      random: number of random trials; None means a grid of all combinations of values, in which the
        last axis changes fastest.
      draw_seed: seed of the random trials.

    Returns:
      The trials, in order.

    Raises:
      ValueError: the text of an axis is invalid, a name is neither a field of the experiment nor an
        argument of the config, a value is invalid, or there are more than `MAX_TRIALS` trials.
    """
    axes = [Axis.parse(text) for text in over]
    names = [axis.name for axis in axes]
    if not axes:
        raise ValueError("sweep: --over must be given at least once, as in --over seed=0:16")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"sweep: the names in --over must be unique, got {', '.join(repeated)} more than once"
        )
    if random is None:
        ranges = [axis.name for axis in axes if axis.scale]
        if ranges:
            raise ValueError(
                f"sweep: the range of {', '.join(ranges)} must have a number of values, as in "
                "1e-4:1e-2:log8; or use random trials, as in --random 16"
            )
        _check_count("--over", math.prod(len(axis.choices) for axis in axes))
        combinations = itertools.product(*(axis.choices for axis in axes))
    else:
        checks.int_between("sweep", "random", random, 1, MAX_TRIALS)
        rng = np.random.default_rng(draw_seed)
        combinations = [tuple(axis.sample(rng) for axis in axes) for _ in range(random)]
    builder = _TrialBuilder(source, flags, names)
    return [builder.build(dict(zip(names, values, strict=True))) for values in combinations]


class _TrialBuilder:
    """Builds trials; parses each distinct value once, in the same way as the flag of its name."""

    def __init__(self, source: ExperimentSource, flags: Sequence[str], names: Sequence[str]):
        self._source, self._flags = source, list(flags)
        self._load_cached = lru_cache(maxsize=None)(self._load)
        self._parse_cached = lru_cache(maxsize=None)(self._parse)
        # A field of the experiment, such as `seed`, has precedence over an argument of the config.
        arguments = source.argument_names
        default = source.load({}, flags)
        self._config_arguments = {n for n in names if n in arguments and not _has_field(default, n)}
        for name in names:
            if name in self._config_arguments or "." in name or _has_field(default, name):
                continue
            choices = [*arguments, *(f.name for f in fields(default))]
            raise ValueError(
                f"sweep: --over must name a field of the experiment or an argument of "
                f"{source.path}, got {name}"
                + (checks.suggestion(name, choices) or f"; the names are {', '.join(choices)}")
            )

    def build(self, values: dict[str, str]) -> Trial:
        """Builds the trial with these values, by name of the axis."""
        arguments = tuple((n, v) for n, v in values.items() if n in self._config_arguments)
        experiment = self._load_cached(arguments)
        for name, text in values.items():
            if name not in self._config_arguments:
                value = self._parse_cached(arguments, name, text)
                experiment = _replace_field(experiment, name, value)
        return Trial(values, experiment)

    def _load(self, arguments: tuple[tuple[str, str], ...], *flags: str) -> Experiment:
        return self._source.load(dict(arguments), [*self._flags, *flags])

    def _parse(self, arguments: tuple[tuple[str, str], ...], name: str, text: str) -> Any:
        cls = type(_get_field(self._load_cached(arguments), name))
        if cls in (int, float):
            with contextlib.suppress(ValueError):
                return cls(text)  # equals the value of the flag, and is 1000 times faster
        flag = f"--{name.replace('_', '-')}={text}"
        return _get_field(self._load(arguments, flag), name)


def _get_field(experiment: Experiment, name: str) -> Any:
    """Returns a field, which may be nested; None if it does not exist."""
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _has_field(experiment: Experiment, name: str) -> bool:
    """Returns whether a field, which may be nested, exists."""
    value: Any = experiment
    for part in name.split("."):
        if not is_dataclass(value) or part not in {f.name for f in fields(value)}:
            return False
        value = getattr(value, part)
    return True


def _replace_field(tree: Any, name: str, value: Any) -> Any:
    """Returns the dataclass with one field replaced, which may be nested."""
    first, dot, rest = name.partition(".")
    new = _replace_field(getattr(tree, first), rest, value) if dot else value
    return replace(tree, **{first: new})
