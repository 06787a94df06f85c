"""The processes of a run: collectives of Python values, and detection of lost processes.

Every process has a connection to process 0. If a process dies, JAX alone would let the others block
in a collective; here a thread of each process detects the loss and exits.
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
"""Seconds that processes wait for one another at the start."""
HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT = 2.0, 20.0
"""Seconds between heartbeats, and without any until a process counts as lost."""
FAILURE_TIMEOUT = 4.0
"""Seconds in which processes that fail with the same error may each report it."""
DETECTION_DELAY = 0.5
"""Seconds in which a loss is detected; it may cause errors in other processes that it explains."""


class Connection:
    """A connection to another process, for messages of one line of JSON each.

    Attributes:
      peer: index of the other process.
      inbox: values received from it.
      peer_failed: set when the other process has announced that it fails.
      closed: set when the connection has ended.
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
        """Returns the next message, an empty one at the end.

        Raises:
          OSError: the connection broke, or no message arrived in `timeout` seconds.
          ValueError: the message is invalid.
        """
        self._connection.settimeout(timeout)
        message = json.loads(self._lines.readline() or "{}")
        if not isinstance(message, dict):
            raise ValueError(f"not a message: {message!r}")
        return message

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class ProcessGroup:
    """The processes of a run.

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
        """A single process, or one with connections: from process 0 to all others, or to it."""
        self.index, self.count, self.resume_command = index, count, resume_command
        self._connections, self._loss_lock = connections, threading.Lock()
        self._failed, self._closed = threading.Event(), threading.Event()
        for connection in connections:
            threading.Thread(target=self._receive_messages, args=(connection,), daemon=True).start()
        if connections:
            threading.Thread(target=self._send_heartbeats, daemon=True).start()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes the files of the run."""
        return self.index == 0

    def all_gather(self, what: str, value: Any) -> list[Any]:
        """Returns the values of all processes by index; blocks until all have called it.

        Args:
          what: a name of the value, the same in all processes.
          value: a value that JSON can represent.

        Raises:
          RuntimeError: another process gathers a value of another name.
        """
        if not self._connections:
            return [value]
        if not self.is_first:
            self._connections[0].send(what=what, value=value)
            return self._receive_value(self._connections[0], what)
        values = [value, *(self._receive_value(each, what) for each in self._connections)]
        for connection in self._connections:
            connection.send(what=what, value=values)
        return values

    def broadcast(self, what: str, value: Any) -> Any:
        """Returns the value of process 0."""
        return self.all_gather(what, value if self.is_first else None)[0]

    def all_max(self, what: str, *numbers: float) -> list[Any]:
        """Returns the maximum of each number over all processes."""
        return [max(each) for each in zip(*self.all_gather(what, numbers), strict=True)]

    def close(self) -> None:
        """Shuts down together with all other processes."""
        self.all_gather("end", None)
        jax.distributed.shutdown()
        self.all_gather("ended", None)
        self._closed.set()
        for connection in self._connections:
            connection.send(bye=True)
            connection.close()

    def announce_failure(self) -> None:
        """Tells the other processes that this one is about to exit with an error."""
        time.sleep(DETECTION_DELAY)
        self._failed.set()
        for connection in self._connections:
            connection.send(end=True)

    def exit(self, code: int) -> NoReturn:
        """Exits this process once the others know of it; process 0 exits last.

        Otherwise the others would report a failed collective, or that JAX has lost its coordinator.
        """
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        deadline = time.monotonic() + 2 * FAILURE_TIMEOUT
        for connection in self._connections:
            event = connection.closed if self.is_first else connection.peer_failed
            event.wait(max(0, deadline - time.monotonic()))
        os._exit(code)

    def _receive_value(self, connection: Connection, what: str) -> Any:
        message = connection.inbox.get()
        if message["what"] != what:
            raise RuntimeError(
                f"process {self.index} exchanges {what!r}, but process {connection.peer} "
                f"{message['what']!r}; run the same code in all processes"
            )
        return message["value"]

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_INTERVAL):
            for connection in self._connections:
                connection.send(alive=True)

    def _receive_messages(self, connection: Connection) -> None:
        """Receives from another process until it ends; exits if it was lost."""
        lost = connection.peer
        with contextlib.suppress(OSError, ValueError):
            while message := connection.receive(HEARTBEAT_TIMEOUT):
                if "what" in message:
                    connection.inbox.put(message)
                if "bye" in message:
                    return
                if "end" in message:
                    connection.peer_failed.set()
                    self._failed.wait(FAILURE_TIMEOUT)
                if "lost" in message or ("end" in message and not self._failed.is_set()):
                    lost = message.get("lost", lost)
                    break
        connection.peer_failed.set()
        connection.closed.set()
        if not self._failed.is_set() and not self._closed.is_set():
            self._exit_after_loss(lost)

    def _exit_after_loss(self, lost: int) -> NoReturn:
        """Exits this process because another one has ended."""
        self._loss_lock.acquire()  # never released: only one thread reports
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        advice = (
            f"; start all processes again with: {self.resume_command}"
            if self.resume_command
            else ""
        )
        message = (
            f"{show_cursor}\njrnn: process {lost} of {self.count} has ended or cannot be reached, "
            f"so process {self.index} exits too. Saved checkpoints are intact{advice}\n"
        )
        with contextlib.suppress(OSError, ValueError):  # the streams may be closed
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
    """Joins the other processes of a launcher, before JAX runs any computation.

    If another process is lost within the context, this process prints a message and exits with
    code 1: a computation that waits for the other process cannot be interrupted.

    Args:
      launcher: how to join the others; None for a single process.
      timeout: seconds to wait for the others.

    Raises:
      TimeoutError: a process did not connect in time.
      OSError: process 0 cannot listen on its port.
      ValueError: the processes differ in their number or in the versions of jrnn or JAX.
    """
    if launcher is None:
        yield ProcessGroup()
        return
    group = _connect(launcher, timeout)
    _active_groups.append(group)
    try:
        port = group.broadcast("port", _free_port() if group.is_first else None)
        jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
        jax.distributed.initialize(
            f"[{launcher.host}]:{port}" if ":" in launcher.host else f"{launcher.host}:{port}",
            launcher.count,
            launcher.index,
            launcher.device,
            cluster_detection_method="deactivate",
        )
        yield group
        group.close()
        _active_groups.remove(group)
    except BaseException as error:
        error.add_note(f"(process {group.index} of {group.count})")
        code = error.code if isinstance(error, SystemExit) else 1
        # Runs however the process ends, and before JAX waits there for the others.
        atexit.register(group.exit, code if isinstance(code, int) else 1)
        group.announce_failure()
        raise


