"""The best evaluation of a run, and early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict


class BestState(TypedDict):
    """The JSON values of a `BestTracker`: its attributes `step` and `best`.

    `worse` is the attribute `num_without_improvement`.
    """

    step: int
    best: dict[str, float]
    worse: int


@dataclass
class BestTracker:
    """Stores the best evaluation, and counts the evaluations without improvement.

    Attributes:
      higher_is_better: whether a higher metric is better.
      patience: number of consecutive evaluations without improvement after which a run stops early;
        None disables early stopping.
      step: the training step of the best evaluation; without validation data, of the newest
        weights that were stored.
      best: the loss and metric of the best evaluation; empty before the first one.
      num_without_improvement: number of evaluations since the best one.
    """

    higher_is_better: bool
    patience: int | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    num_without_improvement: int = 0

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Records an evaluation, and returns whether it is the best so far."""
        if self.best and not self._is_better(metrics, self.best):
            self.num_without_improvement += 1
            return False
        self.step, self.best, self.num_without_improvement = step, metrics, 0
        return True

    def should_stop(self) -> bool:
        """Returns whether the patience is exhausted."""
        return self.patience is not None and self.num_without_improvement >= self.patience

    def is_better_than(self, other: "BestTracker") -> bool:
        """Returns whether the best evaluation is better than that of another network.

        Both must have an evaluation.
        """
        return self._is_better(self.best, other.best)

    def _is_better(self, one: dict[str, float], other: dict[str, float]) -> bool:
        a, b = one["metric"], other["metric"]
        return a > b if self.higher_is_better else a < b

    def state(self) -> BestState:
        """Returns JSON values to save in a checkpoint, for `restore`."""
        return {"step": self.step, "best": {**self.best}, "worse": self.num_without_improvement}

    def restore(self, saved: BestState) -> None:
        """Restores what `state` returned."""
        self.step, self.best = saved["step"], saved["best"]
        self.num_without_improvement = saved["worse"]


def index_of_best(trackers: Sequence[BestTracker]) -> int | None:
    """Returns the index of the tracker with the best metric, the first one if several are equal.

    Returns None if no tracker has an evaluation.
    """
    best = None
    for index, tracker in enumerate(trackers):
        if tracker.best and (best is None or tracker.is_better_than(trackers[best])):
            best = index
    return best
