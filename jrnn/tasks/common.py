"""Functions that tasks share: validation of options, files, splits, normalization, baselines."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jrnn import checks, files, memory

MAX_TEXT_BYTES = 2**31
"""Maximum size of a text or CSV file, which is read into memory."""


def check_fractions(owner: str, validation: Any, test: Any) -> None:
    """Raises ValueError unless the fractions are above 0 and their sum is below 1."""
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(
                f"{owner}: {name} must be between 0 and 1, got {checks.describe(value)}"
            )
    if validation + test >= 1:
        raise ValueError(
            f"{owner}: validation_fraction + test_fraction must be below 1, got "
            f"{validation} + {test}"
        )


def check_size(owner: str, examples: int, length: int, step_bytes: int) -> None:
    """Raises ValueError if the examples do not fit in the memory of this machine.

    Args:
      owner: name of the class of the task.
      examples: number of examples.
      length: number of steps of an example.
      step_bytes: a lower bound on the bytes of memory for each step of an example.
    """
    name = f"{examples} examples of {length} steps"
    advice = "use fewer or shorter examples"
    memory.check_host(owner, name, examples * length * step_bytes, advice)


def check_path(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless the path is a non-empty string; the file need not exist."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{owner}: {name} must be a non-empty string, got {checks.describe(value)}")


def check_same_names(
    owner: str, name: str, names: tuple[str, ...], others: tuple[str, ...] | None
) -> None:
    """Raises ValueError unless the columns are those of the other data, in the same order."""
    if names != others:
        raise ValueError(
            f"{owner}: {name} must be {checks.describe(others)}, those of the run, to keep its "
            f"normalization, got {checks.describe(names)}"
        )


def find_file(owner: str, path: str) -> Path:
    """Returns the path of a regular file, with `~` expanded.

    Raises:
      FileNotFoundError: the path is not a regular file; the message suggests a similar name.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise FileNotFoundError(f"{owner}: path must be a file, got the folder {path!r}")
    if file.exists():
        raise FileNotFoundError(f"{owner}: path must be a regular file, got the device {path!r}")
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{owner}: no file {path!r}: the folder {file.parent} does not exist"
        )
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.is_file())
    hint = checks.suggestion(file.name, names)
    raise FileNotFoundError(f"{owner}: no file {path!r} in {file.parent.resolve()}{hint}")


def read_text(owner: str, path: str) -> str:
    """Reads a UTF-8 file; preserves its line endings and removes a byte order mark.

    Raises:
      FileNotFoundError: the path is not a regular file.
      ValueError: the file is not UTF-8, or larger than `MAX_TEXT_BYTES`.
    """
    try:
        raw = files.read_bytes(find_file(owner, path), MAX_TEXT_BYTES)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}; use a part of it") from error
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{owner}: {path!r} must be UTF-8 text, got the byte 0x{raw[error.start]:02x} at byte "
            f"offset {error.start}; save it again as UTF-8"
        ) from error


def split_sizes(total: int, validation: float, test: float) -> tuple[int, int, int]:
    """Returns the sizes of the train, validation and test splits.

    >>> split_sizes(50, 0.1, 0.2)
    (35, 5, 10)
    """
    n_validation, n_test = round(total * validation), round(total * test)
    return total - n_validation - n_test, n_validation, n_test


def split_rows(
    owner: str,
    rows: str,
    total: int,
    validation: float,
    test: float,
    min_rows: int,
    min_train: int | None = None,
) -> tuple[slice, slice, slice]:
    """Returns train, validation and test as consecutive slices of `total` rows.

    Args:
      owner: name of the class of the task.
      rows: the plural noun for the rows in the error message, such as "examples".
      total: number of rows.
      validation: fraction of the rows for validation.
      test: fraction of the rows for testing.
      min_rows: minimum number of rows of each slice.
      min_train: minimum number of rows of the training slice; None means `min_rows`.

    Raises:
      ValueError: a slice would have fewer rows.
    """
    sizes = split_sizes(total, validation, test)
    first_min = min_rows if min_train is None else min_train
    if min(sizes[1:]) < min_rows or sizes[0] < first_min:
        # Rounding may reduce the training split by one row.
        train = 1 - validation - test
        needed = math.ceil(max(min_rows / validation, min_rows / test, (first_min + 1) / train))
        minimum = f"{min_rows} {rows} each"
        if first_min != min_rows:
            minimum = f"{first_min}, {min_rows} and {min_rows} {rows}"
        raise ValueError(
            f"{owner}: train, validation and test must have at least {minimum}, got "
            f"{sizes[0]}, {sizes[1]} and {sizes[2]} of {total}; {needed} {rows} are enough"
        )
    first, second = sizes[0], sizes[0] + sizes[1]
    return slice(0, first), slice(first, second), slice(second, total)


