"""A table of measurements over time, from a CSV file: predict the rows to come."""

from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common, csv_file
from jrnn.tasks.task import Data, Split, Task


@dataclass(frozen=True)
class Table(Task):
    r"""The values of some columns of a time series, a number of rows ahead, at every step.

    The file is CSV with commas; its first line names the columns, and its rows are in order of
    time. The first rows are for training, the next for validation, the last for testing. An
    example is a window of T = `window` rows w, ..., w + T - 1 of one part; its target at row r is
    the `targets` of row r + `horizon`, which lies in the same part, so nothing leaks between parts.
    Windows for training start at every `stride`-th row; those of validation and test do not
    overlap, so that no row is counted twice. What is left at the end of a part is dropped.

    Every column is normalised by the mean and standard deviation of the training rows. The metric
    is the mean squared error in these units; `target_scale` leads back to those of the file. The
    baseline is persistence: that nothing changes, so that the present value is the prediction.

    Args:
      path: the CSV file, UTF-8.
      columns: names of the input columns; empty: all.
      targets: names of the columns to predict; empty: those of `columns`.
      window: T, rows of an example.
      horizon: how many rows ahead to predict.
      validation_fraction: share of the rows for validation.
      test_fraction: share of the rows for testing.
      stride: rows from the start of one training window to the next.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: `path` is not a string, or `columns` or `targets` are not tuples of strings.
      ValueError: an option is out of range, the file has no such column or names one twice, a cell
        that is used is empty or not a finite number, or a part has too few rows for one window.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "rising.csv")
    ...     _ = path.write_text("level\n" + "".join(f"{row}\n" for row in range(100)))
    ...     data = Table(str(path), window=4).load()
    >>> data.train.xs.shape, data.test.xs.shape
    ((66, 4, 1), (3, 4, 1))
    >>> bool(np.allclose((data.test.ys - data.test.xs) * data.target_scale, 1))
    True
    """

    path: str
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    window: int = 64
    horizon: int = 1
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    stride: int = 1

    def __post_init__(self) -> None:
        common.file_path("Table", "path", self.path)
        _names("columns", self.columns)
        _names("targets", self.targets)
        for name in ("window", "horizon", "stride"):
            checks.positive_int("Table", name, getattr(self, name))
        common.fractions("Table", self.validation_fraction, self.test_fraction)

    def load(self) -> Data:
        file = csv_file.read(self.path)
        columns = self.columns or file.header
        targets = self.targets or columns
        inputs = csv_file.numbers(file, "columns", columns)
        outputs = csv_file.numbers(file, "targets", targets)
        parts = common.split_rows(
            "Table",
            "rows",
            len(inputs),
            self.validation_fraction,
            self.test_fraction,
            least=self.window + self.horizon,
        )
        scale = common.Scale.of(outputs[parts[0]])
        inputs = common.Scale.of(inputs[parts[0]]).normalize(inputs)
        outputs = scale.normalize(outputs)
        train, validation, test = (
            self._windows(inputs[part], outputs[part], stride)
            for part, stride in zip(parts, (self.stride, self.window, self.window), strict=True)
        )
        present = outputs[parts[2]][self._steps(parts[2].stop - parts[2].start, self.window)]
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="value_per_step",
            metric="mse",
            input_size=len(columns),
            output_size=len(targets),
            causal=True,
            baseline=("persistence", common.mean_squared_error(present, test.ys)),
            target_scale=scale.std,
        )

    def _steps(self, total: int, stride: int) -> np.ndarray:
        """The rows of every window in a part of `total` rows, `[windows, T]`."""
        starts = np.arange(0, total - self.window - self.horizon + 1, stride)
        return starts[:, None] + np.arange(self.window)

    def _windows(self, inputs: np.ndarray, outputs: np.ndarray, stride: int) -> Split:
        steps = self._steps(len(inputs), stride)
        return Split(xs=inputs[steps], ys=outputs[steps + self.horizon])


def _names(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"Table: {name} must be a tuple of strings such as ('a',), got {value!r}")
    csv_file.refuse_twice(f"Table: {name}", value)
