"""JANET: the LSTM with only a forget gate."""

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


class JANETParams(NamedTuple):
    """Weights, with the gates concatenated in the order f, g."""

    w_ih: jax.Array  # [input, 2·hidden]
    w_hh: jax.Array  # [hidden, 2·hidden]
    b: jax.Array  # [2·hidden]


class JANETGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`."""

    f: jax.Array
    g: jax.Array


@dataclass(frozen=True)
class JANET(Cell):
    r"""JANET (just another network): an LSTM with only a forget gate.

    ::

        s = W_f x + U_f h + b_f
        f = sigmoid(s)                                      forget gate
        i = 1 - sigmoid(s - beta)                           input gate, above 1 - f if beta > 0
        g = tanh(W_g x + U_g h + b_g)                       candidate
        h' = f * h + i * g,   y = h'

    The paper writes c for h and c~ for g. With beta = 0 the gates are coupled: i = 1 - f.

    Args:
      hidden_size: number of units.
      beta: constant offset between the pre-activations of f and 1 - i.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.
      t_max: if given, b_f has the chrono initialization for dependencies of up to `t_max` steps, as
        in the paper: b_f = log(v), v ~ Uniform(1, t_max - 1). It replaces `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `beta` or `forget_bias` is not a finite
        number, `t_max` is below 3, or `t_max` is given with a non-default `forget_bias`.

    >>> import jax, jax.numpy as jnp
    >>> cell = JANET(hidden_size=4, t_max=100)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Van der Westhuizen and Lasenby, 2018, The unreasonable effectiveness of the forget gate.
      Tallec and Ollivier, 2018, Can recurrent neural networks warp time? (t_max)
    """

    hidden_size: int
    _: KW_ONLY
    beta: float = 1.0
    forget_bias: float = 1.0
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("JANET", "hidden_size", self.hidden_size)
        checks.finite_number("JANET", "forget_bias", self.forget_bias)
        checks.finite_number("JANET", "beta", self.beta)
        if self.t_max is not None:
            checks.t_max("JANET", self.t_max, forget_bias=self.forget_bias, default=1.0)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> JANETParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        b_f = initializers.forget_gate_bias(
            key_b, self.hidden_size, self.t_max, self.forget_bias, dtype
        )
        return JANETParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 2, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 2, dtype),
            b=jnp.concatenate([b_f, jnp.zeros_like(b_f)]),
        )

    def init_carry(self, params: JANETParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: JANETParams, x: jax.Array) -> JANETGates:
        return split_gates(affine(self, x, params.w_ih, params.b), JANETGates, ("f", "g"))

    def recur(self, params: JANETParams, carry: jax.Array) -> JANETGates:
        return split_gates(carry @ params.w_hh, JANETGates, ("f", "g"))

    def update(
        self, params: JANETParams, carry: jax.Array, z: JANETGates, u: JANETGates
    ) -> jax.Array:
        s = z.f + u.f
        f = tap("f", sigmoid(s))
        i = tap("i", sigmoid(self.beta - s))
        g = tap("g", jnp.tanh(z.g + u.g), role="candidate")
        return f * carry + i * g
