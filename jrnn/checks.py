"""Validation of user arguments, at trace time.

Functions with the argument `owner` raise unless the value of an argument is valid. `owner` is the
class or function that the user called, and `name` the argument. Messages state the
expected and the actual value, and are bounded in length. Functions that return the value accept
NumPy scalars, and return them as Python numbers or bools.
"""

import dataclasses
import difflib
import inspect
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import messages

MAX_SEED = 2**63 - 1
"""Maximum seed: the largest signed 64-bit int."""
MAX_DESCRIPTION = 120
"""Maximum length of the description of a value in a message, in characters."""


def describe(value: Any) -> str:
    """Returns a description of a value for a message, of at most `MAX_DESCRIPTION` characters.

    Arrays are described by shape and dtype, containers of arrays by type and number of leaves,
    dataclasses such as cells by type and the fields that are not defaults, classes and functions by
    name, objects of flax, pandas and torch by type, and all other values by `repr`, on one line.
    """
    return shorten(_describe(value))


def _describe(value: Any) -> str:
    """Returns the description of `describe` before it is shortened."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isfunction(value):
        return f"the function {value.__name__}"
    if dataclasses.is_dataclass(value):
        return _describe_fields(value)
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return repr(value)
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if type(value).__module__.partition(".")[0] in ("flax", "pandas", "torch"):
        return f"{type(value).__module__.partition('.')[0]}'s {type(value).__name__}"
    if not isinstance(value, str) and _has_array(value):
        leaves = jax.tree.leaves(value)
        kind = "arrays" if all(map(_has_array, leaves)) else "leaves"
        return f"{type(value).__name__} of {len(leaves)} {kind}"
    return re.sub(r"\s*\n\s*", " ", repr(value))


def shorten(value: Any) -> str:
    """Returns `str(value)`, shortened in the middle to `MAX_DESCRIPTION` characters."""
    return messages.shorten(str(value), MAX_DESCRIPTION)


def _describe_fields(value: Any) -> str:
    """Returns the type of a dataclass, and the fields that are not defaults."""
    shown = []
    for field in dataclasses.fields(value):
        content = getattr(value, field.name, None)
        is_plain = isinstance(content, bool | int | float | str | tuple | None)
        if not field.repr or (is_plain and content == field.default):
            continue
        if isinstance(content, tuple | list):
            shown.append(f"{field.name}=({', '.join(map(describe, content[:9]))})")
        else:
            shown.append(f"{field.name}={describe(content)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _has_array(value: Any) -> bool:
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(value))


def as_python(value: Any) -> Any:
    """Returns a NumPy scalar as a Python number or bool, and any other value unchanged.

    A NumPy array without axes is converted too, and so are the NumPy scalars in a tuple.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if type(value) is tuple and any(isinstance(entry, np.generic) for entry in value):
        return tuple(map(as_python, value))
    return value


def is_int(value: Any) -> bool:
    """Returns whether the value is a Python int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def positive_int(owner: str, name: str, value: Any) -> int:
    """Returns the value as an int; raises ValueError unless it is an int of at least 1."""
    number = as_python(value)
    if not is_int(number) or number < 1:
        raise ValueError(f"{owner}: {name} must be a positive int, got {describe(value)}")
    return number


def non_negative_int(owner: str, name: str, value: Any) -> int:
    """Returns the value as an int; raises ValueError unless it is an int of at least 0."""
    return int_at_least(owner, name, value, 0)


def int_at_least(owner: str, name: str, value: Any, low: int) -> int:
    """Returns the value as an int; raises ValueError unless it is an int of at least `low`."""
    number = as_python(value)
    if not is_int(number) or number < low:
        raise ValueError(f"{owner}: {name} must be an int of at least {low}, got {describe(value)}")
    return number


def int_between(owner: str, name: str, value: Any, low: int, high: int) -> int:
    """Returns the value as an int; raises ValueError unless it is an int in [`low`, `high`]."""
    number = as_python(value)
    if not is_int(number) or not low <= number <= high:
        raise ValueError(
            f"{owner}: {name} must be an int from {low} to {high}, got {describe(value)}"
        )
    return number


def instance(owner: str, name: str, value: Any, cls: type) -> None:
    """Raises TypeError unless the value is an instance of `cls`."""
    if not isinstance(value, cls):
        raise TypeError(f"{owner}: {name} must be a {cls.__name__}, got {describe(value)}")


def texts(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless the value is a tuple of non-empty strings."""
    if not isinstance(value, tuple) or not all(isinstance(v, str) and v for v in value):
        raise TypeError(
            f"{owner}: {name} must be a tuple of non-empty strings, such as ('body',), got "
            f"{describe(value)}"
        )


def increasing_ints(owner: str, name: str, values: Any) -> None:
    """Raises ValueError unless `values` is a tuple of strictly increasing positive ints."""
    ints = isinstance(values, tuple) and all(type(value) is int for value in values)
    if not ints or not values or any(b <= a for a, b in zip((0, *values), values, strict=False)):
        raise ValueError(
            f"{owner}: {name} must be a tuple of increasing positive ints, such as (1, 2, 4), "
            f"got {describe(values)}"
        )


def boolean(owner: str, name: str, value: Any) -> bool:
    """Returns the value as a bool; raises ValueError unless it is True or False."""
    flag = as_python(value)
    if not isinstance(flag, bool):
        raise ValueError(f"{owner}: {name} must be True or False, got {describe(value)}")
    return flag


