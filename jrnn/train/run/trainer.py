"""The training loop: dispatch, evaluation, checkpoints and early stopping."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jrnn.distributed import ProcessGroup
from jrnn.files import WriteError
from jrnn.signals import Interrupted, Signals
from jrnn.train.config.experiment import RunOptions
from jrnn.train.run.best import BestTracker, index_of_best
from jrnn.train.run.checkpoint import Checkpoint, CheckpointError, list_steps
from jrnn.train.run.dispatch import Dispatcher
from jrnn.train.run.metrics_logger import MetricsLogger, MetricsWriter
from jrnn.train.run.multi_process import MultiProcessCheckpointer
from jrnn.train.run.progress import Progress
from jrnn.train.run.record import Record, TrialRecord
from jrnn.train.run.trainable import Trainable
from jrnn.train.step.state import StepMetrics, TrainState, Weights

log = logging.getLogger("jrnn")


class NonFiniteLoss(FloatingPointError):
    """Raised when a loss or a gradient is NaN or infinite; earlier checkpoints are intact."""


class Trainer:
    """Trains, evaluates and saves the networks of a `Trainable`.

    A network stops early when its patience is exhausted. If its loss or gradient is NaN or
    infinite, the trainer raises, or only this network stops early; see `stop_all_if_non_finite`.
    The weights of a network that has stopped early do not change.

    Attributes:
      step: number of training steps that are done or in flight.
      stopped: the reasons of the networks that have stopped early, by their indices.
      seconds: wall time of the training until the newest checkpoint, including the time before the
        run was resumed.
      trackers: the best evaluation of each network.
      has_trained: whether a training step has ended, in this process or before the run was resumed.
    """

    def __init__(
        self,
        trainable: Trainable,
        options: RunOptions,
        higher_is_better: bool,
        folder: Path,
        group: ProcessGroup,
        *,
        descriptions: Sequence[str],
        metrics_folders: Sequence[Path],
        patience: Sequence[int | None],
        stop_all_if_non_finite: bool,
        resume_command: str = "",
        is_temporary: bool = False,
        writers: Sequence[MetricsWriter] = (),
        inputs: Mapping[str, str] | None = None,
        explain_non_finite: Callable[[str], str] = lambda split: "",
    ):
        """Initializes the parameters and opens the folder; call `begin` or `resume` next.

        Args:
          trainable: the networks to train.
          options: number of steps, and how often networks are evaluated and saved.
          higher_is_better: whether a higher metric is better.
          folder: the parent of the folder `checkpoints`.
          group: the processes that train together; only the first one writes.
          descriptions: a text for each network, which must be the same when the run is resumed.
          metrics_folders: the folder of `metrics.jsonl` for each network.
          patience: the patience of each network, as in `RunOptions`.
          stop_all_if_non_finite: whether a NaN or infinite loss raises `NonFiniteLoss`; if False,
            only the network with this loss stops.
          resume_command: the command that resumes the run, for messages; "" if there is none.
          is_temporary: whether the folder is removed at the end, so that the run cannot be resumed.
          writers: further outputs for the metrics of all networks; only in the first process.
          inputs: descriptions of data and arguments that must be the same when the run is resumed;
            see `Record`.
          explain_non_finite: a function of "train" or "validation" that returns the cause of a NaN
            or infinite loss on this split, as the end of a message; "" if it is not known.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        self.step, self.stopped, self.seconds = 0, dict[int, str](), 0.0
        self.trackers = [BestTracker(higher_is_better, evaluations) for evaluations in patience]
        self._trainable, self._options, self._group = trainable, options, group
        self._folder, self._descriptions = folder, descriptions
        self._stop_all_if_non_finite = stop_all_if_non_finite
        self._resume_command, self._is_temporary = resume_command, is_temporary
        self._inputs, self._explain_non_finite = dict(inputs or {}), explain_non_finite
        self.has_trained = False
        self._state = trainable.init_state()
        self._best = self._copy_weights()
        self._writers = writers if group.is_first else ()
        self._loggers = [
            MetricsLogger(options, path if group.is_first else None, self._writers)
            for path in metrics_folders
        ]
        self._dispatcher = Dispatcher(
            lambda state, first, count: trainable.train_steps(state, first, count, self._active()),
            trainable.max_steps,
            options,
            group,
        )
        self._checkpoints = MultiProcessCheckpointer(folder / "checkpoints", group)
        self._last_save = self._timed_until = time.perf_counter()

    def begin(self) -> None:
        """Starts a new run; saves a checkpoint of step 0, and reads it, to test that this works.

        Raises:
          FileExistsError: the folder has checkpoints already.
          ValueError: the folder has metrics but no checkpoint.
          CheckpointError: the checkpoint could not be written or read.
        """
        if self._checkpoints.steps():
            raise FileExistsError(
                f"train: {self._folder} has the checkpoints of a run already; pass resume=True "
                "(`--resume` for `jrnn train`) to continue it, or pass another folder"
            )
        with self._explaining_write_errors():
            for logger in self._loggers:
                logger.begin()
            self.save()
            self.wait()
            self._begin_writers()
        self._checkpoints.verify(self.step, self._arrays())

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, and removes the metrics after it.

        Raises:
          CheckpointError: all checkpoints are damaged, or of another network.
          ValueError: lines of the metrics are missing, the run has trained more steps than there
            should be, or `inputs` differ.
        """
        checkpoint = self._checkpoints.read_newest(self._arrays())
        if checkpoint is None:
            self.begin()
            return
        record = Record.decode(checkpoint.record, self._descriptions)
        record.check_inputs(self._inputs)
        if checkpoint.step > self._options.steps:
            raise ValueError(
                f"train: steps must be at least {checkpoint.step}, which the run has trained, got "
                f"{self._options.steps}"
            )
        for trial, logger, tracker in zip(record.trials, self._loggers, self.trackers, strict=True):
            logger.restore(trial.metrics)
            tracker.restore(trial.best)
        self._checkpoints.move_damaged(after=checkpoint.step)
        state, best = TrainState(**checkpoint.arrays["state"]), Weights(**checkpoint.arrays["best"])
        self._state, self._best = self._trainable.restore(state, best)
        self.step, self.stopped, self.seconds = checkpoint.step, record.stopped, record.seconds
        self.has_trained = True
        with self._explaining_write_errors():
            self._begin_writers()
        if self.step < self._options.steps and self.should_stop():
            reasons = ", ".join(sorted(set(self.stopped.values())))
            log.warning("the run has stopped early and is not continued: %s", reasons)

    def fit(self, signals: Signals, progress: Progress) -> None:
        """Trains until the last step, with evaluations and checkpoints.

        Args:
          signals: the signals of this process; a signal to any process of the group stops all.
          progress: the progress bar.

        Raises:
          Interrupted: a signal was received; everything is saved in the folder.
          NonFiniteLoss: the loss or the gradient of the network is NaN or infinite.
          CheckpointError: a checkpoint could not be written.
          WriteError: another file could not be written.
        """
        with self._explaining_write_errors():
            self._fit(signals, progress)

    def should_stop(self) -> bool:
        """Returns whether all steps are done, or all networks have stopped early."""
        return not any(self._active()) or self.step == self._options.steps

    def train_steps(self) -> None:
        """Dispatches several training steps, at most up to the next evaluation.

        Raises:
          NonFiniteLoss: the loss or the gradient in an earlier dispatch is NaN or infinite.
        """
        self._state, count = self._dispatcher.dispatch(self._state, self.step)
        self.step += count
        if self._dispatcher.num_in_flight() > 1:
            self._read_metrics()

    def finish_steps(self) -> None:
        """Waits for all steps in flight, and logs their metrics.

        Raises:
          NonFiniteLoss: as for `train_steps`.
        """
        while self._dispatcher.num_in_flight():
            self._read_metrics()

    def validate(self) -> dict[str, float]:
        """Evaluates all networks on the validation data, and stores weights that have improved.

        Returns:
          The loss and the metric of the best evaluation so far of all networks; empty if there is
          none.

        Raises:
          NonFiniteLoss: as for `train_steps`.
        """
        self.finish_steps()
        results = self._group.broadcast("validation", self._trainable.validate(self._state.weights))
        improved = [False] * len(self.trackers)
        for index in self._active_indices():
            if results is None:
                improved[index], self.trackers[index].step = True, self.step
                continue
            result, tracker = results[index], self.trackers[index]
            if not np.isfinite(result["loss"]):
                reason = f"validation loss is {result['loss']} at step {self.step}"
                self._stop_non_finite(index, reason, "validation")
                continue
            self._loggers[index].log_validation(self.step, result)
            improved[index] = tracker.update(self.step, result)
            if tracker.should_stop() and self.step < self._options.steps:
                self.stopped[index] = f"patience exhausted at step {self.step}"
        self._best = self._trainable.copy_where(improved, self._state.weights, self._best)
        self._dispatcher.reset_timer()
        best = index_of_best(self.trackers)
        return {} if best is None else self.trackers[best].best

    def save(self) -> None:
        """Saves a checkpoint in the background.

        Raises:
          CheckpointError: this checkpoint or an earlier one could not be written.
          NonFiniteLoss: as for `train_steps`.
        """
        self.finish_steps()
        now = time.perf_counter()
        self.seconds += now - self._timed_until
        arrays = self._trainable.fetch(self._arrays())
        self._checkpoints.save(Checkpoint(self.step, arrays, self._record().encode()))
        self._timed_until = now
        self._last_save = time.perf_counter()
        self._dispatcher.reset_timer()

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        self._checkpoints.wait()

    def close(self) -> None:
        """Closes the writers of metrics, waits for all checkpoints, and closes their folder."""
        with self._explaining_write_errors(), contextlib.ExitStack() as stack:
            stack.callback(self._checkpoints.close)
            for writer in self._writers:
                stack.callback(writer.close)

    def best_weights(self) -> Weights:
        """Returns the best weights so far, as arrays that this process can read."""
        return self._trainable.fetch(self._best)

    def evaluate(self, examples: Any) -> list[dict[str, float]]:
        """Evaluates the best weights of each network on other data; returns loss and metric."""
        return self._trainable.evaluate(self._best, examples)

    def trial_checkpoint(self, index: int) -> Checkpoint:
        """Returns a checkpoint of one network of a sweep, in the format of a run of `fit`."""
        arrays = jax.tree.map(lambda leaf: leaf[index], self._arrays())
        record = self._record()
        stopped = {0: self.stopped[index]} if index in self.stopped else {}
        record = record._replace(trials=[record.trials[index]], stopped=stopped)
        return Checkpoint(int(self._state.step[index]), arrays, record.encode())

    def _fit(self, signals: Signals, progress: Progress) -> None:
        options = self._options
        while not self.should_stop():
            should_save = time.perf_counter() - self._last_save >= options.save_every
            received, should_save = self._group.all_max(
                "signal, save", signals.received or 0, should_save
            )
            if not received:
                self.train_steps()
                progress.update_training(self.step, self._mean_metrics())
                if self.step % options.eval_every == 0 or self.step == options.steps:
                    progress.update_validation(self.validate())
            if received or should_save or self.should_stop():
                self.save()
            if received and not self.should_stop():
                self.wait()
                saved = "" if self._is_temporary else ", and saved"
                raise Interrupted(
                    f"stopped by {signal.Signals(received).name} at step {self.step} of "
                    f"{options.steps}{saved}; {self._resume_advice()}",
                    signal.Signals(received),
                )
        self.wait()

    def _resume_advice(self) -> str:
        """Returns how to resume the run, or why this is not possible, as the end of a message."""
        if self._is_temporary:
            return "nothing is saved, since run_dir is None"
        if self._resume_command:
            return f"resume with: {self._resume_command}"
        return "resume with resume=True"

    @contextlib.contextmanager
    def _explaining_write_errors(self) -> Iterator[None]:
        """Adds a note on the newest checkpoint and on how to resume to errors of writing a file."""
        try:
            yield
        except WriteError as error:
            newest = "There is no checkpoint"
            with contextlib.suppress(OSError):
                if steps := list_steps(self._folder / "checkpoints"):
                    newest = f"The newest checkpoint is of step {max(steps)}"
            advice = self._resume_advice()
            note = advice if self._is_temporary else f"{newest}; {advice}"
            error.add_note(note[0].upper() + note[1:])
            raise

    def _begin_writers(self) -> None:
        for writer in self._writers:
            writer.begin(self.step)

    def _copy_weights(self) -> Weights:
        return jax.tree.map(jax.numpy.copy, self._state.weights)

    def _arrays(self) -> dict[str, Any]:
        return {"state": self._state.arrays(), "best": self._best._asdict()}

    def _record(self) -> Record:
        networks = zip(self._descriptions, self._loggers, self.trackers, strict=True)
        trials = [
            TrialRecord(description, logger.state(), tracker.state())
            for description, logger, tracker in networks
        ]
        return Record(trials, dict(self.stopped), self.seconds, self._inputs)

    def _active(self) -> list[bool]:
        return [index not in self.stopped for index in range(len(self.trackers))]

    def _active_indices(self) -> list[int]:
        return [index for index, active in enumerate(self._active()) if active]

    def _mean_metrics(self) -> dict[str, float]:
        """Returns the newest logged metrics, averaged over the active networks."""
        lines = [self._loggers[index].means for index in self._active_indices()]
        if not lines or not all(lines):
            return {}
        return {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}

    def _read_metrics(self) -> None:
        """Reads, checks and logs the metrics of the oldest dispatch."""
        first, count, metrics = self._dispatcher.read_oldest()
        self.has_trained = True
        network_metrics = self._trainable.split_metrics(metrics, count)
        for index in self._active_indices():
            if reason := _describe_non_finite(first, network_metrics[index]):
                self._stop_non_finite(index, reason)
            else:
                self._loggers[index].log_steps(first, network_metrics[index])

    def _stop_non_finite(self, index: int, reason: str, split: str = "train") -> None:
        if not self._stop_all_if_non_finite:
            self.stopped[index] = reason
            return
        with contextlib.suppress(CheckpointError):
            self.wait()
        checkpoint = f"; the last good checkpoint is of step {self._checkpoints.steps()[-1]}"
        advice = self._explain_non_finite(split) or (
            "Try a lower learning rate or a smaller clip_norm, or check the data for NaN"
        )
        raise NonFiniteLoss(
            f"train: the {reason}{'' if self._is_temporary else checkpoint}. {advice}"
        )


def _describe_non_finite(first: int, metrics: StepMetrics) -> str | None:
    """Describes the first loss or gradient that is NaN or infinite; None if all are finite.

    A NaN gradient does not make the loss of its own step NaN, so that both are checked.

    Args:
      first: the first step of the metrics, counted from 1.
      metrics: arrays with one entry per step.
    """
    non_finite = np.flatnonzero(~np.isfinite(metrics.loss) | ~np.isfinite(metrics.grad_norm))
    if not len(non_finite):
        return None
    k = non_finite[0]
    name, values = "loss", metrics.loss
    if np.isfinite(values[k]):
        name, values = "gradient", metrics.grad_norm
    return f"{name} is {values[k]} at step {first + k}"
