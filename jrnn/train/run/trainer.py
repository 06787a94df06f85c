"""The trainer: a run from its first step, or from a checkpoint, to its last step."""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jrnn.distributed import ProcessGroup
from jrnn.train.config.experiment import RunOptions
from jrnn.train.run.best import BestTracker, index_of_best
from jrnn.train.run.checkpoint import Checkpoint, CheckpointError
from jrnn.train.run.dispatch import Dispatcher
from jrnn.train.run.metrics_logger import MetricsLogger
from jrnn.train.run.multi_process import MultiProcessCheckpointer
from jrnn.train.run.placement import Placement
from jrnn.train.run.progress import Progress
from jrnn.train.run.record import Record, TrialRecord
from jrnn.train.run.signals import Interrupted, Signals
from jrnn.train.step.state import StepMetrics, TrainState, Weights


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient was NaN or infinite; earlier checkpoints are intact."""


class Trainer:
    """Trains the networks of a placement, evaluates them and saves them.

    A network stops before the others when its patience is exhausted, or, if there may be several,
    when its loss or gradient is NaN or infinite; its weights then stay as they are.

    Attributes:
      step: number of training steps done or in flight.
      stopped: for each network that has stopped early, by its index, the reason.
      seconds: time spent until the newest checkpoint, over all parts of a run that was resumed.
      trackers: the best evaluation of each network.
    """

    def __init__(
        self,
        placement: Placement,
        options: RunOptions,
        higher_is_better: bool,
        folder: Path,
        group: ProcessGroup,
        *,
        descriptions: Sequence[str],
        metrics_folders: Sequence[Path],
        patience: Sequence[int | None],
        stop_all_if_non_finite: bool,
    ):
        """Draws the parameters and opens the folder; call `begin` or `resume` next.

        Args:
          placement: the networks.
          options: how long they are trained, and how often they are evaluated and saved.
          higher_is_better: whether a higher metric is better.
          folder: for `checkpoints`.
          group: the processes that train together; only the first one writes.
          descriptions: for each network a text that must be the same when the run is resumed.
          metrics_folders: for each network, where its `metrics.jsonl` is.
          patience: for each network, as in `RunOptions`.
          stop_all_if_non_finite: whether a NaN or infinite loss raises instead of stopping the
            network alone.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        self.step, self.stopped, self.seconds = 0, dict[int, str](), 0.0
        self.trackers = [BestTracker(higher_is_better, each) for each in patience]
        self._placement, self._options, self._group = placement, options, group
        self._folder, self._descriptions = folder, descriptions
        self._stop_all_if_non_finite = stop_all_if_non_finite
        self._state = placement.init_state()
        self._best = self._copy_weights()
        self._loggers = [
            MetricsLogger(options, path if group.is_first else None) for path in metrics_folders
        ]
        self._dispatcher = Dispatcher(
            lambda state, first, count: placement.train_steps(state, first, count, self._active()),
            placement.max_steps,
            options,
            group,
        )
        self._checkpoints = MultiProcessCheckpointer(folder / "checkpoints", group)
        self._saved = self._counted = time.perf_counter()

    def begin(self) -> None:
        """Starts a new run, with a checkpoint of step 0, so that a folder problem shows early.

        Raises:
          FileExistsError: the folder has checkpoints.
          ValueError: it has metrics and no checkpoint.
          CheckpointError: the checkpoint cannot be written.
        """
        if self._checkpoints.steps():
            raise FileExistsError(
                f"train: {self._folder} has the checkpoints of a run already; resume it with "
                "--resume, or name another folder"
            )
        for logger in self._loggers:
            logger.begin()
        self.save()
        self.wait()

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, and removes the metrics after it.

        Raises:
          CheckpointError: all checkpoints are damaged.
          ValueError: lines of the metrics are missing, or another version of jrnn wrote the run.
        """
        checkpoint = self._checkpoints.newest(self._arrays())
        if checkpoint is None:
            self.begin()
            return
        record = Record.decode(checkpoint.record, self._descriptions)
        for trial, logger, tracker in zip(record.trials, self._loggers, self.trackers, strict=True):
            logger.restore(trial.metrics)
            tracker.restore(trial.best)
        self._checkpoints.move_damaged(after=checkpoint.step)
        state, best = TrainState(**checkpoint.arrays["state"]), Weights(**checkpoint.arrays["best"])
        self._state, self._best = self._placement.restore(state, best)
        self.step, self.stopped, self.seconds = checkpoint.step, record.stopped, record.seconds

    def fit(self, signals: Signals, progress: Progress) -> None:
        """Trains until the last step, with evaluations and checkpoints.

        Args:
          signals: of this process; a signal to any of the processes ends the run.
          progress: the progress bar.

        Raises:
          Interrupted: a signal was received; everything is saved.
          NonFiniteLoss: the loss or the gradient of the network is NaN or infinite.
          CheckpointError: a checkpoint could not be written.
        """
        options = self._options
        while not self.should_stop():
            due = time.perf_counter() - self._saved >= options.save_every
            received, due = self._group.all_max("signal, save", signals.received or 0, due)
            if not received:
                self.train_steps()
                progress.update_training(self.step, self._mean_of_active())
                if self.step % options.eval_every == 0 or self.step == options.steps:
                    progress.update_validation(self.validate())
            if received or due or self.should_stop():
                self.save()
            if received and not self.should_stop():
                self.wait()
                raise Interrupted(
                    f"stopped by {signal.Signals(received).name} at step {self.step} of "
                    f"{options.steps}, and saved; resume with: {self._group.resume_command}",
                    signal.Signals(received),
                )
        self.wait()

    def should_stop(self) -> bool:
        """Whether all steps are done, or all networks have stopped."""
        return not any(self._active()) or self.step == self._options.steps

    def train_steps(self) -> None:
        """Dispatches some steps, and none after the next evaluation.

        Raises:
          NonFiniteLoss: the loss or the gradient in an earlier dispatch is NaN or infinite.
        """
        self._state, count = self._dispatcher.send(self._state, self.step)
        self.step += count
        if self._dispatcher.in_flight() > 1:
            self._read()

    def finish_steps(self) -> None:
        """Waits for all steps in flight, and logs their metrics.

        Raises:
          NonFiniteLoss: as for `train_steps`.
        """
        while self._dispatcher.in_flight():
            self._read()

    def validate(self) -> dict[str, float]:
        """Evaluates all networks on the validation data, and keeps the weights of the best ones.

        Returns:
          The loss and metric of the best network so far; empty without validation data.

        Raises:
          NonFiniteLoss: as for `train_steps`.
        """
        self.finish_steps()
        results = self._group.broadcast("validation", self._placement.validate(self._state.weights))
        improved = [False] * len(self.trackers)
        for index in self._active_indices():
            if results is None:
                improved[index], self.trackers[index].step = True, self.step
                continue
            result, tracker = results[index], self.trackers[index]
            if not np.isfinite(result["loss"]):
                self._stop_non_finite(index, f"loss is {result['loss']} at step {self.step}")
                continue
            self._loggers[index].log_validation(self.step, result)
            improved[index] = tracker.update(self.step, result)
            if tracker.should_stop() and self.step < self._options.steps:
                self.stopped[index] = f"patience exhausted at step {self.step}"
        self._best = self._placement.copy_where(improved, self._state.weights, self._best)
        self._dispatcher.reset_timer()
        best = index_of_best(self.trackers)
        return {} if best is None else self.trackers[best].best

    def save(self) -> None:
        """Saves everything in the background.

        Raises:
          CheckpointError: this checkpoint or an earlier one could not be written.
          NonFiniteLoss: as for `train_steps`.
        """
        self.finish_steps()
        now = time.perf_counter()
        self.seconds += now - self._counted
        arrays = self._placement.fetch(self._arrays())
        self._checkpoints.save(Checkpoint(self.step, arrays, self._record().encode()))
        self._counted = now
        self._saved = time.perf_counter()
        self._dispatcher.reset_timer()

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        self._checkpoints.wait()

    def close(self) -> None:
        """Waits for checkpoints that are being written, and closes the folder."""
        self._checkpoints.close()

    def best_weights(self) -> Weights:
        """The best weights so far, as arrays that this process can read."""
        return self._placement.fetch(self._best)

    def evaluate(self, examples: Any) -> list[dict[str, float]]:
        """Loss and metric of the best weights so far of each network."""
        return self._placement.evaluate(self._best, examples)

    def checkpoint_of(self, index: int) -> Checkpoint:
        """The checkpoint of one of many networks, as a run of this network alone would save it."""
        arrays = jax.tree.map(lambda leaf: leaf[index], self._arrays())
        record = self._record()
        record = record._replace(trials=[record.trials[index]], stopped={})
        return Checkpoint(int(self._state.step[index]), arrays, record.encode())

    def _copy_weights(self) -> Weights:
        return jax.tree.map(jax.numpy.copy, self._state.weights)

    def _arrays(self) -> dict[str, Any]:
        return {"state": self._state._asdict(), "best": self._best._asdict()}

    def _record(self) -> Record:
        each = zip(self._descriptions, self._loggers, self.trackers, strict=True)
        trials = [TrialRecord(d, logger.state(), best.state()) for d, logger, best in each]
        return Record(trials, dict(self.stopped), self.seconds)

    def _active(self) -> list[bool]:
        return [index not in self.stopped for index in range(len(self.trackers))]

    def _active_indices(self) -> list[int]:
        return [index for index, active in enumerate(self._active()) if active]

    def _mean_of_active(self) -> dict[str, float]:
        """Means over the active networks of their newest lines of metrics."""
        lines = [self._loggers[index].means for index in self._active_indices()]
        if not lines or not all(lines):
            return {}
        return {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}

    def _read(self) -> None:
        """Reads, checks and logs the metrics of the oldest dispatch."""
        first, count, metrics = self._dispatcher.read()
        each = self._placement.split_metrics(metrics, count)
        for index in self._active_indices():
            if reason := _non_finite(first, each[index]):
                self._stop_non_finite(index, reason)
            else:
                self._loggers[index].log_steps(first, each[index])

    def _stop_non_finite(self, index: int, reason: str) -> None:
        if not self._stop_all_if_non_finite:
            self.stopped[index] = reason
            return
        with contextlib.suppress(CheckpointError):
            self.wait()
        raise NonFiniteLoss(
            f"train: the {reason}; the last good checkpoint is of step "
            f"{self._checkpoints.steps()[-1]}. Try a lower learning rate or a smaller clip_norm, "
            "or look for NaN in the data"
        )


def _non_finite(first: int, metrics: StepMetrics) -> str | None:
    """Describes the first loss or gradient that is NaN or infinite, of the steps from `first` on.

    The gradient is checked too: without this a NaN in it would show in the next loss only.
    """
    bad = np.flatnonzero(~np.isfinite(metrics.loss) | ~np.isfinite(metrics.grad_norm))
    if not len(bad):
        return None
    k = bad[0]
    name, values = "loss", metrics.loss
    if np.isfinite(values[k]):
        name, values = "gradient", metrics.grad_norm
    return f"{name} is {values[k]} at step {first + k}"
