"""Trains the groups of a sweep on the nodes of a Ray cluster.

The process that runs `jrnn sweep` is the only one that reads and writes the folder of the sweep. It
starts a `GroupWorker` for each group, which Ray places on a node, and polls it for new checkpoints
and metrics. A group whose worker is lost starts again on another node, from the newest checkpoint
that has arrived.
"""

import logging
import os
import re
import shutil
import signal
import socket
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jrnn.files import WriteError, replace_folder
from jrnn.messages import error_line
from jrnn.signals import Interrupted, Signals, preserve_handlers
from jrnn.sweep.ray_files import (
    Files,
    commit_checkpoint,
    read_files,
    stage_checkpoint,
    write_files,
    write_metrics,
)
from jrnn.sweep.ray_pickling import pickle_by_value
from jrnn.sweep.ray_worker import (
    GroupSpec,
    GroupWorker,
    SavedGroup,
    Update,
    make_portable,
    read_settings,
    read_versions,
)
from jrnn.sweep.sweep import (
    BEST,
    SweepResult,
    TrialResult,
    Trials,
    best_folder,
    discard_staged,
    group_folder,
    rank_trials,
    remove_best_folders,
    resume_command,
    staged_folder,
    trial_folder,
)
from jrnn.train.run.checkpoint import list_steps
from jrnn.train.run.progress import Progress

log = logging.getLogger("jrnn")

MAX_FAILURES = 5
"""A sweep ends if the worker of a group is lost this many times without a new checkpoint."""
CONNECT_SECONDS = 10.0
"""Time limit in seconds for a connection to the head of a cluster."""
WAIT_SECONDS = 1.0
"""A signal is handled after at most this many seconds."""
SILENT_SECONDS = 15.0
"""After a signal, all workers are considered lost if none has answered for this many seconds.

Workers answer every second.
"""


class RayCluster:
    """Context manager that connects to a Ray cluster.

    Pass its method `train` to `sweep` as `train_trials`.

    Without an address, Ray is started on this machine, and stopped at the end. If this process is
    connected to a cluster already, that cluster is used, and the connection is not closed. Ray is
    imported when the context is entered.

    Raises:
      ImportError: Ray is not installed.
      ConnectionError: there is no connection to the cluster.
    """

    def __init__(self, address: str | None = None, cpus: float = 1.0, gpus: float | None = None):
        """Stores the options; the context manager connects.

        Args:
          address: address of the cluster, such as "host:port"; None means the environment variable
            `RAY_ADDRESS`, or, if it is not set, a new cluster of this machine alone.
          cpus: number of CPUs of a node that Ray reserves for each group.
          gpus: number of GPUs of a node that Ray reserves for each group; None means 1 if any node
            has GPUs, and otherwise 0.
        """
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._cpus, self._gpus, self._connected = cpus, gpus, False

    def __enter__(self) -> "RayCluster":
        ray = _import_ray()
        if ray.is_initialized():
            return self
        options: dict[str, Any] = {}
        if self._address == "local":
            options = {"include_dashboard": False}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _require_reachable(self._address)
            with warnings.catch_warnings(), preserve_handlers():
                # Ray starts its processes by fork and exec, which is safe with the threads of JAX.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConnectionError(
                f"sweep: no connection to the Ray cluster {self._address}: {error_line(error)}; "
                "check the address, and run ray status on this machine"
            ) from error
        self._connected = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            _import_ray().shutdown()

    def train(self, trials: Trials, folder: Path, resume: bool, signals: Signals) -> SweepResult:
        """Trains all groups on the nodes of the cluster, and saves the best trial as a run.

        Args:
          trials: the trials.
          folder: the folder of the sweep; the caller holds its lock.
          resume: whether to continue from the latest checkpoints in the folder.
          signals: a signal stops the sweep.

        Returns:
          The results; `seconds` is the sum over the groups.

        Raises:
          ValueError: no node has enough CPUs and GPUs for a group, or a worker raises it.
          Interrupted: a signal was received; all checkpoints that have arrived are saved.
          FileExistsError: the folder has checkpoints already, and `resume` is False.
          OSError: a group cannot be trained or saved.
        """
        gpus = self._gpus
        if gpus is None:
            gpus = float(any(node.get("GPU") for node in _list_nodes()))
        resources = {"CPU": self._cpus, "GPU": gpus}
        if not _count_slots(resources):
            raise ValueError(
                f"sweep: a node of the Ray cluster must have {self._cpus:g} CPUs and {gpus:g} GPUs "
                f"for a group, got nodes with {_describe_nodes()}; lower --ray-cpus or --ray-gpus"
            )
        cloudpickle = _import_ray().cloudpickle
        with (
            pickle_by_value(cloudpickle, trials.experiments),
            _Groups(trials, folder, resources) as groups,
        ):
            return groups.train(resume, signals)


@dataclass(eq=False)
class _Group:
    """The state of a group.

    Attributes:
      number: index of the group.
      indices: indices of its trials.
      worker: the handle of its worker, if there is one.
      has_answered: whether this worker has answered, so that it can be stopped by a call.
      step: the newest training step.
      num_failures: number of workers that were lost since the newest checkpoint arrived.
    """

    number: int
    indices: list[int]
    worker: Any = None
    has_answered: bool = False
    step: int = 0
    num_failures: int = 0


