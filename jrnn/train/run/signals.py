"""A lock that allows one process per run folder, and signals that stop a run gracefully."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from filelock import FileLock, Timeout

LOCK = ".lock"


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run, and everything was saved.

    Attributes:
      signal: SIGINT or SIGTERM.
    """

    def __init__(self, message: str, received: signal.Signals):
        """Takes the message for the user and the signal."""
        super().__init__(message)
        self.signal = received


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for training; the system releases the lock when the process ends.

    Raises:
      BlockingIOError: another process trains in the folder.
      OSError: the folder cannot be written to, or its file system does not support locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(blocking=False)
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, Timeout):
            raise OSError(
                f"train: {folder} cannot be written to or locked: {error}; fix this, or pass "
                "another folder"
            ) from error
        raise BlockingIOError(
            f"train: another process trains in {folder}; wait until it ends, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Signals:
    """Context manager that records SIGINT and SIGTERM; a second SIGINT raises KeyboardInterrupt.

    Attributes:
      received: the signal that was received, or None. Always None outside of the main thread.
    """

    def __init__(self):
        """Handlers are installed when the context is entered."""
        self.received: signal.Signals | None = None
        self._old_handlers = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
