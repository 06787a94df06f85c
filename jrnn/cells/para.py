"""ParaGRU and ParaLSTM: cells with diagonal recurrent weights, for Newton's method over time."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell
from jrnn.cells.common import affine, split_gates
from jrnn.cells.gru import GRUGates
from jrnn.cells.lstm import LSTMCarry, LSTMGates
from jrnn.taps import tap

CONTRACTION_BOUND = 1 / 3
"""Bound on |w_hh| that makes a step of either cell a contraction for states in [-1, 1].

Newton's method over time then converges. For ParaGRU, |dh'/dh| <= z + (1 - z) (2 z |a_z| + |a_n|),
which is below 1. For ParaLSTM with peephole weights 0, in the maximum norm, the derivative of c' is
at most f + (1 - f) (2 f |a_f| + |a_g|) < 1, and a similar bound holds for h'.
"""


class ParaGRUParams(NamedTuple):
    """Weights, with the gates concatenated in the order r, z, n."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [3·hidden]
    b: jax.Array  # [3·hidden]


class ParaLSTMParams(NamedTuple):
    """Weights, with the gates concatenated in the order f, g, o."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [3·hidden]
    b: jax.Array  # [3·hidden]
    p_f: jax.Array  # [hidden]
    p_o: jax.Array  # [hidden]


@dataclass(frozen=True)
class ParaGRU(Cell):
    r"""The GRU with a diagonal recurrence: each recurrent matrix is one weight per unit.

    ::

        r = sigmoid(W_r x + a_r * h + b_r)                  reset gate
        z = sigmoid(W_z x + a_z * h + b_z)                  update gate
        n = tanh(W_n x + a_n * (r * h) + b_n)               candidate
        h' = (1 - z) * n + z * h,   y = h'

    z multiplies the old state, as in `GRU`. In the paper it multiplies the candidate, which is
    equivalent with negated weights of z. The recurrent weights a_r, a_z and a_n (w_hh) are
    initialized uniformly in [-1/3, 1/3], so that initially every step is a contraction.

    Args:
      hidden_size: number of units.
      t_max: if given, b_z has the chrono initialization for dependencies of up to `t_max` steps:
        b_z = log(v), v ~ Uniform(1, t_max - 1).

    Raises:
      ValueError: `hidden_size` is not a positive int, or `t_max` is below 3.

    >>> import jax, jax.numpy as jnp
    >>> cell = ParaGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Danieli et al., 2025, ParaRNN: unlocking parallel training of nonlinear RNNs for large
      language models.
    """

    hidden_size: int
    _: KW_ONLY
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("ParaGRU", "hidden_size", self.hidden_size)
        if self.t_max is not None:
            checks.t_max("ParaGRU", self.t_max)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ParaGRUParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        hidden = self.hidden_size
        b_z = initializers.forget_gate_bias(key_b, hidden, self.t_max, 0.0, dtype)
        zeros = jnp.zeros_like(b_z)
        return ParaGRUParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 3, dtype),
            w_hh=initializers.uniform(
                key_hh, 3 * hidden, -CONTRACTION_BOUND, CONTRACTION_BOUND, dtype
            ),
            b=jnp.concatenate([zeros, b_z, zeros]),
        )

    def init_carry(self, params: ParaGRUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: ParaGRUParams, x: jax.Array) -> GRUGates:
        return split_gates(affine(self, x, params.w_ih, params.b), GRUGates, ("r", "z", "n"))

    def recur(self, params: ParaGRUParams, carry: jax.Array) -> None:
        return None

    def update(self, params: ParaGRUParams, carry: jax.Array, z: GRUGates, u: None) -> jax.Array:
        a = split_gates(params.w_hh, GRUGates, ("r", "z", "n"))
        reset_gate = tap("r", sigmoid(z.r + multiply(a.r, carry)))
        update_gate = tap("z", sigmoid(z.z + multiply(a.z, carry)))
        n = tap("n", jnp.tanh(z.n + multiply(a.n, reset_gate * carry)), role="candidate")
        return (1 - update_gate) * n + update_gate * carry


@dataclass(frozen=True)
class ParaLSTM(Cell):
    r"""The LSTM with coupled gates, peepholes and a diagonal recurrence.

    ::

        f = sigmoid(W_f x + a_f * h + p_f * c + b_f)        forget gate
        g = tanh(W_g x + a_g * h + b_g)                     candidate
        c' = f * c + (1 - f) * g                            cell state
        o = sigmoid(W_o x + a_o * h + p_o * c' + b_o)       output gate
        h' = o * tanh(c'),   y = h'

    Unit k of the new h and c depends only on unit k of the old h and c, so the Jacobian consists of
    2x2 blocks. The recurrent weights a_f, a_g and a_o (w_hh) are initialized uniformly in
    [-1/3, 1/3], and the peephole weights p_f and p_o to 0, so that initially every step is a
    contraction.

    Args:
      hidden_size: number of units.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.
      t_max: if given, b_f has the chrono initialization for dependencies of up to `t_max` steps:
        b_f = log(v), v ~ Uniform(1, t_max - 1). It replaces `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `forget_bias` is not a finite number, `t_max`
        is below 3, or `t_max` is given with a non-default `forget_bias`.

    >>> import jax, jax.numpy as jnp
    >>> cell = ParaLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.c.shape
    ((2, 4), (2, 4))

    References:
      Danieli et al., 2025, ParaRNN: unlocking parallel training of nonlinear RNNs for large
      language models.
    """

    hidden_size: int
    _: KW_ONLY
    forget_bias: float = 1.0
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("ParaLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("ParaLSTM", "forget_bias", self.forget_bias)
        if self.t_max is not None:
            checks.t_max("ParaLSTM", self.t_max, forget_bias=self.forget_bias, default=1.0)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ParaLSTMParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        hidden = self.hidden_size
        b_f = initializers.forget_gate_bias(key_b, hidden, self.t_max, self.forget_bias, dtype)
        return ParaLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 3, dtype),
            w_hh=initializers.uniform(
                key_hh, 3 * hidden, -CONTRACTION_BOUND, CONTRACTION_BOUND, dtype
            ),
            b=jnp.concatenate([b_f, jnp.zeros((2 * hidden,), dtype)]),
            p_f=jnp.zeros((hidden,), dtype),
            p_o=jnp.zeros((hidden,), dtype),
        )

    def init_carry(self, params: ParaLSTMParams, batch_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(self, params: ParaLSTMParams, x: jax.Array) -> LSTMGates:
        return split_gates(affine(self, x, params.w_ih, params.b), LSTMGates, ("f", "g", "o"))

    def recur(self, params: ParaLSTMParams, carry: LSTMCarry) -> None:
        return None

    def update(self, params: ParaLSTMParams, carry: LSTMCarry, z: LSTMGates, u: None) -> LSTMCarry:
        a = split_gates(params.w_hh, LSTMGates, ("f", "g", "o"))
        f = tap("f", sigmoid(z.f + multiply(a.f, carry.h) + multiply(params.p_f, carry.c)))
        g = tap("g", jnp.tanh(z.g + multiply(a.g, carry.h)), role="candidate")
        c = f * carry.c + (1 - f) * g
        o = tap("o", sigmoid(z.o + multiply(a.o, carry.h) + multiply(params.p_o, c)))
        h = o * jnp.tanh(tap(None, c, role="cell_state"))
        return LSTMCarry(h, c)

    def readout(self, params: ParaLSTMParams, carry: LSTMCarry, z: LSTMGates) -> jax.Array:
        return carry.h
