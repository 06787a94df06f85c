"""The best evaluation of a run, and its patience."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class BestTracker:
    """Keeps the best evaluation, and counts those since then.

    Attributes:
      higher_is_better: whether a higher metric is better.
      patience: number of evaluations without improvement after which a run should stop, or None.
      step: the step of the best evaluation.
      best: loss and metric of it; empty before the first evaluation.
      worse: number of evaluations since then.
    """

    higher_is_better: bool
    patience: int | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Records an evaluation, and returns whether it is the best so far."""
        if self.best and not self._is_better(metrics, self.best):
            self.worse += 1
            return False
        self.step, self.best, self.worse = step, metrics, 0
        return True

    def should_stop(self) -> bool:
        """Whether the patience is exhausted."""
        return self.patience is not None and self.worse >= self.patience

    def is_better_than(self, other: "BestTracker") -> bool:
        """Whether the best evaluation is better than that of another network."""
        return self._is_better(self.best, other.best)

    def _is_better(self, one: dict[str, float], other: dict[str, float]) -> bool:
        a, b = one["metric"], other["metric"]
        return a > b if self.higher_is_better else a < b

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves, for `restore`."""
        return {name: asdict(self)[name] for name in ("step", "best", "worse")}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.step, self.best, self.worse = saved["step"], saved["best"], saved["worse"]


def index_of_best(trackers: Sequence[BestTracker]) -> int | None:
    """The index of the tracker with the best metric; the first of equals, None if there is none."""
    best = None
    for index, tracker in enumerate(trackers):
        if tracker.best and (best is None or tracker.is_better_than(trackers[best])):
            best = index
    return best
