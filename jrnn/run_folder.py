"""The folder of a run: its config, its network, its metrics, and predictions of its network.

    run = jrnn.load("runs/mine")
    run.predict(xs).probabilities

A run needs no training data to predict: `data.json` in its folder has the normalization, the
vocabulary and the names of classes and columns.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jrnn import checks, config, files, serialize, tasks
from jrnn.tasks.conversion import Predictions, decode_outputs, encode_inputs, encode_targets
from jrnn.tasks.task import Context, Data, DataSpec, RawExamples, Split, Task
from jrnn.train import FitResult, load_best
from jrnn.train.config.experiment import Experiment
from jrnn.train.forecasting import Rows, forecast_rows, score_rows
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.summary import check_summary
from jrnn.train.scores import score
from jrnn.train.step.evaluate import predict

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
RESULT_FILE = "result.json"
INTERVALS_FILE = "intervals.json"
MAX_DATA_BYTES = 2**28
"""Maximum size of `data.json`, which has the names of all columns and classes."""
LIBRARIES = ("jrnn", "jax", "flax", "optax")
"""The libraries whose versions are saved."""
MIN_PADDED_STEPS = 16
"""Sequences of different lengths are padded to a power of two of at least this many steps."""

EVALUATION_BATCH_SIZE = 256

SplitName = Literal["train", "validation", "test"]


class ForecastAfter(NamedTuple):
    """The rows that are forecast after the last rows of a file, in its units.

    Attributes:
      context: the series: names and dates of the forecast rows.
      rows: the forecasts, with intervals.
    """

    context: Context
    rows: Rows


class SavedData(NamedTuple):
    """What the folder of a run has of its data.

    Attributes:
      spec: the properties of the data.
      fingerprint: the fingerprint of all examples; see `Data.fingerprint`.
      folder: the folder in which the command was run, to which paths of data are relative.
      versions: the versions of Python libraries in the process that has started the run.
    """

    spec: DataSpec
    fingerprint: str
    folder: str
    versions: dict[str, str]


def write_data(folder: Path, loaded: Sequence[Data], started_in: str | None = None) -> None:
    """Writes the properties of the data of a run, or of all tasks of a sweep, to its folder.

    Args:
      folder: the folder of the run or the sweep.
      loaded: the data.
      started_in: the folder to which paths of the data are relative; None means the current one.
    """
    content = {
        "folder": os.getcwd() if started_in is None else started_in,
        "versions": {name: version(name) for name in LIBRARIES},
        "data": [
            {"spec": serialize.encode(data.spec), "fingerprint": data.fingerprint}
            for data in loaded
        ],
    }
    config.write_json(content, folder / DATA_FILE)


def read_data(folder: Path) -> list[SavedData]:
    """Reads what `write_data` wrote.

    Raises:
      OSError: the file cannot be read.
      ValueError: an earlier version of jrnn wrote the folder, or the file is invalid.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {DATA_FILE}, since it was written by an earlier version of jrnn; use "
            "that version, or train the run again"
        )
    try:
        saved = files.read_json(path, MAX_DATA_BYTES)
        return [
            _check_types(
                SavedData(
                    serialize.decode(each["spec"]),
                    each["fingerprint"],
                    saved["folder"],
                    saved["versions"],
                )
            )
            for each in saved["data"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is invalid: {error}; restore it from a copy, or train the run again"
        ) from error


def _check_types(saved: SavedData) -> SavedData:
    spec, fingerprint, folder, versions = saved
    texts = [fingerprint, folder, *versions.keys(), *versions.values()]
    if not isinstance(spec, DataSpec) or not all(isinstance(text, str) for text in texts):
        raise TypeError("fields must be a DataSpec and texts")
    _check_sizes(spec)
    return saved


def write_intervals(folder: Path, half_widths: np.ndarray | None) -> None:
    """Writes half of the widths of the intervals of a point forecast, `[horizon * K]`; see `Run`.

    Writes nothing for None.
    """
    if half_widths is not None:
        config.write_json({"half_widths": half_widths.tolist()}, folder / INTERVALS_FILE)


def read_intervals(folder: Path, spec: DataSpec) -> np.ndarray | None:
    """Reads what `write_intervals` wrote; None if there is no such file.

    Raises:
      ValueError: the file is invalid.
    """
    path, forecast = folder / INTERVALS_FILE, spec.forecast
    if forecast is None or not path.is_file():
        return None
    expected = forecast.horizon * len(forecast.targets)
    try:
        widths = files.read_json(path, MAX_DATA_BYTES)["half_widths"]
        valid = isinstance(widths, list) and all(checks.is_number(width) for width in widths)
        if not valid or len(widths) != expected or min(widths) < 0 or not np.isfinite(widths).all():
            raise ValueError(f"half_widths must be {expected} finite numbers of at least 0")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is invalid: {error}; write it again with jrnn train --resume"
        ) from error
    return np.array(widths, float)


