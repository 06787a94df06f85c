"""Where the readout of a cell is computed: in the loop over time, or after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn import structure
from jrnn.cell import Carry, Gates, Inputs
from jrnn.engines.precision import BoundCell
from jrnn.masking import zero_where

LARGE_BATCH = 4
"""Batch size from which readout products stay in the loop on a CPU; see `LoopReadout`."""


class LoopReadout(NamedTuple):
    """The readout of a cell, split into a part in the loop over time and a part after the loop.

    A readout that does not multiply by parameters is computed in the loop. Otherwise the loop
    returns the arrays that it reads, and it is one product over all steps after the loop, forward
    and backward. On a CPU with a batch of `LARGE_BATCH` or more the products of single steps are
    large enough, and the memory traffic of storing these arrays costs more than it saves.

    Attributes:
      emit: `(bound, carry, z) -> out`, in the loop.
      finish: `(bound, outs) -> ys`, after the loop, over leaves `[T, B, ...]`.
      deferred: whether `finish` computes the readout. On padding `out` is then not zero but the
        result of a step on zero inputs, where the readout has finite derivatives.
    """

    emit: Callable[[BoundCell, Carry, Gates], Any]
    finish: Callable[[BoundCell, Any], Any]
    deferred: bool = False

    def pad(self, valid: jax.Array | None, out: Any) -> Any:
        """Sets `out` of a step to zero on padding, if it is the output."""
        return out if self.deferred else zero_where(valid, out)

    def outputs(self, bound: BoundCell, outs: Any, valid: jax.Array | None) -> Any:
        """The outputs of all steps `[T, B, ...]`, zero on padding."""
        return zero_where(valid, self.finish(bound, outs)) if self.deferred else outs


def loop_readout(bound: BoundCell, carry: Carry, x: Inputs) -> LoopReadout:
    """How a loop computes the readout of a cell.

    Args:
      bound: the cell.
      carry: the carry of one step, leaves `[B, ...]`; only shapes and dtypes are used.
      x: the input of one step; only shapes and dtypes are used.
    """
    z = jax.eval_shape(bound.project, x)
    carry = jax.eval_shape(lambda: carry)
    in_loop = LoopReadout(lambda bound, carry, z: bound.readout(carry, z), lambda bound, outs: outs)
    batch = jax.tree.leaves(x)[0].shape[0]
    on_cpu = jax.default_backend() == "cpu"
    if (on_cpu and batch >= LARGE_BATCH) or not bound.readout_has_products(carry, z):
        return in_loop
    reads = structure.leaves_read(bound.cell.readout, bound.accum_params, carry, z)
    flags = ((True,) * len(reads.carry) if bound.return_carries else reads.carry) + reads.z
    shapes, tree = jax.tree.flatten((carry, z))
    if not any(flags):
        return in_loop

    def emit(bound: BoundCell, carry: Carry, z: Gates) -> list[jax.Array]:
        leaves = jax.tree.leaves((carry, z))
        return [leaf for leaf, read in zip(leaves, flags, strict=True) if read]

    def finish(bound: BoundCell, outs: list[jax.Array]) -> Any:
        steps, emitted = outs[0].shape[:1], iter(outs)
        unused = lambda shape: jnp.zeros((*steps, *shape.shape), shape.dtype)
        pairs = zip(shapes, flags, strict=True)
        leaves = [next(emitted) if read else unused(shape) for shape, read in pairs]
        return bound.readout(*jax.tree.unflatten(tree, leaves))

    return LoopReadout(emit, finish, deferred=True)
