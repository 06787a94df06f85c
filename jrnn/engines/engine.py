"""What an engine is: a frozen dataclass of its options that runs a cell over a sequence."""

import abc
from typing import Any, ClassVar

from jrnn.cell import Carry, Inputs
from jrnn.engines.precision import BoundCell
from jrnn.masking import Masks


class Engine(abc.ABC):
    """A way to run a cell over time. Subclasses are frozen dataclasses of their options.

    Attributes:
      general: whether it runs every cell; otherwise it raises for some, and says why.
    """

    general: ClassVar[bool] = True

    @abc.abstractmethod
    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        """Runs all steps. `jrnn.unroll` has validated and canonicalized every argument.

        Args:
          bound: the cell with its parameters.
          carry: the first carry, leaves `[B, ...]`.
          xs: inputs, leaves `[T, B, ...]`.
          masks: padding and resets.
          reverse: scan from the last step to the first.

        Returns:
          The last carry in scan order, and outputs `[T, B, ...]` in the order of time.
        """
