"""Splits the readout of a cell between the loop over time and the computation after the loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn import structure
from jrnn.cell import Carry, Gates, Inputs
from jrnn.engines.precision import BoundCell
from jrnn.masking import zero_where

IN_LOOP_MIN_BATCH = 4
"""The smallest batch for which a CPU computes readout products in the loop; see `SplitReadout`."""


class SplitReadout(NamedTuple):
    """The readout of a cell, split into a part in the loop over time and a part after the loop.

    A readout without matrix products or convolutions with parameters is computed in the loop. Any
    other readout is deferred: the loop returns the arrays that the readout uses, and one matrix
    product after the loop computes the outputs of all steps, forward and backward. On a CPU,
    readouts for batches of `IN_LOOP_MIN_BATCH` or more, or of symbolic size, are not deferred: the
    products of single steps are then efficient, and storing the arrays would take longer.

    Attributes:
      in_loop: `(bound, carry, z) -> out`, the part in the loop, with the new carry. `out` is the
        output of the step or, if the readout is deferred, a list of the arrays that it uses.
      after_loop: `(bound, outs) -> ys`, the part after the loop, on leaves `[T, B, ...]`.
      is_deferred: whether `after_loop` computes the readout. On padding `out` is then the result of
        a step on zero inputs instead of zero, since the derivative of a readout may not be finite
        at zero.
    """

    in_loop: Callable[[BoundCell, Carry, Gates], Any]
    after_loop: Callable[[BoundCell, Any], Any]
    is_deferred: bool = False

    def zero_padding(self, valid: jax.Array | None, out: Any) -> Any:
        """Sets the `out` of a step to zero on padding, unless the readout is deferred."""
        return out if self.is_deferred else zero_where(valid, out)

    def outputs(self, bound: BoundCell, outs: Any, valid: jax.Array | None) -> Any:
        """Returns the outputs of all steps `[T, B, ...]`, zero on padding."""
        return zero_where(valid, self.after_loop(bound, outs)) if self.is_deferred else outs


def split_readout(bound: BoundCell, carry: Carry, x: Inputs) -> SplitReadout:
    """Decides which part of the readout of a cell is computed in the loop.

    Args:
      bound: the cell with its parameters.
      carry: the carry, leaves `[B, ...]`; only shapes and dtypes are used.
      x: the input of one step, leaves `[B, ...]`; only shapes and dtypes are used.
    """
    z = jax.eval_shape(bound.project, x)
    carry = jax.eval_shape(lambda: carry)
    not_deferred = SplitReadout(
        lambda bound, carry, z: bound.readout(carry, z), lambda bound, outs: outs
    )
    batch = jax.tree.leaves(x)[0].shape[0]
    on_cpu = jax.default_backend() == "cpu"
    is_large = structure.is_symbolic(batch) or batch >= IN_LOOP_MIN_BATCH
    if (on_cpu and is_large) or not bound.readout_has_products(carry, z):
        return not_deferred
    used = structure.find_used_leaves(bound.cell.readout, bound.accum_params, carry, z)
    is_used = ((True,) * len(used.carry) if bound.return_carries else used.carry) + used.z
    shapes, tree = jax.tree.flatten((carry, z))
    if not any(is_used):
        return not_deferred

    def in_loop(bound: BoundCell, carry: Carry, z: Gates) -> list[jax.Array]:
        leaves = jax.tree.leaves((carry, z))
        return [leaf for leaf, used in zip(leaves, is_used, strict=True) if used]

    def after_loop(bound: BoundCell, outs: list[jax.Array]) -> Any:
        steps, rest = outs[0].shape[:1], iter(outs)
        placeholder = lambda shape: jnp.zeros((*steps, *shape.shape), shape.dtype)
        pairs = zip(shapes, is_used, strict=True)
        leaves = [next(rest) if used else placeholder(shape) for shape, used in pairs]
        return bound.readout(*jax.tree.unflatten(tree, leaves))

    return SplitReadout(in_loop, after_loop, is_deferred=True)
