"""The minGRU and the minLSTM, whose gates depend only on the input."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, Diagonal, LogDiagonal
from jrnn.cells.common import affine, split_gates
from jrnn.taps import tap


class MinParams(NamedTuple):
    """Weights, with the gates concatenated in the order z, n (`MinGRU`) or f, i, n (`MinLSTM`)."""

    w_ih: jax.Array  # [input, G·hidden]
    b: jax.Array  # [G·hidden]


class MinGRUGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`."""

    z: jax.Array
    n: jax.Array


class MinLSTMGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`."""

    f: jax.Array
    i: jax.Array
    n: jax.Array


@dataclass(frozen=True)
class MinGRU(Cell):
    r"""The minGRU: a GRU whose gates depend only on the input, hence linear in its state.

    ::

        z = sigmoid(W_z x + b_z)                            update gate
        n = W_n x + b_n                                     candidate
        h' = (1 - z) * h + z * n,   y = h'

    z multiplies the candidate, as in the paper; in `GRU` it multiplies the old state.

    With `log_space` the candidate is positive: n = g(W_n x + b_n), where g(v) = v + 0.5 for v >= 0
    and sigmoid(v) for v < 0. `coefficients` then returns logarithms, whose products over long
    sequences do not overflow or underflow.

    Args:
      hidden_size: number of units.
      log_space: whether the candidate is positive and the coefficients are logarithms.
      t_max: if given, b_z has the chrono initialization for dependencies of up to `t_max` steps:
        b_z = -log(v), v ~ Uniform(1, t_max - 1), so that z is small.

    Raises:
      ValueError: `hidden_size` is not a positive int, `log_space` is not a bool, or `t_max` is
        below 3.

    >>> import jax, jax.numpy as jnp
    >>> cell = MinGRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Feng et al., 2024, Were RNNs all we needed?
    """

    hidden_size: int
    _: KW_ONLY
    log_space: bool = False
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("MinGRU", "hidden_size", self.hidden_size)
        checks.boolean("MinGRU", "log_space", self.log_space)
        if self.t_max is not None:
            checks.t_max("MinGRU", self.t_max)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MinParams:
        key_ih, key_b = (key, key) if self.t_max is None else jax.random.split(key)
        minus_b_z = initializers.forget_gate_bias(key_b, self.hidden_size, self.t_max, 0.0, dtype)
        return MinParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 2, dtype),
            b=jnp.concatenate([-minus_b_z, jnp.zeros_like(minus_b_z)]),
        )

    def init_carry(self, params: MinParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.b.dtype)

    def project(self, params: MinParams, x: jax.Array) -> MinGRUGates:
        return split_gates(affine(self, x, params.w_ih, params.b), MinGRUGates, ("z", "n"))

    def recur(self, params: MinParams, carry: jax.Array) -> None:
        return None

    def coefficients(self, params: MinParams, z: MinGRUGates) -> Diagonal | LogDiagonal:
        update_gate = tap("z", sigmoid(z.z))
        if self.log_space:
            log_n = log_positive(z.n)
            tap("n", jnp.exp(log_n))
            return LogDiagonal(-softplus(z.z), -softplus(-z.z) + log_n)
        n = tap("n", z.n, role="candidate")
        return Diagonal(1 - update_gate, update_gate * n)

    def update(self, params: MinParams, carry: jax.Array, z: MinGRUGates, u: None) -> jax.Array:
        return self.coefficients(params, z).apply(carry)


@dataclass(frozen=True)
class MinLSTM(Cell):
    r"""The minLSTM: an LSTM whose gates depend only on the input, hence linear in its state.

    ::

        f, i = sigmoid(W_f x + b_f), sigmoid(W_i x + b_i)
        f, i = f / (f + i), i / (f + i)                     forget gate and input gate
        n = W_n x + b_n                                     candidate
        h' = f * h + i * n,   y = h'

    With `log_space` the candidate is positive: n = g(W_n x + b_n), where g(v) = v + 0.5 for v >= 0
    and sigmoid(v) for v < 0. `coefficients` then returns logarithms, whose products over long
    sequences do not overflow or underflow.

    Args:
      hidden_size: number of units.
      log_space: whether the candidate is positive and the coefficients are logarithms.
      forget_bias: initial value of b_f; a positive value makes f larger than i if W_f x = W_i x.
      t_max: if given, the biases have the chrono initialization for dependencies of up to `t_max`
        steps: b_f = log(v), v ~ Uniform(1, t_max - 1), and b_i = -b_f. It replaces `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `log_space` is not a bool, `forget_bias` is
        not a finite number, `t_max` is below 3, or `t_max` is given with a non-default
        `forget_bias`.

    >>> import jax, jax.numpy as jnp
    >>> cell = MinLSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Feng et al., 2024, Were RNNs all we needed?
    """

    hidden_size: int
    _: KW_ONLY
    log_space: bool = False
    forget_bias: float = 0.0
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("MinLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("MinLSTM", "forget_bias", self.forget_bias)
        checks.boolean("MinLSTM", "log_space", self.log_space)
        if self.t_max is not None:
            checks.t_max("MinLSTM", self.t_max, forget_bias=self.forget_bias)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MinParams:
        key_ih, key_b = (key, key) if self.t_max is None else jax.random.split(key)
        b_f = initializers.forget_gate_bias(
            key_b, self.hidden_size, self.t_max, self.forget_bias, dtype
        )
        zeros = jnp.zeros_like(b_f)
        return MinParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 3, dtype),
            b=jnp.concatenate([b_f, zeros if self.t_max is None else -b_f, zeros]),
        )

    def init_carry(self, params: MinParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.b.dtype)

    def project(self, params: MinParams, x: jax.Array) -> MinLSTMGates:
        return split_gates(affine(self, x, params.w_ih, params.b), MinLSTMGates, ("f", "i", "n"))

    def recur(self, params: MinParams, carry: jax.Array) -> None:
        return None

    def coefficients(self, params: MinParams, z: MinLSTMGates) -> Diagonal | LogDiagonal:
        # log(i / f). Dividing by f + i, as in the equations, gives 0 / 0 where both underflow.
        d = softplus(-z.f) - softplus(-z.i)
        if self.log_space:
            log_n = log_positive(z.n)
            tap("f", sigmoid(-d))
            tap("i", sigmoid(d))
            tap("n", jnp.exp(log_n))
            return LogDiagonal(-softplus(d), -softplus(-d) + log_n)
        i = sigmoid(d)
        f = tap("f", 1 - i)
        i = tap("i", i)
        n = tap("n", z.n, role="candidate")
        return Diagonal(f, i * n)

    def update(self, params: MinParams, carry: jax.Array, z: MinLSTMGates, u: None) -> jax.Array:
        return self.coefficients(params, z).apply(carry)


def log_positive(v: jax.Array) -> jax.Array:
    """Returns log(v + 0.5) for v >= 0 and log sigmoid(v) for v < 0, with finite derivatives."""
    non_negative = v >= 0
    # JAX multiplies the derivative of the unused branch by 0, so the inner `where` keeps it finite.
    return jnp.where(non_negative, jnp.log(jnp.where(non_negative, v, 0) + 0.5), -softplus(-v))
