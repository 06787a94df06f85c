"""The engine that chooses another one."""

import logging
from dataclasses import dataclass

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.masking import Masks
from jrnn.engines.native import Native, unavailable
from jrnn.engines.precision import Parts

log = logging.getLogger("jrnn")


@dataclass(frozen=True)
class Auto(Engine):
    """Chooses by platform, cell and dtype when it is traced, and says in the log `jrnn` what.

    `Native` where there is a kernel for it: LSTM, GRU (reset after) or Elman, in float32, on a CPU,
    with jrnn's code in C++ built. Else `Fused`. It does not look at sizes: in the table that
    `jrnn bench` made (experiments/speed/results; README shows it) `Native` is faster than `Fused`
    and `Scan` at every shape, and `Fused` than `Scan` by the geometric mean with gradients, alike
    without.

    `Native` has neither second derivatives nor `jax.export`: for those name `engine="fused"`. And
    neither has forward mode: for `jax.jvp` name `engine="scan"`.
    """

    def run(
        self, parts: Parts, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        reason = unavailable(parts, xs)
        chosen = Native() if reason is None else Fused()
        log.info("engine='auto' chose %r%s", chosen, "" if reason is None else f": {reason}")
        return chosen.run(parts, carry, xs, masks, reverse)
