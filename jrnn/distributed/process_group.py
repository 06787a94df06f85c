"""Process groups: collectives of Python values, and detection of lost processes.

Every process has a connection to process 0. If a process dies, the collectives of JAX in the others
may block forever. Therefore a thread of each process monitors its connections, and exits the
process if another one is lost.
"""

import atexit
import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import jax

from jrnn.distributed.launcher import Launcher

START_TIMEOUT = 300.0
"""Seconds that a process waits for the others at the start."""
HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT = 2.0, 20.0
"""Seconds between heartbeats, and seconds without a heartbeat after which a process is lost."""
FAILURE_TIMEOUT = 4.0
"""Seconds that a process waits, after another one has failed, for its own failure."""
DETECTION_DELAY = 0.5
"""Seconds that a failed process waits before it announces its failure.

The loss of another process may have caused the failure; then that loss is detected and reported
first.
"""


class Connection:
    """A connection to another process. Each message is one line of JSON.

    Attributes:
      peer: index of the other process.
      inbox: values received from the other process.
      peer_failed: set when the other process has announced a failure.
      closed: set when the connection is closed.
    """

    def __init__(self, connection: socket.socket, peer: int):
        """Wraps an open socket."""
        self.peer = peer
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.peer_failed, self.closed = threading.Event(), threading.Event()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lines = connection, connection.makefile("rb")
        self._send_lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends a message; the receiving thread detects a broken connection, not this method."""
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        """Returns the next message; {} if the other process has closed the connection.

        Raises:
          OSError: the connection is broken, or no message arrives within `timeout` seconds.
          ValueError: the message is invalid.
        """
        self._connection.settimeout(timeout)
        message = json.loads(self._lines.readline() or "{}")
        if not isinstance(message, dict):
            raise ValueError(f"receive: a message must be a JSON object, got {message!r}")
        return message

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class ProcessGroup:
    """The processes of a run, with collectives of Python values.

    Attributes:
      index: index of this process, from 0.
      count: number of processes.
      resume_command: the command that resumes the run.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        connections: Sequence[Connection] = (),
        *,
        resume_command: str = "",
    ):
        """Creates the group.

        Args:
          index: index of this process.
          count: number of processes.
          connections: in process 0, to all others; in the others, to process 0; empty for a single
            process.
          resume_command: the command that resumes the run, for error messages.
        """
        self.index, self.count, self.resume_command = index, count, resume_command
        self._connections, self._loss_lock = connections, threading.Lock()
        self._failed, self._closed = threading.Event(), threading.Event()
        for connection in connections:
            threading.Thread(target=self._receive_messages, args=(connection,), daemon=True).start()
        if connections:
            threading.Thread(target=self._send_heartbeats, daemon=True).start()

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
        if not self._connections:
            return [value]
        if not self.is_first:
            self._connections[0].send(name=name, value=value)
            return self._receive_value(self._connections[0], name)
        received = [self._receive_value(connection, name) for connection in self._connections]
        values = [value, *received]
        for connection in self._connections:
            connection.send(name=name, value=values)
        return values

    def broadcast(self, name: str, value: Any) -> Any:
        """Returns the value of process 0; `value` is ignored in other processes."""
        return self.all_gather(name, value if self.is_first else None)[0]

    def all_max(self, name: str, *numbers: float) -> list[Any]:
        """Returns the maximum over all processes of each of the numbers."""
        return [max(values) for values in zip(*self.all_gather(name, numbers), strict=True)]

    def close(self) -> None:
        """Closes the group; blocks until all processes have called it."""
        self.all_gather("before shutdown", None)
        jax.distributed.shutdown()
        self.all_gather("after shutdown", None)
        self._closed.set()
        for connection in self._connections:
            connection.send(closing=True)
            connection.close()

    def announce_failure(self) -> None:
        """Announces to the other processes that this one will exit with an error."""
        time.sleep(DETECTION_DELAY)
        self._failed.set()
        for connection in self._connections:
            connection.send(failed=True)

    def exit(self, code: int) -> NoReturn:
        """Exits this process when the others have received its failure; process 0 exits last.

        Without this order, the other processes could report a failed collective, or that JAX has
        lost its coordinator, instead of the cause.
        """
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        deadline = time.monotonic() + 2 * FAILURE_TIMEOUT
        for connection in self._connections:
            event = connection.closed if self.is_first else connection.peer_failed
            event.wait(max(0, deadline - time.monotonic()))
        os._exit(code)

    def _receive_value(self, connection: Connection, name: str) -> Any:
        message = connection.inbox.get()
        if message["name"] != name:
            raise RuntimeError(
                f"all_gather: name must be the same in all processes, got {name!r} in process "
                f"{self.index} and {message['name']!r} in process {connection.peer}; run the same "
                "code in all processes"
            )
        return message["value"]

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_INTERVAL):
            for connection in self._connections:
                connection.send(heartbeat=True)

    def _receive_messages(self, connection: Connection) -> None:
        """Receives messages until the connection is closed; exits if the other process is lost."""
        lost = connection.peer
        with contextlib.suppress(OSError, ValueError):
            while message := connection.receive(HEARTBEAT_TIMEOUT):
                if "name" in message:
                    connection.inbox.put(message)
                if "closing" in message:
                    return
                if "failed" in message:
                    connection.peer_failed.set()
                    self._failed.wait(FAILURE_TIMEOUT)
                if "lost" in message or ("failed" in message and not self._failed.is_set()):
                    lost = message.get("lost", lost)
                    break
        connection.peer_failed.set()
        connection.closed.set()
        if not self._failed.is_set() and not self._closed.is_set():
            self._exit_after_loss(lost)

    def _exit_after_loss(self, lost: int) -> NoReturn:
        """Exits this process because the process with index `lost` is lost."""
        self._loss_lock.acquire()  # never released, so that only one thread reports the loss
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        advice = (
            f"; start all processes again with: {self.resume_command}"
            if self.resume_command
            else ""
        )
        message = (
            f"{show_cursor}\njrnn: process {lost} of {self.count} has exited or is unreachable, so "
            f"process {self.index} exits too. Saved checkpoints are intact{advice}\n"
        )
        with contextlib.suppress(OSError, ValueError):  # stdout or stderr may be closed
            sys.stdout.flush()
            sys.stderr.write(message)
        for connection in self._connections:
            connection.send(lost=lost)
        self.exit(1)


