"""The reference engine: one `lax.scan`, and JAX's own derivatives of it."""

from dataclasses import dataclass
from typing import Any

from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.precision import BoundCell, bind
from jrnn.engines.readout import LoopReadout, loop_readout
from jrnn.masking import Masks, apply_padding, apply_resets, step_of, zero_where


@dataclass(frozen=True)
class Scan(Engine):
    """One `lax.scan` over time; derivatives of every order and mode work.

    The input is projected inside the loop: on a CPU this is faster than one product for all steps
    once that product no longer fits the cache. A readout with products by parameters is one
    product for all steps, after the loop; on a CPU with a larger batch it stays in the loop (see
    `jrnn.engines.readout`).

    Args:
      unroll: steps in the body of the loop, as in `lax.scan`.

    Raises:
      ValueError: `unroll` is not a positive int.
    """

    unroll: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("Scan", "unroll", self.unroll)

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        readout = loop_readout(bound, carry, step_of(xs))
        carry, outs = scan_steps(readout, bound, carry, xs, masks, reverse, self.unroll)
        return carry, zero_where(masks.valid, readout.finish(bound, outs))


def scan_steps(
    readout: LoopReadout,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
    reverse: bool,
    unroll: int = 1,
) -> tuple[Carry, Any]:
    """The loop over time: the last carry, and what the loop's part of the readout returns."""

    def body(carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        # Weights are narrowed in the loop, so that JAX accumulates their gradients in the wide
        # dtype.
        narrow = bind(bound.cell, bound.accum_params, bound.precision, bound.return_carries)
        x, valid, reset = inputs
        prev = apply_resets(reset, masks.initial, carry)
        z = narrow.project(zero_where(valid, x))
        carry = narrow.update(prev, z, narrow.recur(prev))
        return apply_padding(valid, prev, carry, readout.emit(narrow, carry, z))

    steps = (xs, masks.valid, masks.resets)
    return lax.scan(body, carry, steps, reverse=reverse, unroll=unroll)
