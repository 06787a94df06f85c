"""The equations s_t = step(s_{t-1}, x_t) of all steps, and their linearisation."""

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
    """The equations, whose unknowns are the leaves `[T, B, ...]` of the carry after each step.

    Attributes:
      step: the cell at all steps.
      steps: how many these are.
      start: the leaves of the first carry.
      masks: padding, where the equation is s_t = s_{t-1}, and resets.
      reverse: whether the scan runs in reverse.
    """

    step: Step
    steps: int
    start: Leaves
    masks: Masks
    reverse: bool

    def shifted(self, states: Leaves) -> Leaves:
        """The state after the previous step, for each step."""
        return prefix.shift(states, self.start, self.reverse)

    def prev_carries(self, states: Leaves) -> Leaves:
        """The states that each step starts from: the previous ones, after resets."""
        return apply_resets(
            self.masks.resets, jax.tree.leaves(self.masks.initial), self.shifted(states)
        )

    def _on_padding(self, states: Leaves, after: Leaves) -> Leaves:
        """The states after each step; on padding the previous ones."""
        return tree_where(self.masks.valid, after, self.shifted(states))

    def stepped(self, states: Leaves) -> tuple[Leaves, Any]:
        """The states after one step from each of the states, and the outputs."""
        prev, bound, z = self.step.carry(self.prev_carries(states)), self.step.bound, self.step.z
        carry = bound.update(prev, z, bound.recur(prev))
        ys = zero_where(self.masks.valid, bound.readout(carry, z))
        return self._on_padding(states, jax.tree.leaves(carry)), ys

    def outputs(self, states: Leaves) -> Any:
        """The outputs `[T, B, output]`."""
        return self.stepped(states)[1]

    def guess(self, init: str) -> Leaves:
        """The first carry at all steps, or the state after one step from it."""
        same = [jnp.broadcast_to(leaf, (self.steps, *leaf.shape)) for leaf in self.start]
        return same if init == "carry" else self.stepped(same)[0]

    def sequential(self) -> Leaves:
        """The solution, step by step."""
        bound, masks = self.step.bound, self.masks

        def body(carry: Carry, inputs: Any) -> Any:
            z, valid, reset = inputs
            prev = apply_resets(reset, masks.initial, carry)
            carry = tree_where(valid, bound.update(prev, z, bound.recur(prev)), prev)
            return carry, jax.tree.leaves(carry)

        steps = (self.step.z, masks.valid, masks.resets)
        return lax.scan(body, self.step.carry(self.start), steps, reverse=self.reverse)[1]

    def linearised(self, kind: Kind, states: Leaves) -> tuple[Leaves, Any]:
        """The states after one step from each, and the Jacobians: 0 at resets, 1 on padding."""
        after, matrices = MATRICES[kind](self.step, self.prev_carries(states))
        if kind == "block":
            matrices = tuple(
                tuple(self._masked(a, float(i == j)) for j, a in enumerate(row))
                for i, row in enumerate(matrices)
            )
        elif kind == "full":
            matrices = self._masked(matrices, jnp.eye(matrices.shape[-1], dtype=matrices.dtype))
        else:
            matrices = tuple(self._masked(a, 1.0) for a in matrices)
        return self._on_padding(states, after), matrices

    def _masked(self, a: jax.Array, one: Any) -> jax.Array:
        valid, resets = self.masks.valid, self.masks.resets
        if resets is not None:
            a = jnp.where(expand_mask(resets, a), 0, a)
        return a if valid is None else jnp.where(expand_mask(valid, a), a, one)

    def solved(self, kind: Kind, matrices: Any, b: Leaves) -> Leaves:
        """The d of d_t = A_t d_{t-1} + b_t, from zero, with matrices as of `linearised`."""
        if kind == "full":
            joined = self._prefix(prefix.DENSE, matrices, jacobian.join(b))
            return jacobian.part(joined, b)
        if kind == "block":
            return list(self._prefix(prefix.BLOCKS, matrices, tuple(b)))
        pairs = zip(matrices, b, strict=True)
        return [self._prefix(prefix.DIAGONAL, a, leaf) for a, leaf in pairs]

    def _prefix(self, algebra: prefix.Algebra, a: Any, b: Any) -> Any:
        if self.masks.resets is not None:
            algebra, a = prefix.with_resets(algebra), (a, ~self.masks.resets)
        zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), b)
        return prefix.solve(algebra, a, b, zero, reverse=self.reverse)

    def tangents(self, kind: Kind, states: Leaves, b: Leaves) -> Leaves:
        """The same with the true Jacobians at the states, whatever `kind` found the states."""
        exact = "full" if self.step.exact is None and kind == "full" else self.step.exact
        if exact is not None:
            return self.solved(exact, self.linearised(exact, states)[1], b)
        return self._sequential_tangents(states, b)

    def _sequential_tangents(self, states: Leaves, b: Leaves) -> Leaves:
        """Step by step, without a matrix [n, n]; the transpose is backpropagation through time."""
        prev_carries, masks = self.prev_carries(states), self.masks
        if jacobian.is_elementwise(self.step, prev_carries):
            _, local = jacobian.partials(self.step, prev_carries)
            act = lambda local, moves: local.act(self.step, moves)
        else:
            local = (self.step.z, prev_carries)
            act = lambda local, moves: jax.jvp(
                self.step._replace(z=local[0]).after, (local[1],), (moves,)
            )[1]

        def body(moves: Leaves, inputs: Any) -> tuple[Leaves, Leaves]:
            local, b, valid, reset = inputs
            prev = moves if reset is None else zero_where(~reset, moves)
            after = tree_where(valid, act(local, prev), moves)
            after = jax.tree.map(jnp.add, after, b)
            return after, after

        zero = [jnp.zeros_like(leaf[0]) for leaf in b]
        steps = (local, b, masks.valid, masks.resets)
        return lax.scan(body, zero, steps, reverse=self.reverse)[1]


def system_of(bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool) -> System:
    """The equations of a run; arguments as of an engine."""
    start, structure = jax.tree.flatten(carry)
    z, exact = bound.project(zero_where(masks.valid, xs)), jacobian.exact_kind(bound, xs)
    step = Step(bound, structure, z, exact)
    return System(step, len(jax.tree.leaves(xs)[0]), start, masks, reverse)
