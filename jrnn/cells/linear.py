"""The linear recurrent unit: a linear recurrence with learned complex eigenvalues."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell, Diagonal
from jrnn.cells.common import input_matmul, split_gates
from jrnn.dtypes import promote_dtypes
from jrnn.taps import tap


class LRUParams(NamedTuple):
    """Real weights; complex matrices are stored as their real and imaginary parts."""

    w_ih: jax.Array  # [input, 3·hidden]: Re B, Im B, D
    nu_log: jax.Array  # [hidden]
    theta_log: jax.Array  # [hidden]
    gamma_log: jax.Array  # [hidden]
    c_re: jax.Array  # [hidden, hidden]
    c_im: jax.Array  # [hidden, hidden]


class LRUGates(NamedTuple):
    """The real and imaginary parts of B x, `[..., states]`, and D x, `[..., hidden]`.

    `states` is `hidden_size` for `LRU`, and `num_states` for `S5`.
    """

    re: jax.Array
    im: jax.Array
    d: jax.Array


@dataclass(frozen=True)
class LRU(Cell):
    r"""The linear recurrent unit: a linear recurrence with learned complex eigenvalues.

    ::

        lambda = exp(-exp(nu_log) + i exp(theta_log))       |lambda| < 1
        s' = lambda * s + exp(gamma_log) * (B x)            complex state
        y = Re(C s') + D x                                  real output

    The paper writes x for the state s, and u for the input x. The parameters are real. The state is
    complex64, or complex128 with float64 parameters. Gradients with respect to the state follow
    JAX's convention, dL/dRe - i dL/dIm. `readout` computes the product with C. The cell is a linear
    map of its inputs: in the paper, nonlinearities are between the layers.

    The real and imaginary parts of B are initialized from N(0, 1/(2·input)), those of C from
    N(0, 1/hidden), as in the code in the paper's appendix, and D from N(0, 1/input). In the paper
    D is diagonal; here it is a full matrix, since input and output may have different sizes.

    Args:
      hidden_size: number of complex states, and of outputs.
      r_min: smallest initial |lambda|.
      r_max: largest initial |lambda|; choose a value close to 1 for long dependencies.
      max_phase: largest initial argument of lambda, in radians; choose a small value for long
        sequences.

    Raises:
      ValueError: `hidden_size` is not a positive int, 0 <= r_min < r_max <= 1 does not hold, or
        `max_phase` is not a finite number above 0.

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
    _: KW_ONLY
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        checks.positive_int("LRU", "hidden_size", self.hidden_size)
        are_numbers = checks.is_number(self.r_min) and checks.is_number(self.r_max)
        if not are_numbers or not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                "LRU: r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got "
                f"r_min={self.r_min!r}, r_max={self.r_max!r}"
            )
        if not checks.is_number(self.max_phase) or not 0 < self.max_phase < math.inf:
            raise ValueError(
                "LRU: max_phase must be a finite angle above 0 in radians, such as 6.28, got "
                f"{self.max_phase!r}"
            )

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> LRUParams:
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
        dtype = promote_dtypes(params.nu_log.dtype, jnp.complex64)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def project(self, params: LRUParams, x: jax.Array) -> LRUGates:
        return split_gates(input_matmul(self, x, params.w_ih), LRUGates, ("re", "im", "d"))

    def recur(self, params: LRUParams, carry: jax.Array) -> None:
        return None

    def coefficients(self, params: LRUParams, z: LRUGates) -> Diagonal:
        nu, theta, gamma = (
            jnp.exp(promote_to_float32(log))
            for log in (params.nu_log, params.theta_log, params.gamma_log)
        )
        b = lax.complex(promote_to_float32(z.re), promote_to_float32(z.im))
        return Diagonal(jnp.exp(lax.complex(-nu, theta)), multiply(gamma.astype(b.dtype), b))

    def update(self, params: LRUParams, carry: jax.Array, z: LRUGates, u: None) -> jax.Array:
        return update_complex(self.coefficients(params, z), carry)

    def readout(self, params: LRUParams, carry: jax.Array, z: LRUGates) -> jax.Array:
        return readout_complex(carry, params.c_re, params.c_im, z.d)


def update_complex(coefficients: Diagonal, carry: jax.Array) -> jax.Array:
    """Returns the new complex state, and names its real and imaginary parts as taps."""
    s = coefficients.apply(carry)
    tap("re", s.real)
    tap("im", s.imag)
    return s


def readout_complex(
    s: jax.Array, c_re: jax.Array, c_im: jax.Array, d: jax.Array, scale: int = 1
) -> jax.Array:
    """Returns scale · Re(C s) + d, in the dtype of d."""
    re, im = s.real.astype(d.dtype), s.imag.astype(d.dtype)
    return (scale * (re @ c_re - im @ c_im) + d).astype(d.dtype)


def promote_to_float32(a: jax.Array) -> jax.Array:
    """Casts half precision to float32, since JAX has no half-precision complex dtype."""
    return a.astype(promote_dtypes(a.dtype, jnp.float32))
