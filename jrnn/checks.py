"""Checks of what a user may get wrong: each raises at trace time and says expected, got, remedy."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def positive_int(owner: str, name: str, value: Any) -> None:
    """Refuses everything but a Python int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} must be a positive int, got {value!r}")


def growing_ints(owner: str, name: str, values: Any) -> None:
    """Refuses everything but a tuple of positive ints, each of them larger than the one before."""
    ints = isinstance(values, tuple) and all(type(value) is int for value in values)
    if not ints or not values or any(b <= a for a, b in zip((0, *values), values, strict=False)):
        raise ValueError(
            f"{owner}: {name} must be a tuple of positive ints that grow, such as (1, 2, 4), got "
            f"{values!r}"
        )


def boolean(owner: str, name: str, value: Any) -> None:
    """Refuses everything but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")


def divides(owner: str, name: str, value: Any, whole_name: str, whole: int) -> None:
    """Refuses everything but a positive int that divides `whole`."""
    positive_int(owner, name, value)
    if whole % value:
        raise ValueError(
            f"{owner}: {name} must divide {whole_name}={whole}, got {value}; choose a {whole_name} "
            f"that is a multiple of {value}, such as {value * -(-whole // value)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def positive_number(owner: str, name: str, value: Any) -> None:
    """Refuses everything but a Python number above 0 and below infinity."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{owner}: {name} must be a number above 0, got {value!r}")


def finite_number(owner: str, name: str, value: Any) -> None:
    """Refuses everything but a Python number that is neither infinite nor NaN."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{owner}: {name} must be a finite number, got {value!r}")


def non_negative_number(owner: str, name: str, value: Any) -> None:
    """Refuses everything but 0 and a Python number above it and below infinity."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{owner}: {name} must be a number of at least 0, got {value!r}")


def one_of(owner: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuses a value outside `choices`, and suggests the nearest of them."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"{owner}: {name} must be one of {', '.join(choices)}, got {value!r}"
            + suggestion(value, choices)
        )


def suggestion(word: Any, choices: Iterable[str]) -> str:
    """The tail of an error message: `; did you mean 'gru'?`, or nothing when no choice is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def float_dtype(owner: str, dtype: DTypeLike) -> jnp.dtype:
    """The dtype, if it is a real floating one that JAX can hold as it is now set up."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{owner}: dtype must be a floating one such as float32, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TypeError(
            f"{owner}: {dtype} is switched off in JAX; call "
            "jax.config.update('jax_enable_x64', True) first, or ask for float32"
        )
    return dtype


def last_axis(owner: str, name: str, array: jax.Array, size: int, source: str) -> None:
    """Refuses an array whose last axis is not `size`, the size that `source` sets."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(
            f"{owner}: {name} must have a last axis of {size} ({source}), got shape {array.shape}"
        )


def t_max(owner: str, value: int, forget_bias: float = 0.0, default: float = 0.0) -> None:
    """Refuses a chrono horizon below 3 steps, where log U[1, t_max - 1] has no range.

    And one beside a `forget_bias` that is not the default, for it sets that itself.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 3:
        raise ValueError(f"{owner}: t_max must be an int of at least 3 steps, got {value!r}")
    if forget_bias != default:
        raise ValueError(
            f"{owner}: t_max={value} sets the forget bias itself; leave out "
            f"forget_bias={forget_bias}"
        )


def rate(owner: str, name: str, value: float) -> None:
    """Refuses a dropping rate that is no number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{owner}: {name} must lie in [0, 1), got {value!r}")


def prng_key(owner: str, name: str, value: Any) -> None:
    """Raises unless the value is one PRNG key: of `jax.random.key`, or an old `PRNGKey`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not raw and not (typed and shape == ()):
        got = f"{dtype} of shape {shape}" if dtype is not None else repr(value)
        raise TypeError(f"{owner}: {name} must be one key such as jax.random.key(0), got {got}")
