"""Output and flags of the command `jrnn`: untrusted text is escaped on a terminal."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import rich.console
import tyro

from jrnn import checks
from jrnn.files import naming_file
from jrnn.messages import escape_controls

_BOX = re.compile(r"[\u2500-\u257f]|\+?-{3,}\+?|^\s*\||\|\s*$", re.MULTILINE)
"""Matches the border of the box in which tyro prints errors."""

MAX_LINE = 10_000
"""Maximum width of a table in a pipe or a file, in characters."""


class Console(rich.console.Console):
    """A console of rich that escapes control characters in all text, including tables.

    A closed pipe, as in `jrnn ls cells | head -1`, raises BrokenPipeError.
    """

    def render_str(self, text: str, **options: Any) -> Any:
        """Renders a text of a table or of a message; rich calls it for each `str`."""
        return super().render_str(escape_controls(text), **options)

    @property
    def size(self) -> rich.console.ConsoleDimensions:
        """The size of the terminal; a pipe or a file has long lines, so tables are complete."""
        found = super().size
        if self.is_terminal or self.is_jupyter:
            return found
        return found._replace(width=MAX_LINE)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self.width, self.height = new_size

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
    """Raised if a flag of the command is unknown, or its value is invalid.

    Attributes:
      flag: the flag, such as "--steps".
      problem: what is wrong, such as "must be an int, got '1k'".
    """

    def __init__(self, owner: str, flag: str, problem: str) -> None:
        super().__init__(f"{owner}: {flag} {problem}")
        self.flag, self.problem = flag, problem


def parse_flags(function: Callable[..., Any], args: Sequence[str], **options: Any) -> Any:
    """Calls `tyro.cli`, and raises errors that tyro would print in a box before it exits.

    Args:
      function: the function or class whose arguments are the flags.
      args: the flags.
      **options: options of `tyro.cli`, with `prog`, the command.

    Returns:
      The result of `function`.

    Raises:
      FlagError: a flag is unknown, or its value is invalid.
      ValueError: the value of a flag is out of range.
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
        text = " ".join(_BOX.sub(" ", text).split()).partition(" For full helptext")[0]
        raise _make_error(text, args, options["prog"]) from error
    except Exception:
        sys.stderr.write(printed.getvalue())
        raise
    sys.stderr.write(printed.getvalue())  # what `function` has printed, such as a warning
    return result


_METAVAR = r"(?:\[[^\]]*\]+|\{[^}]*\}+|\S)+"
"""Matches how tyro writes the type of a flag, such as {None}|[INT [INT ...]]."""
_TYPES = {
    "INT": "an int",
    "FLOAT": "a number",
    "STR": "a text",
    "[INT": "ints",
    "[FLOAT": "numbers",
    "[STR": "texts",
}
"""How messages name the types of tyro."""


def _make_error(text: str, args: Sequence[str], prog: str) -> ValueError:
    """Returns the error that says what a message of tyro says, in the form of those of jrnn.

    Args:
      text: the message, in one line.
      args: the flags that were parsed.
      prog: the command, such as "jrnn eval".
    """
    owner, see = " ".join(prog.split()[1:2]), f"see {prog} --help"
    if match := re.match(r"Unrecognized options: (\S+)", text):
        word = match[1].rstrip(",")
        if not word.startswith("--"):
            return FlagError(owner, repr(word), f"is one argument too many; {see}")
        similar = re.search(r"Perhaps you meant: (--[\w.-]+)", text)
        hint = f"did you mean {similar[1]!r}?" if similar else see
        return FlagError(owner, word, f"is not a flag of {prog}; {hint}")
    if match := re.match(r"Missing value for argument '(--[\w.-]+)'", text):
        return FlagError(owner, match[1], "must have a value, got none")
    if match := re.match(
        r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of (.*)", text
    ):
        choices = [name for name in re.findall(r"'([^']*)'", match[3]) if name != "None"]
        hint = checks.suggestion(match[1], choices)
        problem = f"must be one of {', '.join(choices)}, got {match[1]!r}{hint}"
        return FlagError(owner, match[2], problem)
    if match := re.match(
        rf"Error parsing (--[\w.-]+): .*Argument helptext: (?:--\S+,? )+({_METAVAR})", text
    ):
        return FlagError(
            owner, match[1], f"must be {_expected(match[2])}, got {_value(match[1], args)!r}"
        )
    if match := re.match(r"Error parsing \w+: (.*)", text):
        return ValueError(match[1])
    if match := re.match(r"Missing from [^:]*: (.*)", text):
        missing = re.findall(r"(?:^|\(required\) )(\S+) ([^.:(]+)", match[1])
        names = " and ".join(f"{name} ({description})" for name, description in missing)
        return FlagError(owner, names, f"must be given; {see}")
    return ValueError(f"{owner}: {text}")


def _expected(metavar: str) -> str:
    """Returns how a message names the type of a flag, which tyro writes as {None}|INT or {a,b}."""
    types: list[str] = re.findall(
        r"\[?(?:INT|FLOAT|STR)|[\w-]+", re.sub(r"\s+\[\w+ \.\.\.\]", "", metavar)
    )
    names: list[str] = [_TYPES.get(each, each) for each in types if each != "None"]
    return " or ".join([*names, "None"] if "None" in types else names)


def _value(flag: str, args: Sequence[str]) -> str:
    """Returns the values of a flag, as they were given."""
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            rest = itertools.takewhile(lambda each: not each.startswith("--"), words)
            return value if equals else " ".join(rest)
    return ""
