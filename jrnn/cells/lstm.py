"""Long short-term memory, with a switch for each part of it, projection, and heads."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, Recurrence, place, record
from jrnn.cells.common import affine, recurrent, split
from jrnn.cells.lstm_switches import ACTIVATIONS, LSTMActivation, check_switches


class LSTMCarry(NamedTuple):
    """Hidden state `h [..., hidden]`, or `[..., proj]`, and cell state `c [..., hidden]`."""

    h: jax.Array
    c: jax.Array


class LSTMGateCarry(NamedTuple):
    """The states of `LSTMCarry`, and the gates of the step before, each `[..., hidden]`."""

    h: jax.Array
    c: jax.Array
    i: jax.Array
    f: jax.Array
    o: jax.Array


class LSTMParams(NamedTuple):
    """Weights with the gates side by side: i, f, g, o without those that are not there (G of them).

    With heads, w_hh is `[heads, proj/heads, G·hidden/heads]`, and w_gates has such blocks too.
    """

    w_ih: jax.Array  # [input, G·hidden]
    w_hh: jax.Array  # [hidden, G·hidden], or [proj, G·hidden]
    b: jax.Array  # [G·hidden]
    p_i: jax.Array | None = None  # [hidden]
    p_f: jax.Array | None = None
    p_o: jax.Array | None = None
    w_gates: jax.Array | None = None  # [3, hidden, 3·hidden]: from each of i, f, o to i, f, o
    w_hr: jax.Array | None = None  # [hidden, proj]


class LSTMGates(NamedTuple):
    """Pre-activations of the gates, each `[..., hidden]`; None where a gate has no weights."""

    i: Any  # array or None
    f: Any
    g: jax.Array
    o: Any


@dataclass(frozen=True)
class LSTM(Cell):
    r"""The LSTM: a cell state that runs straight down the chain, and gates that guard it.

    ::

        f = sigmoid(W_f x + U_f h + b_f  [+ p_f * c])       forget: what of the old state stays
        i = sigmoid(W_i x + U_i h + b_i  [+ p_i * c])       prepare: what to write ...
        g = tanh(W_g x + U_g h + b_g)                       ... and the candidate for it
        c' = f * c + i * g                                  update
        o = sigmoid(W_o x + U_o h + b_o  [+ p_o * c'])      output: what to show
        h' = o * tanh(c'),   y = h'                         [h' = R (o * tanh(c'))]

    With `peepholes` the terms in brackets are there: gates look at the cell state, i and f at the
    old one and o at the new one. With `coupled` the cell writes only where it forgets: i = 1 - f,
    and the weights of i do not exist. A gate that is switched off is 1, and has no weights.

    With `gate_recurrence` each of i, f and o hears all three as they were at the step before (zeros
    at first): i = sigmoid(... + V_ii i + V_fi f + V_oi o), and f and o likewise. The carry is then
    an `LSTMGateCarry`.

    With `proj_size` the output, and what the gates hear of it, is the projection by R in the last
    brackets. With `heads` above 1 each U (and V) is block-diagonal, so that a unit hears its own
    head alone.

    `jrnn.lstm_variant` gives the variants of Greff et al. by their names.

    Args:
      hidden_size: number of units.
      forget_bias: starting value of b_f; at 1 the cell remembers from the start.
      peepholes: whether gates see the cell state, with one weight for each unit (starting at 0).
      coupled: whether i = 1 - f.
      t_max: if given, chrono initialisation for dependencies up to `t_max` steps: b_f = log U[1,
        t_max - 1] and b_i = -b_f, in place of `forget_bias`.
      input_gate: whether there is i; without it i = 1.
      forget_gate: whether there is f; without it f = 1, as in 1997.
      output_gate: whether there is o; without it o = 1.
      input_activation: of the candidate: "tanh", "relu", "sigmoid", or "linear" for none.
      output_activation: of the cell state on its way out, likewise.
      gate_recurrence: whether i, f and o hear those of the step before.
      proj_size: size of h and y, if not hidden_size.
      heads: number of blocks on the diagonal of each U; it divides `hidden_size` and `proj_size`.
        `recurrence` stays "dense", as no engine knows blocks of several units, but with one unit to
        a head and no projection, where it is "block_diagonal".

    Raises:
      ValueError: a size is not a positive int, `heads` does not divide it, `t_max` is below 3, an
        activation is not known, or what is asked for contradicts itself, such as both `t_max` and
        a `forget_bias` of your own, or a forget bias without a forget gate.

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
      Sak, Senior and Beaufays, 2014, Long short-term memory recurrent neural network architectures
      for large scale acoustic modeling (proj_size).
      Greff et al., 2017, LSTM: A search space odyssey (a part switched off; coupled gates: CIFG;
      gate_recurrence: FGR).
      Olah, 2015, Understanding LSTM networks.
    """

    hidden_size: int
    forget_bias: float = 1.0
    peepholes: bool = False
    coupled: bool = False
    t_max: int | None = None
    input_gate: bool = True
    forget_gate: bool = True
    output_gate: bool = True
    input_activation: LSTMActivation = "tanh"
    output_activation: LSTMActivation = "tanh"
    gate_recurrence: bool = False
    proj_size: int | None = None
    heads: int = 1

    def __post_init__(self) -> None:
        checks.positive_int("LSTM", "hidden_size", self.hidden_size)
        checks.finite_number("LSTM", "forget_bias", self.forget_bias)
        if self.t_max is not None:
            checks.t_max("LSTM", self.t_max, forget_bias=self.forget_bias, default=1.0)
        checks.divides("LSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        if self.proj_size is not None:
            checks.positive_int("LSTM", "proj_size", self.proj_size)
            checks.divides("LSTM", "heads", self.heads, "proj_size", self.proj_size)
        check_switches(self)

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that have weights, in the order of concatenation."""
        there = {
            "i": self.input_gate and not self.coupled,
            "f": self.forget_gate,
            "g": True,
            "o": self.output_gate,
        }
        return tuple(gate for gate, has_weights in there.items() if has_weights)

    @property
    def recurrence(self) -> Recurrence:  # pyright: ignore[reportIncompatibleVariableOverride]
        alone = self.heads == self.hidden_size > 1 and self.proj_size is None
        return "block_diagonal" if alone else "dense"

    @property
    def pointwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.proj_size is None

    @property
    def tied(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.gate_recurrence

    @property
    def kernel(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        gates = self.input_gate and self.forget_gate and self.output_gate
        squashed = self.input_activation == self.output_activation == "tanh"
        plain = not self.gate_recurrence and self.proj_size is None and self.heads == 1
        if not (gates and squashed and plain):
            return None
        return "lstm" + "-peepholes" * self.peepholes + "-coupled" * self.coupled

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LSTMParams:
        dtype = checks.float_dtype("LSTM.init", dtype)
        checks.positive_int("LSTM.init", "input_size", input_size)
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        hidden, count = self.hidden_size, len(self.gates)
        # Three arrays, not one three times: a training step may donate each of its buffers once.
        p_i, p_f, p_o = (
            jnp.zeros((hidden,), dtype) if self.peepholes and gate in self.gates else None
            for gate in "ifo"
        )
        return LSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, count, dtype),
            w_hh=initializers.recurrent_weights(
                key_hh, hidden, count, dtype, heads=self.heads, rows=self.proj_size
            ),
            b=self._init_bias(key_b, dtype),
            p_i=p_i,
            p_f=p_f,
            p_o=p_o,
            w_gates=self._init_gate_recurrence(jax.random.fold_in(key_hh, 1), dtype),
            w_hr=self._init_projection(jax.random.fold_in(key_hh, 2), dtype),
        )

    def _init_bias(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        keep = initializers.keeping(key, self.hidden_size, self.t_max, self.forget_bias, dtype)
        start = {"f": keep} if self.t_max is None else {"f": keep, "i": -keep}
        zeros = jnp.zeros((self.hidden_size,), dtype)
        return jnp.concatenate([start.get(gate, zeros) for gate in self.gates])

    def _init_gate_recurrence(self, key: jax.Array, dtype: DTypeLike) -> jax.Array | None:
        if not self.gate_recurrence:
            return None
        draw = lambda key: initializers.recurrent_weights(
            key, self.hidden_size, 3, dtype, heads=self.heads
        )
        return jnp.stack([draw(k) for k in jax.random.split(key, 3)])

    def _init_projection(self, key: jax.Array, dtype: DTypeLike) -> jax.Array | None:
        if self.proj_size is None:
            return None
        return initializers.recurrent_weights(key, self.proj_size, 1, dtype, rows=self.hidden_size)

    def init_carry(
        self, params: LSTMParams, batch_shape: tuple[int, ...]
    ) -> LSTMCarry | LSTMGateCarry:
        zeros = lambda size: jnp.zeros((*batch_shape, size), params.w_hh.dtype)
        h, c = zeros(self.proj_size or self.hidden_size), zeros(self.hidden_size)
        return LSTMGateCarry(h, c, c, c, c) if self.gate_recurrence else LSTMCarry(h, c)

    def project(self, params: LSTMParams, x: jax.Array) -> LSTMGates:
        return split(affine(self, x, params.w_ih, params.b), LSTMGates, self.gates)

    def recur(self, params: LSTMParams, carry: LSTMCarry | LSTMGateCarry) -> LSTMGates:
        u = recurrent(carry.h, params.w_hh, LSTMGates, self.gates)
        return u if params.w_gates is None else _hear_gates(u, carry, params.w_gates)

    def update(
        self, params: LSTMParams, carry: LSTMCarry | LSTMGateCarry, z: LSTMGates, u: LSTMGates
    ) -> tuple[LSTMCarry | LSTMGateCarry, jax.Array]:
        a = jax.tree.map(jnp.add, z, u)
        # Forget: what to keep of the old cell state.
        f = _gate(a.f, params.p_f, carry.c)
        # Prepare: what to write, and the candidate for it.
        i = 1 - f if self.coupled else _gate(a.i, params.p_i, carry.c)
        g = place("candidate", ACTIVATIONS[self.input_activation](a.g))
        # Update the cell state.
        c = f * carry.c + i * g
        # Output: what to show of it.
        o = _gate(a.o, params.p_o, c)
        h = o * ACTIVATIONS[self.output_activation](place("shown", c))
        h = h if params.w_hr is None else h @ params.w_hr
        record(i=i, f=f, g=g, o=o)
        return LSTMGateCarry(h, c, i, f, o) if self.gate_recurrence else LSTMCarry(h, c), h


def _gate(a: jax.Array | None, p: jax.Array | None, c: jax.Array) -> jax.Array:
    """A gate out of its pre-activation, after its look at the cell state where it has a peephole.

    One that is not there is open.
    """
    if a is None:
        return jnp.ones_like(c)
    return sigmoid(a if p is None else a + p * c)


def _hear_gates(u: LSTMGates, carry: Any, w_gates: jax.Array) -> LSTMGates:
    """Adds to i, f and o what each of them hears of all three at the step before."""
    for gate, w in zip((carry.i, carry.f, carry.o), w_gates, strict=True):
        v = recurrent(gate, w, LSTMGates, ("i", "f", "o"))
        u = LSTMGates(i=u.i + v.i, f=u.f + v.f, g=u.g, o=u.o + v.o)
    return u
