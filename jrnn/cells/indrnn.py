"""The independently recurrent network: each unit depends only on its own past state."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell
from jrnn.cells.common import ACTIVATIONS, affine
from jrnn.taps import tap


class IndRNNParams(NamedTuple):
    """Weights; w_hh has one entry for each unit."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden]
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class IndRNN(Cell):
    r"""The independently recurrent network: a simple RNN whose recurrent matrix is diagonal.

    ::

        h' = activation(W x + w_hh * h + b),   y = h'

    The paper writes u for w_hh. Over T steps in which the derivative of the activation is 1, the
    gradient of a unit changes by a factor of |w_hh|^T. The paper keeps this factor in
    [epsilon, gamma] by |w_hh| in [epsilon^(1/T), gamma^(1/T)]. By default w_hh is initialized
    uniformly in [0, 1], so that units have different time scales. With `t_max` it is initialized
    uniformly in the range of the paper, with T = t_max, epsilon = 1/2 and gamma = 2.

    Args:
      hidden_size: number of units.
      activation: "relu", "tanh" or "sigmoid".
      t_max: if given, w_hh is initialized uniformly in [2^(-1/t_max), 2^(1/t_max)].

    Raises:
      ValueError: `hidden_size` or `t_max` is not a positive int, or `activation` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> cell = IndRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Li et al., 2018, Independently recurrent neural network (IndRNN): building a longer and deeper
      RNN.
    """

    hidden_size: int
    _: KW_ONLY
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("IndRNN", "hidden_size", self.hidden_size)
        checks.one_of("IndRNN", "activation", self.activation, ACTIVATIONS)
        if self.t_max is not None:
            checks.positive_int("IndRNN", "t_max", self.t_max)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> IndRNNParams:
        key_ih, key_hh = jax.random.split(key)
        return IndRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=initializers.uniform(key_hh, self.hidden_size, *self._init_range, dtype),
            b=jnp.zeros((self.hidden_size,), dtype),
        )

    @property
    def _init_range(self) -> tuple[float, float]:
        """The range `(low, high)` of the initial recurrent weights."""
        return (0, 1) if self.t_max is None else (2 ** (-1 / self.t_max), 2 ** (1 / self.t_max))

    def init_carry(self, params: IndRNNParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: IndRNNParams, x: jax.Array) -> jax.Array:
        return affine(self, x, params.w_ih, params.b)

    def recur(self, params: IndRNNParams, carry: jax.Array) -> None:
        return None

    def update(self, params: IndRNNParams, carry: jax.Array, z: jax.Array, u: None) -> jax.Array:
        return tap("h", ACTIVATIONS[self.activation](z + multiply(params.w_hh, carry)))
