"""The summary of a sweep, as a table and as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jrnn.files import atomic_path
from jrnn.plotting import COLORS, COLUMN_WIDTH, escape_math, hide_spines, new_figure, paper_style
from jrnn.sweep.sweep import SweepResult, trial_folder
from jrnn.tasks.task import Data
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.progress import METRIC_NAMES
from jrnn.train.run.summary import metric_label
from jrnn.train.step.loss import HIGHER_IS_BETTER

MAX_ROWS = 20
"""Maximum number of rows in the table, which shows the best trials."""

Values = Sequence[dict[str, str]]
"""For each trial, the value of each swept hyper-parameter as text, by name."""


def make_rows(values: Values, result: SweepResult) -> list[dict[str, Any]]:
    """Returns the result of each trial as a JSON object; metrics are None without an evaluation."""
    return [
        {
            "trial": index,
            "values": value,
            "validation": trial.validation.get("metric"),
            "test": trial.test.get("metric"),
            "best_step": trial.step,
            "stopped": trial.stopped,
        }
        for index, (value, trial) in enumerate(zip(values, result.trials, strict=True))
    ]


def rank_rows(values: Values, result: SweepResult, metric: str) -> list[dict[str, Any]]:
    """Returns the rows sorted by validation metric, the best first; unevaluated trials are last."""
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    worst = float("inf")
    key = lambda row: worst if row["validation"] is None else sign * row["validation"]
    return sorted(make_rows(values, result), key=key)


def make_table(values: Values, result: SweepResult, metric: str) -> Table:
    """Makes a table of the best trials, at most `MAX_ROWS`."""
    groups, trials = len(result.groups), len(result.trials)
    table = Table(
        title=f"{trials} trials, {groups} compilation{'s' if groups > 1 else ''}, "
        f"{result.seconds:.0f} s",
        title_justify="left",
    )
    name = METRIC_NAMES[metric]
    for column in (
        "trial",
        *values[0],
        f"validation {name}",
        f"test {name}",
        "best step",
        "stopped",
    ):
        table.add_column(column)
    format_metric = lambda value: "-" if value is None else f"{value:.4f}"
    for row in rank_rows(values, result, metric)[:MAX_ROWS]:
        results = (
            format_metric(row["validation"]),
            format_metric(row["test"]),
            str(row["best_step"]),
        )
        table.add_row(str(row["trial"]), *row["values"].values(), *results, row["stopped"] or "-")
    if trials > MAX_ROWS:
        table.caption = f"the best {MAX_ROWS} trials; result.json contains all"
    return table


def save_figure(values: Values, result: SweepResult, data: Data, folder: Path) -> Path:
    """Saves `figure.png`, with the validation curves of all trials.

    One further panel for each swept hyper-parameter shows the best metric of each trial against its
    value.

    Args:
      values: the values of the trials.
      result: the result of the sweep.
      data: the data of the first trial, for the metric and the baseline.
      folder: the folder of the sweep.

    Returns:
      The path of the figure.

    Raises:
      ImportError: matplotlib is not installed.
      WriteError: the figure cannot be written.
    """
    names = list(values[0])
    path = folder / "figure.png"
    with paper_style():
        figure = new_figure(COLUMN_WIDTH / 2 * (len(names) + 1), 1.9)
        figure.suptitle(f"{len(result.trials)} trials", fontsize=7, fontweight="bold")
        panels = figure.subplots(1, len(names) + 1, squeeze=False)[0]
        _draw_curves(panels[0], result, data, folder)
        for ax, name in zip(panels[1:], names, strict=True):
            _draw_values(ax, name, values, result)
        panels[1].set_ylabel(f"best validation {METRIC_NAMES[data.metric]}")
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png")
    return path


def _draw_curves(ax: Any, result: SweepResult, data: Data, folder: Path) -> None:
    for index in range(len(result.trials)):
        curve = MetricsFile(trial_folder(folder, index) / "metrics.jsonl")
        is_best = index == result.best
        style = {"color": "k", "lw": 1.5, "zorder": 3} if is_best else {"color": "0.6", "lw": 0.6}
        label = f"trial {index} (best)" if is_best else None
        ax.plot(*curve.read("validation", "metric"), label=label, **style)
    ax.axhline(data.baseline[1], color=COLORS[1], ls=":", label=escape_math(data.baseline[0]))
    ax.set(xlabel="training step", ylabel=f"validation {metric_label(data)}")
    hide_spines(ax)
    ax.legend()


def _draw_values(ax: Any, name: str, values: Values, result: SweepResult) -> None:
    """Draws the metrics of all evaluated trials against the values of one swept hyper-parameter."""
    points = [(v[name], t) for v, t in zip(values, result.trials, strict=True) if t.validation]
    texts = [escape_math(text) for text, _ in points]
    metrics = [trial.validation["metric"] for _, trial in points]
    numbers = _parse_floats(texts)
    positions = texts if numbers is None else numbers
    ax.plot(positions, metrics, "o", color="0.6", ms=3)
    if result.best is not None:
        best = values[result.best][name]
        position = escape_math(best) if numbers is None else float(best)
        ax.plot([position], [result.trials[result.best].validation["metric"]], "k*", ms=7)
    if numbers and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
        ax.set_xscale("log")
    ax.set(xlabel=escape_math(name))
    hide_spines(ax)


def _parse_floats(texts: list[str]) -> list[float] | None:
    """Returns the numbers, or None if a text is not a number."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
