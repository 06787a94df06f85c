"""The floating leaves of trees: their widest dtype, casts, and functions of them alone."""

from collections.abc import Callable
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
        if not _is_floating(leaf):
            return leaf
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype if real else jnp.promote_types(dtype, jnp.complex64))

    return jax.tree.map(of, tree)


def of_floats(
    function: Callable[..., Any], tree: Any
) -> tuple[list[int], Callable[..., list[jax.Array]]]:
    """A function of the floating leaves of a tree alone, to the floating leaves of its result.

    Returns:
      The numbers of these leaves in the tree; and the function, of one argument for each of them.
    """
    leaves, structure = jax.tree.flatten(tree)
    numbers = [n for n, leaf in enumerate(leaves) if _is_floating(leaf)]

    def restricted(*floating: jax.Array) -> list[jax.Array]:
        every = dict(enumerate(leaves)) | dict(zip(numbers, floating, strict=True))
        out = function(jax.tree.unflatten(structure, every.values()))
        return [leaf for leaf in jax.tree.leaves(out) if _is_floating(leaf)]

    return numbers, restricted


def _is_floating(leaf: Any) -> bool:
    """Whether a leaf has derivatives: it is real or complex."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
