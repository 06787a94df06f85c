"""Writing of files: atomically, and with the name of the file in errors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """Raised when a file cannot be written, for example because the disk is full."""


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Context manager that raises `WriteError` with the name of a file for errors of writing it.

    Errors of the operating system have the name of a file only if it could not be opened, but not
    if the disk is full.

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
