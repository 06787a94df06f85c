"""What all transforms share: a cell around a cell, with hooks for what a transform changes."""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.cell import (
    Carry,
    Cell,
    Coefficients,
    Core,
    Gates,
    Inputs,
    Params,
    Traits,
    add_noise,
    split_noise,
)


class WrapperNoise(NamedTuple):
    """The noise of a transform, and that of the cell inside."""

    own: Any
    inside: Any


class WrapperGates(NamedTuple):
    """The gates of the cell inside, and what the transform keeps of the input."""

    inside: Gates
    extra: Any


@dataclass(frozen=True)
class Wrapper(Cell):
    """A cell around a cell.

    A transform implements the hooks for what it changes:

    - `sample_own_noise`: noise of its own, or changed parameters;
    - `transform_input`: the input of the cell inside, and what is kept of it for later;
    - `transform_gates`: the gates that the cell inside computes from its input;
    - `transform_output`: the output;
    - `update`, `init_carry`, `coefficients`: these of the cell.

    By default each hook leaves things as they are.

    Attributes:
      cell: the cell inside.
      nested: whether the parameters hold those of the cell inside in their field `cell`, beside
        others; else they are those of the cell inside.
    """

    cell: Cell
    nested = False

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Cell):
            raise TypeError(
                f"{self.owner}: cell must be a cell such as jrnn.LSTM(64), got {self.cell!r}; a "
                "layer such as a stack is transformed by transforming the cells in it"
            )

    @property
    def owner(self) -> str:
        """How messages name the transform."""
        return type(self).__name__

    @property
    def traits(self) -> Traits:
        return self.cell.traits

    @property
    def forwards_update(self) -> bool:
        """Whether `project` and `update` are those of the cell inside, on another input."""
        own = type(self)
        return own.update is Wrapper.update and own.transform_gates is Wrapper.transform_gates

    @property
    def is_stochastic(self) -> bool:
        own = type(self).sample_own_noise is not Wrapper.sample_own_noise
        return own or self.cell.is_stochastic

    def inside(self, params: Params) -> Params:
        """The parameters of the cell inside."""
        return params.cell if self.nested else params

    def around(self, params: Params, inside: Params) -> Params:
        """The parameters with others for the cell inside."""
        return params._replace(cell=inside) if self.nested else inside

    def sample_own_noise(
        self, params: Params, xs: Inputs, noise: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        """Hook: the noise of the transform; arguments and result as of `Cell.sample_noise`.

        `noise` is what the cell inside has drawn.
        """
        return params, None

    def transform_input(self, params: Params, x: Inputs, noise: Any) -> tuple[Inputs, Any]:
        """Hook: the input of the cell inside, and a tree that `update` and the output may use.

        `noise` is what `sample_own_noise` drew, or None.
        """
        return x, None

    def transform_gates(self, params: Params, x: Inputs) -> Gates:
        """Hook: the gates of the cell inside, from its input."""
        return self.cell.project(self.inside(params), x)

    def transform_output(self, params: Params, y: Any, extra: Any) -> Any:
        """Hook: the output, from that of the cell inside."""
        return y

    @final
    def sample_noise(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        own_key, inside_key = jax.random.split(key)
        inside = None
        if self.cell.is_stochastic:
            changed, inside = self.cell.sample_noise(self.inside(params), xs, leading, inside_key)
            params = self.around(params, changed)
        params, own = self.sample_own_noise(params, xs, inside, leading, own_key)
        return params, WrapperNoise(own, inside)

    @final
    def project(self, params: Params, x: Inputs) -> WrapperGates:
        x, extra = self._input(params, x)
        return WrapperGates(self.transform_gates(params, x), extra)

    @final
    def recur(self, params: Params, carry: Carry) -> Gates:
        return self.cell.recur(self.inside(params), carry)

    @final
    def readout(self, params: Params, carry: Carry, z: WrapperGates) -> Any:
        y = self.cell.readout(self.inside(params), carry, z.inside)
        return self.transform_output(params, y, z.extra)

    @final
    def core(self, params: Params, x: Inputs) -> Core:
        if not self.forwards_update:
            return Core(self, params, x, lambda y: y)
        x, extra = self._input(params, x)
        core = self.cell.core(self.inside(params), x)
        return core._replace(finish=lambda y: self.transform_output(params, core.finish(y), extra))

    def _input(self, params: Params, x: Inputs) -> tuple[Inputs, Any]:
        x, noise = split_noise(x)
        own, inside = WrapperNoise(None, None) if noise is None else noise
        x, extra = self.transform_input(params, x, own)
        return add_noise(x, inside), extra

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        return self.cell.update(self.inside(params), carry, z.inside, u)

    def coefficients(self, params: Params, z: WrapperGates) -> Coefficients | None:
        return self.cell.coefficients(self.inside(params), z.inside)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        return self.cell.init(key, input_size, dtype)

    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return self.cell.init_carry(self.inside(params), batch_shape)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.cell.inputs(input_size, batch_shape, dtype)


def features(x: Inputs) -> jax.Array:
    """The array that goes around a cell: of a pytree of inputs its field x."""
    while "x" in getattr(x, "_fields", ()):
        x = x.x
    return x


def refuse_coupled_carry(transform: Wrapper, what: str) -> None:
    """Raises for a cell of whose carry no part may be changed alone."""
    if transform.cell.traits.coupled_carry:
        raise ValueError(
            f"{transform.owner}: in the carry of {transform.cell!r} one part is a function or the "
            f"scale of another, and {what} would change one without the other; choose another "
            "transform for this cell"
        )
