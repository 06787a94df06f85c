"""Messages of bounded length, in which control characters are escaped."""

import re
import unicodedata

MAX_WORD = 200
"""Maximum length of a word in a message; longer words, such as names, are shortened."""
MAX_MESSAGE = 1000
"""Maximum length of a message."""
_UNESCAPED = frozenset("\n\t")
"""Control characters that `escape_controls` does not escape."""


def escape_controls(text: str) -> str:
    r"""Replaces unprintable characters, which may control a terminal, by their escapes in Python.

    Among them are control characters except for newlines and tabs, characters that change the
    direction of text, and bytes that are not valid in UTF-8.

    >>> print(escape_controls("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if _is_safe(c) else c.encode("unicode_escape").decode() for c in text)


def _is_safe(character: str) -> bool:
    return (
        character.isprintable()
        or character in _UNESCAPED
        or unicodedata.category(character) == "Zs"
    )


def shorten(text: str, max_length: int = MAX_MESSAGE) -> str:
    """Shortens a text in the middle to at most `max_length` characters.

    >>> shorten("a" * 100, 30)
    'aaaaaaaaaaaaaaaaaa...aaaaaaaaa'
    """
    if len(text) <= max_length:
        return text
    tail = max_length // 3 - 1
    return f"{text[: max_length - tail - 3]}...{text[len(text) - tail :]}"


def format_message(text: str) -> str:
    """Returns a message as one line of bounded length, with escaped control characters."""
    words = re.split(r"\s+", shorten(text, 50 * MAX_MESSAGE).strip())
    return shorten(escape_controls(" ".join(shorten(word, MAX_WORD) for word in words)))


def error_line(error: BaseException, index: int = 0) -> str:
    """Returns a line of an error's message, or the name of its class if it has no message.

    `index` is the number of the line; -1 is the last line. At most 300 characters are returned.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[index].strip()[:300]
