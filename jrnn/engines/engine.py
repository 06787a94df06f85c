"""What an engine is: a frozen dataclass of its options that runs a cell over a sequence."""

import abc
from typing import ClassVar

import jax

from jrnn.cell import Carry, Inputs
from jrnn.engines.masking import Masks
from jrnn.engines.precision import Parts


class Engine(abc.ABC):
    """A way to run a cell over time. Subclasses are frozen dataclasses of their options.

    Attributes:
      general: whether it runs every cell that keeps the contract; else it refuses some, with why.
    """

    general: ClassVar[bool] = True

    @abc.abstractmethod
    def run(
        self, parts: Parts, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, jax.Array]:
        """Runs all steps. `jrnn.unroll` has checked and prepared every argument.

        Args:
          parts: the cell with its parameters.
          carry: the first carry, leaves `[B, ...]`.
          xs: inputs, leaves `[T, B, ...]`.
          masks: padding and resets.
          reverse: run from the last step to the first.

        Returns:
          The last carry in the direction of travel, and outputs `[T, B, ...]` in the order of time.
        """
