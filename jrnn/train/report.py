"""What a run shows at its end: a table and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jrnn.tasks.task import Data
from jrnn.train.data import take
from jrnn.train.experiment import Experiment
from jrnn.train.loop import Trained
from jrnn.train.metrics import MetricsFile
from jrnn.train.progress import METRIC_NAMES
from jrnn.train.step import count_params, predict

EXAMPLES = 8


def summary(experiment: Experiment, data: Data, trained: Trained) -> dict[str, Any]:
    """The result of a run in plain numbers, as it is written to `result.json`.

    Args:
      experiment: that of the run.
      data: the loaded task.
      trained: what training returned.

    Returns:
      Names and values, fit for JSON.
    """
    name, baseline = data.baseline
    result = {
        "task": type(experiment.task).__name__,
        "cell": repr(experiment.network.cell),
        "parameters": count_params(trained.model),
        "metric": data.metric,
        "test": trained.test["metric"],
        "validation": trained.validation["metric"],
        "baseline": {"name": name, "value": baseline},
        "best_step": trained.step,
        "steps": experiment.steps,
        "seconds": trained.seconds,
    }
    if data.target_scale is not None and len(data.target_scale) == 1:
        result["test_rmse_in_units"] = float(trained.test["metric"] ** 0.5 * data.target_scale[0])
    return result


def table(result: dict[str, Any]) -> Table:
    """The summary as a rich table."""
    metric = METRIC_NAMES[result["metric"]]
    rows = {
        "cell": result["cell"],
        "parameters": f"{result['parameters']:,}",
        f"test {metric}": f"[bold]{result['test']:.4f}[/bold]",
        f"validation {metric}": f"{result['validation']:.4f}",
        f"baseline: {result['baseline']['name']}": f"{result['baseline']['value']:.4f}",
        "best at step": f"{result['best_step']} of {result['steps']}",
    }
    if result["seconds"] is not None:
        rows["training took"] = f"{result['seconds']:.0f} s"
    if "test_rmse_in_units" in result:
        rows["test RMSE in your units"] = f"{result['test_rmse_in_units']:.4g}"
    shown = Table(title=result["task"], show_header=False, title_justify="left")
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def blank(width: float, height: float) -> Any:
    """An empty figure of matplotlib, of so many inches.

    Raises:
      ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figure: needs matplotlib; pip install 'jrnn[demo]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def figure(data: Data, trained: Trained, folder: Path) -> Path:
    """Draws `figure.png`: the curves of loss and metric, and some test examples.

    Args:
      data: the loaded task.
      trained: what training returned.
      folder: that of the run, with its `metrics.jsonl`.

    Returns:
      Where the figure is.

    Raises:
      ImportError: matplotlib is missing.
    """
    drawn = blank(10, 6)
    panels: Any = drawn.subfigures(2, 1, height_ratios=(3, 2))
    curves, examples = panels
    left, right = curves.subplots(1, 2)
    _draw_curves(left, right, data, trained, MetricsFile(folder / "metrics.jsonl"))
    draw = {
        "class": _draw_classes,
        "value": _draw_values,
        "class_per_step": _draw_classes_per_step,
        "value_per_step": _draw_values_per_step,
    }[data.target]
    draw(examples, data, trained)
    path = folder / "figure.png"
    drawn.savefig(path, dpi=120)
    return path


def _draw_curves(left, right, data: Data, trained: Trained, metrics: MetricsFile) -> None:
    name = METRIC_NAMES[data.metric]
    left.plot(*metrics.read("train", "loss"), label="training", lw=1)
    left.plot(*metrics.read("validation", "loss"), label="validation", marker=".")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.plot(*metrics.read("train", "metric"), label="training", lw=1)
    right.plot(*metrics.read("validation", "metric"), label="validation", marker=".")
    right.axhline(data.baseline[1], color="0.6", ls=":", label=data.baseline[0])
    right.plot(
        trained.step,
        trained.test["metric"],
        "k*",
        ms=10,
        label=f"test {trained.test['metric']:.3f}",
    )
    right.set(xlabel="step", ylabel=name)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)