def divides(owner: str, name: str, value: Any, total_name: str, total: int) -> None:
    """Raises ValueError unless the value is a positive int that divides `total`.

    Args:
      owner: the class or function that the user called.
      name: the argument.
      value: its value.
      total_name: the argument that must be a multiple of `value`.
      total: the value of this argument.
    """
    value = positive_int(owner, name, value)
    if total % value:
        raise ValueError(
            f"{owner}: {name} must divide {total_name}={total}, got {value}; choose a {total_name} "
            f"that is a multiple of {value}, such as {value * -(-total // value)}"
        )


def first_index(mask: np.ndarray) -> tuple[int, ...]:
    """Returns the index of the first entry of a mask that is True, of which there must be one."""
    return tuple(map(int, np.unravel_index(int(mask.argmax()), mask.shape)))


def is_number(value: Any) -> bool:
    """Returns whether the value is a Python int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def positive_number(owner: str, name: str, value: Any) -> float:
    """Returns the value as a Python number; raises ValueError unless it is positive and finite."""
    number = as_python(value)
    if not is_number(number) or not 0 < number < math.inf:
        raise ValueError(f"{owner}: {name} must be a finite number above 0, got {describe(value)}")
    return number


def finite_number(owner: str, name: str, value: Any) -> float:
    """Returns the value as a Python number; raises ValueError unless it is finite."""
    number = as_python(value)
    if not is_number(number) or not math.isfinite(number):
        raise ValueError(f"{owner}: {name} must be a finite number, got {describe(value)}")
    return number


def non_negative_number(owner: str, name: str, value: Any) -> float:
    """Returns the value as a Python number; raises ValueError unless it is finite and >= 0."""
    number = as_python(value)
    if not is_number(number) or not 0 <= number < math.inf:
        raise ValueError(
            f"{owner}: {name} must be a finite number of at least 0, got {describe(value)}"
        )
    return number


def one_of(owner: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of `choices`; suggests a similar one, if any."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{owner}: {name} must be one of {', '.join(choices)}, got {describe(value)}"
            + suggestion(value, choices)
        )


def suggestion(word: Any, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'gru'?` for an error message, or "" if no choice is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    lower = str(word)[:100].lower()
    matches = difflib.get_close_matches(lower, by_lower, n=1)
    if not matches and len(lower) > 1:  # an abbreviation, such as val
        matches = [choice for choice in by_lower if choice.startswith(lower)]
    return f"; did you mean {by_lower[matches[0]]!r}?" if matches else ""


def writable_file(owner: str, name: str, path: Path) -> Path:
    """Returns the path; raises ValueError unless it can be a file in an existing folder."""
    if path.is_dir():
        raise ValueError(f"{owner}: {name} must be a file, got the folder {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{owner}: {name} must be a file in an existing folder, got {path}; create the folder "
            f"{path.parent}"
        )
    return path


def float_dtype(owner: str, dtype: DTypeLike, name: str = "dtype") -> jnp.dtype:
    """Returns the dtype; raises TypeError unless it is real floating and enabled in JAX.

    `name` is the argument of the user.
    """
    try:
        known = jnp.dtype(str(dtype) if dtype is None else dtype)  # NumPy has float64 for None
    except TypeError as error:
        raise TypeError(
            f"{owner}: {name} must be floating, such as float32, got {describe(dtype)}"
        ) from error
    if not jnp.issubdtype(known, jnp.floating):
        raise TypeError(f"{owner}: {name} must be floating, such as float32, got {known}")
    if jax.dtypes.canonicalize_dtype(known) != known:
        raise TypeError(
            f"{owner}: {name} must be enabled in JAX, got {known}; call "
            "jax.config.update('jax_enable_x64', True) first, or use float32"
        )
    return known


def file_path(owner: str, name: str, value: Any, remedy: str = "") -> Path:
    """Returns the value as a path; raises TypeError unless it is a path as text or a `Path`.

    Args:
      owner: the class or function that the user called.
      name: the argument.
      value: its value.
      remedy: what to do instead, for the end of the message.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"{owner}: {name} must be a path, got {describe(value)}" + (remedy and f"; {remedy}")
        )
    return Path(value)


def last_axis(owner: str, name: str, array: jax.Array, size: int, source: str) -> None:
    """Raises ValueError unless the last axis of an array has size `size`.

    `source` says in the message what determines this size, such as "hidden_size".
    """
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(
            f"{owner}: {name} must have a last axis of {size} ({source}), got shape {array.shape}"
        )


def t_max(owner: str, value: Any, forget_bias: float = 0.0, default: float = 0.0) -> None:
    """Raises ValueError unless `t_max` of the chrono initialization is an int of at least 3 steps.

    For fewer than 3 steps the range of Uniform(1, t_max - 1) is empty.

    Args:
      owner: the class that has the argument.
      value: the value of `t_max`, which must not be None.
      forget_bias: the value of the argument `forget_bias`, which must be the default, since `t_max`
        determines the forget bias. By default the class has no such argument.
      default: the default of `forget_bias`.
    """
    if not is_int(as_python(value)) or value < 3:
        raise ValueError(
            f"{owner}: t_max must be an int of at least 3 steps, got {describe(value)}"
        )
    if forget_bias != default:
        raise ValueError(
            f"{owner}: t_max={value} determines the forget bias; remove forget_bias={forget_bias}"
        )


def rate(owner: str, name: str, value: Any) -> float:
    """Returns the value as a Python number; raises ValueError unless it is in [0, 1)."""
    number = as_python(value)
    if not is_number(number) or not 0 <= number < 1:
        raise ValueError(f"{owner}: {name} must be in [0, 1), got {describe(value)}")
    return number


def prng_key(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless the value is one key of `jax.random.key` or `jax.random.PRNGKey`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not raw and not (typed and shape == ()):
        got = f"{dtype} of shape {shape}" if dtype is not None else describe(value)
        raise TypeError(f"{owner}: {name} must be one key such as jax.random.key(0), got {got}")
