"""The JSON values of a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import typeguard

from jrnn.train.run.best import BestState
from jrnn.train.run.checkpoint import CheckpointError, IncompatibleVersion, NetworkMismatch
from jrnn.train.run.metrics_logger import MetricsState

FORMAT = 2
"""Version of the format of a record; runs with another version cannot be resumed."""


class TrialRecord(NamedTuple):
    """The record of one network.

    Attributes:
      network: the description of the network, which must be the same when the run is resumed.
      metrics: from `MetricsLogger.state`.
      best: from `BestTracker.state`.
    """

    network: str
    metrics: MetricsState
    best: BestState


class Record(NamedTuple):
    """The record of a run, or of a group of trials of a sweep.

    Attributes:
      trials: one record per network; a run of `fit` has one, a group has one per trial.
      stopped: the reasons of the networks that have stopped early, by their indices.
      seconds: wall time of the training so far.
      inputs: descriptions of the data and of arguments of `fit`, by name, which must be the same
        when the run is resumed; empty for a sweep and for runs of earlier versions.
    """

    trials: list[TrialRecord]
    stopped: dict[int, str]
    seconds: float
    inputs: dict[str, str] = {}

    def encode(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        return {
            "format": FORMAT,
            "trials": [trial._asdict() for trial in self.trials],
            "stopped": {str(index): reason for index, reason in self.stopped.items()},
            "seconds": self.seconds,
            "inputs": self.inputs,
        }

    @classmethod
    def decode(cls, saved: dict[str, Any], networks: Sequence[str]) -> "Record":
        """Creates a record from the JSON values that `encode` returned.

        Args:
          saved: the JSON values of a checkpoint.
          networks: the expected descriptions of the networks.

        Raises:
          IncompatibleVersion: another version of jrnn saved the checkpoint.
          CheckpointError: a value is invalid.
          NetworkMismatch: the descriptions differ, which is possible even if all arrays have the
            same shapes.
        """
        if isinstance(saved, dict) and saved.get("format") != FORMAT:
            raise IncompatibleVersion(
                "train: another version of jrnn saved the run: its checkpoints have format "
                f"{saved.get('format', 1)}, and this version reads format {FORMAT}; resume it with "
                "that version, or start a new run"
            )
        try:
            record = cls._decode(saved)
            trials = [*zip(record.trials, networks, strict=True)]
        except (ValueError, TypeError, KeyError, AttributeError, typeguard.TypeCheckError) as error:
            raise CheckpointError(
                f"train: the record of the checkpoint is invalid: {error}; restore the folder from "
                "a copy, or start a new run"
            ) from error
        for trial, network in trials:
            if trial.network != network:
                raise NetworkMismatch(
                    "train: the run is of another network: it has trained "
                    f"{trial.network}, and this config has {network}; use the config of the run, "
                    "or start a new run"
                )
        return record

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """Raises ValueError if data or an argument differs from that of the run.

        Args:
          inputs: descriptions by name, as in the attribute `inputs`.
        """
        for name, value in inputs.items():
            if (saved := self.inputs.get(name, value)) != value:
                raise ValueError(
                    f"fit: {name} must be the same as before to resume the run, {saved}, got "
                    f"{value}; pass the {name} of the run, or another run_dir"
                )

    @classmethod
    def _decode(cls, saved: dict[str, Any]) -> "Record":
        """Decodes the JSON values; raises if a value is missing or has another type."""
        trials = [TrialRecord(**trial) for trial in saved["trials"]]
        for trial in trials:
            if (best := trial.best["best"]) and not {"loss", "metric"} <= best.keys():
                raise ValueError(f"best must have loss and metric, got {', '.join(best)}")
        stopped = {int(index): reason for index, reason in saved["stopped"].items()}
        return typeguard.check_type(
            cls(trials, stopped, saved["seconds"], saved.get("inputs", {})),
            cls,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
