"""The progress bar of a run: loss, metric, steps per second and remaining time."""

from rich import progress as rich_progress

METRIC_NAMES = {"accuracy": "accuracy", "mse": "MSE", "bits_per_character": "bits/char"}
"""For each metric of a task, its name in the progress bar, tables and figures."""


class Progress:
    """Context manager that shows the progress bar of a run, by rich.

    Attributes:
      step: the newest step; None before the first update.
    """

    def __init__(self, steps: int, metric: str, title: str = "", *, enabled: bool = True):
        """Creates a progress bar.

        Args:
          steps: total number of training steps.
          metric: name of the metric.
          title: text before the bar.
          enabled: whether to show the bar.
        """
        self.step: int | None = None
        name = METRIC_NAMES.get(metric, metric)
        self._bar = rich_progress.Progress(
            *([rich_progress.TextColumn(title)] if title else []),
            rich_progress.TextColumn("step {task.completed}/{task.total}"),
            rich_progress.BarColumn(bar_width=None),
            rich_progress.TextColumn("loss {task.fields[loss]}"),
            rich_progress.TextColumn(f"validation {name} {{task.fields[validation]}}"),
            rich_progress.TextColumn("{task.fields[speed]} steps/s"),
            rich_progress.TimeRemainingColumn(compact=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task("", total=steps, loss="-", validation="-", speed="-")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update_training(self, step: int, means: dict[str, float]) -> None:
        """Updates the step, the speed and the loss; the loss is "-" if `means` is empty."""
        self.step = step
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{means['loss']:.4f}" if means else "-",
            speed="-" if speed is None else f"{speed:.0f}",
        )

    def update_validation(self, metrics: dict[str, float]) -> None:
        """Updates the metric on the validation data; "-" if `metrics` is empty."""
        text = f"{metrics['metric']:.4f}" if metrics else "-"
        self._bar.update(self._task, validation=text)
