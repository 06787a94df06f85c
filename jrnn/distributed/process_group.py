"""The processes of a run: what they tell one another, and what becomes of them if one is lost.

All of them are connected with process 0. JAX itself lets those that remain wait for one that has
died, in the middle of a sum over all devices; here each has a thread that sees it and ends them.
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

PATIENCE = 300.0
"""Seconds that processes wait for one another in the beginning."""
PULSE, SILENCE = 2.0, 20.0
"""Seconds between two signs of life, and without any until a process counts as lost."""
GRACE = 4.0
"""Seconds in which processes that fail alike may all say why by themselves."""
MOMENT = 0.5
"""Seconds in which a loss is seen; what it makes of the others' work is no error of theirs."""


class Connection:
    """A connection with another process, for messages of one line of JSON each.

    Attributes:
      peer: the number of the process at the other end.
      inbox: what it has told.
      ending: set once the other process has said that it ends.
      over: set at the end of the connection.
    """

    def __init__(self, connection: socket.socket, peer: int):
        """Over a connection that is open."""
        self.peer = peer
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.ending, self.over = threading.Event(), threading.Event()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lines = connection, connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends a message; that nobody receives it is seen by who listens."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, patience: float) -> dict[str, Any]:
        """The next message; an empty one at the end.

        Raises:
          OSError: the connection broke, or there was none for so many seconds.
          ValueError: it is no message.
        """
        self._connection.settimeout(patience)
        message = json.loads(self._lines.readline() or "{}")
        if not isinstance(message, dict):
            raise ValueError(f"not a message: {message!r}")
        return message

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class ProcessGroup:
    """The processes of a run.

    Attributes:
      index: which this one is, from 0.
      count: how many there are.
      resume_command: the command that resumes what they do.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        links: Sequence[Connection] = (),
        *,
        resume_command: str = "",
    ):
        """A single process, or one with links: of the first to all others, of these to it."""
        self.index, self.count, self.resume_command = index, count, resume_command
        self._links, self._losing = links, threading.Lock()
        self._failing, self._closed = threading.Event(), threading.Event()
        for link in links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()
        if links:
            threading.Thread(target=self._live, daemon=True).start()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the files of the run."""
        return self.index == 0

    def all_gather(self, what: str, value: Any) -> list[Any]:
        """The values of all processes, in their order; waits for those that have none yet.

        Args:
          what: what is exchanged, the same in all.
          value: what JSON holds.

        Raises:
          RuntimeError: another process exchanges something else.
        """
        if not self._links:
            return [value]
        if not self.is_first:
            self._links[0].send(what=what, value=value)
            return self._take(self._links[0], what)
        values = [value, *(self._take(link, what) for link in self._links)]
        for link in self._links:
            link.send(what=what, value=values)
        return values

    def broadcast(self, what: str, value: Any) -> Any:
        """The value of the first process."""
        return self.all_gather(what, value if self.is_first else None)[0]

    def all_max(self, what: str, *numbers: float) -> list[Any]:
        """The largest of each number over all processes."""
        return [max(each) for each in zip(*self.all_gather(what, numbers), strict=True)]

    def close(self) -> None:
        """Ends in order, with all others."""
        self.all_gather("end", None)
        jax.distributed.shutdown()
        self.all_gather("ended", None)
        self._closed.set()
        for link in self._links:
            link.send(bye=True)
            link.close()

    def fail(self) -> None:
        """Says that this process is about to end by an error."""
        time.sleep(MOMENT)
        self._failing.set()
        for link in self._links:
            link.send(end=True)

    def _take(self, link: Connection, what: str) -> Any:
        message = link.inbox.get()
        if message["what"] != what:
            raise RuntimeError(
                f"process {self.index} exchanges {what!r}, and process {link.peer} "
                f"{message['what']!r}: they do not do the same"
            )
        return message["value"]

    def _live(self) -> None:
        """Gives signs of life."""
        while not self._closed.wait(PULSE):
            for link in self._links:
                link.send(alive=True)

    def _listen(self, link: Connection) -> None:
        """Hears a process until it ends."""
        lost = link.peer
        with contextlib.suppress(OSError, ValueError):
            while message := link.receive(SILENCE):
                if "what" in message:
                    link.inbox.put(message)
                if "bye" in message:
                    return
                if "end" in message:
                    link.ending.set()
                    self._failing.wait(GRACE)
                if "lost" in message or ("end" in message and not self._failing.is_set()):
                    lost = message.get("lost", lost)
                    break
        link.ending.set()
        link.over.set()
        if not self._failing.is_set() and not self._closed.is_set():
            self._end_with(lost)

    def _end_with(self, lost: int) -> NoReturn:
        """Ends this process because another one has ended."""
        self._losing.acquire()  # never given back: only one thread speaks
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        again = (
            f"; start all of them again with: {self.resume_command}" if self.resume_command else ""
        )
        said = (
            f"{show_cursor}\njrnn: process {lost} of {self.count} has ended or cannot be reached, "
            f"and so process {self.index} ends too. What was saved is whole{again}\n"
        )
        with contextlib.suppress(OSError, ValueError):  # nobody may read them any more
            sys.stdout.flush()
            sys.stderr.write(said)
        for link in self._links:
            link.send(lost=lost)
        self.end(1)

    def end(self, code: int) -> NoReturn:
        """Ends this process once the others know, and the first one after them.

        Before, they would see that a sum over all devices has failed, or that JAX has lost its
        coordinator, and say so instead.
        """
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        deadline = time.monotonic() + 2 * GRACE
        for link in self._links:
            known = link.over if self.is_first else link.ending
            known.wait(max(0, deadline - time.monotonic()))
        os._exit(code)


