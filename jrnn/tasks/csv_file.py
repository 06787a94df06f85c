"""Reads columns of numbers from a CSV file; errors name the line and the column."""

import contextlib
import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jrnn import checks
from jrnn.tasks import common, dates

ARRAY_SUFFIXES = (".npz", ".npy")
"""The suffixes of files of arrays, which are no tables."""
MAX_NAMES = 100
"""Maximum number of column names in a message."""
MAX_MAGNITUDE = 1.8e19
"""Maximum magnitude of a number, whose square is finite in float32."""
MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "<na>", "#n/a"})
"""Cells that are missing values, in lower case."""
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


class FormatError(ValueError):
    """Raised if a file needs other options of the task, or another format.

    Attributes:
      problem: what is wrong with the file.
      hint: the options with which training can read it; the files of a trained run cannot use them.
    """

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}; {hint}")
        self.problem, self.hint = problem, hint


@contextlib.contextmanager
def in_saved_format() -> Iterator[None]:
    """Replaces the options in errors of format, for files of a trained run, which has its own."""
    try:
        yield
    except FormatError as error:
        hint = "write the file in the format of the training data"
        raise ValueError(f"{error.problem}; {hint}") from error


class CsvFile(NamedTuple):
    """The cells of a CSV file as text.

    Attributes:
      header: names of the columns.
      rows: for each row, its line number in the file, from 1, and its cells.
      separator: the separator of cells.
      path: path of the file.
    """

    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    separator: str = ","
    path: str = ""

    def check_columns(self, option: str, names: tuple[str, ...], owner: str = "Table") -> None:
        """Raises ValueError unless the columns exist; `option` is that with the names."""
        positions = {name: index for index, name in enumerate(self.header)}
        for name in names:
            _column_index(owner, positions, option, name)

    def column(self, name: str) -> list[str]:
        """Returns the cells of a column as text."""
        index = self.header.index(name)
        return [cells[index] for _, cells in self.rows]


def read(path: str, owner: str = "Table", separator: str = ",") -> CsvFile:
    """Reads a CSV file.

    Args:
      path: path of the file.
      owner: the beginning of error messages.
      separator: the character between cells.

    Raises:
      FileNotFoundError: the path is not a regular file.
      ValueError: the file is too large, not UTF-8, not CSV or empty, the header is invalid, or a
        row has a different number of cells than the header.
    """
    lines = _read_lines(path, owner, separator)
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise ValueError(
            f"{owner}: {path!r} must have a header line of column names, and rows, got an empty "
            "file"
        )
    _check_ends(owner, path, separator, lines)
    header = _parse_header(owner, path, separator, lines[0][1])
    for index, (line, cells) in enumerate(lines[1:], 1):
        if not cells and len(header) == 1:
            lines[index] = line, [""]  # an empty line is an empty cell of a single column
        elif len(cells) != len(header):
            hint = _suggest_decimal_comma(separator, cells, len(header))
            raise ValueError(
                f"{owner}: every line must have {len(header)} cells, as many as the header, got "
                f"{len(cells)} at line {line} of {path!r}{hint}"
            )
    return CsvFile(header, lines[1:], separator, path)


