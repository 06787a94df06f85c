"""Descriptions of the structure of pytrees by classes and fields, and its validation."""

from typing import Any

import jax
import jax.numpy as jnp

from jrnn import checks


def describe_structure(tree: Any) -> str:
    """Returns the structure of a pytree in words, such as `LSTMCarry(h, c)` or `an array`.

    Fields of a NamedTuple that are not a single array are described too.

    >>> describe_structure({"a": 1.0, "b": (2.0, 3.0)})
    'a dict of a, b=a tuple of 2 arrays'
    """
    if tree is None:
        return "None"
    if jax.tree_util.all_leaves([tree]):
        return "an array"
    fields = getattr(type(tree), "_fields", None)
    if fields is not None:
        named = zip(fields, tree, strict=True)
        return f"{type(tree).__name__}({', '.join(_describe_field(*each) for each in named)})"
    if type(tree) is dict and tree:
        return f"a dict of {', '.join(_describe_field(str(k), v) for k, v in tree.items())}"
    count = len(jax.tree.leaves(tree))
    return f"a {type(tree).__name__} of {count} {'array' if count == 1 else 'arrays'}"


def _describe_field(name: str, value: Any) -> str:
    structure = describe_structure(value)
    return name if structure == "an array" else f"{name}={structure}"


def check_structure(subject: str, source: str, tree: Any, like: Any) -> None:
    """Raises TypeError unless a tree of the user has the structure of another one.

    Args:
      subject: the function and its argument, for the error message.
      source: where `like` comes from, for the error message.
      tree: the tree that the user passed.
      like: a tree with the expected structure.
    """
    hint = "" if _has_ints(like) else lengths_hint(tree)
    if jax.tree.structure(tree) == jax.tree.structure(like) and not hint:
        return
    is_leaf = jax.tree_util.all_leaves([tree])
    got = checks.describe(tree) if is_leaf else checks.shorten(describe_structure(tree))
    expected = describe_structure(like)
    if not hint and getattr(type(like), "_fields", None) is not None:
        prefix = "jrnn." if type(like).__module__.startswith("jrnn.") else ""
        hint = f"; pass {prefix}{expected}"
    raise TypeError(
        f"{subject} must be {checks.shorten(expected)}, as in {source}, got {got}"
        f"{checks.shorten(hint)}"
    )


def lengths_hint(carry: Any) -> str:
    """Returns what to do if the user has passed lengths as the carry; otherwise ""."""
    is_array = jax.tree_util.all_leaves([carry])
    is_list = type(carry) in (list, tuple) and jax.tree_util.all_leaves(carry)
    ndims = {jnp.ndim(leaf) for leaf in jax.tree.leaves(carry)} if _has_ints(carry) else set()
    if (is_array and ndims == {1}) or (is_list and ndims == {0}):
        return "; pass the lengths of sequences by name, as in lengths=lengths"
    return ""


def _has_ints(tree: Any) -> bool:
    """Returns whether a pytree has leaves, and all of them are ints."""
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(_is_int(leaf) for leaf in leaves)


def _is_int(leaf: Any) -> bool:
    if isinstance(leaf, int):
        return not isinstance(leaf, bool)
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.integer)
