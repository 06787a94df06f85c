"""Reads columns of numbers from a CSV file; errors name the line and the column."""

import csv
import io
import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from jrnn import checks
from jrnn.tasks import common

MAX_NAMES = 100
"""Maximum number of column names in a message."""


class CsvFile(NamedTuple):
    """The cells of a CSV file as text.

    Attributes:
      header: names of the columns.
      rows: for each row, its line number in the file, from 1, and its cells.
    """

    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]


def read(path: str, owner: str = "Table") -> CsvFile:
    """Reads a CSV file.

    Args:
      path: path of the file.
      owner: the beginning of error messages.

    Raises:
      FileNotFoundError: the path is not a regular file.
      ValueError: the file is too large, not UTF-8, not CSV or empty, the header is invalid, or a
        row has a different number of cells than the header.
    """
    reader = csv.reader(io.StringIO(common.read_text(owner, path), newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(
            f"{owner}: {path!r} must be CSV, got an error at line {reader.line_num}: {error}"
        ) from error
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise ValueError(
            f"{owner}: {path!r} must have a header line of column names, and rows, got an empty "
            "file"
        )
    header = _parse_header(owner, path, lines[0][1])
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(
                f"{owner}: every line must have {len(header)} cells, as many as the header, got "
                f"{len(cells)} at line {line} of {path!r}"
            )
    return CsvFile(header, lines[1:])


def parse_columns(file: CsvFile, option: str, names: tuple[str, ...]) -> np.ndarray:
    """Parses columns as a float64 array `[rows, names]`.

    Args:
      file: the file.
      option: name of the option that contains the names, for error messages.
      names: names of the columns.

    Raises:
      ValueError: a column does not exist, or a cell is not a finite number.
    """
    positions = {name: index for index, name in enumerate(file.header)}
    indices = [_column_index(positions, option, name) for name in names]
    values = np.empty((len(file.rows), len(names)))
    for row, (line, cells) in enumerate(file.rows):
        for column, (name, index) in enumerate(zip(names, indices, strict=True)):
            values[row, column] = _parse_finite(cells[index], line, name)
    return values


def check_unique(owner: str, names: tuple[str, ...]) -> None:
    """Raises ValueError if a name occurs more than once; `owner` begins the message."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"{owner} must name each column once, got {name!r} more than once")


def _parse_header(owner: str, path: str, cells: list[str]) -> tuple[str, ...]:
    header = tuple(cell.strip() for cell in cells)
    for separator in (";", "\t"):
        if len(header) == 1 and separator in header[0]:
            raise ValueError(
                f"{owner}: cells must be separated by commas, got the first line {header[0]!r} of "
                f"{path!r}; save the file with commas instead of {separator!r}"
            )
    if not header:
        raise ValueError(
            f"{owner}: the first line of {path!r} must contain the column names, got an empty "
            "line; add a header line"
        )
    if all(_parse_float(name) is not None for name in header):
        raise ValueError(
            f"{owner}: the first line of {path!r} must contain the column names, got the numbers "
            f"{', '.join(header)}; add a header line"
        )
    if "" in header:
        raise ValueError(
            f"{owner}: every column must have a name, got none for column "
            f"{header.index('') + 1} of {path!r}; if it is a pandas index, save the file with "
            "index=False"
        )
    check_unique(f"{owner}: the first line of {path!r}", header)
    return header


def _column_index(positions: dict[str, int], option: str, name: str) -> int:
    if name not in positions:
        names = list(positions)
        hint = checks.suggestion(name, names[:MAX_NAMES])
        listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        raise ValueError(f"Table: {option} must be one of {listed}, got {name!r}{hint}")
    return positions[name]


def _parse_finite(cell: str, line: int, name: str) -> float:
    value = _parse_float(cell)
    if value is None or not math.isfinite(value):
        got = repr(cell) if cell.strip() else "an empty cell"
        raise ValueError(
            f"Table: line {line}, column {name!r} must be a finite number, got {got}; "
            "replace it, or remove the column from columns and targets"
        )
    return value


def _parse_float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
