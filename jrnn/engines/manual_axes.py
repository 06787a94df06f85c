"""Types of arrays inside `jax.shard_map`, which must agree in loops and custom derivatives."""

from typing import Any

import jax
from jax import lax


def vary_alike(tree: Any, *others: Any) -> Any:
    """Casts the leaves of a tree to vary over the same manual axes of a mesh.

    Inside `jax.shard_map`, the type of an array has the axes over which its values may differ. The
    carry of a loop and cotangents must keep their type, but replicated parameters or a zero carry
    do not vary, unlike sharded inputs. The derivative of the cast sums cotangents over the axes:
    for parameters once, after all steps. Outside of `jax.shard_map` the tree is returned unchanged.

    Args:
      tree: any tree of arrays.
      *others: trees that are not cast, over whose axes the leaves of `tree` must vary as well.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves((tree, others))))

    def cast(leaf: Any) -> Any:
        missing = axes - _varying_axes(leaf)
        return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def _varying_axes(leaf: Any) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying
