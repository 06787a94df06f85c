"""Writers of metrics besides `metrics.jsonl`: JSON lines, TensorBoard, Weights & Biases."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from jrnn.files import naming_file
from jrnn.train.run.metrics_logger import format_line

Lines = Mapping[int, Mapping[str, float]]
"""Metrics by name, for each training step, counted from 1."""
FLUSH_SECONDS = 1
"""Seconds between flushes of TensorBoard events; a run that is killed loses those in between."""
CHANGED_ON_RESUME = ("mesh", "steps")
"""Fields of an experiment that `jrnn train --resume` may change."""


class JsonLinesWriter:
    """Writes the lines of `metrics.jsonl` to a stream, such as standard output."""

    def __init__(self, file: TextIO):
        """Stores the stream, which is flushed after each call of `write`."""
        self._file = file

    def begin(self, step: int) -> None:
        """Does nothing; see `MetricsWriter`."""

    def write(self, split: str, lines: Lines) -> None:
        """Writes one line of JSON for each training step; see `MetricsWriter`."""
        self._file.write("".join(format_line(step, split, lines[step]) for step in lines))
        self._file.flush()

    def close(self) -> None:
        """Does nothing, since the stream belongs to the caller."""


class TensorBoardWriter:
    """Writes event files for TensorBoard by tensorboardX, with tags such as "train/loss"."""

    def __init__(self, folder: Path):
        """Stores the folder of the event files.

        Raises:
          ImportError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard event files need tensorboardX; install it with: "
                "pip install 'jrnn[tensorboard]'"
            ) from error
        self._folder, self._make_writer = folder, SummaryWriter
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Opens a new event file; TensorBoard hides earlier events after `step`."""
        with naming_file(self._folder):
            # The name of a file has the time in seconds; the step makes it unique.
            self._writer = self._make_writer(
                str(self._folder),
                purge_step=step + 1,
                filename_suffix=f".{step}",
                flush_secs=FLUSH_SECONDS,
            )

    def write(self, split: str, lines: Lines) -> None:
        """Adds a scalar for each metric and training step; see `MetricsWriter`."""
        for step, metrics in lines.items():
            for name, value in metrics.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            with naming_file(self._folder):
                self._writer.close()


class WandbWriter:
    """Sends metrics to Weights & Biases, with names such as "train/loss".

    The files of wandb are in its usual folder, `WANDB_DIR` or `wandb`. They include symbolic links,
    which jrnn refuses in the folder of a run.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        """Stores what describes the run.

        Args:
          project: name of the project.
          folder: the folder of the run. Its path and its config identify it at Weights & Biases,
            so that it can be resumed, also with other values of `CHANGED_ON_RESUME`.
          config: the experiment as JSON values.

        Raises:
          ImportError: wandb is not installed.
        """
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "Weights & Biases needs wandb; install it with: pip install 'jrnn[wandb]'"
            ) from error
        fixed = {name: config[name] for name in config if name not in CHANGED_ON_RESUME}
        identity = json.dumps([str(folder.absolute()), fixed], sort_keys=True)
        self._options = {
            "project": project,
            "name": folder.name,
            "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
            "config": config,
            "resume": "allow",
            "allow_val_change": True,
        }
        self._wandb: Any = wandb
        self._run: Any = None

    def begin(self, step: int) -> None:
        """Starts the run, or continues it if it exists.

        Raises:
          ValueError: wandb refuses it, for example since no API key is configured.
        """
        try:
            self._run = self._wandb.init(**self._options)
        except self._wandb.Error as error:
            raise ValueError(
                f"WandbWriter: Weights & Biases must accept the run, got an error: {error}; run "
                "wandb login, or set the environment variable WANDB_MODE to offline"
            ) from error

    def write(self, split: str, lines: Lines) -> None:
        """Logs the metrics of each training step; see `MetricsWriter`."""
        for step, metrics in lines.items():
            named = {f"{split}/{name}": value for name, value in metrics.items()}
            self._run.log(named, step=step)

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()
