"""Where the readout of a cell is computed: in the loop over time, or after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn import structure
from jrnn.cell import Carry, Gates, Inputs
from jrnn.engines.precision import BoundCell

LARGE_BATCH = 4
"""Sequences from which products of a readout stay in the loop on a CPU; see `LoopReadout`."""


class LoopReadout(NamedTuple):
    """`readout` divided between the loop over time and what comes after it.

    A readout without products by parameters is computed in the loop. Otherwise the loop returns
    the arrays that it needs, and after the loop it is one product over all steps, forward and
    backward. On a CPU a batch of `LARGE_BATCH` or more makes good products by itself, and the
    memory for the arrays of all steps costs more than larger products save.

    Attributes:
      emit: `(bound, carry, z) -> out`, in the loop.
      finish: `(bound, outs) -> ys`, after the loop, over leaves `[T, B, ...]`.
    """

    emit: Callable[[BoundCell, Carry, Gates], Any]
    finish: Callable[[BoundCell, Any], Any]


def loop_readout(bound: BoundCell, carry: Carry, x: Inputs) -> LoopReadout:
    """How a loop computes the readout of a cell.

    Args:
      bound: the cell.
      carry: of one step, leaves `[B, ...]`; shapes and dtypes alone are used.
      x: the input of one step, likewise.
    """
    z = jax.eval_shape(bound.project, x)
    carry = jax.eval_shape(lambda: carry)
    whole = LoopReadout(lambda bound, carry, z: bound.readout(carry, z), lambda bound, outs: outs)
    batch = jax.tree.leaves(x)[0].shape[0]
    on_cpu = jax.default_backend() == "cpu"
    if (on_cpu and batch >= LARGE_BATCH) or not bound.readout_has_products(carry, z):
        return whole
    reads = structure.leaves_read(bound.cell.readout, bound.accum_params, carry, z)
    flags = ((True,) * len(reads.carry) if bound.return_carries else reads.carry) + reads.z
    shapes, tree = jax.tree.flatten((carry, z))
    if not any(flags):
        return whole

    def emit(bound: BoundCell, carry: Carry, z: Gates) -> list[jax.Array]:
        leaves = jax.tree.leaves((carry, z))
        return [leaf for leaf, read in zip(leaves, flags, strict=True) if read]

    def finish(bound: BoundCell, outs: list[jax.Array]) -> Any:
        steps, given = outs[0].shape[:1], iter(outs)
        absent = lambda shape: jnp.zeros((*steps, *shape.shape), shape.dtype)
        pairs = zip(shapes, flags, strict=True)
        leaves = [next(given) if read else absent(shape) for shape, read in pairs]
        return bound.readout(*jax.tree.unflatten(tree, leaves))

    return LoopReadout(emit, finish)
