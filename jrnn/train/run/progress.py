"""The progress bar of a run: loss, metric, steps per second, remaining time."""

from types import TracebackType

from rich import progress as bars

METRIC_NAMES = {"accuracy": "accuracy", "mse": "MSE", "bits_per_character": "bits/char"}


class Progress:
    """Context manager that shows the progress bar of a run by rich."""

    def __init__(self, steps: int, metric: str, title: str = "", *, enabled: bool = True):
        """For a run of `steps` steps; `metric` is the name of its metric."""
        name = METRIC_NAMES.get(metric, metric)
        self._bar = bars.Progress(
            *([bars.TextColumn(title)] if title else []),
            bars.TextColumn("step {task.completed}/{task.total}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("loss {task.fields[loss]}"),
            bars.TextColumn(f"validation {name} {{task.fields[validation]}}"),
            bars.TextColumn("{task.fields[speed]} steps/s"),
            bars.TimeRemainingColumn(compact=True),
            disable=not enabled,
        )
        self._task = self._bar.add_task("", total=steps, loss="-", validation="-", speed="-")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update_training(self, step: int, means: dict[str, float]) -> None:
        """Shows the step, and the loss if `means` is not empty."""
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{means['loss']:.4f}" if means else "-",
            speed="-" if speed is None else f"{speed:.0f}",
        )

    def update_validation(self, metrics: dict[str, float]) -> None:
        """Shows the metric on the validation data, if `metrics` is not empty."""
        text = f"{metrics['metric']:.4f}" if metrics else "-"
        self._bar.update(self._task, validation=text)
