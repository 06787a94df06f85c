"""Long short-term memory (LSTM), and its variants by options."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell
from jrnn.cells.common import affine, recurrent_matmul, split_gates
from jrnn.cells.lstm_options import ACTIVATIONS, LSTMActivation, validate_options
from jrnn.taps import tap


class LSTMCarry(NamedTuple):
    """Hidden state `h`, before any projection, and cell state `c`, each `[..., hidden]`."""

    h: jax.Array
    c: jax.Array


class LSTMGateCarry(NamedTuple):
    """The states of `LSTMCarry` and the gates of the previous step, each `[..., hidden]`."""

    h: jax.Array
    c: jax.Array
    i: jax.Array
    f: jax.Array
    o: jax.Array


class LSTMParams(NamedTuple):
    """Weights of the G gates that the cell has, concatenated in the order i, f, g, o.

    With several heads, w_hh contains only the blocks of a block-diagonal matrix,
    `[heads, rows/heads, G·hidden/heads]`, where rows is hidden or proj. w_gates then contains the
    blocks `[3, heads, hidden/heads, 3·hidden/heads]`.
    """

    w_ih: jax.Array  # [input, G·hidden]
    w_hh: jax.Array  # [hidden, G·hidden], or [proj, G·hidden]
    b: jax.Array | None  # [G·hidden], None with bias=False
    p_i: jax.Array | None = None  # [hidden], None without peepholes or without weights of i
    p_f: jax.Array | None = None  # [hidden]
    p_o: jax.Array | None = None  # [hidden]
    w_gates: jax.Array | None = None  # [3, hidden, 3·hidden]: from i, f, o to i, f, o
    w_hr: jax.Array | None = None  # [hidden, proj]


class LSTMGates(NamedTuple):
    """Pre-activations of the gates, each `[..., hidden]`; None for a gate without weights."""

    i: Any  # array or None
    f: Any  # array or None
    g: jax.Array
    o: Any  # array or None


@dataclass(frozen=True)
class LSTM(Cell):
    r"""The LSTM: gates decide what its cell state forgets, stores and outputs.

    ::

        f = sigmoid(W_f x + U_f h + b_f  [+ p_f * c])       forget gate
        i = sigmoid(W_i x + U_i h + b_i  [+ p_i * c])       input gate
        g = tanh(W_g x + U_g h + b_g)                       candidate
        c' = f * c + i * g                                  cell state
        o = sigmoid(W_o x + U_o h + b_o  [+ p_o * c'])      output gate
        h' = o * tanh(c'),   y = h'

    `peepholes` adds the terms in brackets: i and f depend on the old cell state, o on the new one.
    With `coupled`, i = 1 - f, and i has no weights. A gate that is disabled by an option is 1 and
    has no weights.

    With `gate_recurrence`, each of i, f and o also depends on the values of i, f and o at the
    previous step, which are initially 0: i = sigmoid(... + V_ii i + V_fi f + V_oi o), and similarly
    f and o. The carry is then an `LSTMGateCarry`.

    With `proj_size`, the output is the projection y = R h', and each U multiplies R h instead of h.
    The carry contains h before the projection, so that `update` is elementwise; `readout` and
    `recur` compute the product with R.

    With `heads` above 1, each U (and V) is block-diagonal: a unit depends only on the units of its
    own head, or with `proj_size` only on the part of R h of its own head.

    `jrnn.lstm_variant` returns the variants of Greff et al. by name.

    Args:
      hidden_size: number of units.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.
      peepholes: whether the gates i, f and o depend on the cell state, with one weight for each
        unit, which is initially 0.
      coupled: whether the input gate is i = 1 - f.
      t_max: if given, the biases have the chrono initialization for dependencies of up to `t_max`
        steps: b_f = log(v), v ~ Uniform(1, t_max - 1), and b_i = -b_f. It replaces `forget_bias`.
      input_gate: whether the cell has the gate i; otherwise i = 1.
      forget_gate: whether the cell has the gate f; otherwise f = 1, as in the original LSTM.
      output_gate: whether the cell has the gate o; otherwise o = 1.
      input_activation: activation of the candidate: "tanh", "relu", "sigmoid" or "linear".
      output_activation: activation of the cell state in h'; the same choices.
      gate_recurrence: whether i, f and o depend on i, f and o of the previous step.
      proj_size: size of the output y; None for no projection.
      heads: number of blocks on the diagonal of each U; must divide `hidden_size` and `proj_size`.
        With one unit in each head and no projection, unit k of the new carry depends only on unit k
        of the old carry.
      bias: whether the cell has the biases; False also requires the default `forget_bias`, which
        has no effect then.

    Raises:
      ValueError: `hidden_size` or `proj_size` is not a positive int that `heads` divides,
        `forget_bias` is not a finite number, `t_max` is below 3, an activation is unknown, another
        option is not a bool, or options are incompatible, such as `t_max` with a non-default
        `forget_bias`, or `t_max` without a forget gate.

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
      Greff et al., 2017, LSTM: A search space odyssey (disabled gates; coupled gates: CIFG;
      gate_recurrence: FGR).
      Olah, 2015, Understanding LSTM networks.
    """

    hidden_size: int
    _: KW_ONLY
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
    bias: bool = True

    def __post_init__(self) -> None:
        checks.positive_int("LSTM", "hidden_size", self.hidden_size)
        checks.finite_number("LSTM", "forget_bias", self.forget_bias)
        if self.t_max is not None:
            checks.t_max("LSTM", self.t_max, forget_bias=self.forget_bias, default=1.0)
        checks.divides("LSTM", "heads", self.heads, "hidden_size", self.hidden_size)
        if self.proj_size is not None:
            checks.positive_int("LSTM", "proj_size", self.proj_size)
            checks.divides("LSTM", "heads", self.heads, "proj_size", self.proj_size)
        validate_options(self)

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that have weights, in the order of concatenation."""
        has_weights = {
            "i": self.input_gate and not self.coupled,
            "f": self.forget_gate,
            "g": True,
            "o": self.output_gate,
        }
        return tuple(gate for gate, value in has_weights.items() if value)

    @property
    def has_coupled_carry(self) -> bool:
        return self.gate_recurrence

    def kernel_name(self) -> str | None:
        all_gates = self.input_gate and self.forget_gate and self.output_gate
        all_tanh = self.input_activation == self.output_activation == "tanh"
        has_kernel_shape = not self.gate_recurrence and self.proj_size is None and self.heads == 1
        if not (all_gates and all_tanh and has_kernel_shape):
            return None
        return "lstm" + "-peepholes" * self.peepholes + "-coupled" * self.coupled

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LSTMParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        hidden, count = self.hidden_size, len(self.gates)
        # Three distinct arrays, since a buffer can be donated only once.
        p_i, p_f, p_o = (
            jnp.zeros((hidden,), dtype) if self.peepholes and gate in self.gates else None
            for gate in "ifo"
        )
        return LSTMParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, count, dtype),
            w_hh=initializers.recurrent_weights(
                key_hh, hidden, count, dtype, heads=self.heads, rows=self.proj_size
            ),
            b=self._init_bias(key_b, dtype) if self.bias else None,
            p_i=p_i,
            p_f=p_f,
            p_o=p_o,
            w_gates=self._init_gate_recurrence(jax.random.fold_in(key_hh, 1), dtype),
            w_hr=self._init_projection(jax.random.fold_in(key_hh, 2), dtype),
        )

    def _init_bias(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        b_f = initializers.forget_gate_bias(
            key, self.hidden_size, self.t_max, self.forget_bias, dtype
        )
        gate_biases = {"f": b_f} if self.t_max is None else {"f": b_f, "i": -b_f}
        zeros = jnp.zeros((self.hidden_size,), dtype)
        return jnp.concatenate([gate_biases.get(gate, zeros) for gate in self.gates])

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
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        if self.gate_recurrence:
            return LSTMGateCarry(zeros, zeros, zeros, zeros, zeros)
        return LSTMCarry(zeros, zeros)

    def project(self, params: LSTMParams, x: jax.Array) -> LSTMGates:
        return split_gates(affine(self, x, params.w_ih, params.b), LSTMGates, self.gates)

    def recur(self, params: LSTMParams, carry: LSTMCarry | LSTMGateCarry) -> LSTMGates:
        u = recurrent_matmul(_project_state(params, carry.h), params.w_hh, LSTMGates, self.gates)
        return u if params.w_gates is None else _add_gate_recurrence(u, carry, params.w_gates)

    def update(
        self, params: LSTMParams, carry: LSTMCarry | LSTMGateCarry, z: LSTMGates, u: LSTMGates
    ) -> LSTMCarry | LSTMGateCarry:
        a = jax.tree.map(jnp.add, z, u)
        # Forget: the fraction of the old cell state to keep.
        f = _gate(a.f, params.p_f, carry.c)
        # Input: the candidate values to add to the cell state.
        i = 1 - f if self.coupled else _gate(a.i, params.p_i, carry.c)
        i, f = tap("i", i), tap("f", f)
        g = tap("g", ACTIVATIONS[self.input_activation](a.g), role="candidate")
        # Update the cell state.
        c = f * carry.c + i * g
        # Output: the part of the cell state to expose.
        o = tap("o", _gate(a.o, params.p_o, c))
        h = o * ACTIVATIONS[self.output_activation](tap(None, c, role="cell_state"))
        return LSTMGateCarry(h, c, i, f, o) if self.gate_recurrence else LSTMCarry(h, c)

    def readout(
        self, params: LSTMParams, carry: LSTMCarry | LSTMGateCarry, z: LSTMGates
    ) -> jax.Array:
        return _project_state(params, carry.h)


def _project_state(params: LSTMParams, h: jax.Array) -> jax.Array:
    """Returns R h, or h if the cell has no projection."""
    return h if params.w_hr is None else h @ params.w_hr


def _gate(a: jax.Array | None, p: jax.Array | None, c: jax.Array) -> jax.Array:
    """Returns sigmoid(a + p * c), without p if p is None; 1 if a is None (a disabled gate)."""
    if a is None:
        return jnp.ones_like(c)
    return sigmoid(a if p is None else a + multiply(p, c))


def _add_gate_recurrence(u: LSTMGates, carry: Any, w_gates: jax.Array) -> LSTMGates:
    """Adds the products of V with the previous gates to the pre-activations of i, f and o."""
    for gate, w in zip((carry.i, carry.f, carry.o), w_gates, strict=True):
        v = recurrent_matmul(gate, w, LSTMGates, ("i", "f", "o"))
        u = LSTMGates(i=u.i + v.i, f=u.f + v.f, g=u.g, o=u.o + v.o)
    return u
