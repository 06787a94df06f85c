"""The cells of xLSTM: the sLSTM with exponential gates, and the mLSTM with a matrix memory."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, Diagonal
from jrnn.cells.common import affine, recurrent_matmul, split_gates
from jrnn.cells.lstm import LSTMGates
from jrnn.taps import tap

GATES = ("i", "f", "g", "o")

LOG_FORGET = {"sigmoid": log_sigmoid, "exp": lambda a: a}
"""Maps activations of the forget gate to their logarithms, as functions of the pre-activation."""

FORGET_BIAS_RANGE = 3.0, 6.0
"""The range of the initial forget gate biases, as in the authors' code for the mLSTM.

For the sLSTM, their code has this range with the option `bias_init="small_init"`.
"""


class SLSTMCarry(NamedTuple):
    """Hidden state h, cell state c, normalizer n and stabilizer m, each `[..., hidden]`."""

    h: jax.Array
    c: jax.Array
    n: jax.Array
    m: jax.Array


class SLSTMParams(NamedTuple):
    """Weights, with the gates concatenated in the order i, f, g, o."""

    w_ih: jax.Array  # [input, 4·hidden]
    w_hh: jax.Array  # [heads, hidden/heads, 4·hidden/heads], blocks of U
    b: jax.Array  # [4·hidden]


class MLSTMCarry(NamedTuple):
    """Memory `c [..., heads, d, d]` and normalizer `n [..., heads, d]`, with d = hidden/heads."""

    c: jax.Array
    n: jax.Array


class MLSTMParams(NamedTuple):
    """Weights, concatenated in the order q, k, v, o (hidden columns each), i, f (heads each)."""

    w_ih: jax.Array  # [input, 4·hidden + 2·heads]
    b: jax.Array  # [4·hidden + 2·heads]


class MLSTMGates(NamedTuple):
    """Query, key and value `[..., heads, d]`, and pre-activations of the gates."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    o: jax.Array  # [..., hidden]
    i: jax.Array  # [..., heads]
    f: jax.Array  # [..., heads]


