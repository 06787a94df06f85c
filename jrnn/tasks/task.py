"""The interface of tasks: options, and a method that loads the three splits of a data set."""

import abc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jrnn import checks
from jrnn.fields import OptionFields
from jrnn.tasks import csv_file, npz
from jrnn.tasks.common import StandardScaler
from jrnn.tasks.forecast import Forecast

Target = Literal["class", "value", "class_per_step", "value_per_step"]
"""The kinds of targets; see `Split`."""
Metric = Literal["accuracy", "mse", "bits_per_character"]
"""The names of metrics; see `jrnn.train.Objective`."""


ENCODING = ("vocabulary", "class_names", "input_scaler", "target_scaler")
"""The fields of `DataSpec` that say how the units, texts and classes of a user are encoded."""


class Split(NamedTuple):
    """One part of a data set: NumPy arrays with the examples on the first axis.

    Attributes:
      xs: inputs, `[N, T, input]` float32, or tokens, `[N, T]` int32.
      ys: targets, by `Data.target`: "class" `[N]` int32; "value" `[N, K]` float32;
        "class_per_step" `[N, T]` int32; "value_per_step" `[N, T, K]` float32. The loss and the
        metric ignore labels of `jrnn.tasks.labels.IGNORED_LABEL` (-100), and values that are NaN,
        such as those of a forecast that are not known.
      lengths: `[N]` int32, the number of valid steps of each example; None means all T steps.
      metric_mask: `[N, T]` bool, only for targets per step, whether the metric includes a valid
        step; None means every valid step. The loss does not depend on it.
      resets: `[N, T]` bool, only for targets per step, whether the carry is reset before a step,
        such as the first step of a document; None means no resets.
    """

    xs: np.ndarray
    ys: np.ndarray
    lengths: np.ndarray | None = None
    metric_mask: np.ndarray | None = None
    resets: np.ndarray | None = None


class RawExamples(NamedTuple):
    """Examples as a user has them, in original units and classes.

    Attributes:
      xs: an array `[N, T, input]`, tokens `[N, T]`, or a list of N arrays or texts.
      ys: the targets of `Split`, in original units, or names of classes; None if they are unknown.
      lengths: `[N]` ints, the number of valid steps of each example; None means all.
      metric_mask: `[N, T]` bool, the steps that the metric includes; None means all.
      baselines: normalized outputs of trivial predictors by name, like `ys`; None if unknown.
    """

    xs: Any
    ys: np.ndarray | None = None
    lengths: np.ndarray | None = None
    metric_mask: np.ndarray | None = None
    baselines: dict[str, np.ndarray] | None = None


class Context(NamedTuple):
    """The last rows of one or more time series, after which a forecast begins.

    Attributes:
      xs: for each series its last rows, `[T_n, input]` in original units.
      names: for each series its name; "" if there is only one.
      dates: for each series the dates of the forecast rows as text; None without dates.
      calendar: for each series the calendar features of the forecast rows, `[horizon, features]`.
    """

    xs: list[np.ndarray]
    names: list[str]
    dates: list[list[str]] | None
    calendar: list[np.ndarray]


class Origins(NamedTuple):
    """Rows of time series after which forecasts begin, with the true rows.

    Attributes:
      context: the rows up to each of N origins.
      truth: `[N, horizon, K]` in original units, NaN where a value is missing.
      baselines: trivial forecasts by name, of the same shape.
    """

    context: Context
    truth: np.ndarray
    baselines: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The properties of a data set that a model and its users need; saved in the folder of a run.

    Attributes:
      target: kind of target, which determines the shape of `ys`; see `Split`.
      metric: name of the metric.
      input_size: number of channels of features, or size of the vocabulary of tokens.
      output_size: number of classes, or K, the number of channels of real-valued targets.
      baseline: name of the best trivial predictor, and its `metric` on the test split.
      baseline_outputs: the constant outputs of this predictor, `output_size` logits or normalized
        values; None if it has no constant outputs.
      has_tokens: whether `xs` are tokens instead of features.
      vocabulary: the characters of a text, by id; None for other tasks.
      class_names: names of the classes, by id, or None.
      input_names: names of the channels of features, or None.
      target_names: names of the channels of real-valued targets, or None.
      input_scaler: normalizes the features; None if they are not normalized.
      target_scaler: normalizes real-valued targets; None if they are not normalized.
      causal: whether the model must be causal, because the inputs of later steps contain the target
        of a step.
      contiguous: whether the examples are consecutive windows of one series, so that the carry may
        be passed from one example to the next.
      forecast: the properties of a forecast; None for other tasks. `output_size` is then its
        `num_targets`, and the targets are changes from the current values.

    Raises:
      ValueError: the sizes and names of a forecast contradict each other.
    """

    target: Target
    metric: Metric
    input_size: int
    output_size: int
    baseline: tuple[str, float]
    baseline_outputs: tuple[float, ...] | None = None
    has_tokens: bool = False
    vocabulary: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    input_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    input_scaler: StandardScaler | None = None
    target_scaler: StandardScaler | None = None
    causal: bool = False
    contiguous: bool = False
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        forecast = self.forecast
        if forecast is not None and (
            self.target != "value_per_step"
            or self.output_size != forecast.num_targets
            or self.input_names != forecast.input_names
            or self.input_size != len(forecast.input_names)
            or len(self.target_names or ()) != self.output_size
            or self.target_names != forecast.output_names
            or self.input_scaler is None
            or len(self.input_scaler.std) != self.input_size
            or self.target_scaler is None
            or len(self.target_scaler.std) != self.output_size
        ):
            raise ValueError("Data: sizes, names and scalers must be those of the forecast")

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a network, for each example or step."""
        return self.output_size if self.forecast is None else self.forecast.num_outputs

    @property
    def per_step(self) -> bool:
        """Whether there is a target at each time step."""
        return self.target.endswith("per_step")

    @property
    def has_classes(self) -> bool:
        """Whether the targets are classes instead of values."""
        return self.target.startswith("class")

    @property
    def names_of_classes(self) -> Sequence[str]:
        """The names of the classes, by id; their numbers if they have no names."""
        return self.class_names or self.vocabulary or [str(k) for k in range(self.output_size)]

    @property
    def names_of_targets(self) -> Sequence[str]:
        """The names of the channels of real-valued targets; numbered if they have no names."""
        return self.target_names or [f"target {k}" for k in range(self.output_size)]

    def invert_targets(self, values: np.ndarray) -> np.ndarray:
        """Converts normalized targets `[..., output_size]` to original units, in float64."""
        if self.target_scaler is None:
            return np.asarray(values, np.float64)
        return self.target_scaler.invert(values)


