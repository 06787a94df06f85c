"""The loop of Newton's method over time, with and without damping."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.engines import jacobian
from jrnn.engines.damping import damped_step
from jrnn.engines.equations import System
from jrnn.engines.jacobian import JacobianKind, Leaves
from jrnn.engines.manual_axes import vary_alike
from jrnn.masking import expand_mask, max_propagating_nan, zero_where

DAMPING_DECREASE, DAMPING_INCREASE = 0.2, 5.0
"""Factors of the damping after a step that reduced the residual, and after one that did not."""

MAX_DAMPING = 1e12
"""The iteration of a sequence ends when its damping exceeds this value."""


class NewtonStatus(NamedTuple):
    """The status of a solve.

    Attributes:
      converged: `[B]` bool, whether the residual of a sequence is at most the tolerance.
      iterations: `[]` int32, the number of Newton steps, which all sequences share.
      residuals: `[max_steps + 1, B]`, the largest |step(s_{t-1}) - s_t| / (1 + |s_t|) over t and
        units: that of the initial guess at index 0, and that after k Newton steps at index k. NaN
        for Newton steps that did not run, and instead of residuals that are not finite.
    """

    converged: jax.Array
    iterations: jax.Array
    residuals: jax.Array


class Linearization(NamedTuple):
    """The linearized equations at given states.

    Attributes:
      states: the states s_t, leaves `[T, B, ...]`.
      residuals: step(s_{t-1}) - s_t, leaves `[T, B, ...]`.
      jacobians: the Jacobians, from `System.linearize`.
    """

    states: Leaves
    residuals: Leaves
    jacobians: Any

    def step_residuals(self) -> jax.Array:
        """Returns `[T, B]`: the largest residual of each step, relative to 1 + |s_t|."""
        pairs = zip(self.residuals, self.states, strict=True)
        relative = [jnp.abs(r) / (1 + jnp.abs(s)) for r, s in pairs]
        return max_propagating_nan(jacobian.concat_leaves(relative), axis=-1)

    def max_residual(self) -> jax.Array:
        """Returns `[B]`: the largest of `step_residuals` over time; NaN if one is not finite."""
        residual = max_propagating_nan(self.step_residuals(), axis=0)
        return jnp.where(jnp.isfinite(residual), residual, jnp.nan)

    def non_finite_steps(self, reverse: bool) -> jax.Array:
        """Returns `[T, B]` bool: True from the first non-finite residual on, in scan order."""
        non_finite = ~jnp.isfinite(self.step_residuals())
        return lax.cummax(non_finite.astype(jnp.int8), reverse=reverse) > 0

    def update(self, deltas: Leaves, reverse: bool) -> Leaves:
        """Returns the states plus the deltas.

        A sum that is NaN, or whose absolute value exceeds the square root of the largest number, is
        replaced by step(s_{t-1}): products of Jacobians have overflowed, and later iterations could
        not remove a NaN. On the steps of `non_finite_steps`, such as after a NaN in the inputs, no
        sum is replaced.
        """
        non_finite = self.non_finite_steps(reverse)
        triples = zip(self.states, deltas, self.residuals, strict=True)
        limit = math.sqrt(float(jnp.finfo(self.states[0].dtype).max))
        return [
            jnp.where((jnp.abs(s + delta) < limit) | expand_mask(non_finite, s), s + delta, s + r)
            for s, delta, r in triples
        ]

    def is_better_than(self, other: "Linearization") -> jax.Array:
        """Returns `[B]` bool: whether the residuals are smaller than those of `other`.

        The numbers of residuals that are not finite are compared first. If they are equal, the sums
        of the squares of all other residuals are compared.
        """
        (count, loss), (other_count, other_loss) = self._merit(), other._merit()
        return (count < other_count) | ((count == other_count) & (loss < other_loss))

    def _merit(self) -> tuple[jax.Array, jax.Array]:
        """Returns the number of non-finite residuals and the sum of squares of the others."""
        residuals = jacobian.concat_leaves(self.residuals)
        finite = jnp.isfinite(residuals)
        squares = jnp.square(jnp.abs(jnp.where(finite, residuals, 0)))
        return (~finite).sum(axis=(0, 2)), squares.sum(axis=(0, 2))


class _State(NamedTuple):
    """The state of the loop.

    Attributes:
      num_steps: `[]` int32, the number of Newton steps so far.
      linearization: the equations at the current states.
      damping: `[B]`.
      history: `[max_steps + 1, B]`, the residuals of `NewtonStatus`.
      done: `[B]` bool, whether the states of a sequence are final.
    """

    num_steps: jax.Array
    linearization: Linearization
    damping: jax.Array
    history: jax.Array
    done: jax.Array


def run_newton(
    system: System,
    kind: JacobianKind,
    states: Leaves,
    damping: float | None,
    max_steps: int,
    tol: float | None,
) -> tuple[Leaves, NewtonStatus]:
    """Runs Newton's method.

    Args:
      system: the equations.
      kind: the kind of the Jacobians.
      states: the initial guess, leaves `[T, B, ...]`.
      damping: the field of `Newton`.
      max_steps: the field of `Newton`.
      tol: the field of `Newton`.

    Returns:
      The states, leaves `[T, B, ...]`, and the status.
    """
    dtype = states[0].real.dtype
    tol = _default_tol(system, dtype) if tol is None else tol
    batch = states[0].shape[1]
    is_damped = damping is not None

    def linearize_at(states: Leaves) -> Linearization:
        next_states, jacobians = system.linearize(kind, states)
        residuals = [a - s for a, s in zip(next_states, states, strict=True)]
        return Linearization(states, residuals, jacobians)

    def has_converged(linearization: Linearization) -> jax.Array:
        # Non-finite residuals are ignored, since no iteration can remove them. The status reports
        # them as not converged.
        residuals = linearization.step_residuals()
        return jnp.where(jnp.isfinite(residuals), residuals, 0).max(axis=0) <= tol

    def should_continue(state: _State) -> jax.Array:
        return (state.num_steps < max_steps) & ~state.done.all()

    def newton_step(state: _State) -> _State:
        old, damping = state.linearization, state.damping
        if is_damped:
            # The smoother also runs backward in time: inf and NaN would reach all steps.
            finite = ~old.non_finite_steps(system.reverse)
            jacobians, residuals = zero_where(finite, (old.jacobians, old.residuals))
            deltas = damped_step(kind, jacobians, residuals, damping, system.reverse)
        else:
            deltas = system.solve_linear(kind, old.jacobians, old.residuals)
        deltas = [jnp.where(expand_mask(state.done, delta[0]), 0, delta) for delta in deltas]
        new = linearize_at(old.update(deltas, system.reverse))
        if is_damped:
            better = new.is_better_than(old)
            new = jax.tree.map(lambda a, b: jnp.where(expand_mask(better, a[0]), a, b), new, old)
            damping = damping * jnp.where(better, DAMPING_DECREASE, DAMPING_INCREASE).astype(dtype)
        num_steps = state.num_steps + 1
        history = state.history.at[num_steps].set(new.max_residual())
        done = has_converged(new) | (damping > MAX_DAMPING)
        return _State(num_steps, new, damping, history, done)

    first = linearize_at(states)
    history = _empty_history(states[0], batch, max_steps).at[0].set(first.max_residual())
    first_damping = vary_alike(jnp.full((batch,), damping or 0, dtype), first)
    init = _State(jnp.int32(0), first, first_damping, history, has_converged(first))
    state = lax.while_loop(should_continue, newton_step, init)
    status = NewtonStatus(state.history[state.num_steps] <= tol, state.num_steps, state.history)
    return state.linearization.states, status


def _default_tol(system: System, dtype: jnp.dtype) -> float:
    """Returns a tolerance that is above the rounding errors of the residual.

    In half precision, rounded products make the step piecewise constant. Newton's method then
    cannot reduce the residual below the machine epsilon.
    """
    dtypes = dtype, system.step.bound.precision.compute
    eps = [float(jnp.finfo(kind).eps) for kind in dtypes]
    half_precision_eps = [
        e for e, kind in zip(eps, dtypes, strict=True) if jnp.dtype(kind).itemsize < 4
    ]
    return max(half_precision_eps, default=64 * eps[0])


def empty_status(initial_carry: Leaves, max_steps: int) -> NewtonStatus:
    """Returns the status for T = 0, from the leaves `[B, ...]` of the initial carry."""
    batch = initial_carry[0].shape[0]
    residuals = _empty_history(initial_carry[0], batch, max_steps).at[0].set(0)
    return NewtonStatus(jnp.ones((batch,), bool), jnp.int32(0), residuals)


def _empty_history(leaf: jax.Array, batch: int, max_steps: int) -> jax.Array:
    return jnp.full((max_steps + 1, batch), jnp.nan, leaf.real.dtype)
