"""What tasks share: checks of their fields, files, splits, normalisation, trivial predictors."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jrnn import checks


def at_least(owner: str, name: str, value: Any, least: int) -> None:
    """Refuses everything but a Python int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}: {name} must be an int of at least {least}, got {value!r}")


def fractions(owner: str, validation: Any, test: Any) -> None:
    """Refuses fractions that leave one of the three splits with nothing."""
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{owner}: {name} must lie between 0 and 1, got {value!r}")
    if validation + test >= 1:
        raise ValueError(
            f"{owner}: validation_fraction + test_fraction must leave something to train on, got "
            f"{validation} + {test}; make one of them smaller"
        )


def file_path(owner: str, name: str, value: Any) -> None:
    """Refuses a path that is no text, or empty; whether the file exists shows when it is read."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{owner}: {name} must be a path as a string, got {value!r}")


def existing_file(owner: str, path: str) -> Path:
    """The path, if a file is there; else an error that names a file like it in the same folder."""
    found = Path(path).expanduser()
    if found.is_file():
        return found
    if found.is_dir():
        raise FileNotFoundError(f"{owner}: path must be a file, got the folder {path!r}")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"{owner}: no file {path!r}: there is no folder {found.parent}")
    neighbours = sorted(entry.name for entry in found.parent.iterdir() if entry.is_file())
    near = checks.suggestion(found.name, neighbours)
    raise FileNotFoundError(f"{owner}: no file {path!r} in {found.parent.resolve()}{near}")


def read_text(owner: str, path: str) -> str:
    """The text of a UTF-8 file, its line ends untouched and without a byte order mark."""
    raw = existing_file(owner, path).read_bytes()
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{owner}: {path!r} must be UTF-8 text, got the byte 0x{raw[error.start]:02x} at byte "
            f"offset {error.start}; save it again as UTF-8"
        ) from error


def split_sizes(total: int, validation: float, test: float) -> tuple[int, int, int]:
    """How many of `total` go to train, validation and test.

    >>> split_sizes(50, 0.1, 0.2)
    (35, 5, 10)
    """
    n_validation, n_test = round(total * validation), round(total * test)
    return total - n_validation - n_test, n_validation, n_test


def split_rows(
    owner: str, rows: str, total: int, validation: float, test: float, least: int
) -> tuple[slice, slice, slice]:
    """Train, validation and test as slices one after another, each of at least `least` rows."""
    sizes = split_sizes(total, validation, test)
    if min(sizes) < least:
        # Enough for rounding too, which takes from the training part up to one row.
        train = 1 - validation - test
        needed = math.ceil(max(least / validation, least / test, (least + 1) / train))
        raise ValueError(
            f"{owner}: train, validation and test must have at least {least} {rows} each, got "
            f"{sizes[0]}, {sizes[1]} and {sizes[2]} of {total}; {needed} {rows} are enough"
        )
    first, second = sizes[0], sizes[0] + sizes[1]
    return slice(0, first), slice(first, second), slice(second, total)


class Scale(NamedTuple):
    """Where the training part lies, by channel: mean and standard deviation, `[channels]` float64.

    A constant channel has standard deviation 1: it becomes zeros, and anything else that it takes
    outside the training part keeps its distance from them.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray) -> "Scale":
        """The scale of `train [rows, channels]`."""
        mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        # By the range, as rounding may leave the std of a constant such as 0.1 just above 0.
        low, high = train.min(axis=0), train.max(axis=0)
        return cls(np.where(low == high, low, mean), np.where(low == high, 1.0, std))

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Values `[..., channels]` in standard deviations from the mean, float32."""
        return ((values - self.mean) / self.std).astype(np.float32)


def most_frequent(name: str, train: np.ndarray, test: np.ndarray) -> tuple[str, float]:
    """A baseline: accuracy on the ids `test` of the id that is most frequent in `train`."""
    return name, float(np.mean(test == np.bincount(train.ravel()).argmax()))


def constant_guess(train: np.ndarray, test: np.ndarray) -> tuple[str, float]:
    """A baseline: squared error on `test [rows, K]` of the mean of `train [rows, K]`."""
    guess = train.mean(axis=0, dtype=np.float64)
    return "constant guess", mean_squared_error(guess, test)


def mean_squared_error(guess: np.ndarray, truth: np.ndarray) -> float:
    """The mean over all entries of the squared difference, in float64."""
    return float(np.mean(np.square(truth.astype(np.float64) - guess)))


def unigram_bits(train: np.ndarray, test: np.ndarray, size: int) -> float:
    """Bits per id that the frequencies in `train` need on `test`, with one added to each count."""
    counts = np.bincount(train.ravel(), minlength=size) + 1
    return float(-np.mean(np.log2(counts[test] / counts.sum())))
