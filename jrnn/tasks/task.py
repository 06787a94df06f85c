"""The interface of tasks: options, and a method that loads the three splits of a data set."""

import abc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from jrnn import checks

Target = Literal["class", "value", "class_per_step", "value_per_step"]
"""The kinds of targets; see `Split`."""
Metric = Literal["accuracy", "mse", "bits_per_character"]
"""The names of metrics; see `jrnn.train.Objective`."""


class Split(NamedTuple):
    """One part of a data set: NumPy arrays with the examples on the first axis.

    Attributes:
      xs: inputs, `[N, T, input]` float32, or tokens, `[N, T]` int32.
      ys: targets, by `Data.target`: "class" `[N]` int32; "value" `[N, K]` float32;
        "class_per_step" `[N, T]` int32; "value_per_step" `[N, T, K]` float32.
      lengths: `[N]` int32, the number of valid steps of each example; None means all T steps.
      metric_mask: `[N, T]` bool, only for targets per step, whether the metric includes a valid
        step; None means every valid step. The loss always includes every valid step.
      resets: `[N, T]` bool, only for targets per step, whether the carry is reset before a step,
        such as the first step of a document; None means no resets.
    """

    xs: np.ndarray
    ys: np.ndarray
    lengths: np.ndarray | None = None
    metric_mask: np.ndarray | None = None
    resets: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three splits, with the properties that determine the model and the loss.

    Attributes:
      train: the training split; all statistics are computed on it.
      validation: the split that selects the best weights.
      test: the split for the final results.
      target: kind of target, which determines the shape of `ys`; see `Split`.
      metric: name of the metric.
      input_size: number of channels of features, or size of the vocabulary of tokens.
      output_size: number of classes, or K, the number of channels of real-valued targets.
      baseline: name of a trivial predictor, and its `metric` on the test split.
      has_tokens: whether `xs` are tokens instead of features.
      image: function from the `xs` of one example to its image `[rows, columns]`, or None.
      vocabulary: the characters of a text, by id; None for other tasks.
      target_scale: `[K]`, the factors by which an error of a normalized target is converted to the
        original units; None if the targets are not normalized.
      class_names: names of the classes, by id, or None.
      causal: whether the model must be causal, because the inputs of later steps contain the target
        of a step.
      contiguous: whether the examples are consecutive windows of one series, so that the carry may
        be passed from one example to the next.
    """

    train: Split
    validation: Split
    test: Split
    target: Target
    metric: Metric
    input_size: int
    output_size: int
    baseline: tuple[str, float]
    has_tokens: bool = False
    image: Callable[[np.ndarray], np.ndarray] | None = None
    vocabulary: tuple[str, ...] | None = None
    target_scale: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    causal: bool = False
    contiguous: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all examples and of the vocabulary, which detects changes of the data."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.validation, *self.test):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update("".join(self.vocabulary or ()).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task(checks.ConvertsFields, abc.ABC):
    """A task to learn. Subclasses are frozen dataclasses whose fields are the options.

    All fields have simple types, so that a task can be set by flags and saved as JSON. The
    constructor validates the fields, and `load` reads or generates the data.
    """

    @abc.abstractmethod
    def load(self) -> Data:
        """Reads or generates the data; the same fields and files give the same data."""
