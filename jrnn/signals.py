"""Signals that stop the command `jrnn`: SIGINT, SIGTERM and SIGHUP.

This module imports only the standard library, so that the command can install its handler before
JAX is imported, which takes a second.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# SIGHUP does not exist on Windows.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in dir(signal)
)
"""The signals that stop a run."""
SHOW_CURSOR = "\x1b[?25h"
"""The escape sequence that shows the cursor, which a progress bar hides."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops a run; a run that has a folder is saved and can be resumed.

    Attributes:
      signal: the signal: SIGINT, SIGTERM or SIGHUP.
    """

    def __init__(self, message: str, received: signal.Signals):
        """Stores the message for the user and the signal."""
        super().__init__(message)
        self.signal = received


class Signals:
    """Context manager that records a signal, so that the training loop can save the run and stop.

    The previous handlers are called for a SIGINT that follows another signal, and, when the context
    is left without an exception, for a signal that was received. A SIGTERM or SIGHUP that was
    ignored before, such as SIGHUP in a process that `nohup` started, is still ignored.

    Attributes:
      received: the signal that was received, or None; always None outside of the main thread,
        where Python cannot install signal handlers.
    """

    def __init__(self):
        """Creates the object; the handlers are installed when the context is entered."""
        self.received: signal.Signals | None = None
        self._old_handlers = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in _handled_signals():
                self._old_handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self.received is not None and kind is None:
            signal.raise_signal(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None or number != signal.SIGINT:
            self.received = signal.Signals(number)
            return
        handler = self._old_handlers[number]
        if not callable(handler):
            raise KeyboardInterrupt
        handler(number, frame)


def exit_on_signals() -> None:
    """Makes a signal end this process at once, with a line on stderr and exit code 128 + signal.

    Raising an exception is not enough: while modules are imported it prints a traceback, and in a
    callback of JAX Python prints and discards it. Within the context of `Signals`, the handlers of
    `Signals` are used instead, so that a run is saved first.
    """
    for number in _handled_signals():
        signal.signal(number, _exit)


@contextlib.contextmanager
def preserve_handlers() -> Iterator[None]:
    """Context manager that restores signal handlers which a library replaces in its block.

    Ray, for example, replaces that of SIGTERM. Outside of the main thread, where Python cannot
    install signal handlers, nothing is restored.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not signal.getsignal(number):
                    signal.signal(number, handler)


def _handled_signals() -> list[signal.Signals]:
    """Returns SIGINT, and SIGTERM and SIGHUP unless they are ignored, as under `nohup`."""
    is_ignored = lambda number: signal.getsignal(number) is signal.SIG_IGN
    return [n for n in STOP_SIGNALS if n == signal.SIGINT or not is_ignored(n)]


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    name = signal.Signals(number).name
    with contextlib.suppress(Exception):  # the streams may be closed, or in use at this moment
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        cursor = SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, f"{cursor}jrnn: stopped by {name}; saved checkpoints are intact\n".encode())
    os._exit(128 + number)
