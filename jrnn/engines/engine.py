"""The base class of engines, which run a cell over a sequence."""

import abc
from typing import Any, ClassVar

from jrnn.cell import Carry, Inputs
from jrnn.engines.precision import BoundCell
from jrnn.masking import Masks


class Engine(abc.ABC):
    """A way to run a cell over time. Subclasses are frozen dataclasses of their options.

    Attributes:
      general: whether it runs every cell; if False, it raises for cells that it does not support.
    """

    general: ClassVar[bool] = True

    @abc.abstractmethod
    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        """Runs all steps, on arguments that `jrnn.unroll` has validated and canonicalized.

        Args:
          bound: the cell with its parameters.
          carry: the first carry, leaves `[B, ...]`.
          xs: inputs, leaves `[T, B, ...]`.
          masks: padding and resets.
          reverse: whether to scan from the last step to the first.

        Returns:
          The last carry in scan order, and outputs `[T, B, ...]` in the order of time.
        """
