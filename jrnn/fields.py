"""The base class of frozen dataclasses of options, such as cells, engines and tasks."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jrnn import signatures
from jrnn.checks import as_python


class OptionFields:
    """A base class of frozen dataclasses.

    Arguments of the constructor that are not fields raise a TypeError, which suggests a field.
    NumPy scalars in the fields are converted to Python numbers and bools before `__post_init__` of
    a subclass runs.

    Attributes:
      argument_hints: for arguments of other libraries that are not fields, what to do instead.
    """

    argument_hints: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # `copy` and `pickle` call `__new__` without arguments, so `__init__` raises for missing
        # ones.
        signatures.check_arguments(
            cls.__name__,
            _signature(cls),
            (None, *args),
            kwargs,
            cls.argument_hints,
            allow_missing=True,
        )
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__post_init__" in vars(cls):
            cls.__post_init__ = _with_converted_fields(cls.__post_init__)

    def __post_init__(self) -> None:
        convert_fields(self)


@functools.lru_cache(maxsize=256)
def _signature(cls: type) -> inspect.Signature:
    return inspect.signature(cls.__init__)


def convert_fields(instance: Any) -> None:
    """Converts the NumPy scalars in the fields of a frozen dataclass, by `as_python`."""
    for name in getattr(type(instance), "__dataclass_fields__", ()):
        value = getattr(instance, name, None)
        converted = as_python(value)
        if converted is not value:
            object.__setattr__(instance, name, converted)


def _with_converted_fields(post_init: Any) -> Any:
    """Returns a method that converts the fields and then calls `post_init`."""

    @functools.wraps(post_init)
    def converted(self: Any, *init_only: Any) -> None:
        convert_fields(self)
        post_init(self, *init_only)

    return converted
