"""A scan over chunks of steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Carry = Any
ChunkFunction = Callable[[Carry, Any, Any], tuple[Carry, tuple[Any, Any]]]


def choose_chunk_size(steps: int, target: int) -> int:
    """Returns the largest divisor of `steps` in (target / 2, target], or `target` if none exists.

    `target` is first limited to the range from 1 to `steps`.
    """
    target = max(1, min(target, steps))
    return next((n for n in range(target, target // 2, -1) if steps % n == 0), target)


def scan_chunks(
    function: ChunkFunction, carry: Carry, xs: Any, chunk_xs: Any, chunk: int, *, reverse: bool
) -> tuple[Carry, tuple[Any, Any]]:
    """Runs `lax.scan` over chunks of steps; the chunk with the last time steps may be shorter.

    Args:
      function: `(carry, xs, chunk_x) -> (carry, (ys, chunk_y))`, where xs and ys have one entry for
        each step of the chunk, and chunk_x and chunk_y belong to the chunk as a whole.
      carry: the initial carry.
      xs: inputs of each step, leaves `[T, ...]`; T is at least 1.
      chunk_xs: inputs of each chunk, leaves `[ceil(T / chunk), ...]`.
      chunk: number of steps of a chunk, at least 1.
      reverse: whether to scan from the last chunk to the first; `function` receives the steps of a
        chunk in the order of time in both cases.

    Returns:
      The final carry, and the pair of ys, leaves `[T, ...]`, and chunk_ys, leaves
      `[ceil(T / chunk), ...]`.
    """
    steps = len(jax.tree.leaves(xs)[0])
    full = steps // chunk
    split = lambda a: a[: full * chunk].reshape(full, chunk, *a.shape[1:])
    merge = lambda a: a.reshape(full * chunk, *a.shape[2:])

    def run_full_chunks(carry: Carry) -> Any:
        chunks = (jax.tree.map(split, xs), jax.tree.map(lambda a: a[:full], chunk_xs))
        carry, (ys, chunk_ys) = lax.scan(
            lambda c, x: function(c, *x), carry, chunks, reverse=reverse
        )
        return carry, (jax.tree.map(merge, ys), chunk_ys)

    def run_rest(carry: Carry) -> Any:
        rest = jax.tree.map(lambda a: a[full * chunk :], xs)
        carry, (ys, chunk_y) = function(carry, rest, jax.tree.map(lambda a: a[full], chunk_xs))
        return carry, (ys, jax.tree.map(lambda a: a[None], chunk_y))

    if steps == full * chunk:
        return run_full_chunks(carry)
    if full == 0:
        return run_rest(carry)
    order = (run_rest, run_full_chunks) if reverse else (run_full_chunks, run_rest)
    carry, first = order[0](carry)
    carry, second = order[1](carry)
    in_order_of_time = (second, first) if reverse else (first, second)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *in_order_of_time)
