"""Steps on their way: one dispatch is under way while the reports of the one before are read."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jrnn.processes import Team
from jrnn.train.experiment import Experiment
from jrnn.train.step import Report

MOST_STEPS, MOST_ROWS = 256, 2**16
"""Steps, and examples, in one dispatch at most."""
SLICE = 0.25
"""Seconds that a dispatch is to take at most, since a signal is heard after it."""


class Source(Protocol):
    """Where the examples of the next steps come from.

    Attributes:
      most: steps in one dispatch at most.
    """

    most: int

    def next(self, first: int, count: int) -> tuple[Any, ...]:
        """What `count` steps from `first` on take, counted from 0."""
        ...


class Reports(NamedTuple):
    """What some steps report.

    Attributes:
      first: the first of these steps, counted from 1.
      steps: how many they are.
      values: arrays whose last axis is at least as long; what is beyond them counts for nothing.
    """

    first: int
    steps: int
    values: Report


class Pipeline:
    """Sends steps off so that the device does not wait for Python."""

    def __init__(
        self,
        steps: Callable[..., tuple[Any, Report]],
        source: Source,
        experiment: Experiment,
        team: Team | None = None,
    ):
        """For a function `(state, *examples, count) -> (state, reports)`, the same in a team."""
        self._steps, self._source, self._experiment = steps, source, experiment
        self._team = team or Team()
        self._pace = 1
        self._under_way: deque[Reports] = deque()
        self._read = time.perf_counter()

    def send(self, state: Any, step: int) -> tuple[Any, int]:
        """Sends some steps off, and none beyond the next evaluation.

        Args:
          state: before them.
          step: steps done or under way.

        Returns:
          The state after them, and how many they are.
        """
        every, last = self._experiment.eval_every, self._experiment.steps
        pace = -self._team.most("pace", -self._pace)[0]
        count = min(every - step % every, last - step, pace)
        state, values = self._steps(state, *self._source.next(step, count), count)
        self._under_way.append(Reports(step + 1, count, values))
        return state, count

    def waiting(self) -> int:
        """Dispatches whose reports were not read yet."""
        return len(self._under_way)

    def read(self) -> Reports:
        """Waits for the oldest dispatch, and takes its reports off the device."""
        first, steps, on_device = self._under_way.popleft()
        values = jax.device_get(on_device)
        now = time.perf_counter()
        step_seconds, self._read = (now - self._read) / steps, now
        fitting = int(SLICE / max(step_seconds, 1e-9))
        self._pace = max(1, min(self._source.most, 2 * self._pace, fitting))
        return Reports(first, steps, values)

    def rested(self) -> None:
        """Says that the device did something else until now."""
        self._read = time.perf_counter()


def most_steps(experiment: Experiment) -> int:
    """The most steps in one dispatch."""
    return max(1, min(MOST_STEPS, MOST_ROWS // experiment.batch_size))
