"""Reverse mode over trees with leaves that are not floating, and a scan over chunks of steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Carry = Any
Chunk = Callable[[Carry, Any, Any], tuple[Carry, tuple[Any, Any]]]


def floats(tree: Any) -> Any:
    """Replaces every leaf without a cotangent (integers, bools, keys) by None."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def zeros(tree: Any) -> Any:
    """The zero cotangent of a tree."""
    return jax.tree.map(jnp.zeros_like, floats(tree))


def add(a: Any, b: Any) -> Any:
    """Adds two cotangents."""
    return jax.tree.map(jnp.add, a, b)


def pullback(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """`jax.vjp` whose cotangents are None for leaves that are not floating.

    Args:
      function: a function of `arguments` to any tree.
      *arguments: any trees.

    Returns:
      The value, and its pullback, a pytree that maps a cotangent of `floats(value)` to the
      cotangents of all arguments.
    """

    def restricted(*floating: Any) -> tuple[Any, Any]:
        args = jax.tree.map(lambda a, b: a if b is None else b, arguments, floating)
        value = function(*args)
        return floats(value), value

    _, pull, value = jax.vjp(restricted, *floats(arguments), has_aux=True)
    return value, pull


def even_chunk(steps: int, target: int) -> int:
    """The largest divisor of T in (target / 2, target], or `target` if there is none."""
    target = max(1, min(target, steps))
    return next((n for n in range(target, target // 2, -1) if steps % n == 0), target)


def scan_chunks(
    function: Chunk, carry: Carry, xs: Any, chunk_xs: Any, chunk: int, *, reverse: bool
) -> tuple[Carry, tuple[Any, Any]]:
    """`lax.scan` over chunks of steps; the last chunk in time may be shorter.

    Args:
      function: `(carry, xs, chunk_x) -> (carry, (ys, chunk_y))` for the steps of one chunk.
      carry: the first carry.
      xs: leaves `[T, ...]`.
      chunk_xs: inputs of each chunk, leaves `[ceil(T / chunk), ...]`.
      chunk: steps of a chunk, at least 1.
      reverse: whether to scan from the last chunk to the first.

    Returns:
      The last carry, and the pair of ys `[T, ...]` and chunk_ys `[ceil(T / chunk), ...]`.
    """
    steps = len(jax.tree.leaves(xs)[0])
    full = steps // chunk
    cut = lambda a: a[: full * chunk].reshape(full, chunk, *a.shape[1:])
    flat = lambda a: a.reshape(full * chunk, *a.shape[2:])

    def head(carry: Carry) -> Any:
        chunks = (jax.tree.map(cut, xs), jax.tree.map(lambda a: a[:full], chunk_xs))
        carry, (ys, chunk_ys) = lax.scan(
            lambda c, x: function(c, *x), carry, chunks, reverse=reverse
        )
        return carry, (jax.tree.map(flat, ys), chunk_ys)

    def tail(carry: Carry) -> Any:
        rest = jax.tree.map(lambda a: a[full * chunk :], xs)
        carry, (ys, chunk_y) = function(carry, rest, jax.tree.map(lambda a: a[full], chunk_xs))
        return carry, (ys, jax.tree.map(lambda a: a[None], chunk_y))

    if steps == full * chunk:
        return head(carry)
    if full == 0:
        return tail(carry)
    first, second = (tail, head) if reverse else (head, tail)
    carry, early = first(carry)
    carry, late = second(carry)
    in_order_of_time = (late, early) if reverse else (early, late)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *in_order_of_time)
