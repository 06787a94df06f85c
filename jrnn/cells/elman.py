"""The Elman network, or simple recurrent network."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell
from jrnn.cells.common import ACTIVATIONS, affine
from jrnn.taps import tap


class ElmanParams(NamedTuple):
    """Weights of the pre-activation W x + U h + b."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]
    b: jax.Array | None  # [hidden], None with bias=False


@dataclass(frozen=True)
class Elman(Cell):
    r"""The simple recurrent network, without gates.

    ::

        h' = activation(W x + U h + b),   y = h'

    With `identity` the cell is initialized as the IRNN: U = identity · I, and W from N(0, 0.001²).
    With `activation="relu"` and `identity=1`, the initial network approximately copies its state.

    Args:
      hidden_size: number of units.
      activation: "tanh", "relu" or "sigmoid"; the IRNN uses "relu".
      identity: if given, U is initialized to this number times the identity matrix. The IRNN uses
        1, or a smaller value such as 0.01 for short dependencies. By default U is orthogonal.
      bias: whether the cell has the bias b.

    Raises:
      ValueError: `hidden_size` is not a positive int, `activation` is unknown, `identity` is not a
        finite number above 0, or `bias` is not a bool.

    >>> import jax, jax.numpy as jnp
    >>> cell = Elman(hidden_size=4, activation="relu")
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Elman, 1990, Finding structure in time.
      Le, Jaitly and Hinton, 2015, A simple way to initialize recurrent networks of rectified linear
        units (identity).
    """

    hidden_size: int
    _: KW_ONLY
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    identity: float | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        checks.positive_int("Elman", "hidden_size", self.hidden_size)
        checks.one_of("Elman", "activation", self.activation, ACTIVATIONS)
        checks.boolean("Elman", "bias", self.bias)
        if self.identity is not None:
            checks.positive_number("Elman", "identity", self.identity)

    def kernel_name(self) -> str:
        return f"elman-{self.activation}"

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> ElmanParams:
        key_ih, key_hh = jax.random.split(key)
        return ElmanParams(
            w_ih=self._init_input(key_ih, input_size, dtype),
            w_hh=self._init_recurrent(key_hh, dtype),
            b=jnp.zeros((self.hidden_size,), dtype) if self.bias else None,
        )

    def _init_input(self, key: jax.Array, input_size: int, dtype: DTypeLike) -> jax.Array:
        if self.identity is None:
            return initializers.input_weights(key, input_size, self.hidden_size, 1, dtype)
        normal = jax.nn.initializers.normal(0.001)
        return initializers.per_gate(normal, key, input_size, self.hidden_size, 1, dtype)

    def _init_recurrent(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        if self.identity is None:
            return initializers.recurrent_weights(key, self.hidden_size, 1, dtype)
        return self.identity * jnp.eye(self.hidden_size, dtype=dtype)

    def init_carry(self, params: ElmanParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: ElmanParams, x: jax.Array) -> jax.Array:
        return affine(self, x, params.w_ih, params.b)

    def recur(self, params: ElmanParams, carry: jax.Array) -> jax.Array:
        return carry @ params.w_hh

    def update(
        self, params: ElmanParams, carry: jax.Array, z: jax.Array, u: jax.Array
    ) -> jax.Array:
        return tap("h", ACTIVATIONS[self.activation](z + u))
