"""Reverse mode over trees that hold more than floats, and a scan over chunks of steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Carry = Any
Chunk = Callable[[Carry, Any, Any], tuple[Carry, tuple[Any, Any]]]


def floats(tree: Any) -> Any:
    """The tree with None for every leaf that has no cotangent: integers, bools, keys."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def zeros(tree: Any) -> Any:
    """The cotangent zero of a tree."""
    return jax.tree.map(jnp.zeros_like, floats(tree))


def add(a: Any, b: Any) -> Any:
    """The sum of two cotangents."""
    return jax.tree.map(jnp.add, a, b)


def pullback(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """`jax.vjp`, where cotangents have None for every leaf that is no float, in and out.

    Args:
      function: of the arguments, to any tree.
      *arguments: any trees.

    Returns:
      The value, and a pytree that is the function from a cotangent `floats(value)` to those of all
      arguments.
    """

    def of_floats(*floating: Any) -> tuple[Any, Any]:
        given = jax.tree.map(lambda a, b: a if b is None else b, arguments, floating)
        value = function(*given)
        return floats(value), value

    _, pull, value = jax.vjp(of_floats, *floats(arguments), has_aux=True)
    return value, pull


def even_chunk(steps: int, wanted: int) -> int:
    """The largest divisor of T from `wanted` down to half of it; `wanted` where there is none."""
    wanted = max(1, min(wanted, steps))
    return next((n for n in range(wanted, wanted // 2, -1) if steps % n == 0), wanted)


def scan_chunks(
    function: Chunk, carry: Carry, xs: Any, marks: Any, chunk: int, *, reverse: bool
) -> tuple[Carry, tuple[Any, Any]]:
    """`lax.scan` over chunks of steps; the last chunk in time is shorter where it must be.

    Args:
      function: `(carry, xs of a chunk, mark of a chunk) -> (carry, (ys of a chunk, its mark))`.
      carry: the first carry.
      xs: leaves `[T, ...]`.
      marks: leaves `[ceil(T / chunk), ...]`.
      chunk: steps of a chunk, at least 1.
      reverse: go from the last chunk to the first.

    Returns:
      The last carry, and ys `[T, ...]` and marks `[ceil(T / chunk), ...]` that the chunks gave.
    """
    steps = len(jax.tree.leaves(xs)[0])
    full = steps // chunk
    cut = lambda a: a[: full * chunk].reshape(full, chunk, *a.shape[1:])
    flat = lambda a: a.reshape(full * chunk, *a.shape[2:])

    def head(carry: Carry) -> Any:
        chunks = (jax.tree.map(cut, xs), jax.tree.map(lambda a: a[:full], marks))
        carry, (ys, given) = lax.scan(lambda c, x: function(c, *x), carry, chunks, reverse=reverse)
        return carry, (jax.tree.map(flat, ys), given)

    def tail(carry: Carry) -> Any:
        rest = jax.tree.map(lambda a: a[full * chunk :], xs)
        carry, (ys, mark) = function(carry, rest, jax.tree.map(lambda a: a[full], marks))
        return carry, (ys, jax.tree.map(lambda a: a[None], mark))

    if steps == full * chunk:
        return head(carry)
    if full == 0:
        return tail(carry)
    first, second = (tail, head) if reverse else (head, tail)
    carry, early = first(carry)
    carry, late = second(carry)
    in_time = (late, early) if reverse else (early, late)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *in_time)
