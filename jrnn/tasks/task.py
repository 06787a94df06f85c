"""The interface of tasks: options, and a method that loads three splits of a data set."""

import abc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

Target = Literal["class", "value", "class_per_step", "value_per_step"]
Metric = Literal["accuracy", "mse", "bits_per_character"]


class Split(NamedTuple):
    """One part of a data set: NumPy arrays with the examples on the first axis.

    Attributes:
      xs: inputs, `[N, T, input]` float32, or tokens, `[N, T]` int32.
      ys: targets, by `Data.target`: "class" `[N]` int32; "value" `[N, K]` float32;
        "class_per_step" `[N, T]` int32; "value_per_step" `[N, T, K]` float32.
      lengths: `[N]` int32, the number of valid steps of each example; None means all T steps.
      scored: `[N, T]` bool, the steps that the metric counts, for targets per step; None means
        every valid step. The loss counts every valid step.
      resets: `[N, T]` bool, the steps before which the carry is reset, such as the first step of a
        document, for targets per step; None means no resets.
    """

    xs: np.ndarray
    ys: np.ndarray
    lengths: np.ndarray | None = None
    scored: np.ndarray | None = None
    resets: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three splits, with the properties that determine the model and the loss.

    Attributes:
      train: the training split; all statistics are computed on it.
      validation: the split that the best weights are chosen by.
      test: the split that results are reported on.
      target: the kind of target, and the form of `ys`.
      metric: name of the metric.
      input_size: number of channels of features, or size of the vocabulary of tokens.
      output_size: number of classes, or K for values.
      baseline: name of a trivial predictor, and its `metric` on the test split.
      tokens: whether `xs` are tokens instead of features.
      image: function from the `xs` of one example to its image `[rows, columns]`, or None.
      vocabulary: the characters of a text, by id.
      target_scale: `[K]`, factor from normalized targets to the units of the user; None if targets
        are not normalized.
      class_names: names of the classes, by id.
      causal: whether inputs of later steps reveal the target of a step, so that the model must be
        causal.
      contiguous: whether examples are consecutive windows of one series, so that a run may pass the
        carry on from one to the next.
    """

    train: Split
    validation: Split
    test: Split
    target: Target
    metric: Metric
    input_size: int
    output_size: int
    baseline: tuple[str, float]
    tokens: bool = False
    image: Callable[[np.ndarray], np.ndarray] | None = None
    vocabulary: tuple[str, ...] | None = None
    target_scale: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    causal: bool = False
    contiguous: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all examples, to detect that the data have changed."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.validation, *self.test):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update("".join(self.vocabulary or ()).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task(abc.ABC):
    """A task to learn. Subclasses are frozen dataclasses, whose fields are the options.

    All fields have simple types, so that a task can be set by flags and saved as JSON. The
    constructor checks the fields, and `load` reads or generates the data.
    """

    @abc.abstractmethod
    def load(self) -> Data:
        """Reads or generates the data, deterministically for the same fields."""
