"""The depth-gated LSTM: a gate connects the cell states of adjacent layers."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell, WithCellState
from jrnn.cells.common import affine, split_gates
from jrnn.cells.lstm import LSTMCarry
from jrnn.taps import tap


class DepthGatedLSTMParams(NamedTuple):
    """Weights, with the gates concatenated in the order i, f, g, o, d; w_hh has no weights of d."""

    w_ih: jax.Array  # [input, 5·hidden]
    w_hh: jax.Array  # [hidden, 4·hidden]
    b: jax.Array  # [5·hidden]
    p_i: jax.Array  # [hidden]
    p_f: jax.Array  # [hidden]
    p_o: jax.Array  # [hidden]
    p_d: jax.Array  # [hidden]
    p_below: jax.Array  # [hidden]


class DepthGatedLSTMGates(NamedTuple):
    """Pre-activations, and the cell state of the layer below, each `[..., hidden]`.

    `d` and `below` are None in the result of `recur`, and if there is no layer below.
    """

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    d: Any  # array or None
    below: Any  # array or None


GATES = ("i", "f", "g", "o")


@dataclass(frozen=True)
class DepthGatedLSTM(Cell):
    r"""The depth-gated LSTM: a gate adds the cell state of the layer below to the cell state.

    x is the output of the layer below and c_below its cell state, at the same step::

        f = sigmoid(W_f x + U_f h + b_f + p_f * c)          forget gate
        i = sigmoid(W_i x + U_i h + b_i + p_i * c)          input gate
        g = tanh(W_g x + U_g h + b_g)                       candidate
        d = sigmoid(W_d x + b_d + p_d * c + p_below * c_below)     depth gate
        c' = d * c_below + f * c + i * g                    cell state
        o = sigmoid(W_o x + U_o h + b_o + p_o * c')         output gate
        h' = o * tanh(c'),   y = h'

    The input is `WithCellState(x, c_below)`, or an array x if there is no layer below. With an
    array, the cell is the LSTM with peepholes, and the weights of d have no effect. The layer below
    must have the same number of units. Peephole weights are vectors, as in Gers and Schmidhuber.
    The first author's code has peephole matrices for i and o, and i = 1 - f.

    Args:
      hidden_size: number of units.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.

    Raises:
      ValueError: `hidden_size` is not a positive int, or `forget_bias` is not a finite number.
        `project` raises ValueError if the last axis of c_below does not have size `hidden_size`.

    >>> import jax, jax.numpy as jnp
    >>> cell = DepthGatedLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> below = WithCellState(x=jnp.ones((2, 3)), c=jnp.ones((2, 4)))
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), below)
    >>> y.shape, carry.c.shape
    ((2, 4), (2, 4))

    References:
      Yao et al., 2015, Depth-gated LSTM.
      Gers and Schmidhuber, 2000, Recurrent nets that time and count.
    """

    hidden_size: int
    _: KW_ONLY
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_int("DepthGatedLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("DepthGatedLSTM", "forget_bias", self.forget_bias)

    @property
    def input_types(self) -> tuple[type, ...]:
        return (WithCellState,)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> DepthGatedLSTMParams:
        hidden = self.hidden_size
        key_ih, key_hh = jax.random.split(key)
        peepholes = [jnp.zeros((hidden,), dtype) for _ in range(5)]
        return DepthGatedLSTMParams(
            initializers.input_weights(key_ih, input_size, hidden, 5, dtype),
            initializers.recurrent_weights(key_hh, hidden, 4, dtype),
            initializers.gate_biases(hidden, (*GATES, "d"), self.forget_bias, dtype),
            *peepholes,
        )

    def init_carry(self, params: DepthGatedLSTMParams, batch_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(
        self, params: DepthGatedLSTMParams, x: jax.Array | WithCellState
    ) -> DepthGatedLSTMGates:
        if isinstance(x, WithCellState):
            checks.last_axis("DepthGatedLSTM", "c", x.c, self.hidden_size, "hidden_size")
            a = affine(self, x.x, params.w_ih, params.b)
            gates = split_gates(a, DepthGatedLSTMGates, (*GATES, "d"))
            return gates._replace(below=x.c)
        width = 4 * self.hidden_size
        a = affine(self, x, params.w_ih[:, :width], params.b[:width])
        return split_gates(a, DepthGatedLSTMGates, GATES)

    def recur(self, params: DepthGatedLSTMParams, carry: LSTMCarry) -> DepthGatedLSTMGates:
        return split_gates(carry.h @ params.w_hh, DepthGatedLSTMGates, GATES)

    def update(
        self,
        params: DepthGatedLSTMParams,
        carry: LSTMCarry,
        z: DepthGatedLSTMGates,
        u: DepthGatedLSTMGates,
    ) -> LSTMCarry:
        from_below: Any = 0
        if z.below is not None:
            d = tap(
                "d",
                sigmoid(z.d + multiply(params.p_d, carry.c) + multiply(params.p_below, z.below)),
            )
            from_below = d * z.below
        i = tap("i", sigmoid(z.i + u.i + multiply(params.p_i, carry.c)))
        f = tap("f", sigmoid(z.f + u.f + multiply(params.p_f, carry.c)))
        g = tap("g", jnp.tanh(z.g + u.g), role="candidate")
        c = from_below + f * carry.c + i * g
        o = tap("o", sigmoid(z.o + u.o + multiply(params.p_o, c)))
        h = o * jnp.tanh(tap(None, c, role="cell_state"))
        return LSTMCarry(h, c)

    def readout(
        self, params: DepthGatedLSTMParams, carry: LSTMCarry, z: DepthGatedLSTMGates
    ) -> jax.Array:
        return carry.h
