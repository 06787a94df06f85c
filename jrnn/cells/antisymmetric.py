"""The antisymmetric RNN: Euler's method for a stable ordinary differential equation."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell
from jrnn.cells.common import affine, split_gates
from jrnn.taps import tap


class AntisymmetricParams(NamedTuple):
    """Weights, with the gates concatenated in the order z, n; without z if `gated=False`."""

    w_ih: jax.Array  # [input, G·hidden]
    w_hh: jax.Array  # [hidden, hidden], the transpose of M
    b: jax.Array  # [G·hidden]


class AntisymmetricGates(NamedTuple):
    """Pre-activations from the input, each `[..., hidden]`; z is None if `gated=False`."""

    z: jax.Array | None
    n: jax.Array


@dataclass(frozen=True)
class AntisymmetricRNN(Cell):
    r"""An RNN with an antisymmetric recurrent matrix, for stable gradients over long sequences.

    ::

        u = (M - M^T - gamma I) h
        n = tanh(u + V_n x + b_n)
        z = sigmoid(u + V_z x + b_z)                        with `gated`; otherwise z = 1
        h' = h + epsilon * z * n,   y = h'

    The paper writes W_h for M. Without the gate, and with gamma = 0, this is Euler's method with
    step size epsilon for dh/dt = tanh((M - M^T) h + V_n x + b_n). The eigenvalues of M - M^T are
    imaginary. Euler's method is unstable for imaginary eigenvalues, so the damping term -gamma I
    gives them negative real parts.

    M is initialized from N(0, 1/hidden), V_n and V_z from N(0, 1/input).

    Args:
      hidden_size: number of units.
      epsilon: step size of Euler's method.
      gamma: damping coefficient.
      gated: whether the cell has the gate z; otherwise z = 1.

    Raises:
      ValueError: `hidden_size` is not a positive int, `epsilon` is not a finite number above 0,
        `gamma` is not a finite number of at least 0, or `gated` is not a bool.

    >>> import jax, jax.numpy as jnp
    >>> cell = AntisymmetricRNN(hidden_size=4, gated=True)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape, params.w_hh.shape
    ((2, 4), (4, 4))

    References:
      Chang, Chen, Haber and Chi, 2019, AntisymmetricRNN: A dynamical system view on recurrent
        neural networks.
    """

    hidden_size: int
    _: KW_ONLY
    epsilon: float = 0.1
    gamma: float = 0.01
    gated: bool = False

    def __post_init__(self) -> None:
        checks.positive_int("AntisymmetricRNN", "hidden_size", self.hidden_size)
        checks.positive_number("AntisymmetricRNN", "epsilon", self.epsilon)
        checks.non_negative_number("AntisymmetricRNN", "gamma", self.gamma)
        checks.boolean("AntisymmetricRNN", "gated", self.gated)

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates with input weights, in the order of concatenation."""
        return ("z", "n") if self.gated else ("n",)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> AntisymmetricParams:
        key_ih, key_hh = jax.random.split(key)
        draw = lambda key, rows, gates: initializers.per_gate(
            jax.nn.initializers.normal(rows**-0.5), key, rows, self.hidden_size, gates, dtype
        )
        return AntisymmetricParams(
            w_ih=draw(key_ih, input_size, len(self.gates)),
            w_hh=draw(key_hh, self.hidden_size, 1),
            b=jnp.zeros((len(self.gates) * self.hidden_size,), dtype),
        )

    def init_carry(self, params: AntisymmetricParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: AntisymmetricParams, x: jax.Array) -> AntisymmetricGates:
        return split_gates(affine(self, x, params.w_ih, params.b), AntisymmetricGates, self.gates)

    def recur(self, params: AntisymmetricParams, carry: jax.Array) -> jax.Array:
        return carry @ (params.w_hh - params.w_hh.T) - self.gamma * carry

    def update(
        self, params: AntisymmetricParams, carry: jax.Array, z: AntisymmetricGates, u: jax.Array
    ) -> jax.Array:
        scale = self.epsilon if z.z is None else self.epsilon * tap("z", sigmoid(z.z + u))
        n = tap("n", jnp.tanh(z.n + u), role="candidate")
        return carry + scale * n
