"""Time series from the rows of a CSV file: one series, or one for each name in a column."""

from collections.abc import Container
from typing import Literal, NamedTuple

import numpy as np

from jrnn import checks
from jrnn.tasks import csv_file, dates
from jrnn.tasks.csv_file import CsvFile, FormatError

Missing = Literal["refuse", "fill", "mask"]
MISSING_ADVICE = (
    "train with --task.missing fill to use the last value before it, or with --task.missing mask "
    "to show the network which values are missing"
)
MAX_GROWTH = 4
"""Maximum factor by which missing dates may increase the number of rows."""


class Columns(NamedTuple):
    """The roles of the columns of a file.

    Attributes:
      inputs: names of the input columns, which include the targets.
      targets: names of the columns to predict.
      date: name of the column of dates, or None.
      date_form: its form, as in `jrnn.tasks.dates`, or None to find it.
      group: name of the column that identifies the series, or None.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    date: str | None
    date_form: str | None
    group: str | None


class Series(NamedTuple):
    """One time series.

    Attributes:
      name: its name in the column of groups; "" for a single series.
      values: `[rows, columns]` float64, NaN where a value is missing.
      dates: `[rows]` datetime64[us], or None.
      example: the last date as text, in the form of the file; "" without dates.
    """

    name: str
    values: np.ndarray
    dates: np.ndarray | None
    example: str


class SeriesFile(NamedTuple):
    """The series of a file.

    Attributes:
      series: the series, in the order of their first rows.
      date_form: the form of the dates, or None.
      spacing: the spacing of the dates, or None.
    """

    series: list[Series]
    date_form: str | None
    spacing: dates.Spacing | None


def find_columns(
    file: CsvFile,
    columns: tuple[str, ...],
    exclude: tuple[str, ...],
    targets: tuple[str, ...],
    group: str | None,
    date: str | None,
    date_form: str | None,
) -> Columns:
    """Finds the roles of the columns; columns of dates are left out of the inputs.

    Raises:
      ValueError: a column does not exist, has two roles, or there is no input.
    """
    named = {"columns": columns, "exclude": exclude, "targets": targets}
    named |= {role: (name,) for role, name in (("group", group), ("date", date)) if name}
    for option, names in named.items():
        file.check_columns(option, names)
    for option in ("columns", "targets"):
        if of_dates := _find_dates(file, set(file.header) - set(named[option])):
            raise ValueError(
                f"Table: {option} must name columns of numbers, got the dates of {of_dates[0]!r}"
            )
    roles = {
        name: option for option in ("group", "date", "exclude") for name in named.get(option, ())
    }
    for option in ("columns", "targets"):
        for name in named[option]:
            if name in roles:
                raise ValueError(
                    f"Table: {option} must not name a column of {roles[name]}, got {name!r}"
                )
    used = {*columns, *targets, *exclude, group}
    found = [date] if date is not None else _find_dates(file, used)
    special = {*exclude, *found, group}
    inputs = columns or tuple(name for name in file.header if name not in special)
    targets, known = targets or inputs, set(inputs)
    inputs += tuple(name for name in targets if name not in known)
    if not inputs:
        raise ValueError(
            "Table: there must be a column of numbers besides dates, group and exclude, got "
            f"{checks.shorten(', '.join(file.header))} in {file.path!r}"
        )
    return Columns(inputs, targets, found[0] if found else None, date_form, group)


def _find_dates(file: CsvFile, used: Container[str | None]) -> list[str]:
    """Returns the unused columns whose first cell that is not empty is a date."""
    found = []
    for index, name in enumerate(file.header):
        if name in used:
            continue
        first = next((row[index] for _, row in file.rows if row[index].strip()), "")
        if dates.is_date(first.strip()):
            found.append(name)
    return found


def read(
    file: CsvFile,
    columns: Columns,
    *,
    decimal: str,
    missing: Missing,
    spacing: dates.Spacing | None = None,
) -> SeriesFile:
    """Reads the series of a file.

    Rows that are missing in a series of equally spaced dates are added, with NaN.

    Args:
      file: the file.
      columns: the roles of its columns.
      decimal: the decimal mark.
      missing: whether values and rows may be missing.
      spacing: the spacing of the dates; None finds it.

    Raises:
      ValueError: a cell is not a number or not a date, dates do not increase or do not have the
        spacing, or values are missing and `missing` is "refuse".
    """
    advice = MISSING_ADVICE
    values = csv_file.parse_columns(
        file,
        "columns",
        columns.inputs,
        decimal=decimal,
        allow_missing=missing != "refuse",
        advice=advice,
    )
    rows_of = _group_rows(file, columns.group)
    if columns.date is None:
        return SeriesFile(
            [Series(name, values[rows], None, "") for name, rows in rows_of.items()], None, None
        )
    cells = file.column(columns.date)
    parsed = dates.parse(cells, columns.date_form)
    if isinstance(parsed, int):
        raise FormatError(
            f"Table: line {file.rows[parsed][0]}, column {columns.date!r} must be a date"
            f"{'' if columns.date_form is None else f' of the form {columns.date_form!r}'}"
            f", got {checks.shorten(repr(cells[parsed]))}",
            "correct it, set --task.date-form, or leave the column out with --task.exclude "
            f"{columns.date}",
        )
    for rows in rows_of.values():
        _check_increasing(file, columns.date, cells, parsed.values, rows)
    by_dates = {name: parsed.values[rows] for name, rows in rows_of.items()}
    if spacing is None:
        spacing = _find_spacing(by_dates)
    if missing == "refuse" and spacing.unit == "irregular":
        raise FormatError(
            f"Table: dates must be equally spaced, got different intervals in column "
            f"{columns.date!r}",
            "train with --task.missing mask to show the network the intervals, "
            "with --task.missing fill to treat the rows as equally spaced, or leave the dates out "
            f"with --task.exclude {columns.date}",
        )
    series = []
    for name, rows in rows_of.items():
        positions = _find_positions(file, columns.date, cells, parsed.values, rows, spacing)
        filled, times = _add_rows(values[rows], by_dates[name], positions, spacing)
        if missing == "refuse" and len(filled) > len(rows):
            gap = int((np.diff(positions) > 1).argmax()) + 1
            raise ValueError(
                f"Table: dates must be without gaps, got {len(filled) - len(rows)} missing rows in "
                f"column {columns.date!r}, the first before line {file.rows[rows[gap]][0]} "
                f"({cells[rows[gap]]!r}); {advice}"
            )
        series.append(Series(name, filled, times, cells[rows[-1]] if len(rows) else ""))
    return SeriesFile(series, parsed.form, spacing)


def _group_rows(file: CsvFile, group: str | None) -> dict[str, np.ndarray]:
    """Returns the rows of each series, in the order of their first rows."""
    if group is None:
        return {"": np.arange(len(file.rows))}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(file.column(group)):
        rows.setdefault(name.strip(), []).append(row)
    return {name: np.array(each) for name, each in rows.items()}


def _check_increasing(
    file: CsvFile, date: str, cells: list[str], values: np.ndarray, rows: np.ndarray
) -> None:
    bad = np.flatnonzero(np.diff(values[rows]).astype(np.int64) <= 0)
    if not len(bad):
        return
    before, after = rows[bad[0]], rows[bad[0] + 1]
    raise FormatError(
        "Table: dates must increase from row to row, got "
        f"{checks.shorten(repr(cells[after]))} after {checks.shorten(repr(cells[before]))} at line "
        f"{file.rows[after][0]}, column {date!r}",
        "sort the rows, use UTC if clocks were changed, name the column of several series with "
        f"--task.group, or leave the dates out with --task.exclude {date}",
    )


def _find_spacing(by_dates: dict[str, np.ndarray]) -> dates.Spacing:
    """Returns the spacing of the longest series, or an irregular one if others do not have it."""
    if not by_dates:
        return dates.Spacing.find(np.zeros(0, "datetime64[us]"))
    spacing = dates.Spacing.find(max(by_dates.values(), key=len))
    if all(spacing.positions(each) is not None for each in by_dates.values()):
        return spacing
    differences = np.concatenate([np.diff(each).astype(np.int64) for each in by_dates.values()])
    return dates.Spacing("irregular", max(1, int(np.median(differences))))


def _find_positions(
    file: CsvFile,
    date: str,
    cells: list[str],
    values: np.ndarray,
    rows: np.ndarray,
    spacing: dates.Spacing,
) -> np.ndarray:
    """Returns the index of each row in the equally spaced series."""
    if not len(rows):
        return np.zeros(0, int)
    positions = spacing.positions(values[rows])
    if positions is None:
        ends = [n for n in range(2, len(rows) + 1) if spacing.positions(values[rows[:n]]) is None]
        row = rows[ends[0] - 1]
        raise ValueError(
            f"Table: dates must have the spacing of the training data, {spacing.describe()}, got "
            f"{checks.shorten(repr(cells[row]))} at line {file.rows[row][0]}, column {date!r}"
        )
    if positions[-1] >= MAX_GROWTH * len(rows) + 16:
        gap = int(np.diff(positions).argmax()) + 1
        raise FormatError(
            "Table: dates must be mostly without gaps, got "
            f"{positions[-1] + 1 - len(rows)} missing rows for {len(rows)} rows, the most before "
            f"line {file.rows[rows[gap]][0]}, column {date!r}",
            f"use a part of the file, or leave the dates out with --task.exclude {date}",
        )
    return positions


def _add_rows(
    values: np.ndarray, times: np.ndarray, positions: np.ndarray, spacing: dates.Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """Returns values and dates with rows of NaN at missing positions."""
    if not len(positions) or positions[-1] + 1 == len(positions):
        return values, times
    filled = np.full((positions[-1] + 1, values.shape[1]), np.nan)
    filled[positions] = values
    steps = np.arange(len(filled))
    all_times = spacing.dates_from(times[0], steps, dates.day_of_month(times))
    all_times[positions] = times
    return filled, all_times


def fill_forward(values: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Replaces NaN by the last value before it, and by `initial [columns]` if there is none."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    last = np.where(missing, -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(last, axis=0)
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last < 0, initial, filled)


def observation_intervals(observed: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns the time since the previous observation of each variable, as in GRU-D.

    Args:
      observed: `[rows, variables]` bool.
      steps: `[rows]`, the time since the previous row.

    Returns:
      `[rows, variables]`; 0 in the first row.
    """
    times = np.cumsum(np.concatenate([[0.0], steps[1:]]))[:, None]
    seen = np.where(observed, times, -np.inf)
    before = np.concatenate([np.full((1, observed.shape[1]), -np.inf), seen[:-1]])
    before = np.maximum.accumulate(before, axis=0)
    return times - np.maximum(before, 0.0)