def _check_sizes(spec: DataSpec) -> None:
    """Raises ValueError unless there is one name and one number of each channel and class."""
    means = lambda scaler: None if scaler is None else scaler.mean
    parts = {
        "class_names": (spec.class_names, spec.output_size),
        "vocabulary": (spec.vocabulary, spec.output_size),
        "target_names": (spec.target_names, spec.output_size),
        "baseline_outputs": (spec.baseline_outputs, spec.output_size),
        "target_scaler": (means(spec.target_scaler), spec.output_size),
        "input_names": (spec.input_names, spec.input_size),
        "input_scaler": (means(spec.input_scaler), spec.input_size),
    }
    for name, (values, size) in parts.items():
        if values is not None and len(values) != size:
            raise ValueError(f"{name} must have {size} entries, got {len(values)}")


def check_data(folder: Path, loaded: Sequence[Data]) -> None:
    """Raises ValueError if the data have changed since the run was created."""
    if [saved.fingerprint for saved in read_data(folder)] != [d.fingerprint for d in loaded]:
        raise ValueError(
            f"{folder}: the data of this run have changed; restore the original data, or start a "
            "new run"
        )


def find_task(task: Task, folder: str) -> Task:
    """Returns a task whose relative path is found in the present folder, or else in another one.

    Args:
      task: the task of a run.
      folder: the folder in which the run was started.
    """
    path = getattr(task, "path", None)
    if not isinstance(path, str) or Path(path).expanduser().exists():
        return task
    other = Path(folder, path)
    return replace(task, **{"path": str(other)}) if other.exists() else task


