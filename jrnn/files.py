"""Reads regular files of bounded size, and writes files atomically, with the path in errors."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_DEPTH = 100
"""Maximum depth of nested lists and objects in a JSON file."""
MAX_INT = 2**63 - 1
"""Maximum absolute value of an int in a JSON file."""


class WriteError(OSError):
    """Raised when a file cannot be written, for example because the disk is full."""


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Reads a regular file, and raises for other files, such as a FIFO, which could block.

    Args:
      path: path of the file.
      max_bytes: maximum size of the file in bytes.

    Raises:
      OSError: the file cannot be opened, or is not a regular file.
      ValueError: the file has more than `max_bytes` bytes.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} must be a regular file, got {_kind(status.st_mode)}")
        # The content is measured too: the size of a file in /proc is 0, and a file may grow.
        content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    size = max(status.st_size, len(content))
    if size > max_bytes:
        raise ValueError(f"{path} must have at most {max_bytes} bytes, got at least {size}")
    return content


def read_json(path: Path, max_bytes: int) -> Any:
    """Reads a JSON file; see `parse_json` for the limits of its content.

    Raises:
      OSError, ValueError: as for `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, max_bytes))


def parse_json(content: bytes) -> Any:
    """Parses JSON in UTF-8.

    Raises:
      ValueError: the content is not JSON, a number is not finite, an int has more than 64 bits, or
        lists and objects are nested more deeply than `MAX_JSON_DEPTH`.

    >>> parse_json(b'{"steps": 1e400}')
    Traceback (most recent call last):
    ...
    ValueError: JSON: numbers must be finite, got 1e400
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
        if isinstance(value, dict | list):
            _check_depth(value)
    except RecursionError as error:
        raise ValueError(f"JSON: depth must be at most {MAX_JSON_DEPTH}, got more") from error
    return value


def replace_folder(source: Path, target: Path) -> None:
    """Renames the folder `source` to `target`, and removes the previous folder `target`.

    A folder cannot be renamed to one that has files. An existing `target` is therefore renamed to
    `NAME.old` first, and renamed back if `source` cannot be renamed. `target` never has only a part
    of its files. If the process is killed between the two renames, `target` does not exist, and
    `source` and `NAME.old` are complete.
    """
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    try:
        source.rename(target)
    except OSError:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_tree(folder: Path) -> None:
    """Raises OSError unless all entries below a folder are regular files and folders.

    In an untrusted folder, writing to a symbolic link could change a file outside of the folder,
    and reading a FIFO could wait forever. The folder itself may be a symbolic link.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # removed by the process that trains in this folder
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise OSError(
                    f"{folder} must contain regular files and folders only, got {_kind(mode)} "
                    f"{path.relative_to(folder)}; remove it, or pass --trust if you made it"
                )


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Context manager that turns an OSError in its block into a `WriteError` with the path.

    An OSError has the path itself only if the file could not be opened, not if the disk is full.

    Raises:
      WriteError: the operating system could not write the file.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path} cannot be written: {reason}; free disk space, or repair the folder"
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path, and renames it to `path` at the end.

    If the block raises, the temporary file is removed and `path` does not change.

    Raises:
      WriteError: the operating system could not write the file.
    """
    partial = path.with_name(path.name + ".part")
    with naming_file(path):
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically.

    Raises:
      WriteError: the operating system could not write the file.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "the symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _parse_int(text: str) -> int:
    value = int(text) if len(text) < 30 else MAX_INT + 1
    if abs(value) > MAX_INT:
        raise ValueError(f"JSON: ints must have at most 64 bits, got {text[:30]}")
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):
        raise ValueError(f"JSON: numbers must be finite, got {text[:30]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"JSON: numbers must be finite, got {text}")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_JSON_DEPTH:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            _check_depth(item, depth + 1)
