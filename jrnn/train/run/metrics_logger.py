"""`metrics.jsonl`: one JSON object per line, for training metrics and for evaluations."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from jrnn import files
from jrnn.files import naming_file
from jrnn.train.config.experiment import RunOptions
from jrnn.train.step.state import StepMetrics

LOG_EVERY = 20
"""Training metrics are averaged over this many training steps or fewer; see `log_steps`."""
LOGGED = ("loss", "metric", "grad_norm", "update_norm")
"""The fields of `StepMetrics` that are averaged."""
MAX_BYTES = 2**32
"""Maximum size in bytes of `metrics.jsonl` for plotting."""


class MetricsState(TypedDict):
    """The JSON values of a `MetricsLogger`.

    Attributes:
      pending: the values of `LOGGED` for each training step since the last line; None for a loss or
        metric of a batch without targets.
      bytes: size of the file; 0 if writing is disabled.
    """

    pending: list[list[float | None]]
    bytes: int


class MetricsWriter(Protocol):
    """A further output for the metrics of a run; see `jrnn.train.run.writers`."""

    def begin(self, step: int) -> None:
        """Called once, before the first line; lines are of later steps than `step`."""
        ...

    def write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        """Writes metrics.

        Args:
          split: "train" or "validation".
          lines: metrics by name, for each training step, counted from 1.
        """
        ...

    def close(self) -> None:
        """Called at the end of the run, even if it has failed, and if `begin` was not called."""
        ...


def format_line(step: int, split: str, metrics: Mapping[str, float]) -> str:
    """Returns a line of `metrics.jsonl`."""
    return json.dumps({"step": step, "split": split, **metrics}) + "\n"


class MetricsFile:
    """An append-only file with lines such as `{"step": 20, "split": "train", "loss": 2.3}`."""

    def __init__(self, path: Path):
        """Stores the path of the file, and creates its folder if it does not exist.

        Raises:
          WriteError: the folder cannot be created.
        """
        with naming_file(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        """Appends one line per training step in `lines`.

        Args:
          split: "train" or "validation".
          lines: metrics by name, for each training step, counted from 1.

        Raises:
          WriteError: the file cannot be written.
        """
        text = [format_line(step, split, lines[step]) for step in lines]
        with naming_file(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(text))

    def num_lines(self) -> int:
        """Returns the number of complete lines."""
        return self._path.read_bytes().count(b"\n") if self._path.exists() else 0

    def sync(self) -> int:
        """Flushes the file to disk, and returns its size in bytes."""
        if not self._path.exists():
            return 0
        with naming_file(self._path), self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, size: int) -> None:
        """Removes everything after the first `size` bytes.

        Raises:
          ValueError: the file has fewer than `size` bytes.
          WriteError: the file cannot be written.
        """
        current = self._path.stat().st_size if self._path.exists() else 0
        if not 0 <= size <= current:
            raise ValueError(
                f"train: {self._path} has {current} bytes, and had {size} when the run was saved; "
                "restore the missing lines from a copy of the file"
            )
        if current > size:
            with naming_file(self._path):
                os.truncate(self._path, size)

    def read(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Reads the steps and the values of one metric; see `read_column` and `read_lines`."""
        return read_column(self.read_lines(), split, name)

    def read_lines(self) -> list[dict[str, Any]]:
        """Returns all lines: the step, the split, the loss, the metric and other numbers.

        An incomplete last line, which a process that was killed has left, is skipped.

        Raises:
          OSError: the file does not exist or cannot be read.
          ValueError: a line is not as `write` writes it.
        """
        if not self._path.exists():
            raise FileNotFoundError(
                f"{self._path} does not exist; restore it from a copy, or train the run again"
            )
        content = files.read_bytes(self._path, MAX_BYTES)
        texts, lines = content.splitlines(), []
        if not content.endswith((b"\n", b"}")):
            texts = texts[:-1]
        for number, text in enumerate(texts, 1):
            try:
                lines.append(_check_line(files.parse_json(text)))
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"train: line {number} of {self._path} must be a line of metrics, got an "
                    f"error: {error!r}; restore the file from a copy"
                ) from error
        return lines


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of metrics; raises if it has other fields or types."""
    numbers = {name: float(value) for name, value in line.items() if name not in ("step", "split")}
    if not isinstance(line["split"], str) or not {"loss", "metric"} <= numbers.keys():
        raise ValueError("it must have step, split, loss and metric")
    return {"step": int(line["step"]), "split": line["split"], **numbers}


def read_column(
    lines: Sequence[dict[str, Any]], split: str, name: str
) -> tuple[list[int], list[float]]:
    """Returns the steps and the values of a metric, without lines that do not have it.

    Args:
      lines: the lines of a `MetricsFile`.
      split: "train" or "validation".
      name: "loss", "metric" or, for the training split, "grad_norm" or "update_norm".
    """
    chosen = [line for line in lines if line["split"] == split and name in line]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


class MetricsLogger:
    """Writes the metrics of one network to `metrics.jsonl`.

    Attributes:
      means: the newest logged means of loss, metric and gradient norm over training steps; empty
        before the first line.
    """

    def __init__(
        self, options: RunOptions, folder: Path | None, writers: Sequence[MetricsWriter] = ()
    ):
        """Opens `metrics.jsonl` in `folder`; None disables writing.

        `writers` are further outputs, which the caller begins and closes.
        """
        self._writers = writers
        self.means = dict[str, float]()
        self._options, self._folder = options, folder
        self._pending: list[list[float | None]] = []
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
                "be resumed; remove metrics.jsonl to start a new run, or pass another folder"
            )
        self._file.truncate(0)

    def log_steps(self, first: int, metrics: StepMetrics) -> None:
        """Averages the metrics of training steps, and writes a line every `LOG_EVERY` steps.

        A line is also written at every evaluation and at the last step.

        Args:
          first: the first of these steps, counted from 1.
          metrics: arrays with one entry per step.
        """
        eval_every, last = self._options.eval_every, self._options.steps
        lines = dict[int, dict[str, float]]()
        for step, row in enumerate(np.stack(metrics, 1).tolist(), first):
            loss, metric, grad_norm, update_norm, has_loss, has_metric = row
            # The loss and the gradient are finite, but the norm of a large update may overflow.
            update = [update_norm] if np.isfinite(update_norm) else []
            means = loss if has_loss else None, metric if has_metric else None
            self._pending.append([*means, grad_norm, *update])
            if step % LOG_EVERY == 0 or step % eval_every == 0 or step == last:
                lines[step] = self.means = _means(self._pending)
                self._pending = []
        self._write("train", lines)

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a line for an evaluation."""
        self._write("validation", {step: metrics})

    def state(self) -> MetricsState:
        """Flushes the file, and returns JSON values to save in a checkpoint, for `restore`."""
        return {
            "pending": [*self._pending],
            "bytes": 0 if self._file is None else self._file.sync(),
        }

    def restore(self, saved: MetricsState) -> None:
        """Restores what `state` returned, and removes lines that were written later.

        Raises:
          ValueError: lines of the file are missing.
        """
        self._pending = saved["pending"]
        if self._file is not None:
            self._file.truncate(saved["bytes"])

    def _write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        if self._file is not None and lines:
            self._file.write(split, lines)
            for writer in self._writers:
                writer.write(split, lines)


def _means(values: list[list[float | None]]) -> dict[str, float]:
    """Returns the mean of each metric that all steps have, over the steps whose batch has targets.

    `update_norm` is missing in a step that an earlier version of jrnn has trained, and if it is not
    finite. The mean is 0 if no batch has targets.
    """
    means = {}
    for index, name in enumerate(LOGGED):
        column = [row[index] for row in values if index < len(row)]
        if len(column) == len(values):
            known = [value for value in column if value is not None]
            means[name] = sum(known) / max(len(known), 1)
    return means
