"""What is written down of a network in training: its lines of metrics, and which was the best."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jrnn.train.checkpoint import OtherNetwork
from jrnn.train.experiment import Experiment
from jrnn.train.metrics import MetricsFile
from jrnn.train.objective import better
from jrnn.train.step import Report

LINE_EVERY = 20
"""Steps that a line of `metrics.jsonl` is the mean of."""


@dataclass
class Record:
    """What moves in a run and is no array.

    Attributes:
      best_step: the step of the best weights.
      best: loss and metric of these on the validation split; empty before the first evaluation.
      worse: evaluations since then.
      reports: of the steps since the last line of metrics.
      metrics_bytes: size of `metrics.jsonl`.
      seconds: time spent.
      network: its description, which a config that was changed must still have.
    """

    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    reports: list[list[float]] = field(default_factory=list)
    metrics_bytes: int = 0
    seconds: float = 0.0
    network: str = ""

    @classmethod
    def read(cls, record: dict[str, Any], experiment: Experiment) -> "Record":
        """From what a checkpoint of the experiment holds.

        Raises:
          ValueError: another version of jrnn wrote it.
          OtherNetwork: it is of another network, be it one with the same arrays.
        """
        try:
            found = cls(**record)
        except TypeError as error:
            raise ValueError(f"the run is of another version of jrnn: {error}") from error
        wanted = experiment.network.description()
        if found.network not in ("", wanted):
            raise OtherNetwork(
                f"the run is of another network: {found.network} was trained, and by this config "
                f"it is {wanted}. Use the config that the run was trained by, or train anew"
            )
        return found


class Ledger:
    """The record of one network in training, and its `metrics.jsonl`.

    Attributes:
      record: what is saved with a checkpoint.
      means: loss, metric and norm of the gradient in the newest line of metrics; empty at first.
    """

    def __init__(self, experiment: Experiment, metric: str, folder: Path, *, writing: bool = True):
        """For the network of an experiment, whose metrics lie in `folder` if they are written."""
        self.record = Record(network=experiment.network.description())
        self.means = dict[str, float]()
        self._experiment, self._metric, self._folder = experiment, metric, folder
        self._metrics = MetricsFile(folder / "metrics.jsonl") if writing else None

    def begin(self) -> None:
        """Begins anew.

        Raises:
          ValueError: the folder holds metrics already.
        """
        if self._metrics is None:
            return
        if self._metrics.lines():
            raise ValueError(
                f"train: {self._folder} has lines in metrics.jsonl and no checkpoint: those of its "
                "run are lost. To train it anew, remove metrics.jsonl, or name another folder"
            )
        self._metrics.cut(0)

    def resume(self, record: dict[str, Any]) -> None:
        """Goes on from what a checkpoint holds, and takes away the metrics after it.

        Raises:
          ValueError: lines of the metrics are missing, or another version wrote the record.
          OtherNetwork: the record is of another network.
        """
        self.record = Record.read(record, self._experiment)
        if self._metrics is not None:
            self._metrics.cut(self.record.metrics_bytes)

    def trained(self, first: int, reports: Report) -> None:
        """Writes the lines of some steps.

        Args:
          first: the first of these steps, counted from 1.
          reports: theirs, arrays `[steps]`.
        """
        every, steps = self._experiment.eval_every, self._experiment.steps
        lines = dict[int, dict[str, float]]()
        for step, values in enumerate(np.stack(reports, 1).tolist(), first):
            self.record.reports.append(values)
            if step % LINE_EVERY == 0 or step % every == 0 or step == steps:
                lines[step] = self.means = _means(self.record.reports)
                self.record.reports = []
        self._write("train", lines)

    def validated(self, step: int, found: dict[str, float]) -> bool:
        """Writes the line of an evaluation, and says whether it is the best so far."""
        self._write("validation", {step: found})
        record = self.record
        if record.best and not better(self._metric, found["metric"], record.best["metric"]):
            record.worse += 1
            return False
        record.best_step, record.best, record.worse = step, found, 0
        return True

    def tired(self) -> bool:
        """Whether the patience is at its end."""
        patience = self._experiment.patience
        return patience is not None and self.record.worse >= patience

    def saved(self) -> dict[str, Any]:
        """The record as JSON, with the metrics so far on the disk."""
        if self._metrics is not None:
            self.record.metrics_bytes = self._metrics.size()
        return asdict(self.record)

    def _write(self, split: str, lines: dict[int, dict[str, float]]) -> None:
        if self._metrics is not None and lines:
            self._metrics.write(split, lines)


def _means(reports: list[list[float]]) -> dict[str, float]:
    columns = zip(*reports, strict=True)
    return {n: sum(c) / len(reports) for n, c in zip(Report._fields, columns, strict=True)}
