"""The interface between the trainer and one or many networks on their devices."""

from collections.abc import Sequence
from typing import Any, Protocol

from jrnn.train.step.state import StepMetrics, TrainState, Weights


class Placement(Protocol):
    """The networks of a run on their devices.

    Attributes:
      max_steps: largest number of steps of one call of `train_steps`.
    """

    max_steps: int

    def init_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        ...

    def train_steps(
        self, state: TrainState, first: int, count: int, active: Sequence[bool]
    ) -> tuple[TrainState, StepMetrics]:
        """Dispatches the steps `first, ..., first + count - 1` of all active networks.

        It donates the state, and does not wait for the result.
        """
        ...

    def split_metrics(self, metrics: StepMetrics, count: int) -> list[StepMetrics]:
        """The metrics `[count]` of each network, from those of `train_steps` as NumPy arrays."""
        ...

    def validate(self, weights: Weights) -> list[dict[str, float]] | None:
        """Loss and metric of each network on the validation data; None if there are none."""
        ...

    def evaluate(self, weights: Weights, examples: Any) -> list[dict[str, float]]:
        """Loss and metric of each network on other data."""
        ...

    def copy_where(self, chosen: Sequence[bool], new: Weights, old: Weights) -> Weights:
        """A copy of the new weights of the chosen networks, and the old ones of the others."""
        ...

    def fetch(self, tree: Any) -> Any:
        """Arrays that are fully addressable by this process."""
        ...

    def restore(self, state: TrainState, best: Weights) -> tuple[TrainState, Weights]:
        """Puts arrays that were read from a checkpoint on the devices."""
        ...
