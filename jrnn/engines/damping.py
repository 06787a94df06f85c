"""The damped step of Newton's method over time, computed by a Kalman smoother.

With Jacobians A_t and residuals r_t, the changes d_t of the states minimize::

    sum over t of |d_t - A_t d_{t-1} - r_t|^2 + damping |d_t|^2

with d = 0 before the first step. They are the smoothed means of a linear Gaussian state space model
with states d_t, transitions A_t, offsets r_t and unit noise, given that every d_t is observed as
zero with variance 1/damping. The means satisfy linear recurrences. The covariances do not, but they
can also be computed by an associative scan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.broadcasting import expand_like, multiply
from jrnn.engines import recurrence
from jrnn.engines.jacobian import JacobianKind, Leaves, concat_leaves, split_leaves


class CovarianceOps(NamedTuple):
    """Operations on covariances, which are scalars or matrices `[..., n, n]`.

    Attributes:
      algebra: the products of Jacobians and vectors.
      matmul: the product of two covariances or Jacobians.
      adjoint: the conjugate transpose.
      positive_inverse: the inverse of positive definite matrices.
      general_inverse: the inverse of invertible matrices.
      identity: identity matrices in the shape of the argument.
    """

    algebra: recurrence.Algebra
    matmul: Callable[[jax.Array, jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array]
    positive_inverse: Callable[[jax.Array], jax.Array]
    general_inverse: Callable[[jax.Array], jax.Array]
    identity: Callable[[jax.Array], jax.Array]


def positive_inverse(a: jax.Array) -> jax.Array:
    """Inverts positive definite matrices `[..., n, n]`, by Gauss-Jordan elimination.

    It replaces `jnp.linalg.inv`: two concurrent batched calls of it deadlock on a CPU with two
    cores (jaxlib 0.10.2).
    """
    n = a.shape[-1]
    index = jnp.arange(n)

    def sweep(k: jax.Array, a: jax.Array) -> jax.Array:
        is_pivot = index == k
        row, column = a[..., k, :], a[..., :, k]
        pivot = 1 / row[..., k, None]
        is_pivot_row = expand_like(is_pivot, row)
        row = jnp.where(is_pivot_row, 1, row) * pivot
        column = jnp.where(is_pivot_row, 0, column)
        rest = jnp.where(expand_like(is_pivot, a), 0, a) - column[..., :, None] * row[..., None, :]
        return jnp.where(expand_like(is_pivot[:, None], rest), row[..., None, :], rest)

    return lax.fori_loop(0, n, sweep, a)


SCALARS = CovarianceOps(
    recurrence.DIAGONAL, jnp.multiply, jnp.conj, jnp.reciprocal, jnp.reciprocal, jnp.ones_like
)
MATRICES = CovarianceOps(
    algebra=recurrence.DENSE,
    matmul=recurrence.DENSE.matmul,
    adjoint=lambda a: jnp.conj(jnp.swapaxes(a, -1, -2)),
    positive_inverse=positive_inverse,
    general_inverse=jnp.linalg.inv,
    identity=lambda a: jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape),
)


def damped_step(kind: JacobianKind, a: Any, r: Leaves, damping: jax.Array, reverse: bool) -> Leaves:
    """Computes the change of the states in one damped step.

    Args:
      kind: the computed part of the Jacobians: "diagonal", "block" or "full".
      a: the Jacobians, from `System.linearize`.
      r: the residuals, leaves `[T, B, ...]`.
      damping: `[B]`, above 0.
      reverse: whether the scan runs in reverse.

    Returns:
      The changes d of the states, leaves `[T, B, ...]`.

    References:
      Gonzalez et al., 2024, Towards scalable and stable parallelization of nonlinear RNNs (ELK).
      Särkkä and García-Fernández, 2021, Temporal parallelization of Bayesian smoothers.
    """
    if kind == "full":
        return split_leaves(smooth(MATRICES, a, concat_leaves(r), damping, reverse), r)
    if kind == "block":
        rows = jnp.stack([jnp.stack(row, axis=-1) for row in a], axis=-2)
        deltas = smooth(MATRICES, rows, jnp.stack(r, axis=-1), damping, reverse)
        return [deltas[..., k] for k in range(len(r))]
    pairs = zip(a, r, strict=True)
    return [smooth(SCALARS, leaf, residual, damping, reverse) for leaf, residual in pairs]


def smooth(
    ops: CovarianceOps, a: jax.Array, r: jax.Array, damping: jax.Array, reverse: bool
) -> jax.Array:
    """Computes the smoothed means d; see the module docstring for the symbols.

    Args:
      ops: `SCALARS` or `MATRICES`.
      a: the Jacobians, `[T, B, ..., n, n]`; for scalars `[T, B, ...]`.
      r: the residuals, `[T, B, ..., n]`; for scalars `[T, B, ...]`.
      damping: `[B]`.
      reverse: whether the scan runs in reverse.

    Returns:
      d, in the shape of r.
    """
    matmul, matvec = ops.matmul, ops.algebra.matvec
    weight = damping.reshape(-1, *(1,) * (a.ndim - 2))
    covariances_of = covariances if jax.default_backend() == "cpu" else parallel_covariances
    predicted, updated = covariances_of(ops, a, weight, reverse)
    zero = jnp.zeros_like(r[0])
    gain = ops.positive_inverse(ops.identity(predicted) + multiply(weight, predicted))
    means = recurrence.solve(ops.algebra, matmul(gain, a), matvec(gain, r), zero, reverse=reverse)
    # The values of the next step in scan order; `end` after the last step.
    shift_back = lambda leaf, end: recurrence.shift(leaf, end, not reverse)
    a_next, r_next = shift_back(a, jnp.zeros_like(a[0])), shift_back(r, zero)
    predicted_next = shift_back(predicted, ops.identity(a[0]))
    smoother_gain = matmul(
        matmul(updated, ops.adjoint(a_next)), ops.positive_inverse(predicted_next)
    )
    b = means - matvec(smoother_gain, matvec(a_next, means) + r_next)
    return recurrence.solve(ops.algebra, smoother_gain, b, zero, reverse=not reverse)


def covariances(
    ops: CovarianceOps, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes the covariances of each d_t before and after its observation, sequentially.

    Args:
      ops: `SCALARS` or `MATRICES`.
      a: the Jacobians, as in `smooth`.
      weight: the damping, `[B, ...]` with axes of size 1 up to the number of axes of a step of `a`.
      reverse: whether the scan runs in reverse.

    Returns:
      The predicted and the updated covariances, in the shape of `a`.
    """

    def step(prev: jax.Array, a: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        identity = ops.identity(a)
        predicted = ops.matmul(ops.matmul(a, prev), ops.adjoint(a)) + identity
        updated = ops.matmul(predicted, ops.positive_inverse(identity + weight * predicted))
        return updated, (predicted, updated)

    return lax.scan(step, jnp.zeros_like(a[0]), a, reverse=reverse)[1]


def parallel_covariances(
    ops: CovarianceOps, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes the same as `covariances`, by an associative scan.

    The elements (a, c, j) and their composition are those of Särkkä and García-Fernández.
    """
    matmul, adjoint = ops.matmul, ops.adjoint
    identity, weight = ops.identity(a), expand_like(weight, a)
    squares = matmul(adjoint(a), a)
    elements = (a / (1 + weight), identity / (1 + weight), weight / (1 + weight) * squares)

    def combine(first: Any, second: Any) -> Any:
        (a_1, c_1, j_1), (a_2, c_2, j_2) = first, second
        inverse = ops.general_inverse(ops.identity(a_1) + matmul(c_1, j_2))
        gain = matmul(a_2, inverse)
        information = matmul(matmul(adjoint(a_1), j_2), matmul(inverse, a_1))
        return matmul(gain, a_1), matmul(matmul(gain, c_1), adjoint(a_2)) + c_2, information + j_1

    _, updated, _ = lax.associative_scan(combine, elements, reverse=reverse)
    prev = recurrence.shift(updated, jnp.zeros_like(a[0]), reverse)
    return matmul(matmul(a, prev), adjoint(a)) + identity, updated
