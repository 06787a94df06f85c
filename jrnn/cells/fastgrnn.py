"""FastGRNN: a gated cell whose gate and candidate have the same weights."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add, multiply
from jrnn.cell import Cell
from jrnn.cells.common import input_matmul
from jrnn.taps import tap


class FastGRNNParams(NamedTuple):
    """Weights of both z and n, and their biases concatenated in the order z, n."""

    w_ih: jax.Array  # [input, hidden]
    w_hh: jax.Array  # [hidden, hidden]
    b: jax.Array  # [2·hidden]
    zeta: jax.Array  # [1]
    nu: jax.Array  # [1]


class FastGRNNGates(NamedTuple):
    """Pre-activations of z and n from the input, each `[..., hidden]`."""

    z: jax.Array
    n: jax.Array


@dataclass(frozen=True)
class FastGRNN(Cell):
    r"""FastGRNN: a gate and a candidate that share their weights, and two learned scalars.

    ::

        a = W x + U h
        z = sigmoid(a + b_z)                                update gate
        n = tanh(a + b_n)                                   candidate
        h' = (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * n + z * h,   y = h'

    The paper writes zeta and nu for sigmoid(zeta) and sigmoid(nu). As in the authors' code, zeta
    is initialized to 1, nu to -4 and both biases to 1. W and U are full matrices, Glorot-uniform
    and orthogonal; the authors' code also supports low-rank matrices, and draws from N(0, 0.1²).

    Args:
      hidden_size: number of units.
      forget_bias: initial value of b_z; 1 keeps most of the state at initialization.
      t_max: if given, b_z has the chrono initialization for dependencies of up to `t_max` steps:
        b_z = log(v), v ~ Uniform(1, t_max - 1). It replaces `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `forget_bias` is not a finite number, `t_max`
        is below 3, or `t_max` is given with a non-default `forget_bias`.

    >>> import jax, jax.numpy as jnp
    >>> cell = FastGRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Kusupati et al., 2018, FastGRNN: A fast, accurate, stable and tiny kilobyte sized gated
        recurrent neural network.
    """

    hidden_size: int
    _: KW_ONLY
    forget_bias: float = 1.0
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("FastGRNN", "hidden_size", self.hidden_size)
        checks.finite_number("FastGRNN", "forget_bias", self.forget_bias)
        if self.t_max is not None:
            checks.t_max("FastGRNN", self.t_max, forget_bias=self.forget_bias, default=1.0)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> FastGRNNParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        b_z = initializers.forget_gate_bias(
            key_b, self.hidden_size, self.t_max, self.forget_bias, dtype
        )
        return FastGRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 1, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 1, dtype),
            b=jnp.concatenate([b_z, jnp.ones_like(b_z)]),
            zeta=jnp.full((1,), 1.0, dtype),
            nu=jnp.full((1,), -4.0, dtype),
        )

    def init_carry(self, params: FastGRNNParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: FastGRNNParams, x: jax.Array) -> FastGRNNGates:
        shared = input_matmul(self, x, params.w_ih)
        b_z, b_n = jnp.split(params.b, 2)
        return FastGRNNGates(z=add(shared, b_z), n=add(shared, b_n))

    def recur(self, params: FastGRNNParams, carry: jax.Array) -> jax.Array:
        return carry @ params.w_hh

    def update(
        self, params: FastGRNNParams, carry: jax.Array, z: FastGRNNGates, u: jax.Array
    ) -> jax.Array:
        update_gate = tap("z", sigmoid(z.z + u))
        n = tap("n", jnp.tanh(z.n + u), role="candidate")
        scale = add(multiply(sigmoid(params.zeta), 1 - update_gate), sigmoid(params.nu))
        return scale * n + update_gate * carry
