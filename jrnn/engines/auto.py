"""The engine that chooses another one."""

import logging
from dataclasses import dataclass

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.engine import Engine
from jrnn.engines.masking import Masks
from jrnn.engines.precision import Parts
from jrnn.engines.scan import Scan

log = logging.getLogger("jrnn")


@dataclass(frozen=True)
class Auto(Engine):
    """Chooses by platform, cell and size when it is traced, and says in the log `jrnn` what."""

    def run(
        self, parts: Parts, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        chosen = self.choose(parts)
        log.info("engine='auto' chose %r", chosen)
        return chosen.run(parts, carry, xs, masks, reverse)

    def choose(self, parts: Parts) -> Engine:
        """The engine for these parts."""
        return Scan()
