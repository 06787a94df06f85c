"""What a task is: options that load into three splits of one data set."""

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
    """One part of a data set: NumPy arrays with the example axis first.

    Attributes:
      xs: inputs, `[N, T, input]` float32, or `[N, T]` int32 where they are tokens.
      ys: targets, by `Data.target`: "class" `[N]` int32; "value" `[N, K]` float32;
        "class_per_step" `[N, T]` int32; "value_per_step" `[N, T, K]` float32.
      lengths: `[N]` int32, the number of valid steps of each example; None: all T of them.
      scored: `[N, T]` bool, the steps that the metric counts where targets are per step; None:
        every valid step. The loss counts every valid step.
      resets: `[N, T]` bool, the steps before which the carry starts anew, such as the first of a
        document; None: none. For targets per step.
    """

    xs: np.ndarray
    ys: np.ndarray
    lengths: np.ndarray | None = None
    scored: np.ndarray | None = None
    resets: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in its three splits, and what a model needs to know of it.

    Attributes:
      train: what a model learns from; every statistic comes from it alone.
      validation: what choices are made by.
      test: what is reported.
      target: what there is to predict, and the form of `ys`.
      metric: how well it is predicted.
      input_size: channels of a feature input, or size of the vocabulary of tokens.
      output_size: number of classes, or K of a value.
      baseline: name of a trivial predictor and what it reaches on the test split, in `metric`.
      tokens: whether `xs` holds ids instead of features.
      image: from the `xs` of one example to its picture `[rows, columns]`, where it has one.
      vocabulary: the characters of a text, by id.
      target_scale: `[K]`, factor from a normalised target back to the user's units; None where
        targets are in their own units.
      class_names: what the classes are called, by id.
      causal: whether the inputs of later steps give the target of a step away, so that no model may
        read them.
      contiguous: whether examples follow one another without a gap, as windows of one series; a run
        may then hand the carry over from one to the next.
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
        """A short digest of all examples, which differs if the data have changed."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.validation, *self.test):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update("".join(self.vocabulary or ()).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task(abc.ABC):
    """What to learn. Subclasses are frozen dataclasses of options, and so their own config.

    Every field is of a simple type, so that a task can be written as flags or as JSON. Making a
    task checks its fields and reads nothing; `load` does the work.
    """

    @abc.abstractmethod
    def load(self) -> Data:
        """Reads or draws the data: the same for the same fields."""
