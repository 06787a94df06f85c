"""S5: a diagonal state space model, discretized with a learned step size for each state."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import multiply
from jrnn.cell import Cell, Diagonal
from jrnn.cells.common import input_matmul
from jrnn.cells.linear import LRUGates, promote_to_float32, readout_complex, update_complex
from jrnn.dtypes import promote_dtypes


class S5Params(NamedTuple):
    """Real weights; complex matrices are stored as their real and imaginary parts."""

    w_ih: jax.Array  # [input, 2·state + hidden]: Re B, Im B, D
    lambda_re: jax.Array  # [state]
    lambda_im: jax.Array  # [state]
    log_step: jax.Array  # [state]
    c_re: jax.Array  # [state, hidden]
    c_im: jax.Array  # [state, hidden]


@dataclass(frozen=True)
class S5(Cell):
    r"""S5: a linear system in continuous time, ds/dt = lambda s + B x, with learned step sizes.

    ::

        step = exp(log_step)
        a = exp(lambda * step)                              zero-order hold
        s' = a * s + (a - 1) / lambda * (B x)
        y = 2 Re(C s') + D x                                with `conjugate`
        y = Re(C s') + D x                                  without

    The paper writes Delta for step, x for the state s, and u for the input x. The parameters are
    real. The state is complex64, or complex128 with float64 parameters. With `conjugate`, only one
    state of each conjugate pair is stored, and the factor 2 accounts for the other. `readout`
    computes the product with C. The cell is a linear map of its inputs: in the paper,
    nonlinearities are between the layers. Re lambda is initially -1/2; it is not constrained to be
    negative.

    lambda is initialized to the eigenvalues of the normal part of the HiPPO-LegS matrix, as one
    block. Let V be the matrix of its n eigenvectors. Then B = V* B_0 and C = C_0 V, where B_0 and
    C_0 are real with variances 1/input and 1/n. With `conjugate`, n is twice `state_size`, and half
    of the rows of B and of the columns of C are stored; otherwise n is `state_size`. D is drawn
    from N(0, 1/input). In the paper D is diagonal; here it is a full matrix, since input and output
    may have different sizes.

    Args:
      hidden_size: number of outputs.
      state_size: number of stored complex states; by default `hidden_size`.
      conjugate: whether each stored state stands for a conjugate pair.
      step_min: smallest initial step size.
      step_max: largest initial step size. log_step is initialized uniformly in
        [log step_min, log step_max].

    Raises:
      ValueError: `hidden_size` or `state_size` is not a positive int, `conjugate` is not a bool, or
        0 < step_min < step_max < inf does not hold.

    >>> import jax, jax.numpy as jnp
    >>> cell = S5(hidden_size=4, state_size=6)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> s, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 3)))
    >>> s.shape, s.dtype.name, y.shape, y.dtype.name
    ((2, 6), 'complex64', (2, 4), 'float32')

    References:
      Smith, Warrington and Linderman, 2023, Simplified state space layers for sequence modeling.
      Gu et al., 2020, HiPPO: recurrent memory with optimal polynomial projections.
    """

    hidden_size: int
    _: KW_ONLY
    state_size: int | None = None
    conjugate: bool = True
    step_min: float = 0.001
    step_max: float = 0.1

    def __post_init__(self) -> None:
        checks.positive_int("S5", "hidden_size", self.hidden_size)
        if self.state_size is not None:
            checks.positive_int("S5", "state_size", self.state_size)
        checks.boolean("S5", "conjugate", self.conjugate)
        are_numbers = checks.is_number(self.step_min) and checks.is_number(self.step_max)
        if not are_numbers or not 0 < self.step_min < self.step_max < float("inf"):
            raise ValueError(
                "S5: step_min and step_max must satisfy 0 < step_min < step_max < inf, got "
                f"step_min={self.step_min!r}, step_max={self.step_max!r}"
            )

    @property
    def num_states(self) -> int:
        """The number of stored complex states."""
        return self.hidden_size if self.state_size is None else self.state_size

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> S5Params:
        key_b, key_c, key_d, key_step = jax.random.split(key, 4)
        num_eigenvalues = self.num_states * (1 + self.conjugate)
        draw_dtype = promote_dtypes(dtype, jnp.float32)
        # With `conjugate`, keep the eigenvalue of each pair that has a positive imaginary part.
        eig = hippo_legs_eig(num_eigenvalues)
        eigenvalues, v = (jnp.asarray(array[..., -self.num_states :]) for array in eig)
        lecun = jax.nn.initializers.lecun_normal()
        b_0 = lecun(key_b, (input_size, num_eigenvalues), draw_dtype)
        c_0 = lecun(key_c, (num_eigenvalues, self.hidden_size), draw_dtype)
        b, c = b_0.astype(v.dtype) @ v.conj(), v.T @ c_0.astype(v.dtype)
        d = lecun(key_d, (input_size, self.hidden_size), draw_dtype)
        log_step = initializers.uniform(
            key_step, self.num_states, np.log(self.step_min), np.log(self.step_max), draw_dtype
        )
        params = S5Params(
            w_ih=jnp.concatenate([jnp.real(b), jnp.imag(b), d], axis=-1),
            lambda_re=jnp.real(eigenvalues),
            lambda_im=jnp.imag(eigenvalues),
            log_step=log_step,
            c_re=jnp.real(c),
            c_im=jnp.imag(c),
        )
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def init_carry(self, params: S5Params, batch_shape: tuple[int, ...]) -> jax.Array:
        dtype = promote_dtypes(params.log_step.dtype, jnp.complex64)
        return jnp.zeros((*batch_shape, self.num_states), dtype)

    def project(self, params: S5Params, x: jax.Array) -> LRUGates:
        indices = [self.num_states, 2 * self.num_states]
        return LRUGates(*jnp.split(input_matmul(self, x, params.w_ih), indices, axis=-1))

    def recur(self, params: S5Params, carry: jax.Array) -> None:
        return None

    def coefficients(self, params: S5Params, z: LRUGates) -> Diagonal:
        lambda_re, lambda_im, log_step, re, im = map(
            promote_to_float32, (params.lambda_re, params.lambda_im, params.log_step, z.re, z.im)
        )
        step = jnp.exp(log_step)
        b = lax.complex(re, im)
        step = step.astype(b.dtype)
        exponent = lax.complex(lambda_re, lambda_im) * step
        return Diagonal(jnp.exp(exponent), multiply(step * expm1_quotient(exponent), b))

    def update(self, params: S5Params, carry: jax.Array, z: LRUGates, u: None) -> jax.Array:
        return update_complex(self.coefficients(params, z), carry)

    def readout(self, params: S5Params, carry: jax.Array, z: LRUGates) -> jax.Array:
        scale = 1 + self.conjugate
        return readout_complex(carry, params.c_re, params.c_im, z.d, scale)


def expm1_quotient(m: jax.Array) -> jax.Array:
    """Returns (exp(m) - 1) / m, which is 1 at m = 0."""
    is_small = jnp.abs(m) < 0.1
    safe_m = jnp.where(is_small, 1, m)
    # The quotient is inaccurate for small m, so use the series 1 + m / 2 (1 + m / 3 (1 + ...)).
    series = jnp.ones_like(m)
    for n in range(11, 1, -1):
        series = 1 + m / n * series
    return jnp.where(is_small, series, jnp.expm1(safe_m) / safe_m)


def hippo_legs_eig(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Diagonalizes the normal part of the HiPPO-LegS matrix A.

    With p_n = sqrt(n + 1/2) the normal part is A + p p^T = -1/2 I + S. S is skew-symmetric, with
    the entries p_n p_k above the diagonal and -p_n p_k below it.

    Returns:
      Eigenvalues `[size]`, sorted by their imaginary parts, and eigenvectors `[size, size]`, in
      columns.
    """
    p = np.sqrt(np.arange(size) + 0.5)
    skew = np.triu(np.outer(p, p), 1) - np.tril(np.outer(p, p), -1)
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * imaginary, vectors
