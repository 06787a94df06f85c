"""The progress bar of a run: loss, metric, steps a second, time left."""

from types import TracebackType

from rich import progress as bars

METRIC_NAMES = {"accuracy": "accuracy", "mse": "MSE", "bits_per_character": "bits/char"}


class Progress:
    """A context manager around one run, drawn by rich."""

    def __init__(self, steps: int, metric: str, title: str = "", *, shown: bool = True):
        """For a run of `steps` steps, with the metric under its name."""
        name = METRIC_NAMES.get(metric, metric)
        self._bar = bars.Progress(
            *([bars.TextColumn(title)] if title else []),
            bars.TextColumn("step {task.completed}/{task.total}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("loss {task.fields[loss]}"),
            bars.TextColumn(f"validation {name} {{task.fields[validation]}}"),
            bars.TextColumn("{task.fields[speed]} steps/s"),
            bars.TimeRemainingColumn(compact=True),
            disable=not shown,
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

    def trained(self, step: int, means: dict[str, float]) -> None:
        """Shows the step, and the loss where there is one in `means`."""
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{means['loss']:.4f}" if means else "-",
            speed="-" if speed is None else f"{speed:.0f}",
        )

    def validated(self, metrics: dict[str, float]) -> None:
        """Shows the metric on the validation split, if there is one."""
        shown = f"{metrics['metric']:.4f}" if metrics else "-"
        self._bar.update(self._task, validation=shown)
