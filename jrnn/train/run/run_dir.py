"""The folder of a run of `fit`: locked, and without new files if no training step has ended."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jrnn.distributed import ProcessGroup
from jrnn.files import WriteError
from jrnn.signals import Interrupted
from jrnn.train.run.lock import LOCK_NAME, run_lock

RUN_FILES = ("checkpoints", "metrics.jsonl", LOCK_NAME)
"""The files and folders that `fit` creates; the lock is removed last."""


@contextlib.contextmanager
def open_run_dir(
    run_dir: str | os.PathLike[str] | None, group: ProcessGroup, has_trained: Callable[[], bool]
) -> Iterator[Path]:
    """Context manager that creates and locks the folder of a run.

    If an error is raised before a training step has ended, the files of `fit` that were not there
    before are removed, so that the corrected call can use the folder. They are kept if the run can
    be resumed: if a signal has stopped it, or a file could not be written.

    Args:
      run_dir: the folder; None creates a temporary folder, which is removed at the end.
      group: the processes that train together; only the first one locks and removes files.
      has_trained: returns whether a training step has ended.

    Raises:
      BlockingIOError, OSError: see `run_lock`.
    """
    with contextlib.ExitStack() as stack:
        if run_dir is None:
            run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jrnn-"))
        folder = Path(run_dir)
        if not group.is_first:
            yield folder
            return
        existing = {*os.listdir(folder)} if folder.is_dir() else None
        stack.enter_context(run_lock(folder))
        try:
            yield folder
        except (Interrupted, WriteError):
            raise
        except Exception:
            if not has_trained():
                _remove_files(folder, existing)
            raise


def _remove_files(folder: Path, existing: set[str] | None) -> None:
    """Removes the files of a run, except for `existing`; None means the folder did not exist."""
    for name in RUN_FILES:
        path = folder / name
        if name in (existing or ()):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if existing is None:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
