"""The multiplicative LSTM: each input has recurrent weights of its own."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, place, record
from jrnn.cells.common import product, split
from jrnn.cells.lstm import LSTMCarry


class MultiplicativeLSTMParams(NamedTuple):
    """Weights with the gates side by side in the order i, f, g, o, and m after these in w_ih."""

    w_ih: jax.Array  # [input, 5·hidden]
    w_hh: jax.Array  # [hidden, hidden], of m
    w_mh: jax.Array  # [hidden, 4·hidden]
    b: jax.Array  # [4·hidden]


class MultiplicativeLSTMGates(NamedTuple):
    """Pre-activations, and the factors of m, each `[..., hidden]`; u has m alone."""

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    m: jax.Array


GATES = ("i", "f", "g", "o")


@dataclass(frozen=True)
class MultiplicativeLSTM(Cell):
    r"""The multiplicative LSTM: gates see m, a product of the input and the past, in place of h.

    ::

        m = (W_m x) * (U_m h)                               the past, as this input weights it
        f = sigmoid(W_f x + V_f m + b_f)                    forget
        i = sigmoid(W_i x + V_i m + b_i)                    prepare: what to write ...
        g = tanh(W_g x + V_g m + b_g)                       ... and the candidate for it
        c' = f * c + i * g                                  update
        o = sigmoid(W_o x + V_o m + b_o)                    output
        h' = o * tanh(c'),   y = h'

    The factors of m have no biases. The product with m is in `update`.

    Args:
      hidden_size: number of units, of m as well.
      forget_bias: starting value of b_f; at 1 the cell remembers from the start.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MultiplicativeLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.c.shape
    ((2, 4), (2, 4))

    References:
      Krause et al., 2016, Multiplicative LSTM for sequence modelling.
    """

    hidden_size: int
    forget_bias: float = 1.0
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("MultiplicativeLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("MultiplicativeLSTM", "forget_bias", self.forget_bias)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> MultiplicativeLSTMParams:
        dtype, hidden = checks.float_dtype("MultiplicativeLSTM.init", dtype), self.hidden_size
        checks.positive_int("MultiplicativeLSTM.init", "input_size", input_size)
        key_ih, key_hh, key_mh = jax.random.split(key, 3)
        return MultiplicativeLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 5, dtype),
            w_hh=initializers.recurrent_weights(key_hh, hidden, 1, dtype),
            w_mh=initializers.recurrent_weights(key_mh, hidden, 4, dtype),
            b=initializers.biases(hidden, GATES, self.forget_bias, dtype),
        )

    def init_carry(
        self, params: MultiplicativeLSTMParams, batch_shape: tuple[int, ...]
    ) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(self, params: MultiplicativeLSTMParams, x: jax.Array) -> MultiplicativeLSTMGates:
        joined, hidden = product(self, x, params.w_ih), self.hidden_size
        a = joined[..., : 4 * hidden] + params.b
        return split(a, MultiplicativeLSTMGates, GATES)._replace(m=joined[..., 4 * hidden :])

    def recur(self, params: MultiplicativeLSTMParams, carry: LSTMCarry) -> MultiplicativeLSTMGates:
        return split(carry.h @ params.w_hh, MultiplicativeLSTMGates, ("m",))

    def update(
        self,
        params: MultiplicativeLSTMParams,
        carry: LSTMCarry,
        z: MultiplicativeLSTMGates,
        u: MultiplicativeLSTMGates,
    ) -> tuple[LSTMCarry, jax.Array]:
        v = split((z.m * u.m) @ params.w_mh, MultiplicativeLSTMGates, GATES)
        f, i, o = sigmoid(z.f + v.f), sigmoid(z.i + v.i), sigmoid(z.o + v.o)
        g = place("candidate", jnp.tanh(z.g + v.g))
        c = f * carry.c + i * g
        h = o * jnp.tanh(place("shown", c))
        record(i=i, f=f, g=g, o=o)
        return LSTMCarry(h, c), h
