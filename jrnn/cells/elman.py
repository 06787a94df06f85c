"""The simple recurrent network."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, record
from jrnn.cells.common import ACTIVATIONS, affine


class ElmanParams(NamedTuple):
    """Weights of the one candidate."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class Elman(Cell):
    r"""The simple recurrent network, without any gate.

    ::

        h' = activation(W x + U h + b),   y = h'

    Args:
      hidden_size: number of units.
      activation: "tanh", "relu" or "sigmoid".

    Raises:
      ValueError: `hidden_size` is not a positive int, or `activation` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> cell = Elman(hidden_size=4, activation="relu")
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Elman, 1990, Finding structure in time.
    """

    hidden_size: int
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"

    def __post_init__(self) -> None:
        checks.positive_int("Elman", "hidden_size", self.hidden_size)
        checks.one_of("Elman", "activation", self.activation, ACTIVATIONS)

    @property
    def kernel(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"elman-{self.activation}"

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> ElmanParams:
        dtype = checks.float_dtype("Elman.init", dtype)
        checks.positive_int("Elman.init", "input_size", input_size)
        key_ih, key_hh = jax.random.split(key)
        return ElmanParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype),
            b=jnp.zeros((self.hidden_size,), dtype),
        )

    def init_carry(self, params: ElmanParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: ElmanParams, x: jax.Array) -> jax.Array:
        return affine(self, x, params.w_ih, params.b)

    def recur(self, params: ElmanParams, carry: jax.Array) -> jax.Array:
        return carry @ params.w_hh

    def update(
        self, params: ElmanParams, carry: jax.Array, z: jax.Array, u: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        h = ACTIVATIONS[self.activation](z + u)
        record(h=h)
        return h, h
