"""The summary of a run: JSON values, a table and a figure."""

import textwrap
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import typeguard
from rich.table import Table

from jrnn.checks import describe
from jrnn.files import atomic_path
from jrnn.messages import shorten
from jrnn.plotting import (
    COLORS,
    COLUMN_WIDTH,
    escape_math,
    hide_spines,
    new_figure,
    paper_style,
    set_log_scale,
)
from jrnn.tasks.labels import IGNORED_LABEL
from jrnn.tasks.task import Data, DataSpec, Metric, Split
from jrnn.train.config.experiment import Experiment
from jrnn.train.data.sampler import take
from jrnn.train.fit import FitResult
from jrnn.train.run.forecast_figure import draw_forecasts
from jrnn.train.run.metrics_logger import MetricsFile, read_column
from jrnn.train.run.progress import METRIC_NAMES
from jrnn.train.scores import scored_targets
from jrnn.train.step.evaluate import predict
from jrnn.train.step.loss import HIGHER_IS_BETTER
from jrnn.train.step.state import count_params

IMAGES_PER_ROW = 8
"""Number of images per row of the figure: one row of correct and one of wrong predictions."""


def summarize(experiment: Experiment, data: Data, result: FitResult) -> dict[str, Any]:
    """Summarizes a run as JSON values, for `result.json`.

    Args:
      experiment: the experiment of the run.
      data: the data of the task.
      result: the result of `train`.

    Returns:
      JSON values by name, such as "test", the metric on the test split.
    """
    name, baseline = data.baseline
    summary = {
        "task": type(experiment.task).__name__,
        "cell": describe(experiment.network.cell),
        "parameters": count_params(result.model),
        "metric": data.metric,
        "test": result.test["metric"],
        "validation": result.validation["metric"],
        "baseline": {"name": name, "value": baseline},
        "best_step": result.step,
        "steps": experiment.steps,
        "seconds": result.seconds,
    }
    one_target = data.output_size == 1 or (data.forecast and len(data.forecast.targets) == 1)
    if data.target_scaler is not None and one_target:
        rmse = result.test["metric"] ** 0.5 * data.target_scaler.std[0]
        summary["test_rmse_in_units"] = float(rmse)
    return summary


class Summary(TypedDict):
    """The fields of a summary that `make_table` shows."""

    task: str
    cell: str
    parameters: int
    metric: Metric
    test: float
    validation: float
    baseline: dict[str, str | float]
    best_step: int
    steps: int
    seconds: float | None
    test_rmse_in_units: NotRequired[float]
    baselines: NotRequired[list[dict[str, str | float]]]


