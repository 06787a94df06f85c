"""`metrics.jsonl`: one line of JSON for each evaluation, and for every few training steps."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jrnn.train.config.experiment import RunOptions
from jrnn.train.step.state import StepMetrics

LINE_EVERY = 20
"""Number of training steps that a line is the mean of."""


class MetricsFile:
    """Lines such as `{"step": 20, "split": "train", "loss": 2.3, "metric": 0.1}`; append-only."""

    def __init__(self, path: Path):
        """Uses the file at `path`, and creates its folder if it does not exist."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        """Appends lines, given by their steps."""
        text = [json.dumps({"step": step, "split": split, **lines[step]}) + "\n" for step in lines]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(text))

    def num_lines(self) -> int:
        """The number of complete lines."""
        return self._path.read_bytes().count(b"\n") if self._path.exists() else 0

    def sync(self) -> int:
        """Writes the file to the disk, and returns its size in bytes."""
        if not self._path.exists():
            return 0
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, size: int) -> None:
        """Removes everything after the first `size` bytes.

        Raises:
          ValueError: the file has fewer bytes than that.
        """
        current = self._path.stat().st_size if self._path.exists() else 0
        if current < size:
            raise ValueError(
                f"{self._path} has {current} bytes, and had {size} when the run was saved: lines "
                "are missing; restore the file from a copy"
            )
        if current > size:
            os.truncate(self._path, size)

    def read(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one curve."""
        lines = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        lines = [line for line in lines if line["split"] == split]
        return [line["step"] for line in lines], [line[name] for line in lines]


class MetricsLogger:
    """Writes the metrics of one network in training to `metrics.jsonl`.

    Attributes:
      means: loss, metric and gradient norm of the newest line of training; empty at first.
    """

    def __init__(self, options: RunOptions, folder: Path | None):
        """Writes to `folder`, or nothing if it is None."""
        self.means = dict[str, float]()
        self._options, self._folder = options, folder
        self._pending: list[list[float]] = []
        self._file = None if folder is None else MetricsFile(folder / "metrics.jsonl")

    def begin(self) -> None:
        """Starts a new file.

        Raises:
          ValueError: the folder has metrics already.
        """
        if self._file is None:
            return
        if self._file.num_lines():
            raise ValueError(
                f"train: {self._folder} has a metrics.jsonl but no checkpoint, so its run cannot "
                "be resumed; remove metrics.jsonl to start a new run, or name another folder"
            )
        self._file.truncate(0)

    def log_steps(self, first: int, metrics: StepMetrics) -> None:
        """Writes the lines of some steps.

        Args:
          first: the first of these steps, counted from 1.
          metrics: arrays `[steps]`.
        """
        every, steps = self._options.eval_every, self._options.steps
        lines = dict[int, dict[str, float]]()
        for step, values in enumerate(np.stack(metrics, 1).tolist(), first):
            self._pending.append(values)
            if step % LINE_EVERY == 0 or step % every == 0 or step == steps:
                lines[step] = self.means = _means(self._pending)
                self._pending = []
        self._write("train", lines)

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the line of an evaluation."""
        self._write("validation", {step: metrics})

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves, for `restore`; all lines are on the disk afterwards."""
        return {
            "pending": [*self._pending],
            "bytes": 0 if self._file is None else self._file.sync(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues from what `state` returned, and removes the lines after it.

        Raises:
          ValueError: lines are missing.
        """
        self._pending = saved["pending"]
        if self._file is not None:
            self._file.truncate(saved["bytes"])

    def _write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        if self._file is not None and lines:
            self._file.write(split, lines)


def _means(values: list[list[float]]) -> dict[str, float]:
    columns = zip(*values, strict=True)
    names = StepMetrics._fields
    return {name: sum(c) / len(values) for name, c in zip(names, columns, strict=True)}
