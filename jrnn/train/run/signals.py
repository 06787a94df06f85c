"""What keeps a run from harm: one process a folder, and signals that end it in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from filelock import FileLock, Timeout

LOCK = ".lock"


class Interrupted(KeyboardInterrupt):
    """A signal ended a run after all of it was saved.

    Attributes:
      signal: SIGINT or SIGTERM.
    """

    def __init__(self, message: str, number: signal.Signals):
        """With what to tell the user."""
        super().__init__(message)
        self.signal = number


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps others from training in a folder; the system lets go of it when the process ends.

    Raises:
      BlockingIOError: another process trains there.
      OSError: the folder cannot be written to, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(blocking=False)
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, Timeout):
            raise OSError(
                f"train: {folder} cannot be written to or locked: {error}; mend it, or name "
                "another folder"
            ) from error
        raise BlockingIOError(
            f"train: another process trains in {folder} now; wait for it to end, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Signals:
    """A context in which SIGINT and SIGTERM ask for an end; a second SIGINT ends at once.

    Attributes:
      received: the signal that came, or None. In other threads than the main one none is seen.
    """

    def __init__(self):
        """Before the context nothing is changed."""
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
