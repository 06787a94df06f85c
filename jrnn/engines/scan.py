"""The reference engine: one `lax.scan`, differentiated by JAX."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.precision import BoundCell, bind
from jrnn.engines.readout import SplitReadout, split_readout
from jrnn.masking import Masks, apply_resets, step_shapes, tree_where, zero_where


@dataclass(frozen=True)
class Scan(Engine):
    """One `lax.scan` over time, with derivatives of every order and mode.

    Inputs are projected inside the loop: on a CPU this is faster than one product for all steps,
    whose result may not fit into the cache. A readout with matrix products is computed for all
    steps after the loop, except for batches of 4 or more on a CPU (see `jrnn.engines.readout`).

    Args:
      unroll: the argument `unroll` of `lax.scan`: the number of steps in one iteration of the
        compiled loop. It affects the speed, not the results.

    Raises:
      ValueError: `unroll` is not a positive int.
    """

    supports_symbolic_shapes: ClassVar[bool] = True

    unroll: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("Scan", "unroll", self.unroll)

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        readout = split_readout(bound, carry, step_shapes(xs))
        carry, outs = scan_steps(readout, bound, carry, xs, masks, reverse, self.unroll)
        return carry, readout.outputs(bound, outs, masks.valid)


def scan_steps(
    readout: SplitReadout,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
    reverse: bool,
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """Scans over time.

    Args:
      readout: the readout, from `split_readout`; only its part in the loop is computed.
      bound: as in `Engine.run`.
      carry: as in `Engine.run`.
      xs: as in `Engine.run`.
      masks: as in `Engine.run`.
      reverse: as in `Engine.run`.
      unroll: as in `lax.scan`.

    Returns:
      The final carry, and the results of `readout.in_loop` for all steps; on padding they are zero
      unless the readout is deferred.
    """

    def body(carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        # Parameters are cast inside the loop, so that their gradients are accumulated in the
        # accumulation dtype.
        cell = bind(bound.cell, bound.accum_params, bound.precision, bound.return_carries)
        x, valid, reset = inputs
        prev = apply_resets(reset, masks.reset_carry, carry)
        z = cell.project(zero_where(valid, x))
        carry = cell.update(prev, z, cell.recur(prev))
        out = readout.zero_padding(valid, readout.in_loop(cell, carry, z))
        return tree_where(valid, carry, prev), out

    steps = (xs, masks.valid, masks.resets)
    return lax.scan(body, carry, steps, reverse=reverse, unroll=unroll)
