"""Frozen dataclasses whose fields are dataclasses and tuples, such as experiments and cells."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each node: the root, and nested fields and tuple entries.

    >>> [path for path, _ in walk((1, (2, 3)))]
    ['', '[0]', '[1]', '[1][0]', '[1][1]']
    """
    yield path, value
    children: Iterable[tuple[str, Any]] = ()
    if dataclasses.is_dataclass(value):
        dot = "." if path else ""
        names = [field.name for field in dataclasses.fields(value)]
        children = ((f"{path}{dot}{name}", getattr(value, name)) for name in names)
    elif isinstance(value, tuple):
        children = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    for child_path, child in children:
        yield from walk(child, child_path)


def dataclasses_in(value: Any) -> set[type]:
    """Returns the classes of all dataclasses in a value."""
    return {type(node) for _, node in walk(value) if dataclasses.is_dataclass(node)}


def is_of_jrnn(module: str) -> bool:
    """Returns whether a module, given by its name, is part of jrnn."""
    return module.partition(".")[0] == "jrnn"
