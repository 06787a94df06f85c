"""A worker of a sweep on a Ray cluster: trains one group, and returns what it saves.

A worker needs no file system in common with other machines. It trains in a temporary folder of its
own machine, and the process that runs `jrnn sweep` polls it for new files.
"""

import contextlib
import pickle
import signal
import threading
import traceback
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax

from jrnn.files import WriteError
from jrnn.signals import Interrupted, Signals
from jrnn.sweep.ray_files import Files, read_files, worker_folder, write_files
from jrnn.sweep.sweep import (
    SweepResult,
    Trials,
    best_folder,
    group_folder,
    train_in_process,
    trial_folder,
)
from jrnn.tasks.task import Data
from jrnn.train.run.checkpoint import MAX_TO_KEEP, list_steps
from jrnn.train.run.progress import Progress

POLL_SECONDS = 1.0
"""A call of `GroupWorker.poll` lasts at most this long before it reads new files."""
LIBRARIES = ("jrnn", "jax", "jaxlib", "flax", "optax")
"""Libraries whose versions must be the same on all machines."""
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of JAX that change results; workers use those of the process that runs `jrnn sweep`."""


class GroupSpec(NamedTuple):
    """What a worker trains.

    Attributes:
      pickled_experiments: the trials of the group, which are unpickled after the versions have
        been compared.
      width: as for `sweep`.
      keep: as for `sweep`.
      versions: from `read_versions`.
      settings: from `read_settings`.
    """

    pickled_experiments: bytes
    width: int | None
    keep: int
    versions: dict[str, str]
    settings: dict[str, Any]


class SavedGroup(NamedTuple):
    """What an earlier worker has saved of a group.

    Attributes:
      checkpoints: the files of each checkpoint, by step.
      metrics: the contents of `metrics.jsonl` of each trial of the group.
    """

    checkpoints: dict[int, Files]
    metrics: list[bytes]


class Update(NamedTuple):
    """What is new since the last call of `GroupWorker.poll`.

    Attributes:
      step: the newest training step.
      checkpoint: step and files of the newest checkpoint; None if an earlier update had it.
      metrics: for each trial of the group that has a `metrics.jsonl`, by its index in the group, an
        offset in this file, and the content from there on, with all lines that the checkpoint
        needs. Empty without a new checkpoint, unless `done`; always empty before the first one.
      done: whether training has ended: it is complete, a signal stopped it, or it failed. It is
        complete if all steps are done or all trials have stopped early.
      result: the result of the group if training is complete, else None.
      best: for each trial in `result.kept` the files of its run if training is complete, else
        empty.
      error: the error that ended the worker.
    """

    step: int
    checkpoint: tuple[int, Files] | None
    metrics: dict[int, tuple[int, bytes]]
    done: bool
    result: SweepResult | None
    best: list[Files]
    error: Exception | None


class GroupWorker:
    """Trains one group in a thread, as `jrnn sweep` does on one machine; a Ray actor."""

    def __init__(self, spec: GroupSpec, data: Data, saved: SavedGroup):
        """Starts training, from the newest checkpoint in `saved` if there is one."""
        self._spec, self._data, self._saved = spec, data, saved
        self._exit_stack = contextlib.ExitStack()
        self._folder = self._exit_stack.enter_context(worker_folder())
        self._signals, self._done = Signals(), threading.Event()
        self._restored = threading.Event()  # the folder has all files of `saved`
        self._progress: Progress | None = None
        self._result: SweepResult | None = None
        self._error: Exception | None = None
        self._sent_step = max(saved.checkpoints, default=None)
        self._sent_bytes = [0] * len(saved.metrics)
        threading.Thread(target=self._run, daemon=True).start()

    def poll(self) -> Update:
        """Waits for `POLL_SECONDS`, or until training ends, and returns what is new."""
        done = self._done.wait(POLL_SECONDS)
        result = self._result if done else None
        checkpoint, metrics = None, {}
        if self._restored.is_set():  # else the newest checkpoint may not be written yet
            checkpoint = self._read_checkpoint()
            if checkpoint is not None or (done and self._sent_step is not None):
                metrics = self._read_metrics()
        kept = () if result is None else result.kept
        best = [read_files(best_folder(self._folder, rank)) for rank in range(len(kept))]
        step = (self._progress and self._progress.step) or 0
        if done:
            self._exit_stack.close()
        return Update(step, checkpoint, metrics, done, result, best, self._error)

    def stop(self, number: int) -> None:
        """Stops training after the steps in flight, and saves, as the signal `number` does."""
        self._signals.received = signal.Signals(number)

    def _run(self) -> None:
        try:
            self._result = self._train()
        except Interrupted:
            pass
        except Exception as error:
            self._error = make_portable(error)
        finally:
            self._done.set()

    def _train(self) -> SweepResult:
        spec = self._spec
        resume = bool(self._saved.checkpoints)
        self._restore()
        if (versions := read_versions()) != spec.versions:
            raise ValueError(
                f"sweep: all machines must have the same versions, got {_join(versions)} on a "
                f"worker and {_join(spec.versions)} here; install the same versions on all nodes"
            )
        for name, value in spec.settings.items():
            jax.config.update(name, value)
        experiments = pickle.loads(spec.pickled_experiments)
        loaded = {experiment.task: self._data for experiment in experiments}
        trials = Trials(experiments, loaded, [[*range(len(experiments))]], spec.width, spec.keep)
        return train_in_process(trials, self._folder, resume, self._signals, self._make_progress)

    def _restore(self) -> None:
        """Writes the files of `saved`, and frees their memory."""
        for step, files in self._saved.checkpoints.items():
            write_files(group_folder(self._folder, 0) / "checkpoints" / str(step), files)
        for index, content in enumerate(self._saved.metrics):
            write_files(trial_folder(self._folder, index), {"metrics.jsonl": content})
        self._saved = SavedGroup({}, [])
        self._restored.set()

    def _make_progress(self, steps: int, metric: str, title: str) -> Progress:
        self._progress = Progress(steps, metric, title, mode="none")
        return self._progress

    def _read_checkpoint(self) -> tuple[int, Files] | None:
        """Reads the newest checkpoint; None if it was read before, or is just being removed."""
        folder = group_folder(self._folder, 0) / "checkpoints"
        step = max(list_steps(folder), default=None)
        if step is None or step == self._sent_step:
            return None
        try:
            files = read_files(folder / str(step))
        except FileNotFoundError:
            return None
        if step not in list_steps(folder)[-MAX_TO_KEEP:]:
            return None  # newer checkpoints were saved, and files may be missing
        self._sent_step = step
        return step, files

    def _read_metrics(self) -> dict[int, tuple[int, bytes]]:
        """Reads what was not read before of each `metrics.jsonl` that exists."""
        parts = {}
        for index, offset in enumerate(self._sent_bytes):
            path = trial_folder(self._folder, index) / "metrics.jsonl"
            if path.exists():
                content = path.read_bytes()[offset:]
                self._sent_bytes[index] = offset + len(content)
                parts[index] = offset, content
        return parts


def read_versions() -> dict[str, str]:
    """Returns the versions of the `LIBRARIES` on this machine."""
    return {name: version(name) for name in LIBRARIES}


def read_settings() -> dict[str, Any]:
    """Returns the values of the `JAX_SETTINGS` in this process."""
    return {name: jax.config.values[name] for name in JAX_SETTINGS}


def make_portable(error: BaseException) -> Exception:
    """Returns an error that can be unpickled.

    It has the same message if the error is an instance of one of the classes below. For all other
    errors it is a RuntimeError with the traceback as the message. Subclasses may need other
    arguments than a message, and could then not be unpickled.
    """
    classes = (
        FloatingPointError,
        MemoryError,
        WriteError,
        OSError,
        ImportError,
        TypeError,
        ValueError,
    )
    for cls in (*classes, jax.errors.JaxRuntimeError):
        if isinstance(error, cls):
            return cls(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


def _join(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())
