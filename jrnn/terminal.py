"""Output and flags of the command `jrnn`: untrusted text is escaped on a terminal."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import rich.console
import tyro

from jrnn.files import naming_file
from jrnn.messages import escape_controls

_BOX = re.compile(r"[\u2500-\u257f]|\+?-{3,}\+?|^\s*\||\|\s*$", re.MULTILINE)
"""Matches the border of the box in which tyro prints errors."""


class Console(rich.console.Console):
    """A console of rich that escapes control characters in all text, including tables.

    A closed pipe, as in `jrnn ls cells | head -1`, raises BrokenPipeError.
    """

    def render_str(self, text: str, **options: Any) -> Any:
        """Renders a text of a table or of a message; rich calls it for each `str`."""
        return super().render_str(escape_controls(text), **options)

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError again; rich would exit with code 1."""
        raise


def write_text(text: str) -> None:
    """Prints a text on standard output, with escaped control characters if it is a terminal."""
    print(escape_controls(text) if sys.stdout.isatty() else text)


class _EscapedOutput(io.TextIOBase):
    """Standard output, on which control characters are escaped."""

    def write(self, text: str, /) -> int:
        return sys.stdout.write(escape_controls(text))

    def flush(self) -> None:
        sys.stdout.flush()


Output = TextIO | _EscapedOutput
"""A text file, or standard output."""


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[Output]:
    """Context manager that yields a text file for writing in UTF-8; None means standard output.

    If standard output is a terminal, control characters are escaped.

    Raises:
      WriteError: the operating system could not write the file.
    """
    if path is not None:
        with naming_file(path), path.open("w", encoding="utf-8") as file:
            yield file
    elif sys.stdout.isatty():
        yield _EscapedOutput()
    else:
        yield sys.stdout


class FlagError(ValueError):
    """Raised if a flag of the command is unknown, or its value is invalid."""


def parse_flags(function: Callable[..., Any], args: Sequence[str], **options: Any) -> Any:
    """Calls `tyro.cli`, and raises errors that tyro would print in a box before it exits.

    Args:
      function: the function or class whose arguments are the flags.
      args: the flags.
      **options: options of `tyro.cli`.

    Returns:
      The result of `function`.

    Raises:
      FlagError: a flag is unknown, or its value is invalid.
      SystemExit: help was requested and printed; the exit code is 0.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            result = tyro.cli(function, args=list(args), **options)
    except SystemExit as error:
        if not error.code:
            raise
        _title, _, text = printed.getvalue().strip().partition("\n")
        text = " ".join(_BOX.sub(" ", text).split())
        raise FlagError(text.partition(" For full helptext")[0]) from error
    sys.stderr.write(printed.getvalue())  # what `function` has printed, such as a warning
    return result
