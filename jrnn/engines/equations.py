"""The equations s_t = step(s_{t-1}, x_t) of all steps, and their linearization, for `Newton`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Inputs
from jrnn.engines import jacobian, recurrence
from jrnn.engines.jacobian import JacobianKind, Leaves, Step
from jrnn.engines.precision import BoundCell
from jrnn.masking import Masks, apply_resets, expand_mask, tree_where, zero_where

JACOBIANS = {"diagonal": jacobian.diagonal, "block": jacobian.blocks, "full": jacobian.full}


class System(NamedTuple):
    """The equations s_t = step(s_{t-1}, x_t) for all t.

    The states s_t are the unknowns: the leaves `[T, B, ...]` of the carry after each step.

    Attributes:
      step: the step function, for all t at once.
      num_steps: the number of steps T.
      initial_carry: the leaves `[B, ...]` of the initial carry.
      masks: padding and resets. On padding the equation is s_t = s_{t-1}; at a reset, the reset
        carry replaces s_{t-1}.
      reverse: whether the scan runs in reverse.
    """

    step: Step
    num_steps: int
    initial_carry: Leaves
    masks: Masks
    reverse: bool

    def prev_states(self, states: Leaves) -> Leaves:
        """Returns the state before each step, before resets are applied."""
        return recurrence.shift(states, self.initial_carry, self.reverse)

    def prev_carries(self, states: Leaves) -> Leaves:
        """Returns the state before each step, after resets are applied."""
        return apply_resets(
            self.masks.resets, jax.tree.leaves(self.masks.reset_carry), self.prev_states(states)
        )

    def _apply_padding(self, states: Leaves, next_states: Leaves) -> Leaves:
        """Replaces the next state on padding by the previous state."""
        return tree_where(self.masks.valid, next_states, self.prev_states(states))

    def step_all(self, states: Leaves) -> tuple[Leaves, Any]:
        """Applies the step function at every t to the state before step t.

        Returns:
          The next states, leaves `[T, B, ...]`, and the outputs `[T, B, output]`.
        """
        prev, bound, z = self.step.carry(self.prev_carries(states)), self.step.bound, self.step.z
        carry = bound.update(prev, z, bound.recur(prev))
        ys = zero_where(self.masks.valid, bound.readout(carry, z))
        return self._apply_padding(states, jax.tree.leaves(carry)), ys

    def outputs(self, states: Leaves) -> Any:
        """Computes the outputs `[T, B, output]`, zero on padding."""
        return self.step_all(states)[1]

    def initial_guess(self, init: str) -> Leaves:
        """Returns the first guess of the states.

        With init="carry" it is the initial carry at all steps, otherwise the result of one step
        from the initial carry at each t.
        """
        constant = [
            jnp.broadcast_to(leaf, (self.num_steps, *leaf.shape)) for leaf in self.initial_carry
        ]
        return constant if init == "carry" else self.step_all(constant)[0]

    def solve_sequentially(self) -> Leaves:
        """Returns the states, leaves `[T, B, ...]`, computed step by step by `lax.scan`."""
        bound, masks = self.step.bound, self.masks

        def body(carry: Carry, inputs: Any) -> Any:
            z, valid, reset = inputs
            prev = apply_resets(reset, masks.reset_carry, carry)
            carry = tree_where(valid, bound.update(prev, z, bound.recur(prev)), prev)
            return carry, jax.tree.leaves(carry)

        steps = (self.step.z, masks.valid, masks.resets)
        return lax.scan(body, self.step.carry(self.initial_carry), steps, reverse=self.reverse)[1]

    def linearize(self, kind: JacobianKind, states: Leaves) -> tuple[Leaves, Any]:
        """Applies the step function at every t to the state before step t; computes its Jacobians.

        Jacobians are zero at resets and the identity on padding.

        Args:
          kind: the part of the Jacobians to compute: "diagonal", "block" or "full".
          states: the states, leaves `[T, B, ...]`.

        Returns:
          The next states, and the Jacobians in the format of `jacobian.diagonal`, `blocks` or
          `full`.
        """
        next_states, jacobians = JACOBIANS[kind](self.step, self.prev_carries(states))
        if kind == "block":
            jacobians = tuple(
                tuple(self._apply_masks(a, float(i == j)) for j, a in enumerate(row))
                for i, row in enumerate(jacobians)
            )
        elif kind == "full":
            jacobians = self._apply_masks(
                jacobians, jnp.eye(jacobians.shape[-1], dtype=jacobians.dtype)
            )
        else:
            jacobians = tuple(self._apply_masks(a, 1.0) for a in jacobians)
        return self._apply_padding(states, next_states), jacobians

    def _apply_masks(self, a: jax.Array, identity: Any) -> jax.Array:
        valid, resets = self.masks.valid, self.masks.resets
        if resets is not None:
            a = jnp.where(expand_mask(resets, a), 0, a)
        return a if valid is None else jnp.where(expand_mask(valid, a), a, identity)

    def solve_linear(self, kind: JacobianKind, jacobians: Any, b: Leaves) -> Leaves:
        """Solves d_t = J_t d_{t-1} + b_t from d = 0, with the Jacobians J of `linearize`."""
        if kind == "full":
            flat = self._solve_recurrence(recurrence.DENSE, jacobians, jacobian.concat_leaves(b))
            return jacobian.split_leaves(flat, b)
        if kind == "block":
            return list(self._solve_recurrence(recurrence.BLOCKS, jacobians, tuple(b)))
        pairs = zip(jacobians, b, strict=True)
        return [self._solve_recurrence(recurrence.DIAGONAL, a, leaf) for a, leaf in pairs]

    def _solve_recurrence(self, algebra: recurrence.Algebra, a: Any, b: Any) -> Any:
        if self.masks.resets is not None:
            algebra, a = recurrence.with_resets(algebra), (a, ~self.masks.resets)
        zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), b)
        return recurrence.solve(algebra, a, b, zero, reverse=self.reverse)

    def solve_tangents(self, kind: JacobianKind, states: Leaves, b: Leaves) -> Leaves:
        """Solves d_t = J_t d_{t-1} + b_t from d = 0, with the exact Jacobians for any `kind`."""
        exact = "full" if self.step.exact is None and kind == "full" else self.step.exact
        if exact is not None:
            return self.solve_linear(exact, self.linearize(exact, states)[1], b)
        return self._sequential_tangents(states, b)

    def _sequential_tangents(self, states: Leaves, b: Leaves) -> Leaves:
        """Computes `solve_tangents` by `lax.scan`, without forming Jacobians `[n, n]`."""
        prev_carries, masks = self.prev_carries(states), self.masks
        if jacobian.is_elementwise(self.step, prev_carries):
            _, linearization = jacobian.partials(self.step, prev_carries)
            jvp = lambda linearization, deltas: linearization.apply(self.step, deltas)
        else:
            linearization = (self.step.z, prev_carries)
            jvp = lambda point, deltas: jax.jvp(
                self.step._replace(z=point[0]).next_carries, (point[1],), (deltas,)
            )[1]

        def body(deltas: Leaves, inputs: Any) -> tuple[Leaves, Leaves]:
            linearization, b, valid, reset = inputs
            prev = deltas if reset is None else zero_where(~reset, deltas)
            product = tree_where(valid, jvp(linearization, prev), deltas)
            deltas = jax.tree.map(jnp.add, product, b)
            return deltas, deltas

        zero = [jnp.zeros_like(leaf[0]) for leaf in b]
        steps = (linearization, b, masks.valid, masks.resets)
        return lax.scan(body, zero, steps, reverse=self.reverse)[1]


def build_system(bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool) -> System:
    """Builds the equations of a run from the arguments of `Engine.run`."""
    initial_carry, structure = jax.tree.flatten(carry)
    z, exact = bound.project(zero_where(masks.valid, xs)), jacobian.exact_kind(bound, xs)
    step = Step(bound, structure, z, exact)
    return System(step, len(jax.tree.leaves(xs)[0]), initial_carry, masks, reverse)
