"""The JSON part of a checkpoint."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jrnn.train.run.checkpoint import NetworkMismatch

FORMAT = 2
"""Version of the record; a run of another version cannot be resumed."""


class TrialRecord(NamedTuple):
    """The record of one network.

    Attributes:
      network: its description, which must be the same when the run is resumed.
      metrics: from `MetricsLogger.state`.
      best: from `BestTracker.state`.
    """

    network: str
    metrics: dict[str, Any]
    best: dict[str, Any]


class Record(NamedTuple):
    """The record of a run.

    Attributes:
      trials: one for each network.
      stopped: for each network that has stopped early, by its index, the reason.
      seconds: time spent.
    """

    trials: list[TrialRecord]
    stopped: dict[int, str]
    seconds: float

    def encode(self) -> dict[str, Any]:
        """The record as values of JSON."""
        return {
            "format": FORMAT,
            "trials": [trial._asdict() for trial in self.trials],
            "stopped": {str(index): reason for index, reason in self.stopped.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def decode(cls, saved: dict[str, Any], networks: Sequence[str]) -> "Record":
        """Reads what `encode` returned.

        Args:
          saved: the record of a checkpoint.
          networks: the descriptions of the networks that are to be restored.

        Raises:
          ValueError: another version of jrnn wrote it.
          NetworkMismatch: it is of other networks, even if their arrays have the same shapes.
        """
        if saved.get("format") != FORMAT:
            raise ValueError(
                f"the run was saved by another version of jrnn: its checkpoints have format "
                f"{saved.get('format', 1)}, and this version reads format {FORMAT}; resume it with "
                "that version, or start a new run"
            )
        trials = [TrialRecord(**trial) for trial in saved["trials"]]
        for trial, network in zip(trials, networks, strict=True):
            if trial.network != network:
                raise NetworkMismatch(
                    f"the run is of another network: it has trained {trial.network}, and this "
                    f"config has {network}; use the config of the run, or start a new run"
                )
        stopped = {int(index): reason for index, reason in saved["stopped"].items()}
        return cls(trials, stopped, saved["seconds"])
