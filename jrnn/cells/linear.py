"""Linear recurrences with weights that no input changes: the linear recurrent unit."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.cell import Cell, record
from jrnn.cells.common import advance, product, split


class LRUParams(NamedTuple):
    """Weights, all of them real: complex ones are in two parts."""

    w_ih: jax.Array  # [input, 3·hidden]: Re B, Im B, D
    nu_log: jax.Array  # [hidden]
    theta_log: jax.Array  # [hidden]
    gamma_log: jax.Array  # [hidden]
    c_re: jax.Array  # [hidden, hidden]
    c_im: jax.Array  # [hidden, hidden]


class LRUGates(NamedTuple):
    """What the input gives, each `[..., hidden]`: the two parts of B x, and D x."""

    re: jax.Array
    im: jax.Array
    d: jax.Array


@dataclass(frozen=True)
class LRU(Cell):
    r"""The linear recurrent unit: complex states that turn and decay, each at its own rate.

    ::

        lambda = exp(-exp(nu_log) + i exp(theta_log))       |lambda| < 1, whatever is learned
        s' = lambda * s + exp(gamma_log) * (B x)            complex state
        y = Re(C s') + D x                                  real output

    The state is complex64, or complex128 with float64 parameters; parameters are real. Gradients
    by it are in JAX's convention, dL/dRe - i dL/dIm. `update` holds the product with C. As in the
    paper it is one linear layer: what is not linear comes between layers.

    B begins as N(0, 1/(2·input)) in both parts and C as N(0, 1/hidden), as in the code of the
    paper's appendix; D as N(0, 1/input), for it is a matrix here, where output and input may differ
    in size, and a diagonal there.

    Args:
      hidden_size: number of complex states, and of outputs.
      r_min: least |lambda| at the start.
      r_max: greatest |lambda| at the start; near 1 the cell remembers for long.
      max_phase: greatest angle of lambda at the start, in radians; small for long sequences.

    Raises:
      ValueError: `hidden_size` is not a positive int, not 0 <= r_min < r_max <= 1, or `max_phase`
        is not positive.

    >>> import jax, jax.numpy as jnp
    >>> cell = LRU(hidden_size=4, r_min=0.9)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> s, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> s.dtype.name, y.dtype.name, y.shape
    ('complex64', 'float32', (2, 4))

    References:
      Orvieto et al., 2023, Resurrecting recurrent neural networks for long sequences.
    """

    hidden_size: int
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi
    recurrence = "linear"
    pointwise = False

    def __post_init__(self) -> None:
        checks.positive_int("LRU", "hidden_size", self.hidden_size)
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                "LRU: r_min and r_max must be 0 <= r_min < r_max <= 1, got "
                f"r_min={self.r_min!r}, r_max={self.r_max!r}"
            )
        if not 0 < self.max_phase < math.inf:
            raise ValueError(
                "LRU: max_phase must be an angle above 0, in radians such as 6.28, got "
                f"{self.max_phase!r}"
            )

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LRUParams:
        dtype = checks.float_dtype("LRU.init", dtype)
        checks.positive_int("LRU.init", "input_size", input_size)
        key_b, key_c, key_d, key_ring = jax.random.split(key, 4)
        hidden = self.hidden_size
        normal = lambda variance: jax.nn.initializers.normal(math.sqrt(variance))
        b = initializers.per_gate(normal(0.5 / input_size), key_b, input_size, hidden, 2, dtype)
        c = initializers.per_gate(normal(1 / hidden), key_c, hidden, hidden, 2, dtype)
        d = initializers.per_gate(normal(1 / input_size), key_d, input_size, hidden, 1, dtype)
        c_re, c_im = jnp.split(c, 2, axis=-1)
        ring = initializers.ring(key_ring, hidden, self.r_min, self.r_max, self.max_phase, dtype)
        return LRUParams(jnp.concatenate([b, d], axis=-1), *ring, c_re=c_re, c_im=c_im)

    def init_carry(self, params: LRUParams, batch_shape: tuple[int, ...]) -> jax.Array:
        dtype = jnp.promote_types(params.nu_log.dtype, jnp.complex64)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def project(self, params: LRUParams, x: jax.Array) -> LRUGates:
        return split(product(self, x, params.w_ih), LRUGates, ("re", "im", "d"))

    def recur(self, params: LRUParams, carry: jax.Array) -> None:
        return None

    def coefficients(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, params: LRUParams, z: LRUGates
    ) -> tuple[jax.Array, jax.Array]:
        decay, angle = jnp.exp(wide(params.nu_log)), jnp.exp(wide(params.theta_log))
        taken_in = jnp.exp(wide(params.gamma_log)) * lax.complex(wide(z.re), wide(z.im))
        return jnp.exp(lax.complex(-decay, angle)), taken_in

    def update(
        self, params: LRUParams, carry: jax.Array, z: LRUGates, u: None
    ) -> tuple[jax.Array, jax.Array]:
        s = advance(self.coefficients(params, z), carry)
        record(re=s.real, im=s.imag)
        y = s.real @ params.c_re - s.imag @ params.c_im + z.d
        return s, y.astype(z.d.dtype)


def wide(a: jax.Array) -> jax.Array:
    """At least float32: there are no complex numbers of half precision."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