def _read_lines(path: str, owner: str, separator: str) -> list[tuple[int, list[str]]]:
    """Returns the last line number and the cells of each row, and of the header."""
    if Path(path).suffix.lower() in ARRAY_SUFFIXES:
        raise ValueError(
            f"{owner}: path must be a file of text such as data.csv, got the arrays {path!r}; "
            "train on arrays with configs/arrays.py"
        )
    text = io.StringIO(common.read_text(owner, path), newline="")
    reader = csv.reader(text, delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((reader.line_num, cells) for cells in reader)
    except csv.Error as error:
        first = lines[-1][0] + 1 if lines else 1
        if "unexpected end" in str(error) or reader.line_num > first:
            raise ValueError(
                f"{owner}: {path!r} must be CSV, got a quote at line {first} that is not closed; "
                'close it, or remove the " from the line'
            ) from error
        raise ValueError(
            f"{owner}: {path!r} must be CSV, got an error at line {reader.line_num}: {error}"
        ) from error
    return lines


def parse_columns(
    file: CsvFile,
    option: str,
    names: tuple[str, ...],
    *,
    owner: str = "Table",
    decimal: str = ".",
    allow_missing: bool = False,
    advice: str = "replace it",
) -> np.ndarray:
    """Parses columns as a float64 array `[rows, names]`.

    Args:
      file: the file.
      option: name of the option that contains the names, for error messages.
      names: names of the columns.
      owner: the beginning of error messages.
      decimal: the decimal mark, "." or ",".
      allow_missing: whether a cell may be empty, or one of `MISSING`, which becomes NaN.
      advice: what to do about a missing value if they are not allowed, for error messages.

    Raises:
      ValueError: a column does not exist, or a cell is not a finite number of at most
        `MAX_MAGNITUDE`.
    """
    positions = {name: index for index, name in enumerate(file.header)}
    indices = [_column_index(owner, positions, option, name) for name in names]
    values = np.empty((len(file.rows), len(names)))
    for column, (name, index) in enumerate(zip(names, indices, strict=True)):
        cells = [row[index] for _, row in file.rows]
        parsed = _parse_fast(cells, decimal)
        if parsed is None:
            parsed = [
                _parse_cell(owner, cell, file, row, name, decimal, allow_missing, advice)
                for row, cell in enumerate(cells)
            ]
        values[:, column] = parsed
    return values


def check_unique(owner: str, names: tuple[str, ...]) -> None:
    """Raises ValueError if a name occurs more than once; `owner` begins the message."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"{owner} must name each column once, got {name!r} more than once")


def _check_ends(owner: str, path: str, separator: str, lines: list[tuple[int, list[str]]]) -> None:
    """Raises ValueError if every line ends with the separator."""
    if len(lines[0][1]) > 1 and all(cells and not cells[-1].strip() for _, cells in lines):
        raise ValueError(
            f"{owner}: the last cell of a line must not be empty, got {separator!r} at the end of "
            f"every line of {path!r}; remove it there, for example with: "
            f"sed 's/{separator}[[:space:]]*$//'"
        )


def _parse_header(owner: str, path: str, separator: str, cells: list[str]) -> tuple[str, ...]:
    header = tuple(cell.strip() for cell in cells)
    for other, name in SEPARATORS.items():
        if len(header) == 1 and other != separator and other in header[0]:
            flag = {"\t": "$'\\t'"}.get(other, repr(other))
            raise FormatError(
                f"{owner}: cells must be separated by {SEPARATORS.get(separator, repr(separator))}"
                f", got the first line {checks.shorten(repr(header[0]))} of {path!r}",
                f"if {name} separates them, set --task.separator {flag}",
            )
    if not header:
        raise ValueError(
            f"{owner}: the first line of {path!r} must contain the column names, got an empty "
            "line; add a header line"
        )
    if all(map(_is_value, header)):
        raise ValueError(
            f"{owner}: the first line of {path!r} must contain the column names, got the values "
            f"{checks.shorten(', '.join(header))}; add a header line"
        )
    if "" in header:
        raise ValueError(
            f"{owner}: every column must have a name, got none for column "
            f"{header.index('') + 1} of {path!r}; if it is a pandas index, save the file with "
            "index=False"
        )
    check_unique(f"{owner}: the first line of {path!r}", header)
    return header


def _is_value(cell: str) -> bool:
    """Returns whether a cell is a number or a date, and so hardly the name of a column."""
    return _parse_float(cell) is not None or not isinstance(dates.parse([cell], None), int)


def _suggest_decimal_comma(separator: str, cells: list[str], expected: int) -> str:
    """Returns a hint if commas both separate cells and are decimal marks."""
    if separator != "," or len(cells) != 2 * expected:
        return ""
    return "; if commas are decimal marks, separate the cells by semicolons"


def _column_index(owner: str, positions: dict[str, int], option: str, name: str) -> int:
    if name not in positions:
        names = list(positions)
        hint = checks.suggestion(name, names[:MAX_NAMES])
        if "," in name and all(part in positions for part in name.split(",")):
            hint = f"; separate names by spaces: --task.{option} {name.replace(',', ' ')}"
        listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        raise ValueError(f"{owner}: {option} must be one of {listed}, got {name!r}{hint}")
    return positions[name]


def _parse_fast(cells: list[str], decimal: str) -> np.ndarray | None:
    """Returns the numbers of a column; None if a cell may not be a finite number."""
    text = "".join(cells)
    if "_" in text or (decimal == "," and "." in text):
        return None
    try:
        if decimal == ",":
            cells = [cell.replace(",", ".") for cell in cells]
        values = np.array(list(map(float, cells)))
    except ValueError:
        return None
    return values if (np.abs(values) <= MAX_MAGNITUDE).all() else None


def _parse_cell(
    owner: str,
    cell: str,
    file: CsvFile,
    row: int,
    name: str,
    decimal: str,
    allow_missing: bool,
    advice: str,
) -> float:
    """Returns the number in a cell, or NaN; raises ValueError that names line and column."""
    stripped = cell.strip()
    is_missing = stripped.lower() in MISSING
    if is_missing and allow_missing:
        return math.nan
    value = None
    if decimal == "." or "." not in stripped:
        value = _parse_float(stripped.replace(",", ".") if decimal == "," else stripped)
    if value is not None and abs(value) <= MAX_MAGNITUDE:
        return value
    got = checks.shorten(repr(cell)) if stripped else "an empty cell"
    start = f"{owner}: line {file.rows[row][0]}, column {name!r}"
    if value is not None and math.isfinite(value):
        raise ValueError(
            f"{start} must be a number of magnitude at most {MAX_MAGNITUDE:g}, got {got}; if it "
            "stands for a missing value, leave the cell empty"
        )
    problem = f"{start} must be a finite number, got {got}"
    if is_missing:
        raise ValueError(f"{problem}; {advice}")
    raise FormatError(problem, _hint_for_text(stripped, name, decimal))


def _hint_for_text(cell: str, name: str, decimal: str) -> str:
    """Returns what to do about a cell that is neither a number nor missing."""
    whole, comma, digits = cell.partition(",")
    if decimal == "." and comma and _parse_float(f"{whole.replace('.', '')}.{digits}") is not None:
        return "if commas are decimal marks, set --task.decimal ,"
    if decimal == "," and _parse_float(cell.replace(",", "")) is not None:
        return "if points are decimal marks, remove --task.decimal ,"
    return (
        f"replace it, or leave the column out with --task.exclude {name}; if it names several "
        f"series, set --task.group {name}"
    )


def _parse_float(cell: str) -> float | None:
    if "_" in cell:  # Python reads 2020_01 as 202001
        return None
    try:
        return float(cell)
    except ValueError:
        return None