_active_groups: list[ProcessGroup] = []


@contextlib.contextmanager
def init_process_group(
    launcher: Launcher | None, timeout: float = START_TIMEOUT
) -> Iterator[ProcessGroup]:
    """Context manager that connects the processes of a run, and initializes `jax.distributed`.

    It must be entered before JAX runs any computation. If another process is lost within the
    context, this process prints a message and exits with code 1, since a JAX computation that waits
    for another process cannot be interrupted.

    Args:
      launcher: settings of this process, from `Launcher.find`; None for a single process.
      timeout: seconds to wait for the other processes.

    Yields:
      The process group.

    Raises:
      TimeoutError: a process does not connect in time.
      OSError: process 0 cannot listen on its port.
      ValueError: the processes have different numbers of processes, or versions of jrnn or JAX.
    """
    if launcher is None:
        yield ProcessGroup()
        return
    group = _connect(launcher, timeout)
    _active_groups.append(group)
    try:
        port = group.broadcast("port", _find_free_port() if group.is_first else None)
        jax.config.update("jax_enable_preemption_service", False)  # jrnn handles SIGTERM
        jax.distributed.initialize(
            f"[{launcher.host}]:{port}" if ":" in launcher.host else f"{launcher.host}:{port}",
            launcher.num_processes,
            launcher.process_id,
            launcher.local_device_id,
            cluster_detection_method="deactivate",
        )
        yield group
        group.close()
        _active_groups.remove(group)
    except BaseException as error:
        error.add_note(f"(process {group.index} of {group.count})")
        code = error.code if isinstance(error, SystemExit) else 1
        # The exit handler of JAX waits for the other processes; this one runs before it.
        atexit.register(group.exit, code if isinstance(code, int) else 1)
        group.announce_failure()
        raise


