"""The equations s_t = step(s_{t-1}, x_t) of all steps, and their linearization."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Inputs
from jrnn.engines import jacobian, prefix
from jrnn.engines.jacobian import Kind, Leaves, Step
from jrnn.engines.precision import BoundCell
from jrnn.masking import Masks, apply_resets, expand_mask, tree_where, zero_where

MATRICES = {"diagonal": jacobian.diagonal, "block": jacobian.blocks, "full": jacobian.full}


class System(NamedTuple):
    """The equations; their unknowns are the leaves `[T, B, ...]` of the carry after each step.

    Attributes:
      step: the cell at all steps.
      steps: the number of steps.
      start: the leaves of the first carry.
      masks: padding, where the equation becomes s_t = s_{t-1}, and resets.
      reverse: whether the scan runs in reverse.
    """

    step: Step
    steps: int
    start: Leaves
    masks: Masks
    reverse: bool

    def prev_states(self, states: Leaves) -> Leaves:
        """The previous state of each step, without resets."""
        return prefix.shift(states, self.start, self.reverse)

    def prev_carries(self, states: Leaves) -> Leaves:
        """The previous state of each step, after resets."""
        return apply_resets(
            self.masks.resets, jax.tree.leaves(self.masks.initial), self.prev_states(states)
        )

    def _apply_padding(self, states: Leaves, after: Leaves) -> Leaves:
        """Replaces the states after each step by the previous ones on padding."""
        return tree_where(self.masks.valid, after, self.prev_states(states))

    def step_all(self, states: Leaves) -> tuple[Leaves, Any]:
        """The states after one step from each of the states, and the outputs."""
        prev, bound, z = self.step.carry(self.prev_carries(states)), self.step.bound, self.step.z
        carry = bound.update(prev, z, bound.recur(prev))
        ys = zero_where(self.masks.valid, bound.readout(carry, z))
        return self._apply_padding(states, jax.tree.leaves(carry)), ys

    def outputs(self, states: Leaves) -> Any:
        """The outputs `[T, B, output]`."""
        return self.step_all(states)[1]

    def initial_guess(self, init: str) -> Leaves:
        """The first carry at all steps, or the state after one step from it."""
        same = [jnp.broadcast_to(leaf, (self.steps, *leaf.shape)) for leaf in self.start]
        return same if init == "carry" else self.step_all(same)[0]

    def solve_sequentially(self) -> Leaves:
        """Solves the equations step by step, by `lax.scan`."""
        bound, masks = self.step.bound, self.masks

        def body(carry: Carry, inputs: Any) -> Any:
            z, valid, reset = inputs
            prev = apply_resets(reset, masks.initial, carry)
            carry = tree_where(valid, bound.update(prev, z, bound.recur(prev)), prev)
            return carry, jax.tree.leaves(carry)

        steps = (self.step.z, masks.valid, masks.resets)
        return lax.scan(body, self.step.carry(self.start), steps, reverse=self.reverse)[1]

    def linearize(self, kind: Kind, states: Leaves) -> tuple[Leaves, Any]:
        """The states after one step from each of the states, and the Jacobians.

        Jacobians are zero at resets and the identity on padding.
        """
        after, matrices = MATRICES[kind](self.step, self.prev_carries(states))
        if kind == "block":
            matrices = tuple(
                tuple(self._apply_masks(a, float(i == j)) for j, a in enumerate(row))
                for i, row in enumerate(matrices)
            )
        elif kind == "full":
            matrices = self._apply_masks(
                matrices, jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
            )
        else:
            matrices = tuple(self._apply_masks(a, 1.0) for a in matrices)
        return self._apply_padding(states, after), matrices

    def _apply_masks(self, a: jax.Array, one: Any) -> jax.Array:
        valid, resets = self.masks.valid, self.masks.resets
        if resets is not None:
            a = jnp.where(expand_mask(resets, a), 0, a)
        return a if valid is None else jnp.where(expand_mask(valid, a), a, one)

    def solve_linear(self, kind: Kind, matrices: Any, b: Leaves) -> Leaves:
        """Solves d_t = A_t d_{t-1} + b_t, d = 0 before the first step, with A from `linearize`."""
        if kind == "full":
            flat = self._prefix(prefix.DENSE, matrices, jacobian.concat_leaves(b))
            return jacobian.split_leaves(flat, b)
        if kind == "block":
            return list(self._prefix(prefix.BLOCKS, matrices, tuple(b)))
        pairs = zip(matrices, b, strict=True)
        return [self._prefix(prefix.DIAGONAL, a, leaf) for a, leaf in pairs]

    def _prefix(self, algebra: prefix.Algebra, a: Any, b: Any) -> Any:
        if self.masks.resets is not None:
            algebra, a = prefix.with_resets(algebra), (a, ~self.masks.resets)
        zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), b)
        return prefix.solve(algebra, a, b, zero, reverse=self.reverse)

    def solve_tangents(self, kind: Kind, states: Leaves, b: Leaves) -> Leaves:
        """`solve_linear` with the exact Jacobians at the states, even if `kind` is approximate."""
        exact = "full" if self.step.exact is None and kind == "full" else self.step.exact
        if exact is not None:
            return self.solve_linear(exact, self.linearize(exact, states)[1], b)
        return self._sequential_tangents(states, b)

    def _sequential_tangents(self, states: Leaves, b: Leaves) -> Leaves:
        """`solve_tangents` by `lax.scan`, without matrices `[n, n]`."""
        prev_carries, masks = self.prev_carries(states), self.masks
        if jacobian.is_elementwise(self.step, prev_carries):
            _, local = jacobian.partials(self.step, prev_carries)
            jvp = lambda local, deltas: local.apply(self.step, deltas)
        else:
            local = (self.step.z, prev_carries)
            jvp = lambda local, deltas: jax.jvp(
                self.step._replace(z=local[0]).next_carries, (local[1],), (deltas,)
            )[1]

        def body(deltas: Leaves, inputs: Any) -> tuple[Leaves, Leaves]:
            local, b, valid, reset = inputs
            prev = deltas if reset is None else zero_where(~reset, deltas)
            after = tree_where(valid, jvp(local, prev), deltas)
            after = jax.tree.map(jnp.add, after, b)
            return after, after

        zero = [jnp.zeros_like(leaf[0]) for leaf in b]
        steps = (local, b, masks.valid, masks.resets)
        return lax.scan(body, zero, steps, reverse=self.reverse)[1]


def system_of(bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool) -> System:
    """The equations of a run; the arguments are those of `Engine.run`."""
    start, structure = jax.tree.flatten(carry)
    z, exact = bound.project(zero_where(masks.valid, xs)), jacobian.exact_kind(bound, xs)
    step = Step(bound, structure, z, exact)
    return System(step, len(jax.tree.leaves(xs)[0]), start, masks, reverse)