_joined: list[ProcessGroup] = []


@contextlib.contextmanager
def init_process_group(
    launcher: Launcher | None, patience: float = PATIENCE
) -> Iterator[ProcessGroup]:
    """Joins the other processes of a launcher, before anything is computed.

    If one of the others is lost in the meantime, this process is ended, with a line that says so
    and exit code 1: a computation that waits for the other cannot be ended in another way.

    Args:
      launcher: which processes there are; None for this one alone.
      patience: seconds to wait for the others.

    Raises:
      TimeoutError: some did not come.
      OSError: process 0 cannot listen on its port.
      ValueError: they do not belong together; says why.
    """
    if launcher is None:
        yield ProcessGroup()
        return
    group = _gathered(launcher, patience)
    _joined.append(group)
    try:
        port = group.broadcast("port", _free_port() if group.is_first else None)
        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
        jax.distributed.initialize(
            f"[{launcher.host}]:{port}" if ":" in launcher.host else f"{launcher.host}:{port}",
            launcher.count,
            launcher.index,
            launcher.device,
            cluster_detection_method="deactivate",
        )
        yield group
        group.close()
        _joined.remove(group)
    except BaseException as error:
        error.add_note(f"(process {group.index} of {group.count})")
        code = error.code if isinstance(error, SystemExit) else 1
        # At the end of the process, whoever ends it, and before JAX waits there for the others.
        atexit.register(group.end, code if isinstance(code, int) else 1)
        group.fail()
        raise


def exit_process(code: int) -> NoReturn:
    """Ends this process; at once if it has failed among others, for which JAX would wait."""
    for group in _joined:
        group.end(code)
    sys.exit(code)


def _gathered(launcher: Launcher, patience: float) -> ProcessGroup:
    deadline = time.monotonic() + patience
    links = _received(launcher, deadline) if launcher.index == 0 else [_reached(launcher, deadline)]
    return ProcessGroup(launcher.index, launcher.count, links)


def _hello(launcher: Launcher) -> dict[str, Any]:
    """What processes must have in common."""
    versions = {f"version of {name}": version(name) for name in ("jrnn", "jax")}
    return {"number of processes": launcher.count, **versions}


def _received(launcher: Launcher, deadline: float) -> list[Connection]:
    """In process 0: the links to all others."""
    links = dict[int, Connection]()
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", launcher.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(
            f"processes: process 0 cannot listen on port {launcher.port}: {error.strerror}; name "
            "another coordinator"
        ) from error
    with server:
        while missing := sorted(set(range(1, launcher.count)) - links.keys()):
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                _refuse(links, late := f"of {launcher.count} processes {missing} did not come")
                raise TimeoutError(f"processes: {late} in time") from None
            link = Connection(connection, -1)
            try:
                hello = link.receive(patience=5)
                link.peer = int(hello.pop("process"))
            except (OSError, ValueError, KeyError, TypeError):
                link.close()  # it is none of ours
                continue
            if reason := _misfit(link.peer, hello, launcher, missing):
                _refuse({**links, -1: link}, reason)
                raise ValueError(f"processes: {reason}")
            links[link.peer] = link
    for link in links.values():
        link.send(welcome=True)
    return [links[index] for index in sorted(links)]


def _misfit(peer: int, hello: dict[str, Any], launcher: Launcher, missing: list[int]) -> str | None:
    for name, ours in _hello(launcher).items():
        if hello.get(name) != ours:
            return f"the {name} is {ours} in process 0, and {hello.get(name)} in process {peer}"
    return None if peer in missing else f"two processes are number {peer}"


def _refuse(links: dict[int, Connection], reason: str) -> None:
    for link in links.values():
        link.send(refused=reason)
        link.close()


def _reached(launcher: Launcher, deadline: float) -> Connection:
    """In another process: the link to process 0."""
    where = f"{launcher.host}:{launcher.port}"
    while True:
        try:
            address = (launcher.host, launcher.port)
            link = Connection(socket.create_connection(address, timeout=PULSE), 0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes: process {launcher.index} cannot reach process 0 at {where}: "
                    f"{error}; start it, or mend the coordinator"
                ) from error
            time.sleep(0.1)
    link.send(process=launcher.index, **_hello(launcher))
    try:
        answer = link.receive(max(0.01, deadline - time.monotonic()) + PULSE)
    except TimeoutError:
        link.close()
        raise TimeoutError(f"processes: process 0 at {where} waits for others in vain") from None
    except (OSError, ValueError):
        answer = {}
    if "welcome" not in answer:
        link.close()
        reason = answer.get("refused", f"process 0 at {where} has ended, or is something else")
        raise ValueError(f"processes: {reason}")
    return link


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
