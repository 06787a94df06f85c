"""The comparison of runs or of the trials of a sweep: table, curves and parallel coordinates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jrnn.report import curves
from jrnn.report.charts import MAX_POINTS, Axis, Mark, Series, Spec, decimate, lines, parallel
from jrnn.report.page import Page, element, grid, table
from jrnn.report.settings import Setting, find_differences
from jrnn.run_folder import Run
from jrnn.tasks.task import DataSpec
from jrnn.train.run.metrics_logger import read_column
from jrnn.train.run.summary import loss_label, metric_label
from jrnn.train.step.loss import HIGHER_IS_BETTER

MAX_ROWS = 1000
"""Maximum number of runs on a page; the best ones are shown."""
MAX_TOTAL_POINTS = 60_000
"""Maximum number of points of all lines of a chart."""


class Entry(NamedTuple):
    """A run or a trial that is compared with others.

    Attributes:
      name: its name.
      settings: its settings that differ from those of others, by name; the same names for all.
      validation: the best metric on the validation split, or None.
      test: the metric on the test split, or None.
      best_step: the training step of the best evaluation, or None.
      metrics: the lines of `metrics.jsonl`.
      parameters: number of parameters, or None.
      seconds: wall time of the training, or None.
      state: "finished", or why it is not.
    """

    name: str
    settings: dict[str, Setting]
    validation: float | None
    test: float | None
    best_step: int | None
    metrics: curves.Lines
    parameters: int | None = None
    seconds: float | None = None
    state: str = "finished"


def read_entries(runs: Sequence[Run]) -> list[Entry]:
    """Reads the results and metrics of runs, with the settings that differ.

    Raises:
      ValueError: there are fewer than two runs, the metrics of their tasks differ, or a file is
        invalid.
    """
    if len(runs) < 2:
        raise ValueError(
            f"compare: there must be at least two runs, got {len(runs)}; run for example: "
            "jrnn compare runs/one runs/two"
        )
    names = sorted({run.data.spec.metric for run in runs})
    if len(names) > 1:
        raise ValueError(
            f"compare: all runs must have the same metric, got {', '.join(names)}; compare runs of "
            "one task at a time"
        )
    settings = find_differences([run.config for run in runs])
    return [_read_entry(run, each) for run, each in zip(runs, settings, strict=True)]


def _read_entry(run: Run, settings: dict[str, Setting]) -> Entry:
    try:
        metrics = run.metrics
    except FileNotFoundError:
        metrics = []
    best = curves.find_best(metrics, run.data.spec)
    validation, best_step = (None, None) if best is None else (best.metric, best.step)
    try:
        result = run.result
    except FileNotFoundError:
        entry = Entry(str(run.folder), settings, validation, None, best_step, metrics)
        return entry._replace(state="not finished")
    return Entry(
        str(run.folder),
        settings,
        result["validation"],
        result["test"],
        result["best_step"],
        metrics,
        result["parameters"],
        result["seconds"],
    )


def rank_entries(entries: Sequence[Entry], spec: DataSpec) -> list[Entry]:
    """Returns the entries by validation metric, the best first; those without one are last."""
    sign = -1 if HIGHER_IS_BETTER[spec.metric] else 1
    key = lambda e: float("inf") if e.validation is None else sign * e.validation
    return sorted(entries, key=key)


def make_rows(entries: Sequence[Entry], spec: DataSpec) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and the rows of the table; columns without any value are left out."""
    label = metric_label(spec)
    columns = ["run", *entries[0].settings]
    columns += [
        f"validation {label}",
        f"test {label}",
        "best step",
        "parameters",
        "seconds",
        "state",
    ]
    rows = [
        [
            e.name,
            *e.settings.values(),
            e.validation,
            e.test,
            e.best_step,
            e.parameters,
            None if e.seconds is None else round(e.seconds, 1),
            e.state,
        ]
        for e in entries
    ]
    used = [k for k in range(len(columns)) if any(row[k] is not None for row in rows)]
    return [columns[k] for k in used], [[row[k] for k in used] for row in rows]


