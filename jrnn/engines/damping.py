"""The damped step of Newton's method over time: least squares by a Kalman smoother.

With Jacobians A_t and residuals r_t, the steps d_t minimize::

    sum over t of |d_t - A_t d_{t-1} - r_t|^2 + damping |d_t|^2

from d = 0 before the first step. They are the smoothed means of a state d_t with transition A_t,
offset r_t and unit noise, given observations of zero with variance 1/damping. The means are linear
recurrences. The covariances are not, but they can be computed by an associative scan as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.engines import prefix
from jrnn.engines.jacobian import Kind, Leaves, concat_leaves, split_leaves


class EntryOps(NamedTuple):
    """Arithmetic on covariances, which are scalars or matrices `[..., n, n]`."""

    algebra: prefix.Algebra
    times: Callable[[jax.Array, jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]  # of positive definite matrices
    any_inverse: Callable[[jax.Array], jax.Array]
    one: Callable[[jax.Array], jax.Array]


def positive_inverse(a: jax.Array) -> jax.Array:
    """The inverse of positive definite matrices `[..., n, n]`, by elimination without pivoting.

    It replaces `jnp.linalg.inv`, two concurrent batched calls of which deadlock on a CPU with two
    cores (jaxlib 0.10.2).
    """
    n = a.shape[-1]
    index = jnp.arange(n)

    def sweep(k: jax.Array, a: jax.Array) -> jax.Array:
        is_pivot = index == k
        row, column = a[..., k, :], a[..., :, k]
        pivot = 1 / row[..., k, None]
        row = jnp.where(is_pivot, 1, row) * pivot
        column = jnp.where(is_pivot, 0, column)
        rest = jnp.where(is_pivot, 0, a) - column[..., :, None] * row[..., None, :]
        return jnp.where(is_pivot[:, None], row[..., None, :], rest)

    return lax.fori_loop(0, n, sweep, a)


SCALARS = EntryOps(
    prefix.DIAGONAL, jnp.multiply, jnp.conj, jnp.reciprocal, jnp.reciprocal, jnp.ones_like
)
MATRICES = EntryOps(
    algebra=prefix.DENSE,
    times=prefix.DENSE.times,
    adjoint=lambda a: jnp.conj(jnp.swapaxes(a, -1, -2)),
    inverse=positive_inverse,
    any_inverse=jnp.linalg.inv,
    one=lambda a: jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape),
)


def damped_step(kind: Kind, a: Any, r: Leaves, damping: jax.Array, reverse: bool) -> Leaves:
    """The change of the states in one damped step.

    Args:
      kind: the kind of the Jacobians.
      a: the Jacobians, from `System.linearize`.
      r: the residuals, leaves `[T, B, hidden]`.
      damping: `[B]`, at least 0.
      reverse: whether the scan runs in reverse.

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
    ops: EntryOps, a: jax.Array, r: jax.Array, damping: jax.Array, reverse: bool
) -> jax.Array:
    """The steps d `[T, B, ..., n]` for Jacobians a `[T, B, ..., n, n]`, or all without n."""
    times, act = ops.times, ops.algebra.act
    weight = damping.reshape(-1, *(1,) * (a.ndim - 2))
    compute = covariances if jax.default_backend() == "cpu" else parallel_covariances
    predicted, updated = compute(ops, a, weight, reverse)
    zero = jnp.zeros_like(r[0])
    gain = ops.inverse(ops.one(predicted) + weight * predicted)
    means = prefix.solve(ops.algebra, times(gain, a), act(gain, r), zero, reverse=reverse)
    # The values of the following step; zeros after the last one.
    after = lambda leaf, end: prefix.shift(leaf, end, not reverse)
    a_next, r_next = after(a, jnp.zeros_like(a[0])), after(r, zero)
    predicted_next = after(predicted, ops.one(a[0]))
    back = times(times(updated, ops.adjoint(a_next)), ops.inverse(predicted_next))
    b = means - act(back, act(a_next, means) + r_next)
    return prefix.solve(ops.algebra, back, b, zero, reverse=not reverse)


def covariances(
    ops: EntryOps, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Covariances of each d_t before and after its observation, sequentially."""

    def step(prev: jax.Array, a: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        one = ops.one(a)
        predicted = ops.times(ops.times(a, prev), ops.adjoint(a)) + one
        updated = ops.times(predicted, ops.inverse(one + weight * predicted))
        return updated, (predicted, updated)

    return lax.scan(step, jnp.zeros_like(a[0]), a, reverse=reverse)[1]


def parallel_covariances(
    ops: EntryOps, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """The same as `covariances`, by an associative scan."""
    times, adjoint = ops.times, ops.adjoint
    one = ops.one(a)
    squares = times(adjoint(a), a)
    elements = (a / (1 + weight), one / (1 + weight), weight / (1 + weight) * squares)

    def combine(early: Any, late: Any) -> Any:
        (a_1, c_1, j_1), (a_2, c_2, j_2) = early, late
        inverse = ops.any_inverse(ops.one(a_1) + times(c_1, j_2))
        gain = times(a_2, inverse)
        information = times(times(adjoint(a_1), j_2), times(inverse, a_1))
        return times(gain, a_1), times(times(gain, c_1), adjoint(a_2)) + c_2, information + j_1

    _, updated, _ = lax.associative_scan(combine, elements, reverse=reverse)
    prev = prefix.shift(updated, jnp.zeros_like(a[0]), reverse)
    return times(times(a, prev), adjoint(a)) + one, updated
