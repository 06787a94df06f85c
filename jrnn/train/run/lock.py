"""A lock for the folder of a run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"


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
