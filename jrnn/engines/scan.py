"""The reference engine: one `lax.scan`, and JAX's own derivatives of it."""

from dataclasses import dataclass

import jax
from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.masking import Masks, blank, restart, settle
from jrnn.engines.precision import Parts, bind


@dataclass(frozen=True)
class Scan(Engine):
    """Walks time step by step in `lax.scan`; every derivative of any order and mode works.

    The input is projected inside the loop: on a CPU this is faster than one product for all steps
    once that product no longer fits the cache.

    Args:
      unroll: steps laid out one after another in the body of the loop.

    Raises:
      ValueError: `unroll` is not a positive int.
    """

    unroll: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("Scan", "unroll", self.unroll)

    def run(
        self, parts: Parts, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        def body(carry, inputs):
            # Narrow weights are made in the loop: JAX adds up their gradients as wide as they were.
            parts_here = bind(parts.cell, parts.wide_params, parts.precision)
            x, valid, reset = inputs
            before = restart(reset, masks.initial, carry)
            return settle(valid, before, *parts_here.step(before, blank(valid, x)))

        return lax.scan(
            body, carry, (xs, masks.valid, masks.resets), reverse=reverse, unroll=self.unroll
        )
