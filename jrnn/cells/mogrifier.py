"""The mogrifier LSTM: input and state modulate each other before an LSTM step."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell
from jrnn.cells.common import split_gates
from jrnn.cells.lstm import LSTMCarry, LSTMGates
from jrnn.taps import tap


class MogrifierLSTMParams(NamedTuple):
    """Weights of the gates, concatenated in the order i, f, g, o, and of the modulation rounds.

    q contains the matrices Q of rounds 1, 3, ..., and r the matrices R of rounds 2, 4, ... With a
    rank k, q and r contain the left factors, and q_right and r_right the right factors. With one
    round, r is None.
    """

    w_ih: jax.Array  # [input, 4·hidden]
    w_hh: jax.Array  # [hidden, 4·hidden]
    b: jax.Array  # [4·hidden]
    q: jax.Array  # [ceil(rounds / 2), hidden, input], or [..., hidden, k]
    r: Any  # [floor(rounds / 2), input, hidden], or [..., input, k]
    q_right: jax.Array | None = None  # [ceil(rounds / 2), k, input]
    r_right: jax.Array | None = None  # [floor(rounds / 2), k, hidden]


GATES = ("i", "f", "g", "o")


@dataclass(frozen=True)
class MogrifierLSTM(Cell):
    r"""The mogrifier LSTM: h scales x and x scales h, in alternating rounds before an LSTM step.

    ::

        x <- 2 sigmoid(Q^i h) * x                           rounds i = 1, 3, 5, ...
        h <- 2 sigmoid(R^i x) * h                           rounds i = 2, 4, ...

    Each round modulates the result of the previous rounds. The LSTM step uses the modulated
    x and h::

        f = sigmoid(W_f x + U_f h + b_f)                    forget gate
        i = sigmoid(W_i x + U_i h + b_i)                    input gate
        g = tanh(W_g x + U_g h + b_g)                       candidate
        c' = f * c + i * g                                  cell state
        o = sigmoid(W_o x + U_o h + b_o)                    output gate
        h' = o * tanh(c'),   y = h'

    The rounds have no biases. With `rank=k` each Q and R is a product of two factors of width k.
    `update` computes the matrix products with the modulated x and h, so it is not elementwise.
    `recur` computes the product of round 1.

    Args:
      hidden_size: number of units.
      rounds: number of rounds, at least 1.
      rank: width k of the two factors of each Q and R; None for full matrices.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.

    Raises:
      ValueError: `hidden_size`, `rounds` or `rank` is not a positive int, or `forget_bias` is not a
        finite number.

    >>> import jax, jax.numpy as jnp
    >>> cell = MogrifierLSTM(hidden_size=4, rank=2)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.c.shape
    ((2, 4), (2, 4))

    References:
      Melis, Kocisky and Blunsom, 2020, Mogrifier LSTM.
    """

    hidden_size: int
    _: KW_ONLY
    rounds: int = 5
    rank: int | None = None
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_int("MogrifierLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("MogrifierLSTM", "forget_bias", self.forget_bias)
        checks.positive_int("MogrifierLSTM", "rounds", self.rounds)
        if self.rank is not None:
            checks.positive_int("MogrifierLSTM", "rank", self.rank)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> MogrifierLSTMParams:
        hidden = self.hidden_size
        key_ih, key_hh, key_q, key_r = jax.random.split(key, 4)
        q, q_right = self._init_rounds(key_q, (self.rounds + 1) // 2, hidden, input_size, dtype)
        r, r_right = self._init_rounds(key_r, self.rounds // 2, input_size, hidden, dtype)
        return MogrifierLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 4, dtype),
            w_hh=initializers.recurrent_weights(key_hh, hidden, 4, dtype),
            b=initializers.gate_biases(hidden, GATES, self.forget_bias, dtype),
            q=q,
            r=r,
            q_right=q_right,
            r_right=r_right,
        )

    def _init_rounds(
        self, key: jax.Array, count: int, rows: int, columns: int, dtype: DTypeLike
    ) -> tuple[Any, Any]:
        """Draws Glorot-uniform matrices for `count` rounds; with a rank, their two factors."""
        if count == 0:
            return None, None
        draw = lambda key, rows, columns: jnp.stack(
            [
                initializers.input_weights(k, rows, columns, 1, dtype)
                for k in jax.random.split(key, count)
            ]
        )
        if self.rank is None:
            return draw(key, rows, columns), None
        key_left, key_right = jax.random.split(key)
        return draw(key_left, rows, self.rank), draw(key_right, self.rank, columns)

    def init_carry(self, params: MogrifierLSTMParams, batch_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(self, params: MogrifierLSTMParams, x: jax.Array) -> jax.Array:
        checks.last_axis(
            "MogrifierLSTM", "x", x, params.w_ih.shape[0], "input_size of the parameters"
        )
        return x

    def recur(self, params: MogrifierLSTMParams, carry: LSTMCarry) -> jax.Array:
        return _multiply(carry.h, params.q, params.q_right, 0)

    def update(
        self, params: MogrifierLSTMParams, carry: LSTMCarry, z: jax.Array, u: jax.Array
    ) -> LSTMCarry:
        x, h = 2 * sigmoid(u) * z, carry.h
        for n in range(1, self.rounds):
            if n % 2:
                h = 2 * sigmoid(_multiply(x, params.r, params.r_right, n // 2)) * h
            else:
                x = 2 * sigmoid(_multiply(h, params.q, params.q_right, n // 2)) * x
        a: Any = split_gates(add(x @ params.w_ih + h @ params.w_hh, params.b), LSTMGates, GATES)
        i, f = tap("i", sigmoid(a.i)), tap("f", sigmoid(a.f))
        g = tap("g", jnp.tanh(a.g), role="candidate")
        c = f * carry.c + i * g
        o = tap("o", sigmoid(a.o))
        h = o * jnp.tanh(tap(None, c, role="cell_state"))
        return LSTMCarry(h, c)

    def readout(self, params: MogrifierLSTMParams, carry: LSTMCarry, z: jax.Array) -> jax.Array:
        return carry.h


def _multiply(a: jax.Array, weights: jax.Array, right: jax.Array | None, n: int) -> jax.Array:
    """Returns `a` times the n-th matrix of `weights`, and times that of `right` if given."""
    a = a @ weights[n]
    return a if right is None else a @ right[n]