@dataclass(frozen=True)
class SLSTM(Cell):
    r"""The sLSTM: an LSTM with an exponential input gate and a normalizer.

    ::

        a_k = W_k x + U_k h + b_k                           k = i, f, g, o; U is block-diagonal
        m' = max(log f + m, a_i)                            stabilizer; m' = a_i where n = 0
        f' = exp(log f + m - m'),   i' = exp(a_i - m')      f = sigmoid(a_f), or exp(a_f)
        c' = f' * c + i' * tanh(a_g)                        cell state
        n' = f' * n + i'                                    normalizer
        h' = sigmoid(a_o) * c' / n',   y = h'

    The paper writes z for tanh(a_g). c and n are stored divided by exp(m), which cancels in h; this
    prevents overflow of the exponentials. Where n = 0, as in the initial carry, c is also 0 and m
    has no effect, so m' = a_i is exact. After one step n' >= 1. The cell divides by max(n', 1), so
    that h is finite for every carry, including those that no sequence produces, such as the
    iterates of the `Newton` engine.

    The authors' code also sets m' = a_i at the first step, which it detects by n = 0 in the whole
    batch. This cell tests each unit separately, so that resets are exact. The blocks of U are
    initialized to orthogonal matrices, and b_f to evenly spaced values from 3 to 6 over the units
    of each head. With `forget_activation="exp"`, b_f is initialized to 0, so that f is near 1.

    Args:
      hidden_size: number of units.
      heads: number of diagonal blocks of U; a unit depends only on the units of its own head.
      forget_activation: activation of the forget gate, "sigmoid" or "exp".

    Raises:
      ValueError: `hidden_size` or `heads` is not a positive int, `heads` does not divide
        `hidden_size`, or `forget_activation` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> cell = SLSTM(hidden_size=4, heads=2)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.n.min().item()
    ((2, 4), 1.0)

    References:
      Beck et al., 2024, xLSTM: extended long short-term memory.
    """

    hidden_size: int
    _: KW_ONLY
    heads: int = 1
    forget_activation: Literal["sigmoid", "exp"] = "sigmoid"

    def __post_init__(self) -> None:
        checks.positive_int("SLSTM", "hidden_size", self.hidden_size)
        checks.divides("SLSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        checks.one_of("SLSTM", "forget_activation", self.forget_activation, LOG_FORGET)

    @property
    def has_coupled_carry(self) -> bool:
        return True

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> SLSTMParams:
        key_ih, key_hh = jax.random.split(key)
        hidden, units = self.hidden_size, self.hidden_size // self.heads
        draw = lambda key: initializers.recurrent_weights(key, units, 4, dtype)
        b_f = jnp.tile(jnp.linspace(*FORGET_BIAS_RANGE, units), self.heads)
        b = jnp.zeros((4 * hidden,), dtype)
        if self.forget_activation != "exp":
            b = b.at[hidden : 2 * hidden].set(b_f.astype(dtype))
        return SLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 4, dtype),
            w_hh=jnp.stack([draw(k) for k in jax.random.split(key_hh, self.heads)]),
            b=b,
        )

    def init_carry(self, params: SLSTMParams, batch_shape: tuple[int, ...]) -> SLSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return SLSTMCarry(zeros, zeros, zeros, zeros)

    def project(self, params: SLSTMParams, x: jax.Array) -> LSTMGates:
        return split_gates(affine(self, x, params.w_ih, params.b), LSTMGates, GATES)

    def recur(self, params: SLSTMParams, carry: SLSTMCarry) -> LSTMGates:
        return recurrent_matmul(carry.h, params.w_hh, LSTMGates, GATES)

    def update(
        self, params: SLSTMParams, carry: SLSTMCarry, z: LSTMGates, u: LSTMGates
    ) -> SLSTMCarry:
        a = jax.tree.map(jnp.add, z, u)
        # Subtracting the maximum bounds both gates by 1.
        log_f = jnp.where(carry.n == 0, a.i, LOG_FORGET[self.forget_activation](a.f) + carry.m)
        m = jnp.maximum(log_f, a.i)
        i, f = tap("i", jnp.exp(a.i - m)), tap("f", jnp.exp(log_f - m))
        g = tap("g", jnp.tanh(a.g), role="candidate")
        c = f * carry.c + i * g
        n = f * carry.n + i
        o = tap("o", sigmoid(a.o))
        h = o * tap(None, c / jnp.maximum(n, 1), role="cell_state")
        return SLSTMCarry(h, c, n, m)

    def readout(self, params: SLSTMParams, carry: SLSTMCarry, z: LSTMGates) -> jax.Array:
        return carry.h


