"""The reference engine: one `lax.scan`, differentiated by JAX."""

from dataclasses import dataclass
from typing import Any

from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.precision import BoundCell, bind
from jrnn.engines.readout import LoopReadout, loop_readout
from jrnn.masking import Masks, apply_resets, step_shapes, tree_where, zero_where


@dataclass(frozen=True)
class Scan(Engine):
    """One `lax.scan` over time, with derivatives of every order and mode.

    Inputs are projected inside the loop: on a CPU this is faster than one product for all steps,
    which may exceed the cache. A readout that multiplies by parameters is computed for all steps
    after the loop, except on a CPU with a larger batch (see `jrnn.engines.readout`).

    Args:
      unroll: number of steps in the loop body, as in `lax.scan`.

    Raises:
      ValueError: `unroll` is not a positive int.
    """

    unroll: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("Scan", "unroll", self.unroll)

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        readout = loop_readout(bound, carry, step_shapes(xs))
        carry, outs = scan_steps(readout, bound, carry, xs, masks, reverse, self.unroll)
        return carry, readout.outputs(bound, outs, masks.valid)


def scan_steps(
    readout: LoopReadout,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
    reverse: bool,
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """Scans over time; returns the last carry and the outputs of `readout.emit`."""

    def body(carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        # Weights are cast inside the loop, so that their gradients are accumulated in the wide
        # dtype.
        narrow = bind(bound.cell, bound.accum_params, bound.precision, bound.return_carries)
        x, valid, reset = inputs
        prev = apply_resets(reset, masks.initial, carry)
        z = narrow.project(zero_where(valid, x))
        carry = narrow.update(prev, z, narrow.recur(prev))
        out = readout.pad(valid, readout.emit(narrow, carry, z))
        return tree_where(valid, carry, prev), out

    steps = (xs, masks.valid, masks.resets)
    return lax.scan(body, carry, steps, reverse=reverse, unroll=unroll)
