"""Process groups: collectives of Python values, and detection of lost processes.

Both use the coordination service of `jax.distributed`, which runs in process 0: its key-value store
carries the values, and its heartbeats show which processes are alive.
"""

import atexit
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NoReturn

import jax

from jrnn import signals
from jrnn.distributed import service
from jrnn.distributed.launcher import Launcher
from jrnn.messages import format_message

START_TIMEOUT = 300.0
"""Seconds that a process waits for the others at the start."""
POLL_INTERVAL = 1.0
"""Seconds between two queries of the processes that are alive."""
HEARTBEAT_TIMEOUT = 10
"""Seconds without a heartbeat after which a process is considered lost."""
FAILURE_TIMEOUT = 4.0
"""Seconds that a process waits, after another one has failed, for its own failure."""
CLOSE_TIMEOUT = 30.0
"""Seconds that a process waits for the others at the end."""
MAX_FAILED_QUERIES = 3
"""A process exits after so many failed queries, in a row, of the processes that are alive."""
RUNTIME_ERROR = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
"""The start of errors that the loss of a process may cause."""
MAX_WAIT_MS = 2**31 - 1
"""The longest time for which the key-value store waits for a key: 24 days."""


class ProcessGroup:
    """The processes of a run, with collectives of Python values.

    Attributes:
      index: index of this process, from 0.
      count: number of processes.
      resume_command: the command that resumes the run, for the message that a process was lost; ""
        if there is none. Whoever creates the group may set it.
    """

    def __init__(self, index: int = 0, count: int = 1):
        """Creates the group of the processes that `jax.distributed` has connected.

        Args:
          index: index of this process, from 0.
          count: number of processes.
        """
        self.index, self.count, self.resume_command = index, count, ""
        self._client: Any = service.find_client() if count > 1 else None
        self._calls, self._alive, self._exit_code = 0, count, 1
        self._loss_lock = threading.Lock()
        self._failed, self._closing, self._alone = (threading.Event() for _ in range(3))
        self._monitor = threading.Thread(target=self._watch, daemon=True)
        if count > 1:
            self._monitor.start()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, the only one that writes files."""
        return self.index == 0

    def all_gather(self, name: str, value: Any) -> list[Any]:
        """Returns the values of all processes, in the order of their indices.

        Blocks until all processes have called it.

        Args:
          name: name of the value; must be the same in all processes.
          value: a value that JSON can represent.

        Raises:
          RuntimeError: another process gathers a value with a different name.
        """
        if self.count == 1:
            return [value]
        self._calls += 1
        own = [name, value]
        if self.is_first:
            # Not read from the store, where another process could overwrite it: process 0 writes
            # files, and must not take their paths from others.
            gathered = [json.loads(json.dumps(own))]
            gathered += [self._get(f"value/{self._calls}/{k}") for k in range(1, self.count)]
            self._set(f"values/{self._calls}", gathered)
            # Each process has read the previous values before it sets its own.
            self._client.key_value_delete(f"jrnn/value/{self._calls}")
            self._client.key_value_delete(f"jrnn/values/{self._calls - 1}")
        else:
            self._set(f"value/{self._calls}/{self.index}", own)
            gathered = self._get(f"values/{self._calls}")
        for peer, (other, _) in enumerate(gathered):
            if other != name:
                raise RuntimeError(
                    f"all_gather: name must be the same in all processes, got {name!r} in process "
                    f"{self.index} and {other!r} in process {peer}; run the same code in all "
                    "processes"
                )
        return [each for _, each in gathered]

    def broadcast(self, name: str, value: Any) -> Any:
        """Returns the value of process 0; `value` is ignored in other processes.

        In process 0, it is always `value`, whatever the other processes send.
        """
        gathered = self.all_gather(name, value if self.is_first else None)
        return value if self.is_first else gathered[0]

    def all_max(self, name: str, *numbers: float) -> list[Any]:
        """Returns the maximum over all processes of each of the numbers."""
        return [max(each) for each in zip(*self.all_gather(name, numbers), strict=True)]

    def _close(self) -> None:
        """Closes the group; blocks until all processes have called it."""
        if self.count == 1:
            return
        self.all_gather("end", None)
        self._closing.set()
        # A process must not disconnect before all others have set `_closing`: their monitors would
        # report its loss. If one fails at this point, the barrier raises.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.wait_at_barrier("jrnn/close", round(1000 * CLOSE_TIMEOUT))
        if self.is_first:  # the service must outlive its clients
            self._alone.wait(CLOSE_TIMEOUT)
        jax.distributed.shutdown()
        self._monitor.join(HEARTBEAT_TIMEOUT)

    def _check_same(self, name: str, value: str) -> None:
        """Raises ValueError if a process was started with another value.

        Unlike `all_gather`, this works before the number of processes is known to be the same.

        Args:
          name: what the value is, for the message, such as "version of jax".
          value: the value of this process.
        """
        self._set(f"start/{name}/{self.index}", value)
        for peer in range(1, self.count) if self.is_first else (0,):
            other = self._get(f"start/{name}/{peer}")
            if other != value:
                first, last, process = (
                    (value, other, peer) if self.is_first else (other, value, self.index)
                )
                raise ValueError(
                    f"processes: the {name} must be the same in all processes, got {first} in "
                    f"process 0 and {last} in process {process}"
                )

    def _announce_failure(self, error: BaseException | None = None) -> None:
        """Tells the other processes that this one is about to exit with an error.

        If the error comes from the runtime of JAX, the loss of another process may have caused it.
        Then this method waits until the loss is detected, which ends this process.
        """
        if RUNTIME_ERROR.match(str(error)):
            time.sleep(2 * HEARTBEAT_TIMEOUT)
        self._failed.set()
        self._announce(self.index)

    def _exit(self, code: int) -> NoReturn:
        """Exits this process once all live processes have announced that they exit too.

        If process 0 exited first, JAX would abort the others; if another process did, they would
        wait for its heartbeats. This method waits for at most `2 * FAILURE_TIMEOUT`.
        """
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        self._exit_code = code
        deadline = time.monotonic() + 2 * FAILURE_TIMEOUT
        while len(self._announced()) < self._alive and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL / 4)
        os._exit(code)

    def _handle_abort(self) -> None:
        """Exits this process, which JAX aborts because process 0 has ended."""
        if self.is_first:
            os.write(2, b"jrnn: JAX has aborted process 0; see its message above\n")
            os._exit(self._exit_code)
        self._exit_without_service(self._describe_loss(0))

    def _exit_without_service(self, reason: str) -> NoReturn:
        """Exits this process, with a message unless the main thread reports its own error.

        This method must not call the coordination service, which has ended or fails: a call might
        not return.
        """
        if self._failed.wait(FAILURE_TIMEOUT):
            time.sleep(FAILURE_TIMEOUT)  # the main thread reports its own error
        else:
            self._report(reason)
        os._exit(self._exit_code)

    def _set(self, key: str, value: Any) -> None:
        self._client.key_value_set(f"jrnn/{key}", json.dumps(value))

    def _get(self, key: str) -> Any:
        return json.loads(self._client.blocking_key_value_get(f"jrnn/{key}", MAX_WAIT_MS))

    def _announce(self, lost: int) -> None:
        """Stores that this process exits because `lost`, which may be itself, has ended."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"jrnn/failed/{self.index}", str(lost), True)

    def _announced(self) -> list[int]:
        """Returns, for each exiting process, the index of the process that it announced as lost."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return [int(lost) for _, lost in self._client.key_value_dir_get("jrnn/failed")]
        return []

    def _watch(self) -> None:
        """Monitors the other processes until the group is closed; exits if one was lost.

        A query that fails is repeated. After `MAX_FAILED_QUERIES` failures in a row this process
        exits, since it would not detect a loss.
        """
        everyone, num_failed = range(self.count), 0
        while True:
            try:
                # Returns when every live process has called it.
                alive = self._client.get_live_nodes(list(everyone))
            except jax.errors.JaxRuntimeError as error:
                if self._closing.is_set():  # the client or the service shuts down
                    return
                num_failed += 1
                if num_failed == MAX_FAILED_QUERIES:
                    self._exit_without_service(
                        f"process 0 of {self.count} cannot query the coordination service of JAX, "
                        f"so it exits: {format_message(str(error))}"
                        if self.is_first
                        else self._describe_loss(0)
                    )
                time.sleep(POLL_INTERVAL)
                continue
            self._alive, num_failed = len(alive), 0
            if self._closing.is_set():
                if not self.is_first or len(alive) == 1:
                    self._alone.set()
                    return
                continue
            announced = self._announced()
            lost = min([*announced, *(k for k in everyone if k not in alive)], default=None)
            if lost is not None and not self._failed.wait(FAILURE_TIMEOUT if announced else 0):
                self._report(self._describe_loss(lost))
                self._announce(lost)
                self._exit(1)
            time.sleep(POLL_INTERVAL)

    def _describe_loss(self, lost: int) -> str:
        """Returns the reason of an exit because another process has ended."""
        return (
            f"process {lost} of {self.count} has exited or is unreachable, so process {self.index} "
            "exits too"
        )

    def _report(self, reason: str) -> None:
        """Prints why this process exits, and how to resume the run."""
        # Never released, so that only one thread reports. The other one waits meanwhile.
        if not self._loss_lock.acquire(timeout=1):
            return
        show_cursor = signals.SHOW_CURSOR if sys.stderr.isatty() else ""
        advice = (
            f"; start all processes again with: {self.resume_command}"
            if self.resume_command
            else ""
        )
        message = f"{show_cursor}\njrnn: {reason}. Saved checkpoints are intact{advice}\n"
        with contextlib.suppress(OSError, ValueError):  # the streams may be closed
            sys.stdout.flush()
            sys.stderr.write(message)
            sys.stderr.flush()


_active_groups: list[ProcessGroup] = []


@contextlib.contextmanager
def init_process_group(
    launcher: Launcher | None, timeout: float = START_TIMEOUT
) -> Iterator[ProcessGroup]:
    """Context manager that initializes `jax.distributed` for the processes of a run.

    The context must be entered before JAX runs any computation. If another process is lost within
    the context, this process prints a message and exits with code 1, since a JAX computation that
    waits for another process cannot be interrupted.

    Args:
      launcher: settings of this process, from `Launcher.find`; None, or settings with one process,
        for a single process, which then does not use `jax.distributed`.
      timeout: seconds to wait for the other processes. If one does not join in time, this process
        prints a message and exits with code 2.

    Yields:
      The process group.

    Raises:
      OSError: process 0 cannot listen on its port.
      ValueError: the processes differ in their number or in the versions of jrnn or JAX.
    """
    if launcher is None or launcher.num_processes == 1:
        yield ProcessGroup()
        return
    service.connect(launcher, timeout, HEARTBEAT_TIMEOUT)
    group = ProcessGroup(launcher.process_id, launcher.num_processes)
    _active_groups.append(group)
    service.on_abort(group._handle_abort)
    try:
        group._check_same("number of processes", str(launcher.num_processes))
        for name in ("jrnn", "jax"):
            group._check_same(f"version of {name}", version(name))
        yield group
        group._close()
        service.on_abort(None)
        _active_groups.remove(group)
    except BaseException as error:
        error.add_note(f"(process {group.index} of {group.count})")
        code = error.code if isinstance(error, SystemExit) else 1
        # Runs however the process ends, and before JAX waits there for the others.
        atexit.register(group._exit, code if isinstance(code, int) else 1)
        group._announce_failure(error)
        raise


def exit_process(code: int) -> NoReturn:
    """Exits this process, after the other processes if its process group ended with an error."""
    for group in _active_groups:
        group._exit(code)
    sys.exit(code)
