"""The base class of engines, which run a cell over a batch of sequences."""

import abc
from typing import Any, ClassVar

from jrnn.cell import Carry, Inputs
from jrnn.engines.precision import BoundCell
from jrnn.fields import OptionFields
from jrnn.masking import Masks


class Engine(OptionFields, abc.ABC):
    """An algorithm that runs a cell over a batch of sequences.

    Subclasses are frozen dataclasses, whose fields are the options of the engine.

    Attributes:
      supports_every_cell: whether the engine runs every cell. Otherwise `run` raises an error for
        some cells.
      supports_symbolic_shapes: whether time and batch may be symbolic dimensions of `jax.export`.
    """

    supports_every_cell: ClassVar[bool] = True
    supports_symbolic_shapes: ClassVar[bool] = False

    @abc.abstractmethod
    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        """Runs all steps, on arguments that `jrnn.unroll` has validated and canonicalized.

        Args:
          bound: the cell with its parameters.
          carry: the initial carry, leaves `[B, ...]`.
          xs: inputs, leaves `[T, B, ...]`.
          masks: padding and resets.
          reverse: whether to scan from the last step to the first.

        Returns:
          The final carry in scan order; and the outputs `[T, B, ...]` in the order of time, zero on
          padding. If `bound.return_carries` is True, the outputs are pairs of the output and the
          carry after each step; carries on padding may have any value.
        """
