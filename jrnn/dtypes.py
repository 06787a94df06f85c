"""Dtypes of trees: the widest one of the floats in them, and casts that leave integers alone."""

from typing import Any

import jax
import jax.numpy as jnp


def widest(*trees: Any) -> jnp.dtype:
    """The dtype that the real floating leaves of some trees promote to."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(trees)]
    return jnp.result_type(*(d for d in dtypes if jnp.issubdtype(d, jnp.floating)))


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """The floating leaves in another dtype, complex ones in its counterpart; others stay.

    The counterpart of float64 is complex128; of every narrower one, complex64.
    """

    def of(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype if real else jnp.promote_types(dtype, jnp.complex64))

    return jax.tree.map(of, tree)
