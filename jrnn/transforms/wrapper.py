"""What all transforms share: a cell around a cell, which does by itself what it does not change."""

# Plain attributes of a cell are properties here.
# pyright: reportIncompatibleVariableOverride=false

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.cell import Carry, Cell, Gates, Inputs, Params, Recurrence


@dataclass(frozen=True)
class Wrapper(Cell):
    """A cell around a cell. All that a subclass does not write is what the cell inside does.

    Attributes:
      cell: the cell inside.
      nested: whether the parameters hold those of the cell inside in their field `cell`, beside
        others; else they are those of the cell inside.
      plain_gates: whether z is that of the cell inside; else it is a pair of that and something.
    """

    cell: Cell
    nested = False
    plain_gates = True

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Cell):
            raise TypeError(
                f"{self.owner}: cell must be a cell such as jrnn.LSTM(64), got {self.cell!r}"
            )
        if not self.cell.stepwise:
            raise ValueError(
                f"{self.owner}: {type(self.cell).__name__} has no single step to act on; transform "
                "the cells within it"
            )

    @property
    def owner(self) -> str:
        """How messages name the transform."""
        return type(self).__name__

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    @property
    def recurrence(self) -> Recurrence:
        return self.cell.recurrence

    @property
    def pointwise(self) -> bool:
        return self.cell.pointwise

    @property
    def log_space(self) -> bool:
        return self.cell.log_space

    @property
    def takes_below(self) -> bool:
        return self.cell.takes_below

    @property
    def takes_time(self) -> bool:
        return self.cell.takes_time

    @property
    def tied(self) -> bool:
        return self.cell.tied

    @property
    def affine_gates(self) -> bool:
        return self.cell.affine_gates

    @property
    def reverse_only(self) -> bool:
        return self.cell.reverse_only

    @property
    def perturb(self) -> Any:
        return None if self.cell.perturb is None else self.perturb_inside

    @property
    def coefficients(self) -> Any:
        return None if self.cell.coefficients is None else self.coefficients_inside

    def coefficients_inside(self, params: Params, z: Gates) -> tuple[Carry, Carry]:
        """The coefficients of the cell inside, which must be linear."""
        given: Any = self.cell.coefficients
        return given(self.inside(params), z if self.plain_gates else z[0])

    def inside(self, params: Params) -> Params:
        """The parameters of the cell inside."""
        return params.cell if self.nested else params

    def around(self, params: Params, inside: Params) -> Params:
        """The parameters with others for the cell inside."""
        return params._replace(cell=inside) if self.nested else inside

    def perturb_inside(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array | None
    ) -> tuple[Params, Any]:
        """What the cell inside draws: nothing, where it has no noise."""
        if self.cell.perturb is None:
            return params, None
        inside, noise = self.cell.perturb(self.inside(params), xs, leading, key)
        return self.around(params, inside), noise

    def project_inside(self, params: Params, x: Inputs, noise: Any) -> Gates:
        """The gates of the cell inside, which is given noise only if it draws some."""
        x = x if self.cell.perturb is None else (x, noise)
        return self.cell.project(self.inside(params), x)

    def features(self, x: Inputs) -> jax.Array:
        """What goes round the cell: the input without noise; of a pytree of inputs its field x."""
        x = x if self.cell.perturb is None else x[0]
        while "x" in getattr(x, "_fields", ()):
            x = x.x
        return x

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        return self.cell.init(key, input_size, dtype)

    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return self.cell.init_carry(self.inside(params), batch_shape)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.cell.inputs(input_size, batch_shape, dtype)

    def project(self, params: Params, x: Inputs) -> Gates:
        return self.cell.project(self.inside(params), x)

    def recur(self, params: Params, carry: Carry) -> Gates:
        return self.cell.recur(self.inside(params), carry)

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, Any]:
        return self.cell.update(self.inside(params), carry, z, u)


def refuse_tied(transform: Wrapper, what: str) -> None:
    """Refuses a cell of whose carry no part may be changed alone."""
    if transform.cell.tied:
        raise ValueError(
            f"{transform.owner}: in the carry of {transform.cell!r} one part is a function or the "
            f"scale of another; {what} would part them: choose another transform for this cell"
        )


def keys_for(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """So many keys out of one; of None as many Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))
