"""The multiplicative LSTM: its recurrent transition depends on the input."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell
from jrnn.cells.common import input_matmul, split_gates
from jrnn.cells.lstm import LSTMCarry
from jrnn.taps import tap


class MultiplicativeLSTMParams(NamedTuple):
    """Weights, with the gates concatenated in the order i, f, g, o; in w_ih, m is last."""

    w_ih: jax.Array  # [input, 5·hidden]
    w_hh: jax.Array  # [hidden, hidden], from h to m
    w_mh: jax.Array  # [hidden, 4·hidden], from m to the gates
    b: jax.Array  # [4·hidden]


class MultiplicativeLSTMGates(NamedTuple):
    """Pre-activations of the gates, and one factor of m, each `[..., hidden]`.

    The result of `recur` has only m; the other fields are None.
    """

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    m: jax.Array


GATES = ("i", "f", "g", "o")


@dataclass(frozen=True)
class MultiplicativeLSTM(Cell):
    r"""The multiplicative LSTM: gates depend on m, a product of input and state, in place of h.

    ::

        m = (W_m x) * (U_m h)                               intermediate state
        f = sigmoid(W_f x + V_f m + b_f)                    forget gate
        i = sigmoid(W_i x + V_i m + b_i)                    input gate
        g = tanh(W_g x + V_g m + b_g)                       candidate
        c' = f * c + i * g                                  cell state
        o = sigmoid(W_o x + V_o m + b_o)                    output gate
        h' = o * tanh(c'),   y = h'

    The factors of m have no biases. `update` computes the matrix product with m, so it is not
    elementwise.

    Args:
      hidden_size: number of units of h, c and m.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.

    Raises:
      ValueError: `hidden_size` is not a positive int, or `forget_bias` is not a finite number.

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
    _: KW_ONLY
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_int("MultiplicativeLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("MultiplicativeLSTM", "forget_bias", self.forget_bias)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> MultiplicativeLSTMParams:
        hidden = self.hidden_size
        key_ih, key_hh, key_mh = jax.random.split(key, 3)
        return MultiplicativeLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 5, dtype),
            w_hh=initializers.recurrent_weights(key_hh, hidden, 1, dtype),
            w_mh=initializers.recurrent_weights(key_mh, hidden, 4, dtype),
            b=initializers.gate_biases(hidden, GATES, self.forget_bias, dtype),
        )

    def init_carry(
        self, params: MultiplicativeLSTMParams, batch_shape: tuple[int, ...]
    ) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(self, params: MultiplicativeLSTMParams, x: jax.Array) -> MultiplicativeLSTMGates:
        a, m = jnp.split(input_matmul(self, x, params.w_ih), [4 * self.hidden_size], axis=-1)
        return split_gates(add(a, params.b), MultiplicativeLSTMGates, GATES)._replace(m=m)

    def recur(self, params: MultiplicativeLSTMParams, carry: LSTMCarry) -> MultiplicativeLSTMGates:
        return split_gates(carry.h @ params.w_hh, MultiplicativeLSTMGates, ("m",))

    def update(
        self,
        params: MultiplicativeLSTMParams,
        carry: LSTMCarry,
        z: MultiplicativeLSTMGates,
        u: MultiplicativeLSTMGates,
    ) -> LSTMCarry:
        v = split_gates((z.m * u.m) @ params.w_mh, MultiplicativeLSTMGates, GATES)
        i, f = tap("i", sigmoid(z.i + v.i)), tap("f", sigmoid(z.f + v.f))
        g = tap("g", jnp.tanh(z.g + v.g), role="candidate")
        c = f * carry.c + i * g
        o = tap("o", sigmoid(z.o + v.o))
        h = o * jnp.tanh(tap(None, c, role="cell_state"))
        return LSTMCarry(h, c)

    def readout(
        self, params: MultiplicativeLSTMParams, carry: LSTMCarry, z: MultiplicativeLSTMGates
    ) -> jax.Array:
        return carry.h
