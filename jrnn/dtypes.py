"""Dtypes of arrays, and functions on the floating leaves of pytrees."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def promote_dtypes(*dtypes: DTypeLike) -> jnp.dtype:
    """Returns the dtype to which all dtypes promote by the standard rules of JAX.

    With `jax_numpy_dtype_promotion="strict"`, `jnp.result_type` and `jnp.promote_types` raise. The
    caller then casts explicitly to the returned dtype, as "strict" requires.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def widest_dtype(*trees: Any) -> jnp.dtype:
    """Returns the dtype to which the real floating leaves of all trees promote.

    Raises:
      ValueError: no leaf is real floating.
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(trees)]
    return promote_dtypes(*(d for d in dtypes if jnp.issubdtype(d, jnp.floating)))


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """Casts real floating leaves to `dtype`, and complex leaves to the complex dtype of `dtype`.

    This is complex128 for float64, and complex64 for all narrower dtypes. Other leaves, such as
    ints and bools, are returned unchanged.
    """

    def cast_leaf(leaf: jax.Array) -> jax.Array:
        if not _is_floating(leaf):
            return leaf
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype if real else promote_dtypes(dtype, jnp.complex64))

    return jax.tree.map(cast_leaf, tree)


def restrict_to_floats(
    function: Callable[..., Any], tree: Any
) -> tuple[list[int], Callable[..., list[jax.Array]]]:
    """Restricts a function to the floating leaves of its argument and of its result.

    The restricted function can be differentiated. Complex leaves are floating.

    Args:
      function: a function of one pytree.
      tree: its argument; leaves that are not floating are constants of the restricted function.

    Returns:
      The indices of the floating leaves of `tree`; and a function that takes each of them as an
      argument and returns the floating leaves of the result.
    """
    leaves, structure = jax.tree.flatten(tree)
    indices = [n for n, leaf in enumerate(leaves) if _is_floating(leaf)]

    def restricted(*floating: jax.Array) -> list[jax.Array]:
        all_leaves = dict(enumerate(leaves)) | dict(zip(indices, floating, strict=True))
        out = function(jax.tree.unflatten(structure, all_leaves.values()))
        return [leaf for leaf in jax.tree.leaves(out) if _is_floating(leaf)]

    return indices, restricted


def _is_floating(leaf: Any) -> bool:
    """Returns whether a leaf is real or complex floating, so that it has derivatives."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def sample_mask(key: jax.Array, rate: Any, shape: tuple[int, ...]) -> jax.Array:
    """Draws bools that are True with probability `rate`; the same with and without x64.

    By default, `jax.random.bernoulli` draws from other random numbers in x64.
    """
    return jax.random.bernoulli(key, jnp.asarray(rate, jnp.float32), shape)


def is_prng_key(leaf: Any) -> bool:
    """Returns whether an array consists of PRNG keys, from `jax.random.key`."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def dtype_kind(leaf: Any) -> str:
    """Returns "float", "complex" or "int" for a leaf of this kind, else the name of its dtype."""
    dtype = getattr(leaf, "dtype", None)
    return _dtype_kind(jnp.result_type(leaf) if dtype is None else dtype)


@functools.lru_cache
def _dtype_kind(dtype: Any) -> str:
    kinds = {"float": jnp.floating, "complex": jnp.complexfloating, "int": jnp.integer}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), str(dtype))
