"""Long short-term memory, plain, with peepholes, and with coupled gates."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, place, record
from jrnn.cells.common import affine, split


class LSTMCarry(NamedTuple):
    """Hidden state `h [..., hidden]` and cell state `c [..., hidden]`."""

    h: jax.Array
    c: jax.Array


class LSTMParams(NamedTuple):
    """Weights with the gates side by side: i, f, g, o, or f, g, o where coupled (G of them)."""

    w_ih: jax.Array  # [input, G·hidden]
    w_hh: jax.Array  # [hidden, G·hidden]
    b: jax.Array  # [G·hidden]
    p_i: jax.Array | None = None  # [hidden]
    p_f: jax.Array | None = None
    p_o: jax.Array | None = None


class LSTMGates(NamedTuple):
    """Pre-activations of the gates, each `[..., hidden]`; i is None where coupled."""

    i: jax.Array | None
    f: jax.Array
    g: jax.Array
    o: jax.Array


@dataclass(frozen=True)
class LSTM(Cell):
    r"""The LSTM: a cell state that runs straight down the chain, and gates that guard it.

    ::

        f = sigmoid(W_f x + U_f h + b_f  [+ p_f * c])       forget: what of the old state stays
        i = sigmoid(W_i x + U_i h + b_i  [+ p_i * c])       prepare: what to write ...
        g = tanh(W_g x + U_g h + b_g)                       ... and the candidate for it
        c' = f * c + i * g                                  update
        o = sigmoid(W_o x + U_o h + b_o  [+ p_o * c'])      output: what to show
        h' = o * tanh(c'),   y = h'

    With `peepholes` the terms in brackets are there: gates look at the cell state, i and f at the
    old one and o at the new one. With `coupled` the cell writes only where it forgets: i = 1 - f,
    and the weights of i do not exist.

    Args:
      hidden_size: number of units.
      forget_bias: starting value of b_f; at 1 the cell remembers from the start.
      peepholes: whether gates see the cell state, with one weight for each unit (starting at 0).
      coupled: whether i = 1 - f.
      t_max: if given, chrono initialisation for dependencies up to `t_max` steps: b_f = log U[1,
        t_max - 1] and b_i = -b_f, in place of `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `t_max` is below 3, or both `t_max` and a
        `forget_bias` of your own are given.

    >>> import jax, jax.numpy as jnp
    >>> cell = LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape, carry.c.shape
    ((2, 4), (2, 4))

    References:
      Hochreiter and Schmidhuber, 1997, Long short-term memory.
      Gers, Schmidhuber and Cummins, 2000, Learning to forget.
      Gers and Schmidhuber, 2000, Recurrent nets that time and count (peepholes).
      Greff et al., 2017, LSTM: A search space odyssey (coupled gates: CIFG).
      Olah, 2015, Understanding LSTM networks.
    """

    hidden_size: int
    forget_bias: float = 1.0
    peepholes: bool = False
    coupled: bool = False
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("LSTM", "hidden_size", self.hidden_size)
        if self.t_max is not None:
            checks.t_max("LSTM", self.t_max, forget_bias=self.forget_bias, default=1.0)

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that have weights, in the order of concatenation."""
        return ("f", "g", "o") if self.coupled else ("i", "f", "g", "o")

    @property
    def kernel(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "lstm" + "-peepholes" * self.peepholes + "-coupled" * self.coupled

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LSTMParams:
        dtype = checks.float_dtype("LSTM.init", dtype)
        checks.positive_int("LSTM.init", "input_size", input_size)
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        # Three arrays, not one three times: a training step may donate each of its buffers once.
        p_i, p_f, p_o = (
            jnp.zeros((self.hidden_size,), dtype) if self.peepholes else None for _ in "ifo"
        )
        return LSTMParams(
            w_ih=initializers.input_weights(
                key_ih, input_size, self.hidden_size, len(self.gates), dtype
            ),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, len(self.gates), dtype),
            b=self._init_bias(key_b, dtype),
            p_i=None if self.coupled else p_i,
            p_f=p_f,
            p_o=p_o,
        )

    def _init_bias(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        keep = initializers.keeping(key, self.hidden_size, self.t_max, self.forget_bias, dtype)
        start = {"f": keep} if self.t_max is None else {"f": keep, "i": -keep}
        zeros = jnp.zeros((self.hidden_size,), dtype)
        return jnp.concatenate([start.get(gate, zeros) for gate in self.gates])

    def init_carry(self, params: LSTMParams, batch_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def project(self, params: LSTMParams, x: jax.Array) -> LSTMGates:
        return split(affine(self, x, params.w_ih, params.b), LSTMGates, self.gates)

    def recur(self, params: LSTMParams, carry: LSTMCarry) -> LSTMGates:
        return split(carry.h @ params.w_hh, LSTMGates, self.gates)

    def update(
        self, params: LSTMParams, carry: LSTMCarry, z: LSTMGates, u: LSTMGates
    ) -> tuple[LSTMCarry, jax.Array]:
        a = jax.tree.map(jnp.add, z, u)
        # Forget: what to keep of the old cell state.
        f = sigmoid(_peek(a.f, params.p_f, carry.c))
        # Prepare: what to write, and the candidate for it.
        i = 1 - f if self.coupled else sigmoid(_peek(a.i, params.p_i, carry.c))
        g = place("candidate", jnp.tanh(a.g))
        # Update the cell state.
        c = f * carry.c + i * g
        # Output: what to show of it.
        o = sigmoid(_peek(a.o, params.p_o, c))
        h = o * jnp.tanh(place("shown", c))
        record(i=i, f=f, g=g, o=o)
        return LSTMCarry(h, c), h


def _peek(a: jax.Array, p: jax.Array | None, c: jax.Array) -> jax.Array:
    """A gate's pre-activation after its look at the cell state, where it has a peephole."""
    return a if p is None else a + p * c
