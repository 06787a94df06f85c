"""Experiments as JSON: each frozen dataclass is an object with its class and its fields.

By default only classes of jrnn are decoded, so that an untrusted file is only data: no name in it
is imported, and nothing is called but constructors of these classes, with fields of the annotated
types.
"""

import dataclasses
import importlib
import inspect
import math
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import typeguard

from jrnn import cells, engines, files, layers, tasks, transforms
from jrnn.dataclass_tree import is_of_jrnn, walk
from jrnn.tasks.task import DataSpec
from jrnn.train.config.experiment import Experiment

CONFIG_MODULE = "jrnn_config"
"""The name under which a config file is imported as a module."""


class UnknownClass(ValueError):
    """Raised if a class is not one of jrnn, and `trust` is False.

    Attributes:
      name: module and name of the class, such as "jrnn_config:MyCell".
    """

    def __init__(self, name: str):
        """Stores the name of the class."""
        super().__init__(f"{name} is not a class of jrnn")
        self.name = name


@cache
def classes() -> dict[str, type]:
    """Returns the classes that `decode` accepts without `trust`, by module and name.

    These are `Experiment`, the classes in the registries, and those in the annotations of fields.
    """
    registries = (cells, transforms, layers, engines, tasks)
    roots = [
        Experiment,
        DataSpec,
        *(cls for module in registries for cls in module.REGISTRY.values()),
    ]
    found: dict[str, type] = {}
    _collect(roots, found)
    return found


def encode(value: Any) -> Any:
    """Encodes a frozen dataclass as a JSON object: its fields, and its class as "type".

    Tuples become lists. All other values are returned unchanged.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _name(type(value)), **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any, *, trust: bool = False) -> Any:
    """Decodes a value of `encode`; lists become tuples.

    Args:
      value: a JSON value, from `encode`.
      trust: whether to import classes that are not in jrnn, which executes code.

    Raises:
      UnknownClass: a class is not one of jrnn, and `trust` is False.
      ValueError, TypeError: a class, a field or a value is invalid.
      ImportError, AttributeError: `trust` is True, and a module or class does not exist.

    >>> import jrnn
    >>> decode(encode(jrnn.LSTM(8))) == jrnn.LSTM(8)
    True
    >>> decode({"type": "subprocess:getoutput", "cmd": "date"})
    Traceback (most recent call last):
    ...
    jrnn.serialize.UnknownClass: subprocess:getoutput is not a class of jrnn
    """
    if isinstance(value, list):
        return tuple(decode(item, trust=trust) for item in value)
    if not isinstance(value, dict):
        return value
    cls = _find_class(value.get("type"), trust)
    fields = {name: decode(item, trust=trust) for name, item in value.items() if name != "type"}
    _check_fields(cls, fields)
    return cls(**fields)


def names_of_classes(value: Any) -> Iterator[str]:
    """Yields the name of each class in JSON values from `encode`."""
    if isinstance(value, dict):
        if isinstance(name := value.get("type"), str):
            yield name
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from names_of_classes(item)


def check_numbers(owner: str, value: Any) -> None:
    """Raises ValueError if a number in a dataclass or tuple cannot be read back from a file.

    Floats must be finite, and ints must have at most 64 bits.

    Args:
      owner: the name of the value in the message.
      value: a dataclass, whose fields may be dataclasses and tuples.
    """
    for path, leaf in walk(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError(f"{owner}: {path} must be a finite number, got {leaf}")
        if isinstance(leaf, int) and abs(leaf) > files.MAX_INT:
            raise ValueError(f"{owner}: {path} must have at most 64 bits, got {leaf}")


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _collect(candidates: Iterable[Any], found: dict[str, type]) -> None:
    """Adds concrete dataclasses to `found`, and those in the annotations of their fields."""
    for candidate in candidates:
        if not isinstance(candidate, type):
            _collect(typing.get_args(candidate), found)  # such as `TBPTT | None`
        elif dataclasses.is_dataclass(candidate) and _name(candidate) not in found:
            if not inspect.isabstract(candidate):
                found[_name(candidate)] = candidate
                _collect(_annotations(candidate).values(), found)


@cache
def _annotations(cls: type) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass that its constructor takes, by name.

    For a class that is not in jrnn each type is `Any`, since its annotations may be inexact.
    """
    is_foreign = not is_of_jrnn(cls.__module__)
    hints = {} if is_foreign else typing.get_type_hints(cls)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls) if f.init}


def _find_class(name: Any, trust: bool) -> type:
    if not isinstance(name, str):
        raise TypeError(f'an object must have the name of its class as "type", got {name!r}')
    if name in classes():
        return classes()[name]
    module, _, path = name.partition(":")
    if is_of_jrnn(module):
        raise TypeError(f"{name} is not a class of this version of jrnn")
    if not trust:
        raise UnknownClass(name)
    cls: Any = importlib.import_module(module)
    for part in path.split("."):
        cls = getattr(cls, part)
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise TypeError(f"{name} must be a dataclass, got {cls!r}")
    return cls


def _check_fields(cls: type, fields: dict[str, Any]) -> None:
    """Raises TypeError unless the fields exist, and their values have the annotated types."""
    annotations = _annotations(cls)
    for name, value in fields.items():
        if name not in annotations:
            raise TypeError(f"{cls.__name__} has no field {name!r}")
        annotation = annotations[name]
        is_bool = isinstance(value, bool) and annotation is not Any
        if is_bool and bool not in (annotation, *typing.get_args(annotation)):
            raise TypeError(f"{cls.__name__}: {name} must be {annotation}, got {value}")
        try:
            typeguard.check_type(
                value,
                annotation,
                collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
            )
        except typeguard.TypeCheckError as error:
            raise TypeError(f"{cls.__name__}: {name}: {error}") from error