@dataclass(frozen=True)
class StandardScaler:
    """Normalizes each channel by the mean and standard deviation of the training split.

    A channel that is constant in the training split has `std` 1, so that it is only shifted.

    Attributes:
      mean: the mean of each channel.
      std: the standard deviation of each channel, all positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(math.isfinite(number) for number in (*self.mean, *self.std))
        if len(self.mean) != len(self.std) or not finite or min(self.std, default=1.0) <= 0:
            raise ValueError(
                "StandardScaler: mean and std must have the same length, be finite, and std "
                f"positive, got {checks.describe(self.mean)} and {checks.describe(self.std)}"
            )

    @classmethod
    def fit(cls, train: np.ndarray) -> "StandardScaler":
        """Computes the statistics of `train [rows, channels]`; NaN entries are not included."""
        if train.dtype.kind == "f" and np.isnan(train).any():
            channels = [cls.fit(values[~np.isnan(values)][:, None]) for values in train.T]
            return cls(tuple(c.mean[0] for c in channels), tuple(c.std[0] for c in channels))
        mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        # Compares minimum and maximum, since rounding may make the std of a constant nonzero.
        low, high = train.min(axis=0), train.max(axis=0)
        mean, std = np.where(low == high, low, mean), np.where(low == high, 1.0, std)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Normalizes values `[..., channels]` to float32."""
        return ((values - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Converts normalized values `[..., channels]` to their original units, in float64."""
        return np.asarray(values, np.float64) * np.asarray(self.std) + np.asarray(self.mean)


def zero_padding(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the array with zeros where `mask`, which has its first axes, is False."""
    mask = mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim))
    return np.where(mask, array, np.zeros((), array.dtype))


def most_frequent_baseline(name: str, train: np.ndarray, test: np.ndarray) -> tuple[str, float]:
    """Returns the name, and the accuracy on `test` of the most frequent id of `train`."""
    return name, float(np.mean(test == np.bincount(train.ravel()).argmax()))


def constant_baseline(train: np.ndarray, test: np.ndarray) -> tuple[str, float]:
    """Returns a name, and the mean squared error on `test` of the mean of `train [rows, K]`."""
    mean = np.asarray(np.nanmean(train, axis=0, dtype=np.float64))
    return "constant prediction", mean_squared_error(mean, test)


def log_frequencies(train: np.ndarray, size: int, smoothing: int = 0) -> tuple[float, ...]:
    """Returns the logits of a constant baseline: log frequencies of the ids in `train`.

    Args:
      train: ids from 0.
      size: number of ids.
      smoothing: a count that is added for each id; with 0, ids that do not occur get the
        frequency of half an occurrence.
    """
    counts = np.bincount(train.ravel(), minlength=size) + smoothing
    return tuple(np.log(np.maximum(counts, 0.5)).tolist())


def channel_means(train: np.ndarray) -> tuple[float, ...]:
    """Returns the outputs of a constant baseline: the mean of each channel of `[rows, K]`."""
    rows = train.reshape(-1, train.shape[-1])
    return tuple(np.asarray(np.nanmean(rows, axis=0, dtype=np.float64)).tolist())


def mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean squared error over all targets that are not NaN, computed in float64."""
    return float(np.nanmean(np.square(targets.astype(np.float64) - predictions)))


def unigram_cross_entropy(train: np.ndarray, test: np.ndarray, size: int) -> float:
    """Returns the cross-entropy on `test` of a unigram model of `train`, in bits per id.

    The model has add-one smoothing over `size` ids.
    """
    counts = np.bincount(train.ravel(), minlength=size) + 1
    return float(-np.mean(np.log2(counts[test] / counts.sum())))
