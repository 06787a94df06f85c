"""Reverse-mode differentiation of functions whose pytrees have leaves that are not floating."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def float_leaves(tree: Any) -> Any:
    """Replaces leaves that have no cotangents, such as ints, bools and keys, by None."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def zero_cotangents(tree: Any) -> Any:
    """Returns cotangents of zero for the floating leaves of a tree, and None for the others."""
    return jax.tree.map(jnp.zeros_like, float_leaves(tree))


def add_cotangents(a: Any, b: Any) -> Any:
    """Adds two trees of cotangents."""
    return jax.tree.map(jnp.add, a, b)


def vjp(function: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Computes `jax.vjp`, with None as the cotangent of leaves that are not floating.

    Args:
      function: a function of pytrees that returns a pytree.
      *primals: the arguments of the function.

    Returns:
      The value, and the VJP function, which is a pytree. The VJP function maps cotangents of
      `float_leaves(value)` to a tuple of the cotangents of the arguments.
    """

    def restricted(*floating: Any) -> tuple[Any, Any]:
        args = jax.tree.map(lambda a, b: a if b is None else b, primals, floating)
        value = function(*args)
        return float_leaves(value), value

    _, vjp_fn, value = jax.vjp(restricted, *float_leaves(primals), has_aux=True)
    return value, vjp_fn
