"""Mixed precision: matrix products in the dtype of the inputs, carry and gates in a wider one."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn import structure
from jrnn.cell import Carry, Cell, Coefficients, Gates, Inputs, Params
from jrnn.dtypes import cast, widest_dtype


class Precision(NamedTuple):
    """The two dtypes of a run.

    Attributes:
      compute: the dtype of the inputs, for matrix products and outputs.
      accum: the wider dtype of inputs and parameters, for carry and gate arithmetic.
    """

    compute: jnp.dtype
    accum: jnp.dtype


def precision_of(params: Params, xs: Inputs) -> Precision:
    """The two dtypes of a run with these parameters and inputs."""
    return Precision(widest_dtype(xs), widest_dtype(xs, params))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("compute_params", "accum_params"),
    meta_fields=("cell", "precision", "return_carries"),
)
@dataclass(frozen=True)
class BoundCell:
    """A cell with its parameters, whose methods compute in the dtypes of `precision`; a pytree.

    The cell itself computes in the dtypes of its arguments.

    Attributes:
      cell: the cell.
      precision: the dtypes.
      compute_params: the parameters for products, in `precision.compute`.
      accum_params: the parameters for the gate arithmetic, in `precision.accum`.
      return_carries: whether the output is a pair of the cell's output and its carry.
    """

    cell: Cell
    precision: Precision
    compute_params: Params
    accum_params: Params
    return_carries: bool = False

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.compute_params))

    def project(self, x: Inputs) -> Gates:
        """`Cell.project` in the compute dtype; the gates are cast to the accumulation dtype."""
        return cast(self.cell.project(self.compute_params, x), self.precision.accum)

    def recur(self, carry: Carry) -> Gates:
        """`Cell.recur` in the compute dtype; the gates are cast to the accumulation dtype."""
        narrow = cast(carry, self.precision.compute)
        return cast(self.cell.recur(self.compute_params, narrow), self.precision.accum)

    def update(self, carry: Carry, z: Gates, u: Gates) -> Carry:
        """`Cell.update` in the accumulation dtype."""
        return cast(self.cell.update(self.accum_params, carry, z, u), self.precision.accum)

    def readout(self, carry: Carry, z: Gates) -> Any:
        """`Cell.readout`, in the compute dtype if it multiplies by parameters, else in `accum`."""
        if self.readout_has_products(carry, z):
            narrow = cast((carry, z), self.precision.compute)
            y = self.cell.readout(self.compute_params, *narrow)
        else:
            y = self.cell.readout(self.accum_params, carry, z)
        y = cast(y, self.precision.compute)
        return (y, carry) if self.return_carries else y

    def readout_has_products(self, carry: Carry, z: Gates) -> bool:
        """Whether `readout` multiplies by parameters."""
        if type(self.cell).readout is Cell.readout:
            return False
        return structure.multiplies_by_params(self.cell.readout, self.accum_params, carry, z)

    def coefficients(self, z: Gates) -> Coefficients | None:
        """`Cell.coefficients`, validated; None for a cell that is not linear."""
        coefficients = self.cell.coefficients(self.accum_params, z)
        if coefficients is None:
            return None
        carry = jax.eval_shape(lambda: self.cell.init_carry(self.accum_params, ()))
        expected = jax.tree.structure((carry, carry))
        got = jax.tree.structure(tuple(coefficients))
        if not isinstance(coefficients, Coefficients) or expected != got:
            raise TypeError(
                f"{type(self.cell).__name__}.coefficients must return Diagonal(a, b), "
                "LogDiagonal(log_a, log_b) or Dense(a, b), both with the structure of init_carry, "
                f"{expected}, got {type(coefficients).__name__} of {got}"
            )
        return jax.tree.map(jnp.asarray, coefficients)

    def is_linear(self, x: Inputs) -> bool:
        """Whether the cell has coefficients, for inputs of these shapes."""
        if type(self.cell).coefficients is Cell.coefficients:
            return False
        coefficients = lambda x: self.cell.coefficients(self.accum_params, self.project(x))
        return jax.eval_shape(coefficients, x) is not None

    def step(self, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        """Project, recur, update and readout."""
        z = self.project(x)
        carry = self.update(carry, z, self.recur(carry))
        return carry, self.readout(carry, z)


def bind(
    cell: Cell, params: Params, precision: Precision, return_carries: bool = False
) -> BoundCell:
    """Binds a cell to its parameters, which are cast once, outside of all loops."""
    narrow, wide = cast(params, precision.compute), cast(params, precision.accum)
    return BoundCell(cell, precision, narrow, wide, return_carries)
