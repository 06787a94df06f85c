"""Asynchronous dispatch: the device runs steps while Python reads the metrics of earlier steps."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax

from jrnn.distributed import ProcessGroup
from jrnn.train.config.experiment import RunOptions
from jrnn.train.step.state import StepMetrics, TrainState

MAX_STEPS = 256
"""Maximum number of training steps in one dispatch."""
MAX_EXAMPLES = 2**16
"""Maximum number of examples in one dispatch."""
MAX_SECONDS = 0.25
"""Target for the maximum duration of a dispatch, since signals are handled between dispatches."""


class DispatchMetrics(NamedTuple):
    """The metrics of the training steps of one dispatch.

    Attributes:
      first: the first of these steps, counted from 1.
      num_steps: number of steps.
      metrics: arrays whose last axis has at least `num_steps` entries; the others are not used.
    """

    first: int
    num_steps: int
    metrics: StepMetrics


class Dispatcher:
    """Dispatches several training steps at a time, so that the device does not wait for Python.

    The number of steps per dispatch starts at 1 and at most doubles each time, up to `max_steps`,
    as long as a dispatch takes at most about `MAX_SECONDS`.
    """

    def __init__(
        self,
        train_steps: Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]],
        max_steps: int,
        options: RunOptions,
        group: ProcessGroup,
    ):
        """Creates a dispatcher.

        Args:
          train_steps: a function `(state, first, count) -> (state, metrics)` that dispatches the
            steps `first, ..., first + count - 1`, counted from 0.
          max_steps: maximum number of steps per dispatch.
          options: the last step, and the steps at which the run is evaluated.
          group: the processes that train together; all dispatch the same number of steps.
        """
        self._train_steps, self._max_steps = train_steps, max_steps
        self._options, self._group = options, group
        self._count = 1
        self._in_flight: deque[DispatchMetrics] = deque()
        self._timer = time.perf_counter()

    def dispatch(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Dispatches the next steps, at most up to the next evaluation.

        Args:
          state: the state before these steps; it is donated.
          step: number of steps that are done or in flight.

        Returns:
          The state after these steps, and their number.
        """
        eval_every, last = self._options.eval_every, self._options.steps
        max_count = -self._group.all_max("steps of a dispatch", -self._count)[0]
        count = min(eval_every - step % eval_every, last - step, max_count)
        state, metrics = self._train_steps(state, step, count)
        self._in_flight.append(DispatchMetrics(step + 1, count, metrics))
        return state, count

    def num_in_flight(self) -> int:
        """Returns the number of dispatches whose metrics have not been read yet."""
        return len(self._in_flight)

    def read_oldest(self) -> DispatchMetrics:
        """Waits for the oldest dispatch, and returns its metrics as NumPy arrays."""
        first, count, on_device = self._in_flight.popleft()
        metrics = jax.device_get(on_device)
        now = time.perf_counter()
        step_seconds, self._timer = (now - self._timer) / count, now
        max_count = int(MAX_SECONDS / max(step_seconds, 1e-9))
        self._count = max(1, min(self._max_steps, 2 * self._count, max_count))
        return DispatchMetrics(first, count, metrics)

    def reset_timer(self) -> None:
        """Restarts the timer of a step, after the device did something other than training."""
        self._timer = time.perf_counter()


def max_dispatch_steps(options: RunOptions) -> int:
    """Returns the maximum number of training steps in one dispatch."""
    return max(1, min(MAX_STEPS, MAX_EXAMPLES // options.batch_size))
