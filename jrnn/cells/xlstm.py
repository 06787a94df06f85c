"""The two cells of xLSTM: sLSTM, with exponential gates, and mLSTM, with a matrix for a memory."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, place, record
from jrnn.cells.common import advance, affine, split
from jrnn.cells.lstm import LSTMGates

FORGET = {"sigmoid": log_sigmoid, "exp": lambda a: a}
"""The logarithm of the forget gate of its pre-activation."""

KEEPING = 3.0, 6.0
"""Where the forget biases begin, as in the authors' code."""


class SLSTMCarry(NamedTuple):
    """Hidden state, cell state, normaliser and stabiliser, each `[..., hidden]`."""

    h: jax.Array
    c: jax.Array
    n: jax.Array
    m: jax.Array


class SLSTMParams(NamedTuple):
    """Weights with the gates side by side in the order i, f, g, o."""

    w_ih: jax.Array  # [input, 4·hidden]
    w_hh: jax.Array  # [heads, hidden/heads, 4·hidden/heads]
    b: jax.Array  # [4·hidden]


class MLSTMCarry(NamedTuple):
    """Memory `c [..., heads, d, d]` and normaliser `n [..., heads, d]`, with d = hidden/heads."""

    c: jax.Array
    n: jax.Array


class MLSTMParams(NamedTuple):
    """Weights side by side in the order q, k, v, o, and i, f of `[heads]` each."""

    w_ih: jax.Array  # [input, 4·hidden + 2·heads]
    b: jax.Array  # [4·hidden + 2·heads]


class MLSTMGates(NamedTuple):
    """Query, key and value `[..., heads, d]`; pre-activations of the gates."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    o: jax.Array  # [..., hidden]
    i: jax.Array  # [..., heads]
    f: jax.Array  # [..., heads]


@dataclass(frozen=True)
class SLSTM(Cell):
    r"""The sLSTM: an LSTM with an exponential input gate, and a normaliser for what it took.

    ::

        a_k = W_k x + U_k h + b_k                           for k = i, f, g, o; U block by block
        m' = max(log f + m, a_i)                            stabiliser; a_i where nothing is held
        f' = exp(log f + m - m'),   i' = exp(a_i - m')      f = sigmoid(a_f), or exp(a_f)
        c' = f' * c + i' * tanh(a_g)                        update
        n' = f' * n + i'                                    normaliser
        h' = sigmoid(a_o) * c' / n',   y = h'

    m scales c and n alike and is not seen in h: it keeps the exponentials from overflow. Nothing
    is held where n = 0, as at the start; there any scale will do, and that of the input is taken.
    From then on n' >= 1. The quotient is by max(n', 1), so that a carry that no sequence leads to,
    as a guess of `Newton` may be, divides by no zero.

    Our g is z in the paper. The authors' code too takes a_i for m' at the start, there if n = 0 in
    the whole batch; here each unit decides for itself, so that resets are right. U begins
    orthogonal in each head, b_f evenly spaced from 3 to 6 over the units of a head, or at 0 with
    `forget="exp"`, where it keeps all.

    Args:
      hidden_size: number of units.
      heads: groups of units; a unit sees the past of its own group alone.
      forget: "sigmoid" or "exp": the forget gate's activation.

    Raises:
      ValueError: `hidden_size` or `heads` is not a positive int, `heads` does not divide
        `hidden_size`, or `forget` is unknown.

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
    heads: int = 1
    forget: Literal["sigmoid", "exp"] = "sigmoid"
    tied = True

    def __post_init__(self) -> None:
        checks.positive_int("SLSTM", "hidden_size", self.hidden_size)
        checks.divides("SLSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        checks.one_of("SLSTM", "forget", self.forget, FORGET)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> SLSTMParams:
        dtype = checks.float_dtype("SLSTM.init", dtype)
        checks.positive_int("SLSTM.init", "input_size", input_size)
        key_ih, key_hh = jax.random.split(key)
        hidden, units = self.hidden_size, self.hidden_size // self.heads
        of_head = lambda key: initializers.recurrent_weights(key, units, 4, dtype)
        keep = jnp.tile(jnp.linspace(*KEEPING, units), self.heads)
        b = jnp.zeros((4 * hidden,), dtype)
        return SLSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 4, dtype),
            w_hh=jnp.stack([of_head(k) for k in jax.random.split(key_hh, self.heads)]),
            b=b if self.forget == "exp" else b.at[hidden : 2 * hidden].set(keep.astype(dtype)),
        )

    def init_carry(self, params: SLSTMParams, batch_shape: tuple[int, ...]) -> SLSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return SLSTMCarry(zeros, zeros, zeros, zeros)

    def project(self, params: SLSTMParams, x: jax.Array) -> LSTMGates:
        return split(affine(self, x, params.w_ih, params.b), LSTMGates, ("i", "f", "g", "o"))

    def recur(self, params: SLSTMParams, carry: SLSTMCarry) -> LSTMGates:
        units = self.hidden_size // self.heads
        h = carry.h.reshape(*carry.h.shape[:-1], self.heads, units)
        joined = jnp.einsum("...hi,hij->...hj", h, params.w_hh)
        gates = split(joined, LSTMGates, ("i", "f", "g", "o"))
        return jax.tree.map(lambda gate: gate.reshape(carry.h.shape), gates)

    def update(
        self, params: SLSTMParams, carry: SLSTMCarry, z: LSTMGates, u: LSTMGates
    ) -> tuple[SLSTMCarry, jax.Array]:
        a = jax.tree.map(jnp.add, z, u)
        # The scale of what is held, and that of what comes: the larger one is divided out.
        held = jnp.where(carry.n == 0, a.i, FORGET[self.forget](a.f) + carry.m)
        m = jnp.maximum(held, a.i)
        f, i = jnp.exp(held - m), jnp.exp(a.i - m)
        g = place("candidate", jnp.tanh(a.g))
        # Update the cell state, and count what went into it.
        c = f * carry.c + i * g
        n = f * carry.n + i
        o = sigmoid(a.o)
        h = o * place("shown", c / jnp.maximum(n, 1))
        record(i=i, f=f, g=g, o=o)
        return SLSTMCarry(h, c, n, m), h


