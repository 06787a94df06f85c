"""The predictions of a network for the examples of a split, and their losses."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jrnn.tasks.conversion import Predictions, decode_outputs, decode_truth
from jrnn.tasks.task import Data, DataSpec, Split
from jrnn.train.data.sampler import take
from jrnn.train.scores import losses_and_metrics, score, scored_targets
from jrnn.train.step.evaluate import predict


class Evaluation(NamedTuple):
    """The predictions of a network for the N examples of a split.

    Attributes:
      spec: the properties of the data.
      name: the name of the split.
      examples: the split.
      predictions: the predictions, with the outputs.
      losses: the loss of each target, of the shape of the targets.
      mask: which targets are scored, of the same shape.
      scores: from `jrnn.train.scores.score`.
      image: the function `Data.image`, or None.
    """

    spec: DataSpec
    name: str
    examples: Split
    predictions: Predictions
    losses: np.ndarray
    mask: np.ndarray
    scores: dict[str, Any]
    image: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def example_losses(self) -> np.ndarray:
        """The mean loss of each example over its scored targets, `[N]`; 0 if it has none."""
        axes = tuple(range(1, self.losses.ndim))
        sums = np.where(self.mask, self.losses, 0).sum(axis=axes)
        return sums / np.maximum(self.mask.sum(axis=axes), 1)

    @property
    def _ranking(self) -> np.ndarray:
        """The examples that have scored targets, by their losses, the highest first.

        These are all examples if none has scored targets.
        """
        has_targets = np.asarray(self.mask.reshape(len(self.mask), -1).any(axis=1))
        order = np.argsort(-self.example_losses, kind="stable")
        return order[has_targets[order]] if has_targets.any() else order

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, by id."""
        return self.spec.names_of_classes

    @property
    def target_names(self) -> Sequence[str]:
        """The names of the channels of real-valued targets."""
        return self.spec.names_of_targets

    @property
    def truth(self) -> np.ndarray:
        """The targets, in original units if they are values."""
        if self.spec.has_classes:
            return self.examples.ys
        return decode_truth(self.spec, self.examples.ys, self.examples.xs)

    def rank(self, count: int) -> list[int]:
        """Returns the examples with the highest losses, the worst first."""
        return self._ranking[:count].tolist()

    def choose(self) -> dict[str, int]:
        """Returns the examples with the highest, the median and the lowest loss."""
        order = self._ranking
        chosen = {"highest loss": 0, "median loss": len(order) // 2, "lowest loss": -1}
        found = {name: int(order[position]) for name, position in chosen.items()}
        return {
            name: k
            for name, k in found.items()
            if [*found.values()].index(k) == [*found].index(name)
        }


def evaluate(
    model: Any, data: Data, name: str, half_widths: np.ndarray | None = None
) -> Evaluation:
    """Predicts for all examples of a split, and scores the predictions.

    Args:
      model: the network, in evaluation mode.
      data: the data.
      name: name of the split.
      half_widths: `Run.step_half_widths`, for the intervals of a point forecast.
    """
    examples: Split = getattr(data, name)
    outputs = predict(model, examples)
    steps = examples.xs.shape[1]
    lengths = np.full(len(outputs), steps) if examples.lengths is None else examples.lengths
    baselines = None if data.baselines is None else data.baselines(name)
    return Evaluation(
        data.spec,
        name,
        examples,
        decode_outputs(data.spec, outputs, np.asarray(lengths), examples.xs, half_widths),
        losses_and_metrics(data.spec, examples.ys, outputs)[0],
        scored_targets(data.spec, examples),
        score(data.spec, examples, outputs, baselines, half_widths),
        data.image,
    )


def chosen_examples(evaluation: Evaluation) -> tuple[list[str], Split]:
    """Returns a title and the arrays of the examples with the highest, median and lowest loss."""
    chosen = evaluation.choose()
    losses = evaluation.example_losses
    titles = [f"example {k}, {name}: {losses[k]:.4g}" for name, k in chosen.items()]
    return titles, take(evaluation.examples, np.array([*chosen.values()]))
