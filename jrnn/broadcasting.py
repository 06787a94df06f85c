"""Explicit broadcasting, so that cells and engines run with `jax_numpy_rank_promotion="raise"`.

These functions insert the operations that `jax.numpy` inserts by default: jaxprs do not change.
"""

import jax
import jax.numpy as jnp
from jax import lax


def expand_like(a: jax.Array, like: jax.Array) -> jax.Array:
    """Prepends axes of size 1 to an array, up to the number of axes of another array.

    A scalar, which broadcasts against any array, is returned unchanged, and so is an array that has
    at least as many axes as the other.
    """
    missing = jnp.ndim(like) - jnp.ndim(a)
    return a if jnp.ndim(a) == 0 or missing <= 0 else lax.expand_dims(a, range(missing))


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a + b, where one operand, such as a bias `[hidden]`, may lack leading axes."""
    return expand_like(a, b) + expand_like(b, a)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a * b, where one operand, such as a peephole `[hidden]`, may lack leading axes."""
    return expand_like(a, b) * expand_like(b, a)
