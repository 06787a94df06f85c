"""The progress of a run: loss, metric, steps per second and remaining time."""

import importlib.util
import sys
import time
from datetime import timedelta
from typing import Literal

import rich.console
from rich import progress as rich_progress

METRIC_NAMES = {"accuracy": "accuracy", "mse": "MSE", "bits_per_character": "bits/char"}
"""For each metric of a task, its name in the progress bar, tables and figures."""
PLAIN_SECONDS = 5.0
"""Minimum time between two lines of plain progress."""

ProgressMode = Literal["auto", "bar", "plain", "none"]
"""How progress is shown: by a bar, by lines on standard error, or not at all; see `choose_mode`."""


def choose_mode() -> ProgressMode:
    """Returns the mode for "auto".

    It is a bar on a terminal and in a notebook that can show one, which needs ipywidgets. In a
    pipe, a file or another notebook it is "plain".
    """
    console = rich.console.Console()
    if console.is_jupyter:
        return "bar" if importlib.util.find_spec("ipywidgets") else "plain"
    return "bar" if console.is_terminal else "plain"


class Progress:
    """Context manager that shows the progress of a run, by rich or by plain lines.

    Attributes:
      step: the newest step; None before the first update.
    """

    def __init__(self, steps: int, metric: str, title: str = "", *, mode: ProgressMode = "auto"):
        """Creates a progress bar.

        Args:
          steps: total number of training steps.
          metric: name of the metric.
          title: text before the bar.
          mode: how progress is shown.
        """
        self.step: int | None = None
        self._mode = choose_mode() if mode == "auto" else mode
        self._title = title
        self._name = METRIC_NAMES.get(metric, metric)
        self._printed: int | None = None
        self._next_line = time.perf_counter() + PLAIN_SECONDS
        self._bar = rich_progress.Progress(
            *([rich_progress.TextColumn(title)] if title else []),
            rich_progress.TextColumn("step {task.completed}/{task.total}"),
            rich_progress.BarColumn(bar_width=None),
            rich_progress.TextColumn("loss {task.fields[loss]}"),
            rich_progress.TextColumn(f"validation {self._name} {{task.fields[validation]}}"),
            rich_progress.TextColumn("{task.fields[speed]} steps/s"),
            rich_progress.TimeRemainingColumn(compact=True),
            disable=self._mode != "bar",
        )
        self._task = self._bar.add_task("", total=steps, loss="-", validation="-", speed="-")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._bar.stop()
        # A run that ends before its first line is short; its result follows at once.
        if error is None and self._printed not in (None, self.step):
            self._print_line()

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
        if time.perf_counter() >= self._next_line:
            self._print_line()

    def update_validation(self, metrics: dict[str, float]) -> None:
        """Updates the metric on the validation data; "-" if `metrics` is empty."""
        text = f"{metrics['metric']:.4f}" if metrics else "-"
        self._bar.update(self._task, validation=text)

    def _print_line(self) -> None:
        """Prints a line on standard error if the mode is "plain"."""
        if self._mode != "plain":
            return
        task = self._bar.tasks[0]
        left = task.time_remaining
        values = {
            "loss ": task.fields["loss"],
            f"validation {self._name} ": task.fields["validation"],
            "": "-" if task.fields["speed"] == "-" else f"{task.fields['speed']} steps/s",
        }
        parts = [
            *([self._title] if self._title else []),
            f"step {task.completed}/{task.total}",
            *(f"{name}{value}" for name, value in values.items() if value != "-"),
            *([f"{timedelta(seconds=int(left))} left"] if left else []),
        ]
        print("  ".join(parts), file=sys.stderr, flush=True)
        self._printed = self.step
        self._next_line = time.perf_counter() + PLAIN_SECONDS
