"""Files of a sweep that pass between machines, and how the process of the command writes them."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from jrnn.files import replace_folder
from jrnn.train.run.checkpoint import MAX_TO_KEEP

Files = dict[str, bytes]
"""The contents of files, by path relative to a folder."""


def list_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder `checkpoints`."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def read_files(folder: Path) -> Files:
    """Reads all files of a folder; returns {} if it does not exist."""
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


def write_checkpoint(folder: Path, step: int, files: Files) -> None:
    """Writes a checkpoint atomically, and removes later ones and old ones.

    Of the checkpoints up to `step`, the newest `MAX_TO_KEEP` stay.

    A checkpoint of a later step is damaged: the worker could not continue from it, and has trained
    the steps before it again.

    Args:
      folder: the folder of the group.
      step: the step of the checkpoint.
      files: the files of the checkpoint.
    """
    partial, checkpoints = folder / "checkpoint.part", folder / "checkpoints"
    shutil.rmtree(partial, ignore_errors=True)
    write_files(partial, files)
    checkpoints.mkdir(exist_ok=True)
    replace_folder(partial, checkpoints / str(step))
    steps = list_steps(checkpoints)
    to_keep = [other for other in steps if other <= step][-MAX_TO_KEEP:]
    for other in set(steps) - set(to_keep):
        shutil.rmtree(checkpoints / str(other))
