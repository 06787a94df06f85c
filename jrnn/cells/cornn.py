"""The coupled oscillatory RNN: oscillators driven by the input and by each other."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell
from jrnn.cells.common import affine
from jrnn.taps import tap


class CoRNNCarry(NamedTuple):
    """Positions `y [..., hidden]` and velocities `z [..., hidden]` of the oscillators."""

    y: jax.Array
    z: jax.Array


class CoRNNParams(NamedTuple):
    """Weights of the force n."""

    w_ih: jax.Array  # [input, hidden], V of the equations
    w_hh: jax.Array  # [hidden, hidden], W, multiplies the positions
    w_zh: jax.Array  # [hidden, hidden], Wz, multiplies the velocities
    b: jax.Array  # [hidden]


@dataclass(frozen=True)
class CoRNN(Cell):
    r"""The coRNN: a network of coupled, damped oscillators, driven by the input.

    ::

        n = tanh(W y + Wz z + V x + b)                      force
        z' = z + dt * (n - gamma * y - epsilon * z)         velocity
        y' = y + dt * z'                                    position; the output is y'

    These equations discretize, with step size dt, the second-order system

        d²y/dt² = tanh(W y + Wz dy/dt + V x + b) - gamma y - epsilon dy/dt

    The symbols are those of the paper, except that the paper writes u for the input x, and a
    calligraphic W for Wz. The paper allows the old or the new velocity in the damping term; this
    cell uses the old velocity z, as the authors' code does.

    The defaults of `dt`, `gamma` and `epsilon` are those of the authors' code for sequential MNIST.
    Tune these options for each task, since they determine the time scales that the cell can
    represent.

    Args:
      hidden_size: number of oscillators.
      dt: step size.
      gamma: stiffness of each oscillator, the square of its angular frequency.
      epsilon: damping coefficient of each oscillator.

    Raises:
      ValueError: `hidden_size` is not a positive int, `dt` is not a finite number above 0, or
        `gamma` or `epsilon` is not a finite number of at least 0.

    >>> import jax, jax.numpy as jnp
    >>> cell = CoRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.z.shape
    ((2, 4), (2, 4))

    References:
      Rusch and Mishra, 2021, Coupled oscillatory recurrent neural network (coRNN): an accurate and
        (gradient) stable architecture for learning long time dependencies.
    """

    hidden_size: int
    _: KW_ONLY
    dt: float = 0.042
    gamma: float = 2.7
    epsilon: float = 4.7

    def __post_init__(self) -> None:
        checks.positive_int("CoRNN", "hidden_size", self.hidden_size)
        checks.positive_number("CoRNN", "dt", self.dt)
        checks.non_negative_number("CoRNN", "gamma", self.gamma)
        checks.non_negative_number("CoRNN", "epsilon", self.epsilon)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> CoRNNParams:
        key_ih, key_hh, key_zh = jax.random.split(key, 3)
        return CoRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype),
            w_zh=initializers.recurrent_weights(key_zh, self.hidden_size, 1, dtype),
            b=jnp.zeros((self.hidden_size,), dtype),
        )

    def init_carry(self, params: CoRNNParams, batch_shape: tuple[int, ...]) -> CoRNNCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return CoRNNCarry(y=zeros, z=zeros)

    def project(self, params: CoRNNParams, x: jax.Array) -> jax.Array:
        return affine(self, x, params.w_ih, params.b)

    def recur(self, params: CoRNNParams, carry: CoRNNCarry) -> jax.Array:
        return carry.y @ params.w_hh + carry.z @ params.w_zh

    def update(
        self, params: CoRNNParams, carry: CoRNNCarry, z: jax.Array, u: jax.Array
    ) -> CoRNNCarry:
        n = tap("n", jnp.tanh(z + u), role="candidate")
        velocity = carry.z + self.dt * (n - self.gamma * carry.y - self.epsilon * carry.z)
        return CoRNNCarry(y=carry.y + self.dt * velocity, z=velocity)

    def readout(self, params: CoRNNParams, carry: CoRNNCarry, z: jax.Array) -> jax.Array:
        return carry.y
