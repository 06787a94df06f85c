"""The iterations of Newton's method over time, with and without damping."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.engines import jacobian
from jrnn.engines.damping import damped_step
from jrnn.engines.equations import System
from jrnn.engines.jacobian import Kind, Leaves
from jrnn.masking import expand_mask, max_propagating_nan, zero_where

DAMPING_DECREASE, DAMPING_INCREASE = 0.2, 5.0
"""Factors of the damping after a step that reduced the residual, and after one that did not."""

MAX_DAMPING = 1e12


class NewtonStatus(NamedTuple):
    """The status of a solve.

    Attributes:
      converged: `[B]` bool, whether the residual of a sequence is at most the tolerance.
      iterations: an int, the number of Newton steps of the batch.
      residuals: `[max_steps + 1, B]`, the largest |s_t - step(s_{t-1})| / (1 + |s_t|) of the
        initial guess and after each Newton step; NaN after the last step, and where it is not
        finite.
    """

    converged: jax.Array
    iterations: jax.Array
    residuals: jax.Array


class Point(NamedTuple):
    """States, with the residuals and Jacobians at them."""

    states: Leaves
    residuals: Leaves
    matrices: Any

    def errors(self) -> jax.Array:
        """`[T, B]`: the largest residual of each step, relative to 1 + |s_t|."""
        pairs = zip(self.residuals, self.states, strict=True)
        relative = [jnp.abs(r) / (1 + jnp.abs(s)) for r, s in pairs]
        return max_propagating_nan(jacobian.concat_leaves(relative), axis=-1)

    def error(self) -> jax.Array:
        """`[B]`: the largest of `errors` over time, NaN if one is not finite."""
        error = max_propagating_nan(self.errors(), axis=0)
        return jnp.where(jnp.isfinite(error), error, jnp.nan)

    def non_finite_steps(self, reverse: bool) -> jax.Array:
        """`[T, B]` bool: steps at or after one whose residual is not finite."""
        bad = ~jnp.isfinite(self.errors())
        return lax.cummax(bad.astype(jnp.int8), reverse=reverse) > 0

    def update(self, deltas: Leaves, reverse: bool) -> Leaves:
        """Adds the deltas to the states.

        Where products of Jacobians overflow or nearly do, the new state is one step from the
        previous state instead, since later iterations could not remove a NaN. NaNs from the inputs
        are not replaced.
        """
        non_finite = self.non_finite_steps(reverse)
        triples = zip(self.states, deltas, self.residuals, strict=True)
        limit = math.sqrt(float(jnp.finfo(self.states[0].dtype).max))
        return [
            jnp.where((jnp.abs(s + delta) < limit) | expand_mask(non_finite, s), s + delta, s + r)
            for s, delta, r in triples
        ]

    def is_better_than(self, other: "Point") -> jax.Array:
        """`[B]` bool: fewer residuals are not finite, or as many with a smaller sum of squares."""
        (bad, loss), (other_bad, other_loss) = self._merit(), other._merit()
        return (bad < other_bad) | ((bad == other_bad) & (loss < other_loss))

    def _merit(self) -> tuple[jax.Array, jax.Array]:
        """`[B]`: the number of residuals that are not finite, and the squared sum of the others."""
        residuals = jacobian.concat_leaves(self.residuals)
        finite = jnp.isfinite(residuals)
        squares = jnp.square(jnp.abs(jnp.where(finite, residuals, 0)))
        return (~finite).sum(axis=(0, 2)), squares.sum(axis=(0, 2))


class _State(NamedTuple):
    """The state of the loop; `damping` and `done` are `[B]`."""

    steps: jax.Array
    point: Point
    damping: jax.Array
    history: jax.Array
    done: jax.Array


def iterate(
    system: System,
    kind: Kind,
    states: Leaves,
    damping: float | None,
    max_steps: int,
    tol: float | None,
) -> tuple[Leaves, NewtonStatus]:
    """Runs Newton's method from initial states; the last three arguments are those of `Newton`."""
    dtype = states[0].real.dtype
    tol = _default_tol(system, dtype) if tol is None else tol
    batch = states[0].shape[1]
    is_damped = damping is not None

    def evaluate(states: Leaves) -> Point:
        after, matrices = system.linearize(kind, states)
        return Point(states, [a - s for a, s in zip(after, states, strict=True)], matrices)

    def has_converged(point: Point) -> jax.Array:
        # A residual that is not finite remains so, but earlier steps can still converge.
        errors = point.errors()
        return jnp.where(jnp.isfinite(errors), errors, 0).max(axis=0) <= tol

    def unfinished(state: _State) -> jax.Array:
        return (state.steps < max_steps) & ~state.done.all()

    def improve(state: _State) -> _State:
        old, damping = state.point, state.damping
        if is_damped:
            # The smoother also runs backward in time and would spread inf and NaN.
            finite = ~old.non_finite_steps(system.reverse)
            matrices, residuals = zero_where(finite, (old.matrices, old.residuals))
            deltas = damped_step(kind, matrices, residuals, damping, system.reverse)
        else:
            deltas = system.solve_linear(kind, old.matrices, old.residuals)
        deltas = [jnp.where(expand_mask(state.done, delta[0]), 0, delta) for delta in deltas]
        new = evaluate(old.update(deltas, system.reverse))
        if is_damped:
            better = new.is_better_than(old)
            new = jax.tree.map(lambda a, b: jnp.where(expand_mask(better, a[0]), a, b), new, old)
            damping = damping * jnp.where(better, DAMPING_DECREASE, DAMPING_INCREASE).astype(dtype)
        steps = state.steps + 1
        history = state.history.at[steps].set(new.error())
        done = has_converged(new) | (damping > MAX_DAMPING)
        return _State(steps, new, damping, history, done)

    first = evaluate(states)
    history = _empty_history(states[0], batch, max_steps).at[0].set(first.error())
    first_damping = jnp.full((batch,), damping or 0, dtype)
    start = _State(jnp.int32(0), first, first_damping, history, has_converged(first))
    state = lax.while_loop(unfinished, improve, start)
    status = NewtonStatus(state.history[state.steps] <= tol, state.steps, state.history)
    return state.point.states, status


def _default_tol(system: System, dtype: jnp.dtype) -> float:
    """The residual that rounding errors may cause.

    In half precision, the rounding of products makes the step piecewise constant, so that Newton's
    method cannot reduce the residual further.
    """
    dtypes = dtype, system.step.bound.precision.compute
    eps = [float(jnp.finfo(kind).eps) for kind in dtypes]
    half_eps = [e for e, kind in zip(eps, dtypes, strict=True) if jnp.dtype(kind).itemsize < 4]
    return max(half_eps, default=64 * eps[0])


def empty_status(start: Leaves, max_steps: int) -> NewtonStatus:
    """The status for zero steps, from the leaves `[B, ...]` of a first carry."""
    batch = start[0].shape[0]
    residuals = _empty_history(start[0], batch, max_steps).at[0].set(0)
    return NewtonStatus(jnp.ones((batch,), bool), jnp.int32(0), residuals)


def _empty_history(leaf: jax.Array, batch: int, max_steps: int) -> jax.Array:
    return jnp.full((max_steps + 1, batch), jnp.nan, leaf.real.dtype)
