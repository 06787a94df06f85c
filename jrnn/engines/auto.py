"""The engine that chooses another one."""

import logging
from dataclasses import dataclass
from typing import Any

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.associative import Associative
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.native import Native, partitioned, unavailable
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, step_of

log = logging.getLogger("jrnn")

SMALL_CELL, LARGE_BATCH, MANY_STEPS = 16384, 32, 256
"""Weights of a cell, sequences of a batch, and steps of a linear cell; see `Auto`."""


@dataclass(frozen=True)
class Auto(Engine):
    """Chooses an engine by platform, cell and dtype at trace time; the logger `jrnn` says which.

    `Native` where there is a kernel for it: LSTM, GRU (reset after) or Elman, in float32, on a CPU,
    with jrnn's code in C++ built. `Associative` for a cell with `coefficients`, on a CPU from
    `MANY_STEPS` steps on. Else `Fused`; but `Scan` on a CPU for a cell of less than `SMALL_CELL`
    weights and a batch of `LARGE_BATCH` or more. Where XLA splits the work over a mesh it is
    `Fused` for these too: with `Scan` gradients would be added up over the devices at every step.

    The rule is read off the tables of `jrnn bench` in docs/benchmarks. `Native` is the
    fastest of the three at every shape, forward and with gradients. Without gradients `Fused` and
    `Scan` do the same; with them, times of `Scan` / `Fused` at batch 32 and 64 steps::

        input = hidden     16    32    64    128   256   512   1024
        LSTM               0.66  0.88  0.87  1.04  0.99  1.14  1.19
        GRU                0.89  0.80  1.03  1.08  1.00  1.40

    Times of `Fused` / `Associative` with gradients, on a CPU, at batch 1, 64 inputs, 128 hidden
    units and at batch 32 of the same, by the steps::

        steps              16    64    256   1024  4096
        MinGRU  batch 1    1.09  1.50  0.99  1.37  1.50
                batch 32   0.90  0.72  1.08  1.29  1.17
        LRU     batch 1    1.76  2.20  1.62  2.64  2.97
                batch 32   1.54  1.32  1.44  1.22  1.37

    `Native` has neither second derivatives nor `jax.export`: for those name `engine="fused"`. And
    neither has forward mode: for `jax.jvp` name `engine="scan"`.
    """

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        reason = unavailable(bound, xs)
        chosen = Native() if reason is None else _without_kernels(bound, xs)
        log.info("engine='auto' chose %r%s", chosen, "" if reason is None else f": {reason}")
        return chosen.run(bound, carry, xs, masks, reverse)


def _without_kernels(bound: BoundCell, xs: Inputs) -> Engine:
    steps, batch = jax.tree.leaves(xs)[0].shape[:2]
    on_cpu = jax.default_backend() == "cpu"
    if (steps >= MANY_STEPS or not on_cpu) and bound.is_linear(step_of(xs)):
        return Associative()
    small = on_cpu and bound.size < SMALL_CELL and batch >= LARGE_BATCH and not partitioned()
    return Scan() if small else Fused()
