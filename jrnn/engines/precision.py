"""Mixed precision: matrix products in one dtype, carry and gate arithmetic in a wider one."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn import checks, structure
from jrnn.cell import Carry, Cell, Coefficients, Gates, Inputs, Params
from jrnn.dtypes import cast, widest_dtype
from jrnn.trees import describe_structure


class Precision(NamedTuple):
    """The two dtypes of a run.

    Attributes:
      compute: the compute dtype, for matrix products and outputs. It is the dtype of the inputs.
      accum: the accumulation dtype, for carry and gate arithmetic. It is the wider of the dtypes of
        inputs and parameters.
    """

    compute: jnp.dtype
    accum: jnp.dtype


def infer_precision(params: Params, xs: Inputs) -> Precision:
    """Returns the dtypes of a run with these parameters and inputs."""
    return Precision(widest_dtype(xs), widest_dtype(xs, params))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("compute_params", "accum_params"),
    meta_fields=("cell", "precision", "return_carries"),
)
@dataclass(frozen=True)
class BoundCell:
    """A cell with its parameters, whose methods compute in the dtypes of `precision`.

    It is a pytree; its leaves are the parameters.

    Attributes:
      cell: the cell.
      precision: the dtypes.
      compute_params: the parameters in the compute dtype, for matrix products.
      accum_params: the parameters in the accumulation dtype, for the gate arithmetic.
      return_carries: whether `readout` returns a pair of the output and the carry.
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
        """Calls `Cell.project` in the compute dtype; casts the gates to the accumulation dtype."""
        return cast(self.cell.project(self.compute_params, x), self.precision.accum)

    def recur(self, carry: Carry) -> Gates:
        """Calls `Cell.recur` in the compute dtype; casts the gates to the accumulation dtype."""
        carry = cast(carry, self.precision.compute)
        return cast(self.cell.recur(self.compute_params, carry), self.precision.accum)

    def update(self, carry: Carry, z: Gates, u: Gates) -> Carry:
        """Calls `Cell.update` in the accumulation dtype."""
        return cast(self.cell.update(self.accum_params, carry, z, u), self.precision.accum)

    def readout(self, carry: Carry, z: Gates) -> Any:
        """Calls `Cell.readout`, and casts the output to the compute dtype.

        The readout is computed in the compute dtype if it has matrix products with parameters,
        otherwise in the accumulation dtype. If `return_carries` is True, the result is the pair of
        the output and `carry`.
        """
        if self.readout_has_products(carry, z):
            operands = cast((carry, z), self.precision.compute)
            y = self.cell.readout(self.compute_params, *operands)
        else:
            y = self.cell.readout(self.accum_params, carry, z)
        y = cast(y, self.precision.compute)
        return (y, carry) if self.return_carries else y

    def readout_has_products(self, carry: Carry, z: Gates) -> bool:
        """Returns whether `readout` has matrix products or convolutions with parameters."""
        if type(self.cell).readout is Cell.readout:
            return False
        return structure.multiplies_by_params(self.cell.readout, self.accum_params, carry, z)

    def coefficients(self, z: Gates) -> Coefficients | None:
        """Returns the validated `Cell.coefficients`; None for a cell that is not linear.

        Raises:
          TypeError: the coefficients have a wrong type, or not the structure of the carry.
        """
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
                f"{checks.shorten(describe_structure(carry))}, got "
                f"{checks.shorten(describe_structure(coefficients))}"
            )
        return jax.tree.map(jnp.asarray, coefficients)

    def is_linear(self, x: Inputs) -> bool:
        """Returns whether the cell has coefficients, for inputs of the shapes and dtypes of `x`."""
        if type(self.cell).coefficients is Cell.coefficients:
            return False
        coefficients = lambda x: self.cell.coefficients(self.accum_params, self.project(x))
        return jax.eval_shape(coefficients, x) is not None

    def step(self, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        """Runs `project`, `recur`, `update` and `readout`."""
        z = self.project(x)
        carry = self.update(carry, z, self.recur(carry))
        return carry, self.readout(carry, z)


def bind(
    cell: Cell, params: Params, precision: Precision, return_carries: bool = False
) -> BoundCell:
    """Binds a cell to its parameters, and casts them to both dtypes of `precision`."""
    compute_params, accum_params = (cast(params, dtype) for dtype in precision)
    return BoundCell(cell, precision, compute_params, accum_params, return_carries)