def exit_process(code: int) -> NoReturn:
    """Exits this process, without waiting in JAX for the others if it has failed."""
    for group in _active_groups:
        group.exit(code)
    sys.exit(code)


def _connect(launcher: Launcher, timeout: float) -> ProcessGroup:
    deadline = time.monotonic() + timeout
    if launcher.index == 0:
        connections = _accept_connections(launcher, deadline)
    else:
        connections = [_connect_to_first(launcher, deadline)]
    return ProcessGroup(launcher.index, launcher.count, connections)


def _handshake(launcher: Launcher) -> dict[str, Any]:
    """Values that must be equal in all processes."""
    versions = {f"version of {name}": version(name) for name in ("jrnn", "jax")}
    return {"number of processes": launcher.count, **versions}


def _accept_connections(launcher: Launcher, deadline: float) -> list[Connection]:
    """In process 0: the connections to all other processes."""
    connections = dict[int, Connection]()
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    try:
        server = socket.create_server(("", launcher.port), family=family, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise OSError(
            f"processes: process 0 cannot listen on port {launcher.port}: {error.strerror}; set "
            "another port in --coordinator"
        ) from error
    with server:
        while missing := sorted(set(range(1, launcher.count)) - connections.keys()):
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                accepted, _ = server.accept()
            except TimeoutError:
                reason = f"of {launcher.count} processes {missing} did not connect in time"
                _reject(connections, reason)
                raise TimeoutError(f"processes: {reason}") from None
            connection = Connection(accepted, -1)
            try:
                handshake = connection.receive(timeout=5)
                connection.peer = int(handshake.pop("process"))
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # it is not a process of this run
                continue
            if reason := _mismatch(connection.peer, handshake, launcher, missing):
                _reject({**connections, -1: connection}, reason)
                raise ValueError(f"processes: {reason}")
            connections[connection.peer] = connection
    for connection in connections.values():
        connection.send(welcome=True)
    return [connections[index] for index in sorted(connections)]


def _mismatch(
    peer: int, handshake: dict[str, Any], launcher: Launcher, missing: list[int]
) -> str | None:
    for name, expected in _handshake(launcher).items():
        if handshake.get(name) != expected:
            got = handshake.get(name)
            return f"the {name} is {expected} in process 0, but {got} in process {peer}"
    return None if peer in missing else f"two processes have the index {peer}"


def _reject(connections: dict[int, Connection], reason: str) -> None:
    for connection in connections.values():
        connection.send(rejected=reason)
        connection.close()


def _connect_to_first(launcher: Launcher, deadline: float) -> Connection:
    """In every other process: the connection to process 0."""
    address = launcher.host, launcher.port
    name = f"{launcher.host}:{launcher.port}"
    while True:
        try:
            opened = socket.create_connection(address, timeout=HEARTBEAT_INTERVAL)
            connection = Connection(opened, 0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes: process {launcher.index} cannot reach process 0 at {name}: "
                    f"{error}; start process 0, or correct --coordinator"
                ) from error
            time.sleep(0.1)
    connection.send(process=launcher.index, **_handshake(launcher))
    try:
        answer = connection.receive(max(0.01, deadline - time.monotonic()) + HEARTBEAT_INTERVAL)
    except TimeoutError:
        connection.close()
        raise TimeoutError(
            f"processes: process 0 at {name} did not answer in time; start the missing processes"
        ) from None
    except (OSError, ValueError):
        answer = {}
    if "welcome" not in answer:
        connection.close()
        reason = answer.get("rejected", f"process 0 at {name} has ended, or is another program")
        raise ValueError(f"processes: {reason}")
    return connection


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