class _Groups:
    """Context manager that trains the groups of a sweep, and kills the workers at the end."""

    def __init__(self, trials: Trials, folder: Path, resources: dict[str, float]):
        self._ray = _import_ray()
        self._trials, self._folder, self._resources = trials, folder, resources
        self._groups = [_Group(*numbered) for numbered in enumerate(trials.groups)]
        self._waiting = [*self._groups]
        self._polls: dict[Any, _Group] = {}
        self._data = {task: self._ray.put(data) for task, data in trials.loaded.items()}
        self._results: dict[int, TrialResult] = {}
        self._seconds = 0.0
        self._error: Exception | None = None
        self._stopped = self._warned = False

    def __enter__(self) -> "_Groups":
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._polls.values():
            self._ray.kill(group.worker)
        for index in self._results:
            shutil.rmtree(self._staged_run(index), ignore_errors=True)

    @property
    def _resume_command(self) -> str:
        return f"{resume_command(self._folder, self._trials.experiments)} --on ray"

    def train(self, resume: bool, signals: Signals) -> SweepResult:
        """Trains all groups; see `RayCluster.train`."""
        for group in self._groups:
            if resume:
                discard_staged(self._folder, group.number, group.indices)
            else:
                self._require_new(group)
        steps = [self._first_experiment(group).steps for group in self._groups]
        data = next(iter(self._trials.loaded.values()))
        title = f"{len(self._groups)} groups on Ray:"
        last_answer = time.monotonic()
        with Progress(sum(steps), data.metric, title) as progress:
            while self._waiting or self._polls:
                if self._waiting:
                    self._start_workers()
                ready, _ = self._ray.wait([*self._polls], timeout=WAIT_SECONDS)
                for poll in ready:
                    self._receive(self._polls.pop(poll), poll)
                if ready:
                    last_answer = time.monotonic()
                if signals.received:
                    self._stop(signals.received)
                if self._stopped and time.monotonic() - last_answer > SILENT_SECONDS:
                    self._polls.clear()  # the cluster was stopped as well
                progress.update_training(sum(group.step for group in self._groups), {})
                ranked = rank_trials(self._results, data)
                progress.update_validation(self._results[ranked[0]].validation if ranked else {})
        kept = rank_trials(self._results, data)[: self._trials.keep]
        if self._error is not None:
            raise self._error
        if (received := signals.received) and len(self._results) < len(self._trials.experiments):
            done = sum(group.indices[0] in self._results for group in self._groups)
            raise Interrupted(
                f"stopped by {received.name} after {done} of {len(self._groups)} groups, and "
                f"saved; resume with: {self._resume_command}",
                received,
            )
        for rank, index in enumerate(kept):
            replace_folder(self._staged_run(index), best_folder(self._folder, rank))
        remove_best_folders(self._folder, from_rank=len(kept))
        results = [self._results[index] for index in range(len(self._trials.experiments))]
        best = kept[0] if kept else None
        return SweepResult(results, best, self._trials.groups, self._seconds, kept)

    def _first_experiment(self, group: _Group) -> Any:
        return self._trials.experiments[group.indices[0]]

    def _require_new(self, group: _Group) -> None:
        if list_steps(group_folder(self._folder, group.number) / "checkpoints"):
            raise FileExistsError(
                f"sweep: {self._folder} has the checkpoints of a sweep already; continue it with: "
                f"{self._resume_command}"
            )

    def _start_workers(self) -> None:
        """Starts workers for waiting groups, one more than there is room for.

        Ray queues the last worker, which starts as soon as a node is free. An autoscaler adds nodes
        for a queued worker.
        """
        num_slots = _count_slots(self._resources)
        if not num_slots and not self._warned:
            log.warning(
                "no node of the Ray cluster has enough CPUs and GPUs for a group; the sweep waits "
                "for one"
            )
        self._warned = not num_slots
        while self._waiting and len(self._polls) <= num_slots:
            group = self._waiting.pop(0)
            experiments = [self._trials.experiments[index] for index in group.indices]
            spec = GroupSpec(
                self._ray.cloudpickle.dumps(experiments),
                self._trials.width,
                self._trials.keep,
                read_versions(),
                read_settings(),
            )
            actor = self._ray.remote(GroupWorker).options(
                num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"]
            )
            saved = self._read_saved(group)
            group.worker = actor.remote(spec, self._data[experiments[0].task], saved)
            group.has_answered = False
            self._polls[group.worker.poll.remote()] = group

    def _read_saved(self, group: _Group) -> SavedGroup:
        folder = group_folder(self._folder, group.number) / "checkpoints"
        checkpoints = {step: read_files(folder / str(step)) for step in list_steps(folder)}
        paths = [trial_folder(self._folder, index) / "metrics.jsonl" for index in group.indices]
        return SavedGroup(checkpoints, [p.read_bytes() if p.exists() else b"" for p in paths])

    def _receive(self, group: _Group, poll: Any) -> None:
        """Receives the answer of a worker, and polls it again unless it has ended."""
        try:
            update: Update = self._ray.get(poll)
        except self._ray.exceptions.RayTaskError as error:
            self._fail(group, make_portable(error.cause or error))
        except self._ray.exceptions.RayError as error:
            self._restart(group, error)
        else:
            group.has_answered, group.step = True, update.step
            self._write_update(group, update)
            if not update.done:
                self._polls[group.worker.poll.remote()] = group
                return
            self._ray.kill(group.worker)  # so that its CPUs are free for the next group
            if update.error is not None:
                self._fail(group, update.error)

    def _write_update(self, group: _Group, update: Update) -> None:
        """Writes the metrics, checkpoint and result of an update to the folder of the sweep."""
        folder, checkpoint = group_folder(self._folder, group.number), update.checkpoint
        try:
            if checkpoint is not None:
                stage_checkpoint(folder, checkpoint[1])
            for index, (offset, content) in update.metrics.items():
                write_metrics(trial_folder(self._folder, group.indices[index]), offset, content)
            if checkpoint is not None:
                commit_checkpoint(folder, checkpoint[0])
                group.num_failures = 0
            if update.result is not None:
                self._write_result(group, update.result, update.best)
        except OSError as error:
            raise WriteError(
                f"sweep: group {group.number} could not be written to {self._folder}: "
                f"{error_line(error)}; free disk space or repair the folder, and resume with: "
                f"{self._resume_command}"
            ) from error

    def _staged_run(self, index: int) -> Path:
        """Returns the folder of the run of one of the best trials so far."""
        return staged_folder(trial_folder(self._folder, index) / BEST)

    def _write_result(self, group: _Group, result: SweepResult, best: list[Files]) -> None:
        group.step = self._first_experiment(group).steps
        self._seconds += result.seconds
        self._results |= zip(group.indices, result.trials, strict=True)
        data = self._trials.loaded[self._first_experiment(group).task]
        kept = rank_trials(self._results, data)[: self._trials.keep]
        for index in self._results.keys() - kept:
            shutil.rmtree(self._staged_run(index), ignore_errors=True)
        for position, run_files in zip(result.kept, best, strict=True):
            staged = self._staged_run(group.indices[position])
            shutil.rmtree(staged, ignore_errors=True)
            if group.indices[position] in kept:
                write_files(staged, run_files)

    def _restart(self, group: _Group, error: Exception) -> None:
        """Lets a group start again after its worker was lost."""
        if self._stopped:
            return
        self._ray.kill(group.worker)  # it may still run, if only the connection was lost
        group.num_failures += 1
        if group.num_failures >= MAX_FAILURES:
            reason = (
                f"sweep: the worker of group {group.number} was lost {MAX_FAILURES} times without "
                f"a new checkpoint: {error_line(error, -1)}; see the logs of Ray, and resume with: "
                f"{self._resume_command}"
            )
            self._fail(group, OSError(reason))
            return
        steps = list_steps(group_folder(self._folder, group.number) / "checkpoints")
        group.step = max(steps, default=0)
        log.warning(
            "the worker of group %d was lost; the group starts again from step %d: %s",
            group.number,
            group.step,
            error_line(error, -1),
        )
        self._waiting.insert(0, group)

    def _fail(self, group: _Group, error: Exception) -> None:
        """Stops all workers; the first error is raised when they have ended."""
        if self._error is None:
            error.add_note(f"(on a worker, in group {group.number})")
            self._error = error
        self._stop(signal.SIGTERM)

    def _stop(self, received: signal.Signals) -> None:
        """Lets all workers save and end; those that have not answered yet are killed."""
        if self._stopped:
            return
        self._stopped = True
        self._waiting.clear()
        for poll, group in [*self._polls.items()]:
            if group.has_answered:
                group.worker.stop.remote(int(received))
            else:
                self._ray.kill(group.worker)
                del self._polls[poll]


def _require_reachable(address: str) -> None:
    """Raises OSError unless an address "host:port" accepts connections.

    Ray itself tries for two minutes. Other forms of an address are left to Ray.
    """
    if match := re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d+)", address):
        socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "sweep: --on ray needs Ray; install it with: pip install 'jrnn[ray]'"
        ) from error
    return ray


def _list_nodes() -> list[dict[str, float]]:
    """Returns the resources of each node that is alive."""
    return [node["Resources"] for node in _import_ray().nodes() if node["Alive"]]


def _count_slots(resources: dict[str, float]) -> int:
    """Returns how many groups fit on all nodes at once, if no other job uses them."""
    needed = {name: amount for name, amount in resources.items() if amount}
    slots = [
        min((int(node.get(name, 0) // amount) for name, amount in needed.items()), default=1)
        for node in _list_nodes()
    ]
    return sum(slots)


def _describe_nodes() -> str:
    sizes = [(node.get("CPU", 0), node.get("GPU", 0)) for node in _list_nodes()]
    return ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in sorted(set(sizes)))
