"""Validation of user arguments, at trace time.

Each function raises unless the value of an argument is valid. `owner` is the class or function that
the user called, and `name` the argument. Messages state the expected and the actual value.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def positive_int(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is a Python int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} must be a positive int, got {value!r}")


def int_between(owner: str, name: str, value: Any, low: int, high: int) -> None:
    """Raises unless the value is a Python int from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must be an int from {low} to {high}, got {value!r}")


def instance(owner: str, name: str, value: Any, cls: type) -> None:
    """Raises unless the value is an instance of a class."""
    if not isinstance(value, cls):
        raise TypeError(f"{owner}: {name} must be a {cls.__name__}, got {value!r}")


def increasing_ints(owner: str, name: str, values: Any) -> None:
    """Raises unless the value is a tuple of positive ints in strictly increasing order."""
    ints = isinstance(values, tuple) and all(type(value) is int for value in values)
    if not ints or not values or any(b <= a for a, b in zip((0, *values), values, strict=False)):
        raise ValueError(
            f"{owner}: {name} must be a tuple of increasing positive ints, such as (1, 2, 4), "
            f"got {values!r}"
        )


def boolean(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")


def divides(owner: str, name: str, value: Any, total_name: str, total: int) -> None:
    """Raises unless the value is a positive int that divides `total`."""
    positive_int(owner, name, value)
    if total % value:
        raise ValueError(
            f"{owner}: {name} must divide {total_name}={total}, got {value}; choose a {total_name} "
            f"that is a multiple of {value}, such as {value * -(-total // value)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def positive_number(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is a positive finite Python number."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{owner}: {name} must be a number above 0, got {value!r}")


def finite_number(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is a finite Python number."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{owner}: {name} must be a finite number, got {value!r}")


def non_negative_number(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is a non-negative finite Python number."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{owner}: {name} must be a number of at least 0, got {value!r}")


def one_of(owner: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless the value is one of `choices`, and suggests the closest one."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"{owner}: {name} must be one of {', '.join(choices)}, got {value!r}"
            + suggestion(value, choices)
        )


def suggestion(word: Any, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'gru'?` for an error message, or "" if no choice is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[matches[0]]!r}?" if matches else ""


def float_dtype(owner: str, dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype; raises unless it is real floating and enabled in JAX."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{owner}: dtype must be floating, such as float32, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TypeError(
            f"{owner}: dtype must be enabled in JAX, got {dtype}; call "
            "jax.config.update('jax_enable_x64', True) first, or use float32"
        )
    return dtype


def last_axis(owner: str, name: str, array: jax.Array, size: int, source: str) -> None:
    """Raises unless the last axis of an array has size `size`; `source` says where that is set."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(
            f"{owner}: {name} must have a last axis of {size} ({source}), got shape {array.shape}"
        )


def t_max(owner: str, value: int, forget_bias: float = 0.0, default: float = 0.0) -> None:
    """Raises unless `t_max` of the chrono initialization is an int of at least 3 steps.

    For less than 3 steps the range of log U[1, t_max - 1] is empty.

    Args:
      owner: the class that has the argument.
      value: the value of `t_max`.
      forget_bias: the value of the argument `forget_bias`, which must be the default, since `t_max`
        determines the forget bias.
      default: the default of `forget_bias`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 3:
        raise ValueError(f"{owner}: t_max must be an int of at least 3 steps, got {value!r}")
    if forget_bias != default:
        raise ValueError(
            f"{owner}: t_max={value} determines the forget bias; remove forget_bias={forget_bias}"
        )


def rate(owner: str, name: str, value: float) -> None:
    """Raises unless the value is a Python number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{owner}: {name} must be in [0, 1), got {value!r}")


def prng_key(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is one PRNG key, from `jax.random.key` or `jax.random.PRNGKey`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not raw and not (typed and shape == ()):
        got = f"{dtype} of shape {shape}" if dtype is not None else repr(value)
        raise TypeError(f"{owner}: {name} must be one key such as jax.random.key(0), got {got}")
