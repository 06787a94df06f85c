"""Forecasting of time series from a CSV file."""

from dataclasses import dataclass

import numpy as np

from jrnn import checks
from jrnn.tasks import common, csv_file
from jrnn.tasks.task import Data, Split, Task


@dataclass(frozen=True)
class Table(Task):
    r"""Forecasting: predicts columns of a time series, a number of rows ahead, at every step.

    The file is comma-separated; its first line contains the names of the columns, and its rows are
    in temporal order. The rows are split into consecutive parts: train, validation and test. An
    example is a window of T = `window` consecutive rows of one part. Its target at row r contains
    the `targets` columns of row r + `horizon` of the same part, so that no data leak between the
    parts. Training windows start at every `stride`-th row. Validation and test windows do not
    overlap, so that no row is evaluated twice. Remaining rows at the end of a part are dropped.

    Every column is normalized by the mean and standard deviation of the training rows. The metric
    is the mean squared error in normalized units; `Data.target_scaler` converts to the units of the
    file. The baseline is persistence, which predicts the current value.

    Args:
      path: path of the CSV file, in UTF-8.
      columns: names of the input columns; empty means all columns.
      targets: names of the columns to predict; empty means `columns`.
      window: T, number of rows of an example.
      horizon: number of rows ahead to predict.
      validation_fraction: fraction of the rows for validation.
      test_fraction: fraction of the rows for testing.
      stride: number of rows between the starts of consecutive training windows.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: `path` is not a non-empty string, or `columns` or `targets` are not tuples of
        strings.
      ValueError: an option is out of range, the file is not CSV in UTF-8 with a header, a column
        does not exist or is named twice, a cell of a used column is empty or not a finite number,
        or a part has too few rows for one window and its targets.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "rising.csv")
    ...     _ = path.write_text("level\n" + "".join(f"{row}\n" for row in range(100)))
    ...     data = Table(str(path), window=4).load()
    >>> data.train.xs.shape, data.test.xs.shape
    ((66, 4, 1), (3, 4, 1))
    >>> bool(np.allclose((data.test.ys - data.test.xs) * data.target_scaler.std, 1))
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
        common.check_path("Table", "path", self.path)
        _check_names("columns", self.columns)
        _check_names("targets", self.targets)
        for name in ("window", "horizon", "stride"):
            checks.positive_int("Table", name, getattr(self, name))
        common.check_fractions("Table", self.validation_fraction, self.test_fraction)

    def load(self) -> Data:
        file = csv_file.read(self.path)
        columns = self.columns or file.header
        targets = self.targets or columns
        inputs = csv_file.parse_columns(file, "columns", columns)
        outputs = csv_file.parse_columns(file, "targets", targets)
        parts = common.split_rows(
            "Table",
            "rows",
            len(inputs),
            self.validation_fraction,
            self.test_fraction,
            min_rows=self.window + self.horizon,
        )
        scaler = common.StandardScaler.fit(outputs[parts[0]])
        input_scaler = common.StandardScaler.fit(inputs[parts[0]])
        inputs, outputs = input_scaler.transform(inputs), scaler.transform(outputs)
        train, validation, test = (
            self._make_windows(inputs[part], outputs[part], stride)
            for part, stride in zip(parts, (self.stride, self.window, self.window), strict=True)
        )
        current = outputs[parts[2]][
            self._window_indices(parts[2].stop - parts[2].start, self.window)
        ]
        return Data(
            train=train,
            validation=validation,
            test=test,
            target="value_per_step",
            metric="mse",
            input_size=len(columns),
            output_size=len(targets),
            causal=True,
            baseline=("persistence", common.mean_squared_error(current, test.ys)),
            input_names=columns,
            target_names=targets,
            input_scaler=input_scaler,
            target_scaler=scaler,
        )

    def _window_indices(self, total: int, stride: int) -> np.ndarray:
        """Returns the row indices `[windows, T]` of every window in a part of `total` rows."""
        starts = np.arange(0, total - self.window - self.horizon + 1, stride)
        common.check_size("Table", len(starts), self.window, 8)
        return starts[:, None] + np.arange(self.window)

    def _make_windows(self, inputs: np.ndarray, outputs: np.ndarray, stride: int) -> Split:
        rows = self._window_indices(len(inputs), stride)
        return Split(xs=inputs[rows], ys=outputs[rows + self.horizon])


def _check_names(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"Table: {name} must be a tuple of strings such as ('a',), got {value!r}")
    csv_file.check_unique(f"Table: {name}", value)
