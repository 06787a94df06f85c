"""Cells with one gate: MGU, UGRNN and MinimalRNN."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell
from jrnn.cells.common import affine, input_matmul, split_gates
from jrnn.taps import tap


class MGUParams(NamedTuple):
    """Weights, with the gates concatenated in the order f, n."""

    w_ih: jax.Array  # [input, 2·hidden]
    w_hh: jax.Array  # [hidden, 2·hidden]
    b: jax.Array  # [2·hidden]


class MGUGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`; n is None in the result of `recur`."""

    f: jax.Array
    n: jax.Array


class UGRNNParams(NamedTuple):
    """Weights, with the gates concatenated in the order z, n."""

    w_ih: jax.Array  # [input, 2·hidden]
    w_hh: jax.Array  # [hidden, 2·hidden]
    b: jax.Array  # [2·hidden]


class UGRNNGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`."""

    z: jax.Array
    n: jax.Array


class MinimalRNNParams(NamedTuple):
    """Weights of the candidate n and of the gate z, and biases in the order z, n."""

    w_ih: jax.Array  # [input, hidden], W_n of the equations
    w_nz: jax.Array  # [hidden, hidden], W_z
    w_hh: jax.Array  # [hidden, hidden], U_z
    b: jax.Array  # [2·hidden]


class MinimalRNNGates(NamedTuple):
    """The pre-activation of z, and the candidate n after tanh, each `[..., hidden]`.

    In the result of `recur`, n is None.
    """

    z: jax.Array
    n: jax.Array


@dataclass(frozen=True)
class MGU(Cell):
    r"""The minimal gated unit: a GRU with a single gate, used as both reset and update gate.

    ::

        f = sigmoid(W_f x + U_f h + b_f)                    reset gate and update gate
        n = tanh(W_n x + U_n (f * h) + b_n)                 candidate
        h' = (1 - f) * h + f * n,   y = h'

    `update` computes the matrix product with f * h, so it is not elementwise.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MGU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Zhou et al., 2016, Minimal gated unit for recurrent neural networks.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("MGU", "hidden_size", self.hidden_size)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> MGUParams:
        key_ih, key_hh = jax.random.split(key)
        return MGUParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 2, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 2, dtype),
            b=jnp.zeros((2 * self.hidden_size,), dtype),
        )

    def init_carry(self, params: MGUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MGUParams, x: jax.Array) -> MGUGates:
        return split_gates(affine(self, x, params.w_ih, params.b), MGUGates, ("f", "n"))

    def recur(self, params: MGUParams, carry: jax.Array) -> MGUGates:
        return split_gates(carry @ params.w_hh[:, : self.hidden_size], MGUGates, ("f",))

    def update(self, params: MGUParams, carry: jax.Array, z: MGUGates, u: MGUGates) -> jax.Array:
        f = tap("f", sigmoid(z.f + u.f))
        u_n = (f * carry) @ params.w_hh[:, self.hidden_size :]
        n = tap("n", jnp.tanh(z.n + u_n), role="candidate")
        return (1 - f) * carry + f * n


@dataclass(frozen=True)
class UGRNN(Cell):
    r"""The update gate RNN: a simple RNN with an update gate.

    ::

        z = sigmoid(W_z x + U_z h + b_z)                    update gate
        n = tanh(W_n x + U_n h + b_n)                       candidate
        h' = z * h + (1 - z) * n,   y = h'

    The paper writes g for z and c for n.

    Args:
      hidden_size: number of units.
      forget_bias: initial value of b_z; 1 keeps most of the state at initialization.
      t_max: if given, b_z has the chrono initialization for dependencies of up to `t_max` steps:
        b_z = log(v), v ~ Uniform(1, t_max - 1). It replaces `forget_bias`.

    Raises:
      ValueError: `hidden_size` is not a positive int, `forget_bias` is not a finite number, `t_max`
        is below 3, or `t_max` is given with a non-default `forget_bias`.

    >>> import jax, jax.numpy as jnp
    >>> cell = UGRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Collins, Sohl-Dickstein and Sussillo, 2017, Capacity and trainability in recurrent neural
      networks.
    """

    hidden_size: int
    _: KW_ONLY
    forget_bias: float = 1.0
    t_max: int | None = None

    def __post_init__(self) -> None:
        checks.positive_int("UGRNN", "hidden_size", self.hidden_size)
        checks.finite_number("UGRNN", "forget_bias", self.forget_bias)
        if self.t_max is not None:
            checks.t_max("UGRNN", self.t_max, forget_bias=self.forget_bias, default=1.0)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> UGRNNParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        b_z = initializers.forget_gate_bias(
            key_b, self.hidden_size, self.t_max, self.forget_bias, dtype
        )
        return UGRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 2, dtype),
            w_hh=initializers.recurrent_weights(key_hh, self.hidden_size, 2, dtype),
            b=jnp.concatenate([b_z, jnp.zeros_like(b_z)]),
        )

    def init_carry(self, params: UGRNNParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: UGRNNParams, x: jax.Array) -> UGRNNGates:
        return split_gates(affine(self, x, params.w_ih, params.b), UGRNNGates, ("z", "n"))

    def recur(self, params: UGRNNParams, carry: jax.Array) -> UGRNNGates:
        return split_gates(carry @ params.w_hh, UGRNNGates, ("z", "n"))

    def update(
        self, params: UGRNNParams, carry: jax.Array, z: UGRNNGates, u: UGRNNGates
    ) -> jax.Array:
        update_gate = tap("z", sigmoid(z.z + u.z))
        n = tap("n", jnp.tanh(z.n + u.n), role="candidate")
        return update_gate * carry + (1 - update_gate) * n


@dataclass(frozen=True)
class MinimalRNN(Cell):
    r"""The minimal RNN: one gate interpolates between the state and an embedding of the input.

    ::

        n = tanh(W_n x + b_n)                               candidate, an embedding of the input
        z = sigmoid(W_z n + U_z h + b_z)                    update gate
        h' = z * h + (1 - z) * n,   y = h'

    The paper writes z for n, and u for z. It allows any network for the map from x to n; this cell
    has one layer, as in the paper's experiments.

    Args:
      hidden_size: number of units.

    Raises:
      ValueError: `hidden_size` is not a positive int.

    >>> import jax, jax.numpy as jnp
    >>> cell = MinimalRNN(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Chen, 2017, MinimalRNN: Toward more interpretable and trainable recurrent neural networks.
    """

    hidden_size: int

    def __post_init__(self) -> None:
        checks.positive_int("MinimalRNN", "hidden_size", self.hidden_size)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> MinimalRNNParams:
        hidden = self.hidden_size
        key_ih, key_nz, key_hh = jax.random.split(key, 3)
        return MinimalRNNParams(
            w_ih=initializers.input_weights(key_ih, input_size, hidden, 1, dtype),
            w_nz=initializers.input_weights(key_nz, hidden, hidden, 1, dtype),
            w_hh=initializers.recurrent_weights(key_hh, hidden, 1, dtype),
            b=jnp.zeros((2 * hidden,), dtype),
        )

    def init_carry(self, params: MinimalRNNParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: MinimalRNNParams, x: jax.Array) -> MinimalRNNGates:
        b = split_gates(params.b, MinimalRNNGates, ("z", "n"))
        n = jnp.tanh(add(input_matmul(self, x, params.w_ih), b.n))
        return MinimalRNNGates(z=add(n @ params.w_nz, b.z), n=n)

    def recur(self, params: MinimalRNNParams, carry: jax.Array) -> MinimalRNNGates:
        return split_gates(carry @ params.w_hh, MinimalRNNGates, ("z",))

    def update(
        self, params: MinimalRNNParams, carry: jax.Array, z: MinimalRNNGates, u: MinimalRNNGates
    ) -> jax.Array:
        update_gate = tap("z", sigmoid(z.z + u.z))
        n = tap("n", z.n, role="candidate")
        return update_gate * carry + (1 - update_gate) * n
