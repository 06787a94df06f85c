"""Files of predictions and forecasts: `.npz`, `.csv` and `.jsonl`."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jrnn.files import atomic_path
from jrnn.terminal import Output, open_output

SUFFIXES = (".npz", ".csv", ".jsonl")
"""The formats of files."""


class Content(NamedTuple):
    """What is written: the rows of a table as CSV or JSON, or arrays as `.npz`.

    Attributes:
      columns: names of the columns.
      rows: the rows, with one entry for each column.
      arrays: the same values as arrays, by name.
    """

    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]
    arrays: dict[str, Any]


def write(content: Content, path: Path | None) -> None:
    """Writes a file in the format of its suffix, or CSV to standard output if the path is None.

    Args:
      content: what is written.
      path: path of the file; an existing file is replaced.

    Raises:
      WriteError: the file cannot be written.
    """
    if path is None:
        with open_output(None) as file:
            write_csv(content, file)
        return
    with atomic_path(path) as partial:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                np.savez(file, **content.arrays)
            return
        with partial.open("w", encoding="utf-8", newline="") as file:
            (write_json_lines if path.suffix == ".jsonl" else write_csv)(content, file)


def write_csv(content: Content, file: Output) -> None:
    """Writes the rows as CSV, with a line of the names of the columns."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(content.columns)
    writer.writerows(content.rows)


def write_json_lines(content: Content, file: Output) -> None:
    """Writes each row as a JSON object in a line."""
    for row in content.rows:
        line = dict(zip(content.columns, row, strict=True))
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def to_arrays(values: Any) -> dict[str, Any]:
    """Returns the fields of a NamedTuple of arrays that are not None, by name."""
    return {name: value for name, value in values._asdict().items() if value is not None}


def shorten(numbers: np.ndarray) -> list[float]:
    """Rounds numbers to nine significant digits, which float32 has at most."""
    return [float(f"{number:.9g}") for number in numbers.tolist()]
