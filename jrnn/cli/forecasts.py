"""The rows of files of forecasts, and tables of their scores."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jrnn.cli.table_file import Content, shorten, to_arrays
from jrnn.run_folder import ForecastAfter
from jrnn.tasks.forecast import Forecast

MAX_HORIZONS = 8
"""Maximum number of rows ahead in a table on the terminal."""


def make_content(forecast: Forecast, made: ForecastAfter) -> Content:
    """Returns the content of a file of forecasts.

    Args:
      forecast: the properties of the forecast.
      made: the forecasts.
    """
    arrays = to_arrays(made.rows)
    if made.context.dates is not None:
        arrays["dates"] = np.array(made.context.dates)
    if forecast.group is not None:
        arrays["names"] = np.array(made.context.names)
    return Content(column_names(forecast, made), make_rows(forecast, made), arrays)


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