@dataclass(frozen=True)
class MLSTM(Cell):
    r"""The mLSTM: a memory of matrices, which stores values by their keys, linear in its carry.

    In each head, with d = hidden_size / heads units::

        q = W_q x + b_q,  k = (W_k x + b_k) / sqrt(d),  v = W_v x + b_v
        i = exp(cap(w_i x + b_i)),  f = sigmoid(cap(w_f x + b_f))      one number for each head
        C' = f C + i v k^T                                             memory [d, d]
        n' = f n + i k                                                 normaliser [d]
        h = (C' q) / max(|n' . q|, 1)
        y = sigmoid(W_o x + b_o) * h                                   of all heads side by side

    with cap(a) = soft_cap tanh(a / soft_cap), as in xLSTM 7B, for both gates. The paper has no cap
    and divides C and n by exp(m), with m a running maximum, and in place of 1 has exp(-m): where
    nothing overflows that is the same function. Without m the carry is linear, so that
    `Associative` runs all steps at once. The cap keeps i below exp(15), about 3e6, more than
    float16 can hold; without a cap it is for you to keep the gate small.

    k is scaled after its bias, as in the authors' code; the paper scales W_k x alone. Of the block
    around the cell, with its convolution and its norm of h, nothing is here: gates see x. The
    weights of i and f begin at 0, and so does b_i; b_f evenly spaced from 3 to 6 over the heads.

    Args:
      hidden_size: number of units, of all heads together.
      heads: number of memories.
      soft_cap: the largest pre-activation of the gates i and f; None for no cap.

    Raises:
      ValueError: `hidden_size` or `heads` is not a positive int, `heads` does not divide
        `hidden_size`, or `soft_cap` is neither a number above 0 nor None.

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
    heads: int = 1
    soft_cap: float | None = 15.0
    recurrence = "linear"
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("MLSTM", "hidden_size", self.hidden_size)
        checks.divides("MLSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        if self.soft_cap is not None:
            checks.positive_number("MLSTM", "soft_cap", self.soft_cap)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MLSTMParams:
        dtype = checks.float_dtype("MLSTM.init", dtype)
        checks.positive_int("MLSTM.init", "input_size", input_size)
        hidden, heads = self.hidden_size, self.heads
        w = initializers.input_weights(key, input_size, hidden, 4, dtype)
        keep = jnp.linspace(*KEEPING, heads).astype(dtype)
        return MLSTMParams(
            w_ih=jnp.concatenate([w, jnp.zeros((input_size, 2 * heads), dtype)], axis=-1),
            b=jnp.concatenate([jnp.zeros((4 * hidden + heads,), dtype), keep]),
        )

    def init_carry(self, params: MLSTMParams, batch_shape: tuple[int, ...]) -> MLSTMCarry:
        shape = (*batch_shape, self.heads, self.hidden_size // self.heads)
        c = jnp.zeros((*shape, shape[-1]), params.b.dtype)
        return MLSTMCarry(c, jnp.zeros(shape, params.b.dtype))

    def project(self, params: MLSTMParams, x: jax.Array) -> MLSTMGates:
        joined = affine(self, x, params.w_ih, params.b)
        ends = [self.hidden_size * k for k in (1, 2, 3, 4)]
        *qkv, o, i, f = jnp.split(joined, [*ends, ends[-1] + self.heads], axis=-1)
        units = self.hidden_size // self.heads
        by_head = (part.reshape(*part.shape[:-1], self.heads, units) for part in qkv)
        return MLSTMGates(*by_head, o=o, i=i, f=f)

    def recur(self, params: MLSTMParams, carry: MLSTMCarry) -> None:
        return None

    def coefficients(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, params: MLSTMParams, z: MLSTMGates
    ) -> tuple[MLSTMCarry, MLSTMCarry]:
        i, f = jnp.exp(self._cap(z.i)), sigmoid(self._cap(z.f))
        k = i[..., None] * z.k / math.sqrt(z.k.shape[-1])
        record(i=i, f=f)
        written = MLSTMCarry(c=z.v[..., :, None] * k[..., None, :], n=k)
        return MLSTMCarry(c=f[..., None, None], n=f[..., None]), written

    def _cap(self, a: jax.Array) -> jax.Array:
        return a if self.soft_cap is None else self.soft_cap * jnp.tanh(a / self.soft_cap)

    def update(
        self, params: MLSTMParams, carry: MLSTMCarry, z: MLSTMGates, u: None
    ) -> tuple[MLSTMCarry, jax.Array]:
        c, n = advance(self.coefficients(params, z), carry)
        # What the query finds, over how much of it there is.
        found = (c @ z.q[..., None])[..., 0]
        weight = jnp.abs((n * z.q).sum(axis=-1, keepdims=True))
        h = (found / jnp.maximum(weight, 1)).reshape(z.o.shape)
        o = sigmoid(z.o)
        record(o=o)
        return MLSTMCarry(c, n), o * h