def check_summary(path: Path, summary: Any) -> dict[str, Any]:
    """Returns the content of `result.json`; raises ValueError unless it is from `summarize`."""
    try:
        known = {name: summary[name] for name in Summary.__annotations__ if name in summary}
        typeguard.check_type(
            known,
            Summary,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
        for entry in summary.get("baselines", [summary["baseline"]]):
            typeguard.check_type((entry["name"], entry["value"]), tuple[str, float])
    except (typeguard.TypeCheckError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not the result of a run: {error}; write it again with jrnn train --resume"
        ) from error
    return summary


def describe_comparison(metric: str, scores: dict[str, Any]) -> str:
    """Returns a sentence that compares a network with the baseline.

    Args:
      metric: name of the metric.
      scores: scores from `jrnn.train.scores.score`.
    """
    if "baseline" not in scores:
        return "There is no baseline for these examples."
    name, value = scores["baseline"]["name"], scores["baseline"]["value"]
    own = scores["metric"]
    values = f"{METRIC_NAMES[metric]} {own:.4g} against {value:.4g}"
    if own == value:
        return f"The network is as good as the baseline ({name}): {values}."
    is_better = (own > value) == HIGHER_IS_BETTER[metric]
    if is_better:
        return f"The network is better than the baseline ({name}): {values}."
    return (
        f"The network is worse than the baseline ({name}): {values}. Do not use it for this; train "
        "longer, or change the network or the learning rate."
    )


def make_table(summary: dict[str, Any]) -> Table:
    """Returns the values from `summarize` as a rich table."""
    metric = METRIC_NAMES[summary["metric"]]
    rows = {
        "cell": summary["cell"],
        "parameters": f"{summary['parameters']:,}",
        f"test {metric}": f"[bold]{summary['test']:.4f}[/bold]",
        f"validation {metric}": f"{summary['validation']:.4f}",
        **{
            f"baseline: {entry['name']}": f"{float(entry['value']):.4f}"
            for entry in summary.get("baselines", [summary["baseline"]])
        },
        "best step": f"{summary['best_step']} of {summary['steps']}",
    }
    if summary["seconds"] is not None:
        rows["training time"] = f"{summary['seconds']:.0f} s"
    if "test_rmse_in_units" in summary:
        rows["test RMSE in original units"] = f"{summary['test_rmse_in_units']:.4g}"
    table = Table(title=summary["task"], show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def loss_label(spec: DataSpec) -> str:
    """Returns the name of the loss of a task, with its unit."""
    if spec.has_classes:
        return "cross-entropy (nats)"
    distribution = "point" if spec.forecast is None else spec.forecast.distribution
    name = {
        "point": "mean squared error",
        "gaussian": "negative log-likelihood",
        "quantiles": "pinball loss",
    }[distribution]
    return f"{name}{_unit_of_errors(spec)}"


def metric_label(spec: DataSpec) -> str:
    """Returns the name of the metric of a task, with its unit."""
    return f"{METRIC_NAMES[spec.metric]}{'' if spec.has_classes else _unit_of_errors(spec)}"


def _unit_of_errors(spec: DataSpec) -> str:
    return "" if spec.target_scaler is None else " (normalized units)"


def make_title(experiment: Experiment, result: FitResult) -> str:
    """Returns the title of a figure: the task, the options of the cell, and the size.

    Only options of the cell that differ from their defaults are included.
    """
    network = experiment.network
    layers = f"{network.num_layers} x " if network.num_layers > 1 else ""
    if network.bidirectional:
        layers += "bidirectional "
    cell = shorten(f"{layers}{describe(network.cell)}", 80)
    parameters = f"{count_params(result.model):,} parameters"
    return f"{type(experiment.task).__name__}: {cell}, {parameters}"


FIGURE_FORMATS = (".png", ".pdf", ".svg")
"""The suffixes of files of figures."""


def save_figure(
    data: Data, result: FitResult, folder: Path, *, title: str = "", path: Path | None = None
) -> Path:
    """Saves a figure of one column of a paper: learning curves, and predictions of test examples.

    Args:
      data: the data of the task.
      result: the result of `train`.
      folder: the folder of the run, which has `metrics.jsonl`.
      title: the title, from `make_title`.
      path: the file to write, with a suffix in `FIGURE_FORMATS`; None means `figure.png` in the
        folder.

    Returns:
      The path of the figure.

    Raises:
      ImportError: matplotlib is not installed.
      WriteError: the figure cannot be written.
    """
    path = folder / "figure.png" if path is None else path
    by_target = {
        "class": _draw_classes,
        "value": _draw_values,
        "class_per_step": _draw_classes_per_step,
        "value_per_step": _draw_values_per_step,
    }
    with paper_style():
        figure = new_figure(COLUMN_WIDTH, 3.4)
        if title:
            lines = textwrap.wrap(escape_math(title), 62)
            figure.suptitle("\n".join(lines), fontsize=7, fontweight="bold")
        panels: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
        curves, examples = panels
        left, right = curves.subplots(1, 2)
        _draw_curves(left, right, data, result, MetricsFile(folder / "metrics.jsonl").read_lines())
        draw = by_target[data.target] if data.forecast is None else draw_forecasts
        draw(examples, data, result)
        with atomic_path(path) as partial:
            figure.savefig(partial, format=path.suffix.removeprefix("."))
    return path


def _draw_curves(left, right, data: Data, result: FitResult, metrics: list[dict[str, Any]]) -> None:
    splits = ("train", "validation")
    training, validation = (read_column(metrics, split, "loss") for split in splits)
    left.plot(*training, label="training", ls="--")
    left.plot(*validation, label="validation", marker=".")
    # Losses of targets without variance may all be 0, and log-likelihoods may have any sign.
    losses = [*training[1], *validation[1]]
    if min(losses, default=0) >= 0 and max(losses, default=0) > 0:
        set_log_scale(left)
    left.set(xlabel="training step", ylabel=_wrap_label(loss_label(data)))
    right.plot(*read_column(metrics, "train", "metric"), ls="--")
    right.plot(*read_column(metrics, "validation", "metric"), marker=".")
    baseline = escape_math(shorten(data.baseline[0], 30))
    right.axhline(data.baseline[1], color="0.4", ls=":", label=baseline)
    test = result.test["metric"]
    right.plot(result.step, test, "k*", ms=6, label=f"test {test:.3g}")
    right.set(xlabel="training step", ylabel=_wrap_label(metric_label(data)))
    hide_spines(left, right)
    for ax in (left, right):
        ax.legend()


def _wrap_label(label: str) -> str:
    """Puts the unit of a label on a second line, so that it fits beside a small panel."""
    return label.replace(" (", "\n(")


def _predict_examples(data: Data, result: FitResult, count: int) -> tuple[Split, np.ndarray]:
    """Returns the first `count` test examples, and the outputs of the network for them."""
    examples = take(data.test, np.arange(min(count, len(data.test.xs))))
    return examples, predict(result.model, examples)


def _draw_classes(panel, data: Data, result: FitResult) -> None:
    """Draws images with their predictions if the task has images, else the confusion matrix."""
    if data.image is None:
        _draw_confusion(panel, data, result)
        return
    examples, scores = _predict_examples(data, result, len(data.test.xs))
    predictions = scores.argmax(axis=-1)
    correct = np.flatnonzero(predictions == examples.ys)[:IMAGES_PER_ROW]
    is_known = examples.ys != IGNORED_LABEL
    wrong = np.flatnonzero((predictions != examples.ys) & is_known)
    num_wrong, wrong = len(wrong), wrong[:IMAGES_PER_ROW]
    axes = panel.subplots(2, IMAGES_PER_ROW)
    for ax in axes.flat:
        ax.set_axis_off()
    used_axes = [*axes[0][: len(correct)], *axes[1][: len(wrong)]]
    for ax, row in zip(used_axes, [*correct, *wrong], strict=True):
        is_correct = predictions[row] == examples.ys[row]
        ax.imshow(data.image(examples.xs[row]), cmap="gray_r")
        title = (
            f"{predictions[row]}" if is_correct else f"{predictions[row]}, not {examples.ys[row]}"
        )
        ax.set_title(title, color=COLORS[2] if is_correct else COLORS[1], fontsize=6, pad=2)
    panel.suptitle(
        f"test examples: correct (above) and wrong (below, {num_wrong} of {is_known.sum()})",
        fontsize=7,
    )


def _draw_confusion(panel, data: Data, result: FitResult) -> None:
    examples, scores = _predict_examples(data, result, len(data.test.xs))
    counts = np.zeros((data.output_size, data.output_size), int)
    known = examples.ys != IGNORED_LABEL
    np.add.at(counts, (examples.ys[known], scores.argmax(axis=-1)[known]), 1)
    ax = panel.subplots()
    panel.colorbar(ax.imshow(counts, cmap="Blues"), ax=ax, label="test examples")
    ax.set(xlabel="predicted class", ylabel="true class")


def _draw_values(panel, data: Data, result: FitResult) -> None:
    """Draws predicted against true values of the first target, in original units."""
    examples, outputs = _predict_examples(data, result, 500)
    truth, values = data.invert_targets(examples.ys), data.invert_targets(outputs)
    ax = panel.subplots()
    ax.plot(truth[:, 0], values[:, 0], ".", ms=2)
    known = np.sort(truth[~np.isnan(truth[:, 0]), 0])
    ax.plot(known, known, color="0.6", lw=0.8)
    name = _value_label(data)
    ax.set(xlabel=f"true {name}", ylabel="predicted")
    hide_spines(ax)


def _value_label(data: Data) -> str:
    """Returns the name of the first target with its unit."""
    name = escape_math(shorten(data.target_names[0], 30)) if data.target_names else "value"
    return name if data.target_scaler is None else f"{name} (original units)"


def _draw_classes_per_step(panel, data: Data, result: FitResult) -> None:
    """Draws the accuracy at each time step."""
    examples, scores = _predict_examples(data, result, 256)
    correct = scores.argmax(axis=-1) == examples.ys
    mask = scored_targets(data, examples)
    steps = np.flatnonzero(mask.any(axis=0))
    accuracies = [correct[mask[:, t], t].mean() for t in steps]
    ax = panel.subplots()
    ax.plot(steps, accuracies, marker="." if len(steps) < 40 else None)
    ax.set(xlabel="time step", ylabel="accuracy", ylim=(0, 1.02))
    hide_spines(ax)


def _draw_values_per_step(panel, data: Data, result: FitResult) -> None:
    """Draws the first target value of some examples, true and predicted, in original units."""
    examples, outputs = _predict_examples(data, result, 3)
    truth, values = data.invert_targets(examples.ys), data.invert_targets(outputs)
    axes = np.atleast_1d(panel.subplots(1, len(examples.xs), sharey=True))
    for row, ax in enumerate(axes):
        valid = slice(None if examples.lengths is None else examples.lengths[row])
        ax.plot(truth[row, valid, 0], label="true")
        ax.plot(values[row, valid, 0], label="predicted", ls="--")
        ax.set(title=f"test example {row}", xlabel="time step")
        hide_spines(ax)
    axes[0].set_ylabel(_wrap_label(_value_label(data)))
    axes[-1].legend()
