"""The base class of transforms: a cell that wraps another cell."""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.cell import (
    Carry,
    Cell,
    Coefficients,
    Gates,
    InnerCell,
    Inputs,
    Params,
    add_noise,
    split_noise,
)
from jrnn.layer import Layer, check_layer


class WrapperNoise(NamedTuple):
    """The noise of a transform, and the noise of its inner cell."""

    own: Any
    inner: Any


class WrapperGates(NamedTuple):
    """The gates of the inner cell, and `extra`, the second result of `transform_input`."""

    inner: Gates
    extra: Any


@dataclass(frozen=True)
class Wrapper(Cell):
    """A cell that wraps another cell.

    A transform overrides the hooks for the parts that it changes:

    - `sample_own_noise` draws the noise of the transform, or applies noise to parameters;
    - `transform_input` changes the input of the inner cell;
    - `transform_gates` changes the gates that the inner cell computes from its input;
    - `transform_output` changes the output of the inner cell;
    - `update`, `init_carry` and `coefficients` replace these methods of the inner cell.

    By default no hook changes anything.

    Attributes:
      cell: the inner cell.
      has_own_params: whether the transform has parameters. If so, `params` is a NamedTuple whose
        field `cell` contains the parameters of the inner cell. If not, `params` are those of the
        inner cell.
    """

    cell: Cell
    has_own_params = False

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Cell):
            if not isinstance(self.cell, Layer):
                check_layer(self.owner, "cell", self.cell, Cell)
            raise TypeError(
                f"{self.owner}: cell must be a cell such as jrnn.LSTM(64), got "
                f"{checks.describe(self.cell)}; to transform a layer such as a stack, transform "
                "the cells in it"
            )

    @property
    def owner(self) -> str:
        """The name of the transform in error messages."""
        return type(self).__name__

    @property
    def has_coupled_carry(self) -> bool:
        return self.cell.has_coupled_carry

    @property
    def input_types(self) -> tuple[type, ...]:
        return self.cell.input_types

    @property
    def forwards_update(self) -> bool:
        """Whether the transform changes neither the gates nor `update` of the inner cell.

        If so, `Native` can use the kernel of the inner cell.
        """
        own = type(self)
        return own.update is Wrapper.update and own.transform_gates is Wrapper.transform_gates

    @property
    def is_stochastic(self) -> bool:
        has_own_noise = type(self).sample_own_noise is not Wrapper.sample_own_noise
        return has_own_noise or self.cell.is_stochastic

    def cell_params(self, params: Params) -> Params:
        """Returns the parameters of the inner cell."""
        return params.cell if self.has_own_params else params

    def replace_cell_params(self, params: Params, inner: Params) -> Params:
        """Returns `params` with `inner` as the parameters of the inner cell."""
        return params._replace(cell=inner) if self.has_own_params else inner

    def sample_own_noise(
        self, params: Params, xs: Inputs, noise: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        """Hook that draws the noise of the transform.

        The arguments and the result are those of `Cell.sample_noise`. The additional argument
        `noise` is the noise of the inner cell, or None.
        """
        return params, None

    def transform_input(self, params: Params, x: Inputs, noise: Any) -> tuple[Inputs, Any]:
        """Hook that returns the input of the inner cell, and a pytree `extra` for later hooks.

        `noise` is the noise that `sample_own_noise` has drawn for the step, or None without a key.
        `transform_output` receives `extra` as an argument, and `update` as `z.extra`.
        """
        return x, None

    def transform_gates(self, params: Params, x: Inputs) -> Gates:
        """Hook that returns the gates `z` of the inner cell, given the input of the inner cell."""
        return self.cell.project(self.cell_params(params), x)

    def transform_output(self, params: Params, y: Any, extra: Any) -> Any:
        """Hook that returns the output, given the output `y` of the inner cell.

        `extra` is the second result of `transform_input`.
        """
        return y

    @final
    def sample_noise(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, Any]:
        own_key, inner_key = jax.random.split(key)
        inner = None
        if self.cell.is_stochastic:
            changed, inner = self.cell.sample_noise(
                self.cell_params(params), xs, leading, inner_key
            )
            params = self.replace_cell_params(params, changed)
        params, own = self.sample_own_noise(params, xs, inner, leading, own_key)
        return params, WrapperNoise(own, inner)

    @final
    def project(self, params: Params, x: Inputs) -> WrapperGates:
        x, extra = self._input(params, x)
        return WrapperGates(self.transform_gates(params, x), extra)

    @final
    def recur(self, params: Params, carry: Carry) -> Gates:
        return self.cell.recur(self.cell_params(params), carry)

    @final
    def readout(self, params: Params, carry: Carry, z: WrapperGates) -> Any:
        y = self.cell.readout(self.cell_params(params), carry, z.inner)
        return self.transform_output(params, y, z.extra)

    @final
    def inner_cell(self, params: Params, x: Inputs) -> InnerCell:
        if not self.forwards_update:
            return InnerCell(self, params, x, lambda y: y)
        x, extra = self._input(params, x)
        inner = self.cell.inner_cell(self.cell_params(params), x)
        return inner._replace(
            transform_output=lambda y: self.transform_output(
                params, inner.transform_output(y), extra
            )
        )

    def _input(self, params: Params, x: Inputs) -> tuple[Inputs, Any]:
        """Returns the results of `transform_input`, with the inner cell's noise in the input."""
        x, noise = split_noise(x)
        own, inner = WrapperNoise(None, None) if noise is None else noise
        x, extra = self.transform_input(params, x, own)
        return add_noise(x, inner), extra

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        return self.cell.update(self.cell_params(params), carry, z.inner, u)

    def coefficients(self, params: Params, z: WrapperGates) -> Coefficients | None:
        return self.cell.coefficients(self.cell_params(params), z.inner)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        return self.cell.init(key, input_size, dtype)

    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return self.cell.init_carry(self.cell_params(params), batch_shape)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.cell.inputs(input_size, batch_shape, dtype)


def input_array(x: Inputs) -> jax.Array:
    """Returns the array of input features: x itself, or the field `x` of a NamedTuple."""
    while "x" in getattr(x, "_fields", ()):
        x = x.x
    return x


def check_independent_carry(transform: Wrapper, operation: str) -> None:
    """Raises ValueError if one array in the carry of the inner cell determines or scales another.

    Args:
      transform: a transform that changes the arrays of the carry independently.
      operation: what the transform does, such as "zoneout", for the message.
    """
    if transform.cell.has_coupled_carry:
        raise ValueError(
            f"{transform.owner}: cell must have a carry of independent arrays for {operation}, got "
            f"{transform.cell!r}, whose carry has an array that determines or scales another; use "
            "another cell, or a transform that does not change the carry"
        )
