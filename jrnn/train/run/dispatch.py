"""Asynchronous dispatch: the device computes steps while the metrics of earlier ones are read."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax

from jrnn.distributed import ProcessGroup
from jrnn.train.config.experiment import RunOptions
from jrnn.train.step.state import StepMetrics, TrainState

MAX_STEPS, MAX_ROWS = 256, 2**16
"""Largest number of steps, and of examples, in one dispatch."""
MAX_SECONDS = 0.25
"""How long a dispatch should take at most, since signals are handled between dispatches."""


class Dispatched(NamedTuple):
    """The metrics of the steps of one dispatch.

    Attributes:
      first: the first of these steps, counted from 1.
      steps: number of steps.
      metrics: arrays whose last axis has at least `steps` entries; the others are not used.
    """

    first: int
    steps: int
    metrics: StepMetrics


class Dispatcher:
    """Sends steps to the device, several at once, so that it does not wait for Python."""

    def __init__(
        self,
        train_steps: Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]],
        max_steps: int,
        options: RunOptions,
        group: ProcessGroup,
    ):
        """For a function `(state, first, count) -> (state, metrics)`, the same in all processes."""
        self._train_steps, self._max_steps = train_steps, max_steps
        self._options, self._group = options, group
        self._count = 1
        self._in_flight: deque[Dispatched] = deque()
        self._timer = time.perf_counter()

    def send(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Sends some steps to the device, and none after the next evaluation.

        Args:
          state: before these steps.
          step: number of steps done or in flight.

        Returns:
          The state after them, and their number.
        """
        every, last = self._options.eval_every, self._options.steps
        max_count = -self._group.all_max("steps of a dispatch", -self._count)[0]
        count = min(every - step % every, last - step, max_count)
        state, metrics = self._train_steps(state, step, count)
        self._in_flight.append(Dispatched(step + 1, count, metrics))
        return state, count

    def in_flight(self) -> int:
        """The number of dispatches whose metrics have not been read yet."""
        return len(self._in_flight)

    def read(self) -> Dispatched:
        """Waits for the oldest dispatch, and returns its metrics as NumPy arrays."""
        first, count, on_device = self._in_flight.popleft()
        metrics = jax.device_get(on_device)
        now = time.perf_counter()
        step_seconds, self._timer = (now - self._timer) / count, now
        max_count = int(MAX_SECONDS / max(step_seconds, 1e-9))
        self._count = max(1, min(self._max_steps, 2 * self._count, max_count))
        return Dispatched(first, count, metrics)

    def reset_timer(self) -> None:
        """Excludes the time until now, in which the device did something else, from the timing."""
        self._timer = time.perf_counter()


def max_steps_of(options: RunOptions) -> int:
    """The largest number of steps in one dispatch."""
    return max(1, min(MAX_STEPS, MAX_ROWS // options.batch_size))
