"""Learning curves: the loss, the metric, and the norms of gradients and updates."""

from typing import Any, NamedTuple

from jrnn.report.charts import Mark, Series, Spec, lines
from jrnn.tasks.task import DataSpec
from jrnn.train.run.metrics_logger import read_column
from jrnn.train.run.summary import loss_label, metric_label
from jrnn.train.step.loss import HIGHER_IS_BETTER

Lines = list[dict[str, Any]]
"""The lines of `metrics.jsonl`."""


class Best(NamedTuple):
    """The best evaluation of a run on the validation split."""

    step: int
    metric: float


def find_best(metrics: Lines, spec: DataSpec) -> Best | None:
    """Returns the best evaluation, the first one of several; None without an evaluation."""
    sign = -1 if HIGHER_IS_BETTER[spec.metric] else 1
    evaluations = zip(*read_column(metrics, "validation", "metric"), strict=True)
    return min((Best(*each) for each in evaluations), key=lambda b: sign * b.metric, default=None)


def loss_curves(metrics: Lines, spec: DataSpec) -> Spec:
    """Makes the chart of the loss on the training and validation splits, with the best step."""
    return lines(
        "training step",
        loss_label(spec),
        _both_splits(metrics, "loss"),
        marks=_mark_best(metrics, spec),
        log=True,
    )


def metric_curves(metrics: Lines, spec: DataSpec) -> Spec:
    """Makes the chart of the metric, with the best step and the baseline."""
    name, value = spec.baseline
    return lines(
        "training step",
        metric_label(spec),
        _both_splits(metrics, "metric"),
        marks=[*_mark_best(metrics, spec), Mark("y", value, f"baseline: {name}")],
        log=None if spec.metric == "accuracy" else False,
    )


def norm_curves(metrics: Lines, name: str) -> Spec | None:
    """Makes the chart of "grad_norm" or "update_norm"; None if the run did not log it."""
    steps, values = read_column(metrics, "train", name)
    label = "gradient norm" if name == "grad_norm" else "update norm"
    color = 2 if name == "grad_norm" else 3
    if not steps:
        return None
    series = [Series(label, steps, values, color)]
    return lines("training step", label, series, marks=[], log=True)


def _both_splits(metrics: Lines, name: str) -> list[Series]:
    return [
        Series("training", *read_column(metrics, "train", name), color=0, dash=1),
        Series("validation", *read_column(metrics, "validation", name), color=1),
    ]


def _mark_best(metrics: Lines, spec: DataSpec) -> list[Mark]:
    best = find_best(metrics, spec)
    return [] if best is None else [Mark("x", best.step, f"best step {best.step:,}")]
