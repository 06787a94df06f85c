"""Which dtype does what: products in that of the inputs, carry and gates in the wider one."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn.cell import Carry, Cell, Gates, Inputs, Params


class Precision(NamedTuple):
    """The two dtypes of a run.

    Attributes:
      compute: that of the inputs: matrix products and outputs are in it.
      wide: the wider one of inputs and parameters: carry and gate arithmetic are in it.
    """

    compute: jnp.dtype
    wide: jnp.dtype


def precision_of(params: Params, xs: Inputs) -> Precision:
    """Reads the two dtypes off the parameters and the inputs."""
    compute = jnp.result_type(*_floating(xs))
    return Precision(compute, jnp.result_type(compute, *_floating(params)))


def cast(tree: Any, dtype: jnp.dtype) -> Any:
    """The floating leaves in another dtype, complex ones in its counterpart; others stay.

    The counterpart of float64 is complex128; of all that is narrower, complex64.
    """

    def of(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype if real else jnp.promote_types(dtype, jnp.complex64))

    return jax.tree.map(of, tree)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("compute_params", "wide_params"),
    meta_fields=("cell", "precision"),
)
@dataclass(frozen=True)
class Parts:
    """The three parts of a cell with parameters bound, each in its dtype; a pytree of these.

    A cell knows nothing of mixed precision: it computes in whatever it is given.
    """

    cell: Cell
    precision: Precision
    compute_params: Params
    wide_params: Params

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.compute_params))

    def project(self, x: Inputs) -> Gates:
        return cast(self.cell.project(self.compute_params, x), self.precision.wide)

    def recur(self, carry: Carry) -> Gates:
        narrow = cast(carry, self.precision.compute)
        return cast(self.cell.recur(self.compute_params, narrow), self.precision.wide)

    def update(self, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, jax.Array]:
        carry, y = self.cell.update(self.wide_params, carry, z, u)
        return cast(carry, self.precision.wide), cast(y, self.precision.compute)

    def coefficients(self, z: Gates) -> tuple[Carry, Carry]:
        """Those of a linear cell, with the structure of its carry."""
        given: Any = self.cell.coefficients
        given = given(self.wide_params, z)
        carry = jax.eval_shape(lambda: self.cell.init_carry(self.wide_params, ()))
        expected, got = jax.tree.structure((carry, carry)), jax.tree.structure(given)
        if expected != got:
            raise TypeError(
                f"{type(self.cell).__name__}.coefficients must return (a, b), each with the "
                f"structure of init_carry, {expected}, got {got}"
            )
        return jax.tree.map(jnp.asarray, given)

    def step(self, carry: Carry, x: Inputs) -> tuple[Carry, jax.Array]:
        return self.update(carry, self.project(x), self.recur(carry))


def bind(cell: Cell, params: Params, precision: Precision) -> Parts:
    """The parts of a cell, with its parameters cast once, outside every loop."""
    return Parts(cell, precision, cast(params, precision.compute), cast(params, precision.wide))


def _floating(tree: Any) -> list[jnp.dtype]:
    return [
        leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
