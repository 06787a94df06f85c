"""A lock for the folder of a run, and signal handlers that stop a run gracefully."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops a run; the run is saved and can be resumed.

    Attributes:
      signal: the signal, SIGINT or SIGTERM.
    """

    def __init__(self, message: str, received: signal.Signals):
        """Stores the message for the user and the signal."""
        super().__init__(message)
        self.signal = received


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Context manager that locks the folder of a run, so that one process at a time trains in it.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
      BlockingIOError: another process trains in the folder.
      OSError: the folder cannot be written to, or its file system does not support locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        lock.acquire(blocking=False)
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, Timeout):
            raise OSError(
                f"train: {folder} cannot be written to or locked: {error}; check its permissions, "
                "or pass another folder"
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
      received: the signal that was received, or None; always None outside of the main thread,
        where Python cannot install signal handlers.
    """

    def __init__(self):
        """Creates the object; the handlers are installed when the context is entered."""
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
