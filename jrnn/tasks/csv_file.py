"""Columns of numbers out of a CSV file, with errors that name the line and the column."""

import csv
import io
import math
from typing import NamedTuple

import numpy as np

from jrnn import checks
from jrnn.tasks import common


class CsvFile(NamedTuple):
    """The cells of a CSV file as text.

    Attributes:
      header: the names of the columns.
      rows: the number of its line in the file, from 1, and the cells of each row.
    """

    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]


def read(path: str) -> CsvFile:
    """Reads the file, and refuses a bad header and rows that do not fit it."""
    reader = csv.reader(io.StringIO(common.read_text("Table", path), newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(
            f"Table: {path!r} must be CSV, got an error at line {reader.line_num}: {error}"
        ) from error
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise ValueError(f"Table: {path!r} must have a line of column names and rows, got nothing")
    header = _header(path, lines[0][1])
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(
                f"Table: every line must have {len(header)} cells, one for each name in the first, "
                f"got {len(cells)} at line {line} of {path!r}"
            )
    return CsvFile(header, lines[1:])


def numbers(file: CsvFile, option: str, names: tuple[str, ...]) -> np.ndarray:
    """The columns called `names`, `[rows, names]` float64; `option` is where the user gave them."""
    places = [_place(file.header, option, name) for name in names]
    values = np.empty((len(file.rows), len(names)))
    for row, (line, cells) in enumerate(file.rows):
        for i, (name, place) in enumerate(zip(names, places, strict=True)):
            values[row, i] = _number(cells[place], line, name)
    return values


def refuse_twice(owner: str, names: tuple[str, ...]) -> None:
    """Refuses a name that comes twice."""
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"{owner} must name each column once, got {twice[0]!r} twice")


def _header(path: str, cells: list[str]) -> tuple[str, ...]:
    header = tuple(cell.strip() for cell in cells)
    for separator in (";", "\t"):
        if len(header) == 1 and separator in header[0]:
            raise ValueError(
                f"Table: cells must be separated by commas, got the first line {header[0]!r} of "
                f"{path!r}; save the file with commas instead of {separator!r}"
            )
    if all(_parse(name) is not None for name in header):
        raise ValueError(
            f"Table: the first line of {path!r} must name the columns, got the numbers "
            f"{', '.join(header)}; put a line of names above them"
        )
    if "" in header:
        raise ValueError(
            f"Table: every column must have a name, got none for column {header.index('') + 1} of "
            f"{path!r}; if it is a pandas index, save with index=False"
        )
    refuse_twice(f"Table: the first line of {path!r}", header)
    return header


def _place(header: tuple[str, ...], option: str, name: str) -> int:
    if name not in header:
        near = checks.suggestion(name, header)
        raise ValueError(f"Table: {option} must be among {', '.join(header)}, got {name!r}{near}")
    return header.index(name)


def _number(cell: str, line: int, name: str) -> float:
    value = _parse(cell)
    if value is None or not math.isfinite(value):
        got = repr(cell) if cell.strip() else "an empty cell"
        raise ValueError(
            f"Table: line {line}, column {name!r} must be a finite number, got {got}; fill "
            "it, or leave the column out of columns and targets"
        )
    return value


def _parse(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