@dataclass(frozen=True, eq=False)
class Data(DataSpec):
    """A data set in three splits, with the properties that determine the model and the loss.

    The other attributes are those of `DataSpec`.

    Attributes:
      train: the training split; all statistics are computed on it.
      validation: the split that selects the best weights.
      test: the split for the final results.
      image: function from the `xs` of one example to its image `[rows, columns]`, or None.
      baselines: function from the name of a split to the normalized outputs of trivial predictors
        on it, by name, which have the shape of `ys`; None if there are none.
    """

    train: Split
    validation: Split
    test: Split
    image: Callable[[np.ndarray], np.ndarray] | None = None
    baselines: Callable[[str], dict[str, np.ndarray]] | None = None

    def __eq__(self, other: object) -> bool:
        return self is other  # not the method of DataSpec, since arrays have no truth value

    def __hash__(self) -> int:
        return id(self)

    @property
    def spec(self) -> DataSpec:
        """The data set without its splits."""
        return DataSpec(**{f.name: getattr(self, f.name) for f in fields(DataSpec)})

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all examples, the vocabulary and the names of classes.

        It detects changes of the data.
        """
        arrays = (*self.train, *self.validation, *self.test)
        text = "".join(self.vocabulary or ()) + "\0".join(self.class_names or ())
        return hash_arrays((array for array in arrays if array is not None), text)


def hash_arrays(arrays: Iterable[Any], text: str = "") -> str:
    """Returns a short hash of the dtypes, shapes and entries of arrays, and of a text."""
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    digest.update(text.encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task(OptionFields, abc.ABC):
    """A task to learn. Subclasses are frozen dataclasses whose fields are the options.

    All fields have simple types, so that a task can be set by flags and saved as JSON. The
    constructor validates the fields, and `load` reads or generates the data.
    """

    @abc.abstractmethod
    def load(self) -> Data:
        """Reads or generates the data; the same fields and files give the same data."""

    def load_like(self, spec: DataSpec) -> Data:
        """Loads the data in the encoding of other data: normalization, vocabulary and classes.

        By default the encoding is fixed, and must be the same.

        Args:
          spec: the properties of the other data, such as those of a run.

        Raises:
          ValueError: the data cannot be encoded in this way.
        """
        data = self.load()
        for name in ENCODING:
            if getattr(data, name) != getattr(spec, name):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be "
                    f"{checks.describe(getattr(data, name))} for this task, got "
                    f"{checks.describe(getattr(spec, name))} of other data; remove keep_encoding"
                )
        return data

    def read(self, path: str, spec: DataSpec) -> RawExamples:
        """Reads other examples, for predictions or for an evaluation.

        By default reads an `.npz` file with the array `xs` and optionally `ys` and `lengths`, or
        a `.csv` file with a header line, whose rows are the steps of one example.

        Args:
          path: path of the file.
          spec: the properties of the data on which the model was trained.

        Raises:
          FileNotFoundError: the file does not exist.
          ValueError: the file cannot be read as such data.
        """
        if Path(path).suffix.lower() != ".csv":
            arrays: dict[str, Any] = npz.read(path, owner="data", required=("xs",))
            return RawExamples(**arrays)
        with csv_file.in_saved_format():
            file = csv_file.read(path, "data")
            columns = spec.input_names or file.header
            return RawExamples(csv_file.parse_columns(file, "columns", columns, owner="data")[None])

    def read_context(self, path: str, spec: DataSpec) -> Context:
        """Reads the last rows of a file, after which a forecast begins.

        Args:
          path: path of the file.
          spec: the properties of the data on which the model was trained.

        Raises:
          FileNotFoundError: the file does not exist.
          ValueError: the task has no forecasts, or the file cannot be read as such data.
        """
        raise ValueError(
            f"{type(self).__name__}: the task must be a forecast to predict the rows after a file"
        )

    def find_origins(self, spec: DataSpec, split: str, count: int) -> Origins:
        """Returns equally spaced rows of a split of the training data, with the rows after them.

        Args:
          spec: the properties of the data.
          split: "train", "validation" or "test"; the rows after each origin are in it.
          count: maximum number of origins, over all series.

        Raises:
          FileNotFoundError: the file of the data does not exist.
          ValueError: the task has no forecasts, or the file cannot be read.
        """
        raise ValueError(f"{type(self).__name__}: the task must be a forecast for a backtest")
