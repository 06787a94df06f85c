"""The real-gated linear recurrent unit (RG-LRU) of Griffin."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell, Diagonal
from jrnn.cells.common import affine, split_gates
from jrnn.cells.linear import promote_to_float32
from jrnn.dtypes import promote_dtypes
from jrnn.taps import tap

DECAY_SCALE = 8.0
"""The constant c of the paper, a factor of log a."""


class RGLRUParams(NamedTuple):
    """Weights, with the gates concatenated in the order r, i, v, and the decay parameter lam."""

    w_ih: jax.Array  # [input, 3·hidden]
    b: jax.Array  # [3·hidden]
    lam: jax.Array  # [hidden]


class RGLRUGates(NamedTuple):
    """Pre-activations of the gates r and i, and the value v, each `[..., hidden]`."""

    r: jax.Array
    i: jax.Array
    v: jax.Array


@dataclass(frozen=True)
class RGLRU(Cell):
    r"""The real-gated linear recurrent unit: each unit decays at a rate that depends on the input.

    ::

        r = sigmoid(W_r x + b_r)                            recurrence gate
        i = sigmoid(W_i x + b_i)                            input gate
        v = W_v x + b_v                                     value
        log a = -8 r * softplus(lam)                        a = sigmoid(-lam)^(8 r)
        h' = a * h + sqrt(1 - a^2) * (i * v),   y = h'

    The paper writes Lambda for lam, and c for 8. In the paper v is the input of the cell, which the
    surrounding block computes by a linear layer. Here that layer is part of the cell, since the
    input and hidden sizes may differ. The paper's appendix contains both a = sigmoid(lam) and
    log a = -8 r softplus(lam), which differ in the sign of lam; this cell uses the second formula,
    as the authors' code does. Unlike that code, and like the paper, this cell does not clip the
    derivative of the square root, and applies the square root at the first step too. Its derivative
    is exact and finite.

    lam is initialized so that sigmoid(-lam)^8, the value of a at r = 1, is uniform in
    [r_min, r_max]. The weights are LeCun-normal, with variance 1/input. a is computed in float32 or
    wider, since 0.999 rounds to 1 in bfloat16.

    Args:
      hidden_size: number of units.
      r_min: smallest initial value of a at r = 1.
      r_max: largest initial value of a at r = 1; choose a value close to 1 for long dependencies.

    Raises:
      ValueError: `hidden_size` is not a positive int, or 0 < r_min < r_max < 1 does not hold.

    >>> import jax, jax.numpy as jnp
    >>> cell = RGLRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 4)

    References:
      De et al., 2024, Griffin: mixing gated linear recurrences with local attention for efficient
      language models.
    """

    hidden_size: int
    _: KW_ONLY
    r_min: float = 0.9
    r_max: float = 0.999

    def __post_init__(self) -> None:
        checks.positive_int("RGLRU", "hidden_size", self.hidden_size)
        are_numbers = checks.is_number(self.r_min) and checks.is_number(self.r_max)
        if not are_numbers or not 0 < self.r_min < self.r_max < 1:
            raise ValueError(
                "RGLRU: r_min and r_max must satisfy 0 < r_min < r_max < 1, got "
                f"r_min={self.r_min!r}, r_max={self.r_max!r}"
            )

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> RGLRUParams:
        key_ih, key_lam = jax.random.split(key)
        lecun, hidden = jax.nn.initializers.lecun_normal(), self.hidden_size
        draw_dtype = promote_dtypes(dtype, jnp.float32)
        decay = initializers.uniform(key_lam, hidden, self.r_min, self.r_max, draw_dtype)
        return RGLRUParams(
            w_ih=initializers.per_gate(lecun, key_ih, input_size, hidden, 3, dtype),
            b=jnp.zeros((3 * hidden,), dtype),
            # The inverse of decay = exp(-8 softplus(lam)).
            lam=jnp.log(jnp.expm1(-jnp.log(decay) / DECAY_SCALE)).astype(dtype),
        )

    def init_carry(self, params: RGLRUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.lam.dtype)

    def project(self, params: RGLRUParams, x: jax.Array) -> RGLRUGates:
        return split_gates(affine(self, x, params.w_ih, params.b), RGLRUGates, ("r", "i", "v"))

    def recur(self, params: RGLRUParams, carry: jax.Array) -> None:
        return None

    def coefficients(self, params: RGLRUParams, z: RGLRUGates) -> Diagonal:
        r = tap("r", sigmoid(promote_to_float32(z.r)))
        i, v = tap("i", sigmoid(z.i)), tap("v", z.v)
        log_a = multiply(-DECAY_SCALE * r, softplus(promote_to_float32(params.lam)))
        return Diagonal(
            jnp.exp(log_a), safe_sqrt(-jnp.expm1(2 * log_a)) * promote_to_float32(i * v)
        )

    def update(self, params: RGLRUParams, carry: jax.Array, z: RGLRUGates, u: None) -> jax.Array:
        return self.coefficients(params, z).apply(promote_to_float32(carry)).astype(carry.dtype)


def safe_sqrt(a: jax.Array) -> jax.Array:
    """Returns the square root of non-negative numbers, with derivative 0 at 0.

    The argument 1 - a^2 is 0 where the recurrence gate underflows to 0. There the derivative of the
    gate is also 0, and its product with the infinite derivative of the square root would be NaN.
    """
    positive = a > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, a, 1)), 0)
