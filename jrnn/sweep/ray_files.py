"""Files of a sweep that pass between machines, and how the process of the command writes them."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from jrnn.files import replace_folder
from jrnn.train.run.checkpoint import MAX_TO_KEEP, list_steps
from jrnn.train.run.lock import LOCK_NAME, run_lock

STAGED_CHECKPOINT = "checkpoint.part"
"""Name of the folder of a checkpoint of a group that is not complete, or not yet renamed."""
WORKER_PREFIX = "jrnn-sweep-"
"""Prefix of the names of the temporary folders of workers."""
Files = dict[str, bytes]
"""The contents of files, by path relative to a folder."""


def read_files(folder: Path) -> Files:
    """Reads all files of a folder.

    Raises:
      FileNotFoundError: the folder does not exist, or a file was removed while it was read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder, which is created if it does not exist."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_metrics(folder: Path, offset: int, content: bytes) -> None:
    """Replaces the contents of `metrics.jsonl` in a folder after an offset in bytes.

    With offset 0, the file is replaced atomically.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    target = path if offset else path.with_suffix(".part")
    with target.open("r+b" if offset else "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    target.replace(path)


def stage_checkpoint(folder: Path, files: Files) -> None:
    """Writes the files of a checkpoint, which is not used before `commit_checkpoint`.

    The metrics of the checkpoint are written between the two calls. They are thus complete when
    the checkpoint is used, and are not written if the checkpoint cannot be.

    Args:
      folder: the folder of the group.
      files: the files of the checkpoint.
    """
    staged = folder / STAGED_CHECKPOINT
    shutil.rmtree(staged, ignore_errors=True)
    write_files(staged, files)


def commit_checkpoint(folder: Path, step: int) -> None:
    """Renames the staged checkpoint, and removes later ones and old ones.

    Of the checkpoints up to `step`, the newest `MAX_TO_KEEP` stay. A checkpoint of the same step is
    replaced as `replace_folder` does.

    A checkpoint of a later step is damaged: the worker could not continue from it, and has trained
    the steps before it again.

    Args:
      folder: the folder of the group.
      step: the step of the checkpoint.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    replace_folder(folder / STAGED_CHECKPOINT, checkpoints / str(step))
    steps = list_steps(checkpoints)
    to_keep = [other for other in steps if other <= step][-MAX_TO_KEEP:]
    for other in set(steps) - set(to_keep):
        shutil.rmtree(checkpoints / str(other))
    for path in checkpoints.glob("*.old"):  # of a process that was killed in replace_folder
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def worker_folder() -> Iterator[Path]:
    """Context manager that creates the temporary folder of a worker, and removes it at the end.

    The folder is locked. At the start, the folders of workers of the same user that were killed are
    removed: no process holds their locks.
    """
    with contextlib.ExitStack() as stack:
        folder = _create_locked_folder(stack)
        stack.callback(_remove_worker_folder, folder)
        for other in folder.parent.glob(f"{WORKER_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_abandoned(other, folder.stat().st_uid)
        yield folder


def _create_locked_folder(stack: contextlib.ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=WORKER_PREFIX))
        # Another worker may lock and remove the folder before it is locked here.
        with contextlib.suppress(BlockingIOError):
            stack.enter_context(run_lock(folder))
            if (folder / LOCK_NAME).exists():
                return folder


def _remove_abandoned(folder: Path, user: int) -> None:
    """Removes the folder of a worker unless a process has locked it, or it is of another user.

    Raises:
      OSError: the folder is locked, or was removed by another process.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
        return
    if (folder / LOCK_NAME).exists():  # else its worker is just creating the lock
        with run_lock(folder):
            _remove_worker_folder(folder)


def _remove_worker_folder(folder: Path) -> None:
    """Removes the lock last, so that another worker continues if this process is killed."""
    for path in folder.glob("[!.]*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
