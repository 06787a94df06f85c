"""The folder of a run: its config, its network, its metrics, and predictions of its network.

    run = jrnn.load("runs/mine")
    run.predict(xs).probabilities

A run needs no training data to predict: `data.json` in its folder has the normalization, the
vocabulary and the names of classes and columns.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jrnn import checks, config, files, tasks
from jrnn.config import CONFIG_FILE as CONFIG_FILE
from jrnn.run_data import (
    DATA_FILE,
    MAX_BYTES,
    SavedData,
    check_data,
    find_task,
    read_data,
    read_intervals,
)
from jrnn.tasks.conversion import Predictions, decode_outputs, encode_inputs, encode_targets
from jrnn.tasks.task import Context, Data, RawExamples, Split
from jrnn.train import FitResult, load_best
from jrnn.train.config.experiment import Experiment
from jrnn.train.forecasting import Rows, forecast_rows, score_rows
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.summary import check_summary
from jrnn.train.scores import score
from jrnn.train.step.evaluate import predict

RESULT_FILE = "result.json"
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
          FileNotFoundError: the run ended before its first evaluation, or has no checkpoints.
          CheckpointError: all checkpoints are damaged.
        """
        return load_best(self.config, self.data.spec, self.folder)

    @property
    def model(self) -> Any:
        """The best network, in evaluation mode: a `Classifier` or a `SequenceToSequence`."""
        return self.best.model

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, for example for `pandas.DataFrame(run.metrics)`.

        A line that was not written completely, since the process was killed, is left out.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is invalid.
        """
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
        return check_summary(path, files.read_json(path, MAX_BYTES))

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
        data = tasks.load(task, self.data.spec if self.config.keep_encoding else None)
        check_data(self.folder, [data])
        return data

    def evaluate(
        self, data: str | Path | tuple[Any, ...] | None = None, *, split: SplitName = "test"
    ) -> dict[str, Any]:
        """Scores the predictions of the best network.

        Args:
          data: other examples with targets: the path of a file, or `(xs, ys)` or
            `(xs, ys, lengths)` in original units, as in `jrnn.tasks.task.RawExamples`. None means
            the data that the run was trained on.
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
            raw = self._read_examples(data)
            if raw.ys is None:
                raise ValueError("data: evaluation needs targets, got examples without ys")
            xs, lengths = encode_inputs(spec, raw.xs, raw.lengths)
            ys = encode_targets(spec, raw.ys, xs.shape, lengths)
            examples = Split(xs, ys, lengths, metric_mask=raw.metric_mask)
            baselines = raw.baselines
        outputs = self._apply(examples, EVALUATION_BATCH_SIZE)
        return score(spec, examples, outputs, baselines, self.step_half_widths)

    def _read_examples(self, data: Any) -> RawExamples:
        """Returns the examples of the argument `data` of `evaluate`."""
        if isinstance(data, RawExamples):
            return data
        if isinstance(data, tuple) and len(data) in (2, 3):
            return RawExamples(*data)
        remedy = "or pass arrays as (xs, ys) or (xs, ys, lengths)"
        return self.read(checks.file_path("evaluate", "data", data, remedy))

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
          TypeError: `path` is not a path.
          ValueError: the task is not a forecast, or the file is invalid or too short.
        """
        path = checks.file_path("forecast", "path", path, "write the rows to a CSV file")
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

    def write_steps(self, steps: int) -> None:
        """Writes another number of training steps to the config of the run.

        Raises:
          OSError, ValueError: the config cannot be read.
          WriteError: it cannot be written.
        """
        path = self.folder / CONFIG_FILE
        saved = files.read_json(path, config.MAX_BYTES)
        saved["experiment"]["steps"] = steps
        config.write_json(saved, path)

    def read(self, path: str | Path) -> RawExamples:
        """Reads examples from a file; see `Task.read`."""
        path = checks.file_path("read", "path", path)
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


def check_is_run(folder: Path) -> None:
    """Raises FileNotFoundError unless a folder has the config file of a run."""
    if (folder / CONFIG_FILE).is_file():
        return
    if folder.is_file():
        got = "a file"
    elif not folder.exists():
        names = [str(path.parent) for path in folder.parent.glob(f"*/{CONFIG_FILE}")]
        similar = checks.suggestion(folder, names)
        got = f"no such folder{similar or '; jrnn ls runs lists the runs in the folder runs'}"
    elif (folder / "best" / CONFIG_FILE).is_file():
        got = f"a sweep; the run of its best trial is {folder / 'best'}"
    elif runs := sorted(folder.glob(f"*/{CONFIG_FILE}")):
        got = f"a folder of runs, such as {runs[-1].parent}"
    elif (folder.absolute().parent / CONFIG_FILE).is_file():
        got = f"a part of one; use {folder.parent}"
    else:
        got = f"no {CONFIG_FILE} in it"
    raise FileNotFoundError(f"{checks.shorten(folder)} must be the folder of a run, got {got}")


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
      TypeError: `folder` is not a path.
      ValueError: the config or `data.json` is invalid, or `data.json` is missing, as in folders of
        earlier versions of jrnn.
    """
    folder = checks.file_path("load", "folder", folder)
    check_is_run(folder)
    if not trust:
        files.check_tree(folder)
    experiment = config.read(folder / CONFIG_FILE, trust=trust)
    saved = read_data(folder)
    if len(saved) != 1:
        raise ValueError(f"{folder / DATA_FILE} must have the data of one task, got {len(saved)}")
    return Run(folder, experiment, saved[0])
