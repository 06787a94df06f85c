"""The engine that chooses another engine."""

import logging
from dataclasses import dataclass
from typing import Any

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.associative import Associative
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.native import Native, is_partitioned, unavailable_reason
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, step_shapes

log = logging.getLogger("jrnn")

SMALL_CELL, LARGE_BATCH, MANY_STEPS = 16384, 32, 256
"""Thresholds: weights of a cell, sequences of a batch, steps of a linear cell; see `Auto`."""


@dataclass(frozen=True)
class Auto(Engine):
    """Chooses an engine by platform, cell and dtype at trace time; logs it to the logger `jrnn`.

    - `Native` if it has a kernel: LSTM, GRU (reset after) or Elman, in float32, on a CPU, with the
      C++ extension built.
    - Otherwise `Associative` for a cell with `coefficients`; on a CPU from `MANY_STEPS` steps.
    - Otherwise `Fused`, except on a CPU for a cell of less than `SMALL_CELL` weights and a batch of
      at least `LARGE_BATCH`, where it is `Scan`. If XLA partitions the computation over a mesh, it
      is `Fused` for these as well, since with `Scan` XLA sums gradients over the devices at every
      step.

    The rules follow from the tables of `jrnn bench` in docs/benchmarks. `Native` is the fastest of
    the three at every shape, forward and with gradients. Without gradients `Fused` and `Scan` are
    the same; with gradients, times of `Scan` / `Fused` at batch 32 and 64 steps are::

        input = hidden     16    32    64    128   256   512   1024
        LSTM               0.66  0.88  0.87  1.04  0.99  1.14  1.19
        GRU                0.89  0.80  1.03  1.08  1.00  1.40

    Times of `Fused` / `Associative` with gradients, on a CPU, with 64 inputs and 128 hidden units,
    by the number of steps::

        steps              16    64    256   1024  4096
        MinGRU  batch 1    1.09  1.50  0.99  1.37  1.50
                batch 32   0.90  0.72  1.08  1.29  1.17
        LRU     batch 1    1.76  2.20  1.62  2.64  2.97
                batch 32   1.54  1.32  1.44  1.22  1.37

    `Native` supports neither second derivatives nor `jax.export`: use `engine="fused"` for these.
    `Native` and `Fused` have no forward mode: use `engine="scan"` for `jax.jvp`.
    """

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        reason = unavailable_reason(bound, xs)
        chosen = Native() if reason is None else _without_kernels(bound, xs)
        log.info("engine='auto' chose %r%s", chosen, "" if reason is None else f": {reason}")
        return chosen.run(bound, carry, xs, masks, reverse)


def _without_kernels(bound: BoundCell, xs: Inputs) -> Engine:
    steps, batch = jax.tree.leaves(xs)[0].shape[:2]
    on_cpu = jax.default_backend() == "cpu"
    if (steps >= MANY_STEPS or not on_cpu) and bound.is_linear(step_shapes(xs)):
        return Associative()
    use_scan = on_cpu and bound.size < SMALL_CELL and batch >= LARGE_BATCH and not is_partitioned()
    return Scan() if use_scan else Fused()
