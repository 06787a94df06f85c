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

    `Native` where it can run in float32, else `Fused`. Neither has forward-mode derivatives: for
    `jax.jvp` name `engine="scan"`.
    """

    def run(
        self, parts: Parts, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        reason = unavailable(parts, xs)
        chosen = Native() if reason is None else Fused()
        log.info("engine='auto' chose %r%s", chosen, "" if reason is None else f": {reason}")
        return chosen.run(parts, carry, xs, masks, reverse)
