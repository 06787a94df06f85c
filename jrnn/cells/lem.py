"""Long expressive memory: two states, with learned step sizes for each unit."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell
from jrnn.cells.common import affine, split_gates
from jrnn.taps import tap


class LEMCarry(NamedTuple):
    """The output state `y [..., hidden]` and the memory `z [..., hidden]`."""

    y: jax.Array
    z: jax.Array


class LEMParams(NamedTuple):
    """Weights, with the gates concatenated in the order dt, dt_bar, z, y."""

    w_ih: jax.Array  # [input, 4·hidden]
    w_hh: jax.Array  # [hidden, 4·hidden]; dt, dt_bar and z read y, and y reads the new z
    b: jax.Array  # [4·hidden]


class LEMGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`; y is None in the result of `recur`."""

    dt: jax.Array
    dt_bar: jax.Array
    z: jax.Array
    y: Any  # array or None


@dataclass(frozen=True)
class LEM(Cell):
    r"""Long expressive memory: a system with two learned time scales.

    ::

        dt_n = dt * sigmoid(W_1 y + V_1 x + b_1)            step sizes of z
        dt_bar = dt * sigmoid(W_2 y + V_2 x + b_2)          step sizes of y
        z' = (1 - dt_n) * z + dt_n * tanh(W_z y + V_z x + b_z)        memory
        y' = (1 - dt_bar) * y + dt_bar * tanh(W_y z' + V_y x + b_y)   state; the output is y'

    dt is an argument of the cell, and the gates "dt" and "dt_bar" of the parameters compute dt_n
    and dt_bar. The symbols are those of the paper, except that the paper writes u for the input x.
    `update` computes the matrix product with the new memory z', so it is not elementwise. Some
    packages use the old z instead; the paper and its authors' code use the new one.

    Args:
      hidden_size: number of units of each state.
      dt: largest step size. With 1, a new state is a weighted mean of the old state and the
        candidate.

    Raises:
      ValueError: `hidden_size` is not a positive int, or `dt` is not a finite number above 0.

    >>> import jax, jax.numpy as jnp
    >>> cell = LEM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.z.shape
    ((2, 4), (2, 4))

    References:
      Rusch, Mishra, Erichson and Mahoney, 2022, Long expressive memory for sequence modeling.
    """

    hidden_size: int
    _: KW_ONLY
    dt: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_int("LEM", "hidden_size", self.hidden_size)
        checks.positive_number("LEM", "dt", self.dt)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LEMParams:
        key_ih, key_hh = jax.random.split(key)
        return LEMParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 4, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 4, dtype),
            b=jnp.zeros((4 * self.hidden_size,), dtype),
        )

    def init_carry(self, params: LEMParams, batch_shape: tuple[int, ...]) -> LEMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LEMCarry(y=zeros, z=zeros)

    def project(self, params: LEMParams, x: jax.Array) -> LEMGates:
        return split_gates(affine(self, x, params.w_ih, params.b), LEMGates, LEMGates._fields)

    def recur(self, params: LEMParams, carry: LEMCarry) -> LEMGates:
        return split_gates(
            carry.y @ params.w_hh[:, : 3 * self.hidden_size], LEMGates, LEMGates._fields[:3]
        )

    def update(self, params: LEMParams, carry: LEMCarry, z: LEMGates, u: LEMGates) -> LEMCarry:
        dt = tap("dt", self.dt * sigmoid(z.dt + u.dt))
        dt_bar = tap("dt_bar", self.dt * sigmoid(z.dt_bar + u.dt_bar))
        n = tap("n", jnp.tanh(z.z + u.z), role="candidate")
        memory = (1 - dt) * carry.z + dt * n
        candidate = jnp.tanh(z.y + memory @ params.w_hh[:, 3 * self.hidden_size :])
        y = (1 - dt_bar) * carry.y + dt_bar * candidate
        return LEMCarry(y, memory)

    def readout(self, params: LEMParams, carry: LEMCarry, z: LEMGates) -> jax.Array:
        return carry.y
