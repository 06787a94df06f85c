"""Output of the command: text of other people is escaped on a terminal."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import tyro

from jrnn.messages import MAX_MESSAGE, escape_controls, shorten


class Console(rich.console.Console):
    """A console of rich that escapes control characters in all text, also of tables.

    A closed pipe, as in `jrnn ls cells | head -1`, raises BrokenPipeError.
    """

    def render_str(self, text: str, **options: Any) -> Any:
        """Renders a text of a table or of a message; rich calls it for each `str`."""
        return super().render_str(escape_controls(text), **options)

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError, which rich would replace by exit code 1."""
        raise


def write_text(text: str) -> None:
    """Prints a text on standard output; it is escaped only if this is a terminal."""
    print(escape_controls(text) if sys.stdout.isatty() else text)


def parse_flags(function: Callable[..., Any], args: Sequence[str], **options: Any) -> Any:
    """Calls `tyro.cli`, and escapes and shortens the flags that its error messages quote.

    Args:
      function: the function or class whose arguments are the flags.
      args: the flags.
      **options: options of `tyro.cli`.

    Raises:
      SystemExit: a flag is invalid, or asks for help.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(function, args=list(args), **options)
    finally:
        sys.stderr.write(shorten(escape_controls(messages.getvalue()), 5 * MAX_MESSAGE))