def make_comparison(title: str, lead: str, entries: Sequence[Entry], spec: DataSpec) -> str:
    """Makes a page that compares runs, or the trials of a sweep.

    Args:
      title: the title of the page.
      lead: a sentence below the title.
      entries: the runs; the page shows the best `MAX_ROWS` of them.
      spec: the properties of the data of the first run, for the metric and the baseline.

    Returns:
      The page as HTML, which makes no requests.
    """
    ranked = rank_entries(entries, spec)[:MAX_ROWS]
    best = 0 if ranked and ranked[0].validation is not None else None
    page = Page(title, lead)
    columns, rows = make_rows(ranked, spec)
    notes = ["Settings that all have in common are left out. Click a column to sort."]
    if len(ranked) < len(entries):
        notes.append(f"These are the best {len(ranked):,} of {len(entries):,}.")
    name, value = spec.baseline
    notes.append(f"The baseline ({name}) has {value:.4g} on the test split.")
    page.add_section(
        "Results",
        element("p", " ".join(notes), class_="muted"),
        table(columns, rows, best=best, sortable=True),
    )
    labels = {
        f"Validation {metric_label(spec)}": ("validation", "metric", metric_label(spec)),
        "Validation loss": ("validation", "loss", loss_label(spec)),
        "Training loss": ("train", "loss", loss_label(spec)),
        "Gradient norm": ("train", "grad_norm", "gradient norm"),
    }
    charts = {
        caption: overlay(ranked, split, column, ylabel, spec, best)
        for caption, (split, column, ylabel) in labels.items()
    }
    page.add_section(
        "Curves",
        grid(*(page.chart(k, chart) for k, chart in charts.items() if chart is not None)),
    )
    page.add_section(
        "Parallel coordinates",
        page.chart(
            "Settings and results",
            parallel(_make_axes(ranked, spec), [e.name for e in ranked], best),
        ),
    )
    return page.render()


def overlay(
    entries: Sequence[Entry], split: str, column: str, ylabel: str, spec: DataSpec, best: int | None
) -> Spec | None:
    """Makes a chart with one line for each run; None if no run has the values.

    Args:
      entries: the runs.
      split: "train" or "validation".
      column: the name of the values in `metrics.jsonl`.
      ylabel: the label of the y axis.
      spec: the properties of the data.
      best: index of a run that is emphasized, or None.
    """
    limit = max(10, min(MAX_POINTS, MAX_TOTAL_POINTS // max(len(entries), 1)))
    is_many = len(entries) > 8
    series = []
    for index, entry in enumerate(entries):
        steps, values = read_column(entry.metrics, split, column)
        if not steps:
            continue
        xs, ys = np.asarray(steps), np.asarray(values)
        keep = decimate(xs, ys, limit)
        color = (1 if index == best else 0) if is_many else index
        series.append(
            Series(entry.name, xs[keep], ys[keep], color, index % 6, strong=index == best)
        )
    if not series:
        return None
    # The best line is drawn last, above the others.
    series.sort(key=lambda s: s.strong)
    is_metric = column == "metric"
    marks = [Mark("y", spec.baseline[1], f"baseline: {spec.baseline[0]}")] if is_metric else []
    log = (None if spec.metric == "accuracy" else False) if is_metric else True
    return lines("training step", ylabel, series, marks=marks, log=log)


def _make_axes(entries: Sequence[Entry], spec: DataSpec) -> list[Axis]:
    label = metric_label(spec)
    axes = [
        Axis(name, to_numbers([entry.settings[name] for entry in entries]))
        for name in entries[0].settings
    ]
    results = {
        f"validation {label}": [entry.validation for entry in entries],
        f"test {label}": [entry.test for entry in entries],
        "best step": [entry.best_step for entry in entries],
    }
    return axes + [Axis(k, v) for k, v in results.items() if any(x is not None for x in v)]


def to_numbers(values: Sequence[Setting]) -> list[Setting]:
    """Converts texts to floats if all of them are numbers, as the values of a sweep are.

    >>> to_numbers(["1e-3", "0.1", None]), to_numbers(["0.1", "lstm"])
    ([0.001, 0.1, None], ['0.1', 'lstm'])
    """
    try:
        numbers = [None if value is None else float(value) for value in values]
    except ValueError:
        return list(values)
    is_finite = all(number is None or abs(number) < float("inf") for number in numbers)
    return [*numbers] if is_finite else list(values)
