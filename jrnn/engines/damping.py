"""The damped step of Newton's method over time: least squares by a Kalman smoother.

With Jacobians A_t and residuals r_t, the steps d_t minimise::

    sum over t of |d_t - A_t d_{t-1} - r_t|^2 + damping |d_t|^2

from d = 0 before the first step. So they are the means of a smoother for a state d_t with
transition A_t, offset r_t and unit noise, where zeros are observed with variance 1/damping. The
means are linear recurrences; the covariances are not, but they are an associative scan too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.engines import prefix
from jrnn.engines.jacobian import Kind, Leaves, join, part


class Field(NamedTuple):
    """The type of the entries of covariances: single numbers, or matrices `[..., n, n]`."""

    algebra: prefix.Algebra
    times: Callable[[jax.Array, jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]  # of a positive definite one
    any_inverse: Callable[[jax.Array], jax.Array]
    one: Callable[[jax.Array], jax.Array]


def positive_inverse(a: jax.Array) -> jax.Array:
    """The inverse of positive definite matrices `[..., n, n]`, by elimination without pivots.

    In place of `jnp.linalg.inv`: two of its batched calls that run at the same time wait for each
    other for ever on a CPU with two cores (jaxlib 0.10.2).
    """
    n = a.shape[-1]
    index = jnp.arange(n)

    def sweep(k: jax.Array, a: jax.Array) -> jax.Array:
        here = index == k
        row, column = a[..., k, :], a[..., :, k]
        pivot = 1 / row[..., k, None]
        row = jnp.where(here, 1, row) * pivot
        column = jnp.where(here, 0, column)
        rest = jnp.where(here, 0, a) - column[..., :, None] * row[..., None, :]
        return jnp.where(here[:, None], row[..., None, :], rest)

    return lax.fori_loop(0, n, sweep, a)


NUMBERS = Field(
    prefix.DIAGONAL, jnp.multiply, jnp.conj, jnp.reciprocal, jnp.reciprocal, jnp.ones_like
)
MATRICES = Field(
    algebra=prefix.DENSE,
    times=prefix.DENSE.times,
    adjoint=lambda a: jnp.conj(jnp.swapaxes(a, -1, -2)),
    inverse=positive_inverse,
    any_inverse=jnp.linalg.inv,
    one=lambda a: jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape),
)


def damped(kind: Kind, a: Any, r: Leaves, damping: jax.Array, reverse: bool) -> Leaves:
    """The change of the states in one damped step.

    Args:
      kind: of the Jacobians.
      a: the Jacobians, as `System.linearised` gives them.
      r: the residuals, leaves `[T, B, hidden]`.
      damping: `[B]`, at least 0.
      reverse: whether the scan runs in reverse.

    References:
      Gonzalez et al., 2024, Towards scalable and stable parallelization of nonlinear RNNs (ELK).
      Särkkä and García-Fernández, 2021, Temporal parallelization of Bayesian smoothers.
    """
    if kind == "full":
        return part(smoothed(MATRICES, a, join(r), damping, reverse), r)
    if kind == "block":
        rows = jnp.stack([jnp.stack(row, axis=-1) for row in a], axis=-2)
        moves = smoothed(MATRICES, rows, jnp.stack(r, axis=-1), damping, reverse)
        return [moves[..., k] for k in range(len(r))]
    pairs = zip(a, r, strict=True)
    return [smoothed(NUMBERS, leaf, residual, damping, reverse) for leaf, residual in pairs]


def smoothed(
    field: Field, a: jax.Array, r: jax.Array, damping: jax.Array, reverse: bool
) -> jax.Array:
    """The moves d `[T, B, ..., n]` for Jacobians a `[T, B, ..., n, n]`, or all without n."""
    times, act = field.times, field.algebra.act
    weight = damping.reshape(-1, *(1,) * (a.ndim - 2))
    find = covariances if jax.default_backend() == "cpu" else parallel_covariances
    predicted, updated = find(field, a, weight, reverse)
    zero = jnp.zeros_like(r[0])
    gain = field.inverse(field.one(predicted) + weight * predicted)
    means = prefix.solve(field.algebra, times(gain, a), act(gain, r), zero, reverse=reverse)
    # The values of the following step; zeros after the last one.
    after = lambda leaf, end: prefix.shift(leaf, end, not reverse)
    a_next, r_next = after(a, jnp.zeros_like(a[0])), after(r, zero)
    predicted_next = after(predicted, field.one(a[0]))
    back = times(times(updated, field.adjoint(a_next)), field.inverse(predicted_next))
    b = means - act(back, act(a_next, means) + r_next)
    return prefix.solve(field.algebra, back, b, zero, reverse=not reverse)


def covariances(
    field: Field, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Covariances of each d_t before and after it is observed, step by step."""

    def step(before: jax.Array, a: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        one = field.one(a)
        predicted = field.times(field.times(a, before), field.adjoint(a)) + one
        updated = field.times(predicted, field.inverse(one + weight * predicted))
        return updated, (predicted, updated)

    return lax.scan(step, jnp.zeros_like(a[0]), a, reverse=reverse)[1]


def parallel_covariances(
    field: Field, a: jax.Array, weight: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """The same in logarithmic depth."""
    times, adjoint = field.times, field.adjoint
    one = field.one(a)
    squares = times(adjoint(a), a)
    elements = (a / (1 + weight), one / (1 + weight), weight / (1 + weight) * squares)

    def after(early: Any, late: Any) -> Any:
        (a_1, c_1, j_1), (a_2, c_2, j_2) = early, late
        through = field.any_inverse(field.one(a_1) + times(c_1, j_2))
        passed = times(a_2, through)
        seen = times(times(adjoint(a_1), j_2), times(through, a_1))
        return times(passed, a_1), times(times(passed, c_1), adjoint(a_2)) + c_2, seen + j_1

    _, updated, _ = lax.associative_scan(after, elements, reverse=reverse)
    before = prefix.shift(updated, jnp.zeros_like(a[0]), reverse)
    return times(times(a, before), adjoint(a)) + one, updated