def _outputs(data: Data, trained: Trained, count: int):
    examples = take(data.test, np.arange(min(count, len(data.test.xs))))
    return examples, predict(trained.model, examples)


def _draw_classes(panel, data: Data, trained: Trained) -> None:
    """Pictures with their predictions where the task has pictures, else the confusion matrix."""
    if data.image is None:
        _draw_confusion(panel, data, trained)
        return
    examples, scores = _outputs(data, trained, len(data.test.xs))
    guesses = scores.argmax(axis=-1)
    wrong = np.flatnonzero(guesses != examples.ys)
    right = np.flatnonzero(guesses == examples.ys)
    shown = np.concatenate([right[:EXAMPLES], wrong[:EXAMPLES]])
    axes = panel.subplots(2, EXAMPLES)
    for ax in axes.flat:
        ax.set_axis_off()
    places = [*axes[0][: len(right[:EXAMPLES])], *axes[1][: len(wrong[:EXAMPLES])]]
    for ax, row in zip(places, shown, strict=True):
        good = guesses[row] == examples.ys[row]
        ax.imshow(data.image(examples.xs[row]), cmap="gray_r")
        title = f"{guesses[row]}" if good else f"{guesses[row]}, not {examples.ys[row]}"
        ax.set_title(title, color="tab:green" if good else "tab:red", fontsize=10)
    panel.suptitle(
        f"test examples: right (above) and wrong (below, {len(wrong)} of {len(guesses)})",
        fontsize=10,
    )


def _draw_confusion(panel, data: Data, trained: Trained) -> None:
    examples, scores = _outputs(data, trained, len(data.test.xs))
    counts = np.zeros((data.output_size, data.output_size), int)
    np.add.at(counts, (examples.ys, scores.argmax(axis=-1)), 1)
    ax = panel.subplots()
    panel.colorbar(ax.imshow(counts, cmap="Blues"), ax=ax, label="test examples")
    ax.set(xlabel="predicted class", ylabel="true class")


def _draw_values(panel, data: Data, trained: Trained) -> None:
    examples, values = _outputs(data, trained, 500)
    ax = panel.subplots()
    ax.plot(examples.ys.ravel(), values.ravel(), ".", ms=3)
    ends = [examples.ys.min(), examples.ys.max()]
    ax.plot(ends, ends, color="0.6", lw=1)
    ax.set(xlabel="true value", ylabel="predicted", aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_classes_per_step(panel, data: Data, trained: Trained) -> None:
    """The share of right outputs at each step."""
    examples, scores = _outputs(data, trained, 256)
    right = scores.argmax(axis=-1) == examples.ys
    counted = np.ones(right.shape, bool) if examples.scored is None else examples.scored
    if examples.lengths is not None:
        counted = counted & (np.arange(right.shape[1]) < examples.lengths[:, None])
    steps = np.flatnonzero(counted.any(axis=0))
    share = [right[counted[:, t], t].mean() for t in steps]
    ax = panel.subplots()
    ax.plot(steps, share, marker="." if len(steps) < 40 else None)
    ax.set(xlabel="step of the sequence", ylabel="accuracy", ylim=(0, 1.02))
    ax.spines[["top", "right"]].set_visible(False)


def _draw_values_per_step(panel, data: Data, trained: Trained) -> None:
    """The first value of some windows, true and predicted, in the user's units."""
    examples, values = _outputs(data, trained, 3)
    scale = 1.0 if data.target_scale is None else data.target_scale[0]
    axes = np.atleast_1d(panel.subplots(1, len(examples.xs), sharey=True))
    for row, ax in enumerate(axes):
        steps = slice(None if examples.lengths is None else examples.lengths[row])
        ax.plot(examples.ys[row, steps, 0] * scale, label="true", lw=1)
        ax.plot(values[row, steps, 0] * scale, label="predicted", lw=1, ls="--")
        ax.set(xlabel="step of the window")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