@dataclass(frozen=True, eq=False)
class Run:
    """A run that was trained by `jrnn train`.

    Attributes:
      folder: the folder of the run.
      config: its experiment.
      data: the properties of its data: names, normalization, vocabulary, fingerprint.
    """

    folder: Path
    config: Experiment
    data: SavedData

    @cached_property
    def best(self) -> FitResult:
        """The best network, its step and its validation metrics.

        Raises:
          FileNotFoundError: the run ended before its first evaluation.
          CheckpointError: all checkpoints are damaged.
        """
        return load_best(self.config, self.data.spec, self.folder)

    @property
    def model(self) -> Any:
        """The best network, in evaluation mode: a `Classifier` or a `SequenceToSequence`."""
        return self.best.model

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, for example for `pandas.DataFrame(run.metrics)`."""
        return MetricsFile(self.folder / "metrics.jsonl").read_lines()

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`: the scores at the end of the training.

        Raises:
          FileNotFoundError: the run has not ended.
          ValueError: the file is invalid.
        """
        path = self.folder / RESULT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist, since the run has not ended; resume it"
            )
        return check_summary(path, files.read_json(path, MAX_DATA_BYTES))

    @property
    def has_data(self) -> bool:
        """Whether the file of the training data exists, or the task generates its data."""
        path = getattr(find_task(self.config.task, self.data.folder), "path", None)
        return not isinstance(path, str) or Path(path).expanduser().exists()

    def load_data(self) -> Data:
        """Loads the data that the run was trained on.

        Raises:
          FileNotFoundError: the file of the data does not exist.
          ValueError: the data have changed.
        """
        task = find_task(self.config.task, self.data.folder)
        data = tasks.load(task)
        check_data(self.folder, [data])
        return data

    def evaluate(
        self, data: str | Path | RawExamples | None = None, *, split: SplitName = "test"
    ) -> dict[str, Any]:
        """Scores the predictions of the best network.

        Args:
          data: other examples with targets: the path of a file, or `RawExamples(xs, ys, lengths)`.
            None means the data that the run was trained on.
          split: the split of the training data, if `data` is None.

        Returns:
          JSON values; see `jrnn.train.scores.score`.

        Raises:
          FileNotFoundError: a file does not exist, or the run has no checkpoint.
          ValueError, TypeError: the data have changed, or other examples are invalid.
          CheckpointError: all checkpoints are damaged.
        """
        spec = self.data.spec
        if data is None:
            checks.one_of("evaluate", "split", split, ("train", "validation", "test"))
            loaded = self.load_data()
            examples: Split = getattr(loaded, split)
            baselines = None if loaded.baselines is None else loaded.baselines(split)
        else:
            raw = data if isinstance(data, RawExamples) else self.read(data)
            if raw.ys is None:
                raise ValueError("data: evaluation needs targets, got examples without ys")
            xs, lengths = encode_inputs(spec, raw.xs, raw.lengths)
            ys = encode_targets(spec, raw.ys, xs.shape)
            examples = Split(xs, ys, lengths, metric_mask=raw.metric_mask)
            baselines = raw.baselines
        outputs = self._apply(examples, EVALUATION_BATCH_SIZE)
        return score(spec, examples, outputs, baselines, self.step_half_widths)

    def backtest(self, origins: int = 20, *, split: SplitName = "test") -> dict[str, Any]:
        """Scores forecasts of all rows of the horizon from several rows of the training data.

        Each forecast is made as by `forecast`, from the last `window` rows before it.

        Args:
          origins: maximum number of forecasts, at equally spaced rows of the split.
          split: the split that has the forecast rows.

        Returns:
          JSON values; see `jrnn.train.forecasting.score_rows`.

        Raises:
          FileNotFoundError, CheckpointError: as for `evaluate`.
          ValueError: the task is not a forecast, or the data have changed.
        """
        self.load_data()  # raises if the data have changed
        task, spec = find_task(self.config.task, self.data.folder), self.data.spec
        found = task.find_origins(spec, split, origins)
        return score_rows(spec, self._forecast(found.context), found)

    def forecast(self, path: str | Path) -> ForecastAfter:
        """Forecasts the rows after the last row of a file, in its units.

        Args:
          path: a CSV file with the columns of the training data.

        Returns:
          The forecasts, for each series of the file. A point forecast has intervals if the run was
          trained by `jrnn train`, which saves the errors on the validation split.

        Raises:
          FileNotFoundError, CheckpointError: the file does not exist, or as for `best`.
          ValueError: the task is not a forecast, or the file is invalid or too short.
        """
        context = self.config.task.read_context(str(path), self.data.spec)
        return ForecastAfter(context, self._forecast(context))

    def _forecast(self, context: Context) -> Rows:
        apply = lambda examples: self._apply(examples, EVALUATION_BATCH_SIZE)
        return forecast_rows(self.data.spec, apply, context, self.half_widths)

    @cached_property
    def half_widths(self) -> np.ndarray | None:
        """Half of the widths of the intervals of a point forecast, `[horizon * K]` in its units.

        These are quantiles of the absolute errors on the validation split, for each row ahead and
        target. None if the run has none.
        """
        return read_intervals(self.folder, self.data.spec)

    @property
    def step_half_widths(self) -> np.ndarray | None:
        """The half-widths of the rows that the network predicts at once, `[steps * K]`."""
        forecast = self.data.spec.forecast
        if self.half_widths is None or forecast is None:
            return None
        return self.half_widths[: forecast.num_targets]

    def read(self, path: str | Path) -> RawExamples:
        """Reads examples from a file; see `Task.read`."""
        return self.config.task.read(str(path), self.data.spec)

    def predict(
        self,
        xs: Any,
        *,
        lengths: Any | None = None,
        batch_size: int = 256,
    ) -> Predictions:
        """Predicts with the best network.

        Args:
          xs: inputs in their original units: an array `[N, T, input]`, a list of N arrays
            `[T_n, input]` of different lengths, for tokens an array `[N, T]` or a list of arrays
            `[T_n]`, and for a text task also a list of texts.
          lengths: `[N]` ints, the number of valid steps of each example; None means all T steps.
            Must be None for a list.
          batch_size: number of examples per forward pass; the result does not depend on it.

        Returns:
          The predictions.

        Raises:
          ValueError, TypeError: the inputs have a wrong shape or dtype.
          FileNotFoundError, CheckpointError: as for `best`.
        """
        checks.positive_int("predict", "batch_size", batch_size)
        spec = self.data.spec
        padded, sizes = encode_inputs(spec, xs, lengths)
        outputs = self._apply(Split(padded, np.zeros(0), sizes), batch_size)
        return decode_outputs(spec, outputs, sizes, padded, self.step_half_widths)

    def _apply(self, examples: Split, batch_size: int) -> np.ndarray:
        """Returns the outputs for all examples, in batches of similar lengths."""
        spec, (count, steps) = self.data.spec, examples.xs.shape[:2]
        shape = (count, steps, spec.num_outputs) if spec.per_step else (count, spec.num_outputs)
        outputs = np.zeros(shape, np.float32)
        lengths = np.full(count, steps) if examples.lengths is None else examples.lengths
        order = np.argsort(lengths, kind="stable")
        for start in range(0, count, batch_size):
            rows = order[start : start + batch_size]
            longest = max(int(lengths[rows].max()), MIN_PADDED_STEPS)
            padded = min(steps, 2 ** math.ceil(math.log2(longest)))
            resets = None if examples.resets is None else examples.resets[rows, :padded]
            batch = Split(
                examples.xs[rows, :padded], np.zeros(len(rows)), lengths[rows], resets=resets
            )
            result = predict(self.model, batch, min(batch_size, count))
            if spec.per_step:
                valid = np.arange(padded) < lengths[rows, None]
                outputs[rows, :padded] = np.where(valid[..., None], result, 0)
            else:
                outputs[rows] = result
        return outputs


def load(folder: str | Path, *, trust: bool = False) -> Run:
    """Loads a run that was trained by `jrnn train`; it works without the training data.

    The folder is data: code of the run is executed only if `trust` is True.

    Args:
      folder: the folder of the run.
      trust: whether to import classes that are not in jrnn, such as a cell that the config file
        of the run defines, which executes code.

    Returns:
      The run.

    Raises:
      FileNotFoundError: the folder is not that of a run.
      OSError: the folder has symbolic links or special files, and `trust` is False.
      ValueError: the config is invalid, or an earlier version of jrnn wrote the folder.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} must be the folder of a run, got no {CONFIG_FILE} in it")
    if not trust:
        files.check_tree(folder)
    experiment = config.read(folder / CONFIG_FILE, trust=trust)
    saved = read_data(folder)
    if len(saved) != 1:
        raise ValueError(f"{folder / DATA_FILE} must have the data of one task, got {len(saved)}")
    return Run(folder, experiment, saved[0])
