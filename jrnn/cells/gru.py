"""The GRU, with the reset gate applied after or before the recurrent matrix product."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell
from jrnn.cells.common import affine, recurrent_matmul, split_gates
from jrnn.taps import tap


class GRUParams(NamedTuple):
    """Weights, with the gates concatenated in the order r, z, n."""

    w_ih: jax.Array  # [input, 3·hidden]
    w_hh: jax.Array  # [hidden, 3·hidden], or [heads, hidden/heads, 3·hidden/heads]
    b: jax.Array | None  # [3·hidden], None with bias=False
    b_hn: jax.Array | None = None  # [hidden], only with reset_after and bias


class GRUGates(NamedTuple):
    """Pre-activations, each `[..., hidden]`.

    With `reset_after=False`, n is None in the result of `recur`.
    """

    r: jax.Array
    z: jax.Array
    n: Any  # array or None


@dataclass(frozen=True)
class GRU(Cell):
    r"""The GRU: a gated cell with a reset gate, an update gate and one state.

    ::

        r = sigmoid(W_r x + U_r h + b_r)                    reset gate
        z = sigmoid(W_z x + U_z h + b_z)                    update gate
        n = tanh(W_n x + b_n + r * (U_n h + b_hn))          candidate, reset_after=True
        n = tanh(W_n x + b_n + U_n (r * h))                 candidate, reset_after=False
        h' = (1 - z) * n + z * h,   y = h'

    `reset_after=True` is the convention of PyTorch and cuDNN, and is faster. `reset_after=False` is
    the convention of Cho et al.; then `update` computes the matrix product with r * h, so it is not
    elementwise.

    With `heads` above 1 each U is block-diagonal: a unit depends only on the units of its own head.

    Args:
      hidden_size: number of units.
      reset_after: whether the reset gate is applied after the product with U_n, instead of before.
      t_max: if given, b_z has the chrono initialization for dependencies of up to `t_max` steps:
        b_z = log(v), v ~ Uniform(1, t_max - 1).
      heads: number of blocks on the diagonal of each U; must divide `hidden_size`. With one unit
        in each head, unit k of the new h depends only on unit k of the old h, and `update` is
        elementwise with either value of `reset_after`.
      bias: whether the cell has the biases.

    Raises:
      ValueError: `hidden_size` is not a positive int, `t_max` is below 3 or given with
        `bias=False`, `heads` does not divide `hidden_size`, or `reset_after` or `bias` is not a
        bool.

    >>> import jax, jax.numpy as jnp
    >>> cell = GRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      Cho et al., 2014, Learning phrase representations using RNN encoder-decoder.
      Chung et al., 2014, Empirical evaluation of gated recurrent neural networks.
      Tallec and Ollivier, 2018, Can recurrent neural networks warp time? (t_max)
    """

    hidden_size: int
    _: KW_ONLY
    reset_after: bool = True
    t_max: int | None = None
    heads: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        checks.positive_int("GRU", "hidden_size", self.hidden_size)
        checks.boolean("GRU", "reset_after", self.reset_after)
        if self.t_max is not None:
            checks.t_max("GRU", self.t_max)
        if not checks.boolean("GRU", "bias", self.bias) and self.t_max is not None:
            raise ValueError(
                f"GRU: t_max={self.t_max} requires biases, got bias=False; remove one of them"
            )
        checks.divides("GRU", "heads", self.heads, "hidden_size", self.hidden_size)

    def kernel_name(self) -> str | None:
        return "gru" if self.reset_after and self.heads == 1 else None

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> GRUParams:
        key_ih, key_hh, key_b = jax.random.split(key, 3)
        zeros = jnp.zeros((self.hidden_size,), dtype)
        b_hn = jnp.zeros((self.hidden_size,), dtype) if self.reset_after and self.bias else None
        b_z = initializers.forget_gate_bias(key_b, self.hidden_size, self.t_max, 0.0, dtype)
        return GRUParams(
            w_ih=initializers.input_weights(key_ih, input_size, self.hidden_size, 3, dtype),
            w_hh=initializers.recurrent_weights(
                key_hh, self.hidden_size, 3, dtype, heads=self.heads
            ),
            b=jnp.concatenate([zeros, b_z, zeros]) if self.bias else None,
            b_hn=b_hn,
        )

    def init_carry(self, params: GRUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: GRUParams, x: jax.Array) -> GRUGates:
        return split_gates(affine(self, x, params.w_ih, params.b), GRUGates, ("r", "z", "n"))

    def recur(self, params: GRUParams, carry: jax.Array) -> GRUGates:
        if self.reset_after:
            return recurrent_matmul(carry, params.w_hh, GRUGates, ("r", "z", "n"))
        w_rz, _ = self._split_weights(params)
        return recurrent_matmul(carry, w_rz, GRUGates, ("r", "z"))

    def update(self, params: GRUParams, carry: jax.Array, z: GRUGates, u: GRUGates) -> jax.Array:
        reset_gate = tap("r", sigmoid(z.r + u.r))
        update_gate = tap("z", sigmoid(z.z + u.z))
        if self.reset_after:
            recurrent = reset_gate * (u.n if params.b_hn is None else add(u.n, params.b_hn))
        else:
            _, w_n = self._split_weights(params)
            h = reset_gate * carry
            recurrent = recurrent_matmul(h, w_n, GRUGates, ("n",)).n
        n = tap("n", jnp.tanh(z.n + recurrent), role="candidate")
        return (1 - update_gate) * n + update_gate * carry

    def _split_weights(self, params: GRUParams) -> list[jax.Array]:
        """Splits w_hh into the weights of r and z, and those of n."""
        return jnp.split(params.w_hh, [2 * self.hidden_size // self.heads], axis=-1)
