"""Files of forecasts, and tables of their scores."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.markup import escape
from rich.table import Table

from jrnn.cli.predictions import shorten
from jrnn.files import atomic_path
from jrnn.run_folder import ForecastAfter
from jrnn.tasks.forecast import Forecast

MAX_HORIZONS = 8
"""Maximum number of rows ahead in a table on the terminal."""


def write(path: Path, forecast: Forecast, made: ForecastAfter) -> None:
    """Writes forecasts to a file, in the format of its suffix: `.csv`, `.jsonl` or `.npz`.

    Args:
      path: path of the file; an existing file is replaced.
      forecast: the properties of the forecast.
      made: the forecasts.

    Raises:
      WriteError: the file cannot be written.
    """
    with atomic_path(path) as partial:
        if path.suffix == ".npz":
            arrays = {k: v for k, v in made.rows._asdict().items() if v is not None}
            if made.context.dates is not None:
                arrays["dates"] = np.array(made.context.dates)
            if forecast.group is not None:
                arrays["names"] = np.array(made.context.names)
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            return
        with partial.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, path.suffix, forecast, made)


def write_rows(file: TextIO, suffix: str, forecast: Forecast, made: ForecastAfter) -> None:
    """Writes forecasts as lines of CSV, or of JSON if the suffix is ".jsonl"."""
    names = column_names(forecast, made)
    if suffix == ".jsonl":
        for row in make_rows(forecast, made):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(make_rows(forecast, made))


def column_names(forecast: Forecast, made: ForecastAfter) -> list[str]:
    """Returns the names of the columns: those of group and dates, and three for each target.

    Without dates the rows are numbered from 1, which is the first row after the file. The interval
    of a target "load" is from "load_low" to "load_high".
    """
    group = [] if forecast.group is None else [forecast.group]
    ends = ("", "_low", "_high") if made.rows.low is not None else ("",)
    targets = [f"{name}{end}" for name in forecast.targets for end in ends]
    return [*group, forecast.date or "row", *targets]


def make_rows(forecast: Forecast, made: ForecastAfter) -> Iterator[list[Any]]:
    """Yields a row for each series and each row ahead."""
    points, low, high = made.rows
    for index, name in enumerate(made.context.names):
        for ahead in range(forecast.horizon):
            group = [] if forecast.group is None else [name]
            dates = made.context.dates
            when = ahead + 1 if dates is None else dates[index][ahead]
            values = points[index, ahead][:, None]
            if low is not None and high is not None:
                values = np.stack([points[index, ahead], low[index, ahead], high[index, ahead]], -1)
            yield [*group, when, *shorten(values.ravel())]


def make_horizon_table(horizons: Sequence[dict[str, Any]]) -> Table:
    """Returns a table of the errors of some rows ahead, in original units."""
    table = Table(title="errors by rows ahead, in original units", title_justify="left")
    columns = ["rows ahead", "target", "MAE", "RMSE"]
    has_coverage = "coverage" in horizons[0]
    for column in columns + (["coverage"] if has_coverage else []):
        table.add_column(column, justify="left" if column == "target" else "right")
    last = max(entry["horizon"] for entry in horizons)
    shown = {round(value) for value in np.linspace(1, last, min(last, MAX_HORIZONS))}
    for entry in horizons:
        if entry["horizon"] in shown:
            cells = [str(entry["horizon"]), escape(entry["target"])]
            cells += [f"{entry[name]:.4g}" for name in ("mae", "rmse")]
            cells += [f"{entry['coverage']:.1%}"] if has_coverage else []
            table.add_row(*cells)
    return table


def make_backtest_tables(scores: dict[str, Any]) -> Iterator[Table]:
    """Yields the tables of the scores from `Run.backtest`."""
    title = f"backtest from {scores['origins']} rows, in original units"
    table = Table(title=title, title_justify="left")
    names = [entry["name"] for entry in scores["targets"][0]["baselines"]]
    columns = ["target", "MAE", "RMSE", *(f"MAE: {name}" for name in names)]
    has_coverage = "coverage" in scores["targets"][0]
    for column in columns + ([f"coverage of {scores['level']:.0%}"] if has_coverage else []):
        table.add_column(escape(column), justify="left" if column == "target" else "right")
    for entry in scores["targets"]:
        values = [entry["mae"], entry["rmse"], *(each["mae"] for each in entry["baselines"])]
        cells = [escape(entry["name"]), *(f"{value:.4g}" for value in values)]
        table.add_row(*cells, *([f"{entry['coverage']:.1%}"] if has_coverage else []))
    yield table
    yield make_horizon_table(scores["horizons"])