def exit_process(code: int) -> NoReturn:
    """Exits this process; skips the exit handler of JAX, which waits for the other processes."""
    for group in _active_groups:
        group.exit(code)
    sys.exit(code)


def _connect(launcher: Launcher, timeout: float) -> ProcessGroup:
    deadline = time.monotonic() + timeout
    if launcher.process_id == 0:
        connections = _accept_connections(launcher, deadline)
    else:
        connections = [_connect_to_process_0(launcher, deadline)]
    return ProcessGroup(launcher.process_id, launcher.num_processes, connections)


def _make_handshake(launcher: Launcher) -> dict[str, Any]:
    """Returns values that must be equal in all processes."""
    versions = {f"version of {name}": version(name) for name in ("jrnn", "jax")}
    return {"number of processes": launcher.num_processes, **versions}


def _accept_connections(launcher: Launcher, deadline: float) -> list[Connection]:
    """In process 0: accepts the connections of all other processes."""
    connections = dict[int, Connection]()
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    try:
        server = socket.create_server(("", launcher.port), family=family, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise OSError(
            f"processes: process 0 cannot listen on port {launcher.port}: {error.strerror}; set "
            "another port in --coordinator-address"
        ) from error
    with server:
        while missing := sorted(set(range(1, launcher.num_processes)) - connections.keys()):
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                accepted, _ = server.accept()
            except TimeoutError:
                reason = (
                    f"{len(missing)} of {launcher.num_processes} processes did not connect in time"
                    f": {', '.join(map(str, missing))}"
                )
                _reject(connections, reason)
                raise TimeoutError(f"processes: {reason}") from None
            connection = Connection(accepted, -1)
            try:
                handshake = connection.receive(timeout=5)
                connection.peer = int(handshake.pop("process_id"))
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # another program has connected
                continue
            if reason := _find_mismatch(connection.peer, handshake, launcher, missing):
                _reject({**connections, -1: connection}, reason)
                raise ValueError(f"processes: {reason}")
            connections[connection.peer] = connection
    for connection in connections.values():
        connection.send(accepted=True)
    return [connections[index] for index in sorted(connections)]


def _find_mismatch(
    peer: int, handshake: dict[str, Any], launcher: Launcher, missing: list[int]
) -> str | None:
    """Returns why a process is rejected, or None if it is accepted."""
    for name, expected in _make_handshake(launcher).items():
        if handshake.get(name) != expected:
            got = handshake.get(name)
            return (
                f"the {name} must be the same in all processes, got {expected} in process 0 and "
                f"{got} in process {peer}"
            )
    return None if peer in missing else f"process-id must be unique, got {peer} in two processes"


def _reject(connections: dict[int, Connection], reason: str) -> None:
    for connection in connections.values():
        connection.send(rejected=reason)
        connection.close()


def _connect_to_process_0(launcher: Launcher, deadline: float) -> Connection:
    """In all other processes: connects to process 0."""
    address = f"{launcher.host}:{launcher.port}"
    while True:
        try:
            opened = socket.create_connection(
                (launcher.host, launcher.port), timeout=HEARTBEAT_INTERVAL
            )
            connection = Connection(opened, 0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes: process {launcher.process_id} cannot reach process 0 at "
                    f"{address}: {error}; start process 0, or correct --coordinator-address"
                ) from error
            time.sleep(0.1)
    connection.send(process_id=launcher.process_id, **_make_handshake(launcher))
    try:
        answer = connection.receive(max(0.01, deadline - time.monotonic()) + HEARTBEAT_INTERVAL)
    except TimeoutError:
        connection.close()
        raise TimeoutError(
            f"processes: process 0 at {address} did not answer in time; start all other processes"
        ) from None
    except (OSError, ValueError):
        answer = {}
    if "accepted" not in answer:
        connection.close()
        default = f"process 0 at {address} has exited, or another program uses this port"
        reason = answer.get("rejected", default)
        raise ValueError(f"processes: {reason}")
    return connection


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
