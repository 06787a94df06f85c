"""Prepares docstrings for the documentation: equations become MathML, examples become code."""

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from equations import BLOCK, render

_REFERENCES = re.compile(r"^References:\n((?:  .*(?:\n|$))+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Converts the docstrings of all objects of jrnn."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = convert(obj.docstring.value)


def convert(text: str) -> str:
    """Returns a docstring with HTML for equations, and fenced examples under "Examples:"."""
    text = BLOCK.sub(_render_block, text + "\n").rstrip()
    body, found, examples = text.partition("\n>>> ")
    if found:
        examples, gap, rest = f">>> {examples}".partition("\n\n")
        if rest.startswith(">>> "):
            examples, gap, rest = f"{examples}\n\n{rest}", "", ""
        lines = "\n".join(f"    {line}" if line else "" for line in examples.splitlines())
        text = f"{body}\nExamples:\n{lines}{gap}{rest}"
    return _REFERENCES.sub(_list_references, text)


def _list_references(match: re.Match[str]) -> str:
    """Returns the references as a list; each ends with a period at the end of a line."""
    text = "\n".join(line.strip() for line in match[1].splitlines())
    references = re.split(r"(?<=\.)\n(?=\S)", text.strip())
    return "**References**\n\n" + "\n".join(f"- {' '.join(each.split())}" for each in references)


def _render_block(match: re.Match[str]) -> str:
    indent = match[1]
    lines = [line.removeprefix(f"{indent}    ") for line in match[2].splitlines()]
    if any("=" in line or "<-" in line or " ~ " in line for line in lines):
        return f"{indent}{render(chr(10).join(lines))}\n\n"
    block = "\n".join(f"{indent}{line}".rstrip() for line in lines)
    return f"{indent}```\n{block.rstrip()}\n{indent}```\n\n"
