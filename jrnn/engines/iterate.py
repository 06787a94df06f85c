"""The iterations of Newton's method over time, plain and damped."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.engines import jacobian
from jrnn.engines.damping import damped
from jrnn.engines.equations import System
from jrnn.engines.jacobian import Kind, Leaves
from jrnn.masking import expand_mask, largest, zero_where

FASTER, SLOWER = 0.2, 5.0
"""What the damping is multiplied by after a step that helped, and after one that did not."""

MOST_DAMPING = 1e12


class NewtonStatus(NamedTuple):
    """The status of a solve.

    Attributes:
      converged: `[B]` bool, whether the residual of a sequence fell to the tolerance.
      iterations: an int, the number of Newton steps that the batch took.
      residuals: `[max_steps + 1, B]`, the largest |s_t - step(s_{t-1})| / (1 + |s_t|) of the first
        guess, and after each Newton step; NaN beyond the last, and from where it is not finite.
    """

    converged: jax.Array
    iterations: jax.Array
    residuals: jax.Array


class Point(NamedTuple):
    """States, with their residuals and the Jacobians there."""

    states: Leaves
    residuals: Leaves
    matrices: Any

    def errors(self) -> jax.Array:
        """`[T, B]`: the largest residual of each step, relative to 1 + |s_t|."""
        pairs = zip(self.residuals, self.states, strict=True)
        relative = [jnp.abs(r) / (1 + jnp.abs(s)) for r, s in pairs]
        return largest(jacobian.join(relative), axis=-1)

    def error(self) -> jax.Array:
        """`[B]`: the largest of these, NaN where one is not finite."""
        error = largest(self.errors(), axis=0)
        return jnp.where(jnp.isfinite(error), error, jnp.nan)

    def lost(self, reverse: bool) -> jax.Array:
        """`[T, B]` bool: steps at or after one whose residual is not finite."""
        bad = ~jnp.isfinite(self.errors())
        return lax.cummax(bad.astype(jnp.int8), reverse=reverse) > 0

    def moved(self, moves: Leaves, reverse: bool) -> Leaves:
        """The states after these moves.

        Where products of Jacobians have overflowed, or soon will, the new state is the step from
        the previous state instead, since a NaN would never go away. A NaN that comes from the
        inputs is kept.
        """
        lost = self.lost(reverse)
        triples = zip(self.states, moves, self.residuals, strict=True)
        most = math.sqrt(float(jnp.finfo(self.states[0].dtype).max))
        return [
            jnp.where((jnp.abs(s + move) < most) | expand_mask(lost, s), s + move, s + r)
            for s, move, r in triples
        ]

    def is_better_than(self, other: "Point") -> jax.Array:
        """`[B]` bool: fewer residuals are not finite, or as many, and the others are smaller."""
        (bad, size), (others_bad, others_size) = self._merit(), other._merit()
        return (bad < others_bad) | ((bad == others_bad) & (size < others_size))

    def _merit(self) -> tuple[jax.Array, jax.Array]:
        residuals = jacobian.join(self.residuals)
        finite = jnp.isfinite(residuals)
        squares = jnp.square(jnp.abs(jnp.where(finite, residuals, 0)))
        return (~finite).sum(axis=(0, 2)), squares.sum(axis=(0, 2))


class _State(NamedTuple):
    """Of the loop; damping and done are `[B]`."""

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
    """Newton's method from the states given; the last three arguments are those of `Newton`."""
    dtype = states[0].real.dtype
    tol = _rounding(system, dtype) if tol is None else tol
    batch = states[0].shape[1]
    is_damped = damping is not None

    def evaluate(states: Leaves) -> Point:
        after, matrices = system.linearised(kind, states)
        return Point(states, [a - s for a, s in zip(after, states, strict=True)], matrices)

    def has_converged(point: Point) -> jax.Array:
        # A residual that is not finite stays so; the steps before it in time can still converge.
        errors = point.errors()
        return jnp.where(jnp.isfinite(errors), errors, 0).max(axis=0) <= tol

    def unfinished(state: _State) -> jax.Array:
        return (state.steps < max_steps) & ~state.done.all()

    def improve(state: _State) -> _State:
        old, damped_by = state.point, state.damping
        if is_damped:
            # A smoother runs backwards in time and must not spread inf and NaN.
            sound = ~old.lost(system.reverse)
            matrices, residuals = zero_where(sound, (old.matrices, old.residuals))
            moves = damped(kind, matrices, residuals, damped_by, system.reverse)
        else:
            moves = system.solved(kind, old.matrices, old.residuals)
        moves = [jnp.where(expand_mask(state.done, move[0]), 0, move) for move in moves]
        new = evaluate(old.moved(moves, system.reverse))
        if is_damped:
            better = new.is_better_than(old)
            new = jax.tree.map(lambda a, b: jnp.where(expand_mask(better, a[0]), a, b), new, old)
            damped_by = damped_by * jnp.where(better, FASTER, SLOWER).astype(dtype)
        steps = state.steps + 1
        history = state.history.at[steps].set(new.error())
        done = has_converged(new) | (damped_by > MOST_DAMPING)
        return _State(steps, new, damped_by, history, done)

    first = evaluate(states)
    history = _no_history(states[0], batch, max_steps).at[0].set(first.error())
    start_with = jnp.full((batch,), damping or 0, dtype)
    start = _State(jnp.int32(0), first, start_with, history, has_converged(first))
    state = lax.while_loop(unfinished, improve, start)
    status = NewtonStatus(state.history[state.steps] <= tol, state.steps, state.history)
    return state.point.states, status


def _rounding(system: System, dtype: jnp.dtype) -> float:
    """The residual that rounding alone may leave.

    A product of half precision makes steps of jumps that large, which no iteration can get below,
    but from one step of time to the next.
    """
    dtypes = dtype, system.step.bound.precision.compute
    eps = [float(jnp.finfo(kind).eps) for kind in dtypes]
    halves = [e for e, kind in zip(eps, dtypes, strict=True) if jnp.dtype(kind).itemsize < 4]
    return max(halves, default=64 * eps[0])


def no_steps(start: Leaves, max_steps: int) -> NewtonStatus:
    """The status of no time at all, from the leaves `[B, ...]` of a first carry."""
    batch = start[0].shape[0]
    residuals = _no_history(start[0], batch, max_steps).at[0].set(0)
    return NewtonStatus(jnp.ones((batch,), bool), jnp.int32(0), residuals)


def _no_history(leaf: jax.Array, batch: int, max_steps: int) -> jax.Array:
    return jnp.full((max_steps + 1, batch), jnp.nan, leaf.real.dtype)
