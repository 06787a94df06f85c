"""The real-gated linear recurrent unit of Griffin."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, record
from jrnn.cells.common import advance, affine, split
from jrnn.cells.linear import wide

SHARPNESS = 8.0
"""The c of the paper, which says how far the gate moves the decay."""


class RGLRUParams(NamedTuple):
    """Weights with the gates side by side in the order r, i, v."""

    w_ih: jax.Array  # [input, 3·hidden]
    b: jax.Array  # [3·hidden]
    lam: jax.Array  # [hidden]


class RGLRUGates(NamedTuple):
    """Pre-activations of the gates, and the value, each `[..., hidden]`."""

    r: jax.Array
    i: jax.Array
    v: jax.Array


@dataclass(frozen=True)
class RGLRU(Cell):
    r"""The real-gated linear recurrent unit: a decay for each unit, and an input that moves it.

    ::

        r = sigmoid(W_r x + b_r)                            recurrence gate: how much to decay
        i = sigmoid(W_i x + b_i)                            input gate
        v = W_v x + b_v                                     what to write
        log a = -8 r * softplus(lam)                        a = sigmoid(-lam)^(8 r)
        h' = a * h + sqrt(1 - a^2) * (i * v),   y = h'

    In the paper v is the input itself, after a linear layer of the block around it; here that layer
    is within, for input and hidden size may differ. Its appendix has a = sigmoid(lam) and
    log a = -8 r softplus(lam), which differ in the sign of lam: the second is what the authors'
    code has, and this. Their code bounds the slope of the root and leaves the root out at the first
    step of a sequence; neither is in the paper, nor here, where slopes are right and finite.

    lam begins so that sigmoid(-lam)^8, the decay of an open gate, is uniform in [r_min, r_max]; the
    weights as LeCun's, variance 1/input. a is a float32 number at least: of bfloat16 0.999 is 1.

    Args:
      hidden_size: number of units.
      r_min: least decay of an open gate at the start.
      r_max: greatest decay of an open gate at the start; near 1 the cell remembers for long.

    Raises:
      ValueError: `hidden_size` is not a positive int, or not 0 < r_min < r_max < 1.

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
    r_min: float = 0.9
    r_max: float = 0.999
    recurrence = "linear"

    def __post_init__(self) -> None:
        checks.positive_int("RGLRU", "hidden_size", self.hidden_size)
        if not 0 < self.r_min < self.r_max < 1:
            raise ValueError(
                "RGLRU: r_min and r_max must be 0 < r_min < r_max < 1, got "
                f"r_min={self.r_min!r}, r_max={self.r_max!r}"
            )

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> RGLRUParams:
        dtype = checks.float_dtype("RGLRU.init", dtype)
        checks.positive_int("RGLRU.init", "input_size", input_size)
        key_ih, key_lam = jax.random.split(key)
        lecun, hidden = jax.nn.initializers.lecun_normal(), self.hidden_size
        drawn_in = jnp.promote_types(dtype, jnp.float32)
        decay = initializers.uniform(key_lam, hidden, self.r_min, self.r_max, drawn_in)
        return RGLRUParams(
            w_ih=initializers.per_gate(lecun, key_ih, input_size, hidden, 3, dtype),
            b=jnp.zeros((3 * hidden,), dtype),
            # The inverse of softplus, at -log(decay) / 8.
            lam=jnp.log(jnp.expm1(-jnp.log(decay) / SHARPNESS)).astype(dtype),
        )

    def init_carry(self, params: RGLRUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.lam.dtype)

    def project(self, params: RGLRUParams, x: jax.Array) -> RGLRUGates:
        return split(affine(self, x, params.w_ih, params.b), RGLRUGates, ("r", "i", "v"))

    def recur(self, params: RGLRUParams, carry: jax.Array) -> None:
        return None

    def coefficients(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, params: RGLRUParams, z: RGLRUGates
    ) -> tuple[jax.Array, jax.Array]:
        r, i = sigmoid(wide(z.r)), sigmoid(z.i)
        log_a = -SHARPNESS * r * softplus(wide(params.lam))
        record(r=r, i=i, v=z.v)
        return jnp.exp(log_a), root(-jnp.expm1(2 * log_a)) * (i * z.v)

    def update(
        self, params: RGLRUParams, carry: jax.Array, z: RGLRUGates, u: None
    ) -> tuple[jax.Array, jax.Array]:
        h = advance(self.coefficients(params, z), carry).astype(carry.dtype)
        return h, h


def root(a: jax.Array) -> jax.Array:
    """The square root of numbers from 0 on, with a finite slope at 0: that of a gate that is shut.

    There the slope by the gate's pre-activation is 0, and an infinite one here would make it NaN.
    """
    above = a > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, a, 1)), 0)
