"""The protocol of the networks that a `Trainer` trains."""

from collections.abc import Sequence
from typing import Any, Protocol

from jrnn.train.step.state import StepMetrics, TrainState, Weights


class Trainable(Protocol):
    """One or many networks of the same structure, with their data, on their devices.

    Attributes:
      max_steps: maximum number of steps per call of `train_steps`.
    """

    max_steps: int

    def init_state(self) -> TrainState:
        """Returns the state before the first step, on the devices."""
        ...

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches the training steps `first, ..., first + count - 1`, counted from 0.

        The state is donated. The method returns before the steps are computed.

        Args:
          state: the state before these steps.
          first: the first step.
          count: number of steps, at most `max_steps`.
          active: for each network, whether it is trained; the others stay unchanged.

        Returns:
          The new state, and the metrics; see `split_metrics`.
        """
        ...

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """Splits the metrics of `train_steps` by network, and keeps the first `count` steps."""
        ...

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Returns the loss and the metric of each network; None without validation data."""
        ...

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Returns the loss and the metric of each network on other data."""
        ...

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """Returns copies of the new weights of chosen networks, and the old weights of others."""
        ...

    def fetch(self, tree: Any) -> Any:
        """Gathers arrays, so that this process can read all of their values."""
        ...

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts the arrays of a checkpoint on the devices."""
        ...