@dataclass(frozen=True)
class MLSTM(Cell):
    r"""The mLSTM: a matrix memory that stores values by their keys, linear in its carry.

    In each head, with d = hidden_size / heads units::

        q = W_q x + b_q,  k = (W_k x + b_k) / sqrt(d),  v = W_v x + b_v
        i = exp(cap(w_i x + b_i)),  f = sigmoid(cap(w_f x + b_f))      scalars
        C' = f C + i v k^T                                             memory [d, d]
        n' = f n + i k                                                 normalizer [d]
        h = (C' q) / max(|n' . q|, 1)
        y = sigmoid(W_o x + b_o) * h                                   of all heads, concatenated

    with cap(a) = soft_cap tanh(a / soft_cap), as in xLSTM 7B, for both gates. The xLSTM paper has
    no cap. It divides C and n by exp(m), where m is a running maximum, and has exp(-m) in place of
    1, which is equivalent as long as nothing overflows. This cell has no m, so that it is linear in
    its carry and the `Associative` engine supports it. The default cap bounds i by exp(15), about
    3e6, which overflows in float16. With `soft_cap=None` the caller must prevent overflow.

    `update` computes C and n elementwise. `readout` computes the product with the query, the
    normalization and the output gate.

    k is scaled after its bias is added, as in the authors' code; the paper scales only W_k x. The
    convolution and the normalization of h in the surrounding block of the paper are not part of
    this cell: all gates depend on x. The weights of i and f, and b_i, are initialized to 0, and b_f
    to evenly spaced values from 3 to 6 over the heads.

    Args:
      hidden_size: total number of units of all heads.
      heads: number of heads, each with its own matrix memory.
      soft_cap: bound on the pre-activations of the gates i and f; None for no bound.

    Raises:
      ValueError: `hidden_size` or `heads` is not a positive int, `heads` does not divide
        `hidden_size`, or `soft_cap` is neither a finite number above 0 nor None.

    >>> import jax, jax.numpy as jnp
    >>> cell = MLSTM(hidden_size=8, heads=2)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (5,)), jnp.ones((5, 3)))
    >>> y.shape, carry.c.shape, carry.n.shape
    ((5, 8), (5, 2, 4, 4), (5, 2, 4))

    References:
      Beck et al., 2024, xLSTM: extended long short-term memory.
      Beck et al., 2025, xLSTM 7B: a recurrent LLM for fast and efficient inference (the cap).
    """

    hidden_size: int
    _: KW_ONLY
    heads: int = 1
    soft_cap: float | None = 15.0

    def __post_init__(self) -> None:
        checks.positive_int("MLSTM", "hidden_size", self.hidden_size)
        checks.divides("MLSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        if self.soft_cap is not None:
            checks.positive_number("MLSTM", "soft_cap", self.soft_cap)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MLSTMParams:
        hidden, heads = self.hidden_size, self.heads
        w = initializers.input_weights(key, input_size, hidden, 4, dtype)
        b_f = jnp.linspace(*FORGET_BIAS_RANGE, heads).astype(dtype)
        return MLSTMParams(
            w_ih=jnp.concatenate([w, jnp.zeros((input_size, 2 * heads), dtype)], axis=-1),
            b=jnp.concatenate([jnp.zeros((4 * hidden + heads,), dtype), b_f]),
        )

    def init_carry(self, params: MLSTMParams, batch_shape: tuple[int, ...]) -> MLSTMCarry:
        shape = (*batch_shape, self.heads, self.hidden_size // self.heads)
        c = jnp.zeros((*shape, shape[-1]), params.b.dtype)
        return MLSTMCarry(c, jnp.zeros(shape, params.b.dtype))

    def project(self, params: MLSTMParams, x: jax.Array) -> MLSTMGates:
        a = affine(self, x, params.w_ih, params.b)
        indices = [self.hidden_size * k for k in (1, 2, 3, 4)]
        *qkv, o, i, f = jnp.split(a, [*indices, indices[-1] + self.heads], axis=-1)
        units = self.hidden_size // self.heads
        qkv = (array.reshape(*array.shape[:-1], self.heads, units) for array in qkv)
        return MLSTMGates(*qkv, o=o, i=i, f=f)

    def recur(self, params: MLSTMParams, carry: MLSTMCarry) -> None:
        return None

    def coefficients(self, params: MLSTMParams, z: MLSTMGates) -> Diagonal:
        i, f = tap("i", jnp.exp(self._cap(z.i))), tap("f", sigmoid(self._cap(z.f)))
        k = i[..., None] * z.k / math.sqrt(z.k.shape[-1])
        return Diagonal(
            a=MLSTMCarry(c=f[..., None, None], n=f[..., None]),
            b=MLSTMCarry(c=z.v[..., :, None] * k[..., None, :], n=k),
        )

    def _cap(self, a: jax.Array) -> jax.Array:
        return a if self.soft_cap is None else self.soft_cap * jnp.tanh(a / self.soft_cap)

    def update(self, params: MLSTMParams, carry: MLSTMCarry, z: MLSTMGates, u: None) -> MLSTMCarry:
        return self.coefficients(params, z).apply(carry)

    def readout(self, params: MLSTMParams, carry: MLSTMCarry, z: MLSTMGates) -> jax.Array:
        retrieved = (carry.c @ z.q[..., None])[..., 0]
        weight = jnp.abs((carry.n * z.q).sum(axis=-1, keepdims=True))
        h = (retrieved / jnp.maximum(weight, 1)).reshape(z.o.shape)
        return tap("o", sigmoid(z.o)) * h
