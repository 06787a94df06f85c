"""The engine that selects another engine."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.associative import Associative
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.native import Native, is_partitioned, unavailable_reason
from jrnn.engines.precision import BoundCell
from jrnn.engines.scan import Scan
from jrnn.masking import Masks, step_shapes
from jrnn.structure import is_symbolic

log = logging.getLogger("jrnn")

SCAN_MAX_WEIGHTS, SCAN_MIN_BATCH, ASSOCIATIVE_MIN_STEPS = 16384, 32, 256
"""Thresholds of `Auto`: parameters of a cell, batch size, and number of steps."""


@dataclass(frozen=True)
class Auto(Engine):
    """Selects an engine at trace time, and logs it to the logger `jrnn`.

    The first of these rules that applies selects the engine:

    - `Scan` if time or batch is a symbolic dimension of `jax.export`.
    - `Native` if it has a kernel: for LSTM, GRU (reset after) and Elman, in float32, on a CPU, if
      the C++ extension is installed.
    - `Associative` if the cell has `coefficients`; on a CPU only from `ASSOCIATIVE_MIN_STEPS`
      steps.
    - `Scan` on a CPU if the cell has fewer than `SCAN_MAX_WEIGHTS` parameters and the batch has at
      least `SCAN_MIN_BATCH` sequences. This rule does not apply if XLA partitions the computation
      over a mesh: XLA would then sum the gradients of `Scan` over the devices at every step.
    - `Fused`.

    `SCAN_MAX_WEIGHTS` and `SCAN_MIN_BATCH` follow from measurements of LSTM and GRU by `jrnn
    bench`, which are in docs/benchmarks. There, `Native` is the fastest engine at every shape, with
    and without gradients. Without gradients, `Fused` and `Scan` run the same computation. With
    gradients, the ratios of the times of `Scan` and `Fused` at batch 32 and 64 steps are::

        input = hidden     16    32    64    128   256   512   1024
        LSTM               0.66  0.88  0.87  1.04  0.99  1.14  1.19
        GRU                0.89  0.80  1.03  1.08  1.00  1.40

    `ASSOCIATIVE_MIN_STEPS` follows from these ratios of the times of `Fused` and `Associative` with
    gradients, on a CPU, with 64 inputs and 128 hidden units, by number of steps; `jrnn bench` does
    not measure these cells::

        steps              16    64    256   1024  4096
        MinGRU  batch 1    1.09  1.50  0.99  1.37  1.50
                batch 32   0.90  0.72  1.08  1.29  1.17
        LRU     batch 1    1.76  2.20  1.62  2.64  2.97
                batch 32   1.54  1.32  1.44  1.22  1.37

    `Native` supports neither second derivatives nor `jax.export`: use `engine="fused"` for them.
    `Native` and `Fused` do not support forward mode: use `engine="scan"` for `jax.jvp`.
    """

    supports_symbolic_shapes: ClassVar[bool] = True

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        if is_symbolic(*jax.tree.leaves(xs)[0].shape[:2]):
            log.info("engine='auto' chose %r: time or batch is symbolic", Scan())
            return Scan().run(bound, carry, xs, masks, reverse)
        reason = unavailable_reason(bound, xs)
        chosen = Native() if reason is None else _select_without_kernels(bound, xs)
        log.info("engine='auto' chose %r%s", chosen, "" if reason is None else f": {reason}")
        return chosen.run(bound, carry, xs, masks, reverse)


def _select_without_kernels(bound: BoundCell, xs: Inputs) -> Engine:
    steps, batch = jax.tree.leaves(xs)[0].shape[:2]
    on_cpu = jax.default_backend() == "cpu"
    if (steps >= ASSOCIATIVE_MIN_STEPS or not on_cpu) and bound.is_linear(step_shapes(xs)):
        return Associative()
    use_scan = (
        on_cpu
        and bound.size < SCAN_MAX_WEIGHTS
        and batch >= SCAN_MIN_BATCH
        and not is_partitioned()
    )
    return Scan() if use_scan else Fused()
