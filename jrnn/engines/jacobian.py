"""Jacobians of the new carry with respect to the old carry, at all steps at once.

For a cell whose `update` is elementwise they are exact and cheap. With c the leaves of the carry
and u the gates from `recur`::

    dc'_i / dc_j = diag(D_ij) + sum over gates g of diag(E_ig) R_gj
    D_ij = partial of update by c_j,   E_ig = partial of update by u_g,   R_gj = du_g / dc_j

R contains only recurrent weights, which are the same at all steps. For any other cell the Jacobian
is computed column by column, by forward mode.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn import structure
from jrnn.cell import Carry, Dense, Gates, Inputs
from jrnn.engines.precision import BoundCell

Kind = Literal["diagonal", "block", "full"]
Leaves = list[jax.Array]
Rows = tuple[tuple[jax.Array, ...], ...]
Entry = Callable[[int, int], jax.Array]


class Step(NamedTuple):
    """One step of a cell at all times at once, from the carries `[T, B, ...]` before each step.

    Attributes:
      bound: the cell with its parameters.
      structure: the tree structure of the carry.
      z: the gates of the input, leaves `[T, B, ...]`.
      exact: `exact_kind` of the cell.
    """

    bound: BoundCell
    structure: Any
    z: Gates
    exact: Kind | None

    def next_carries(self, prev_carries: Leaves, u: Gates | None = None) -> Leaves:
        """The leaves of the carry after each step; `u` defaults to `recur` of the carry."""
        carry = self.carry(prev_carries)
        u = self.bound.recur(carry) if u is None else u
        return jax.tree.leaves(self.bound.update(carry, self.z, u))

    def carry(self, leaves: Leaves) -> Carry:
        return jax.tree.unflatten(self.structure, leaves)


class Partials(NamedTuple):
    """D and E of the module docstring, arrays `[T, B, hidden]`."""

    direct: Rows
    through: Rows

    def apply(self, step: Step, tangents: Leaves) -> Leaves:
        """The exact Jacobian-vector product, without forming matrices `[n, n]`."""
        us = jax.tree.leaves(_recur_tangents(step, tangents))
        row = lambda direct, through: sum(
            (p * t for p, t in zip((*direct, *through), (*tangents, *us), strict=True)),
            start=jnp.zeros((), direct[0].dtype),
        )
        return [row(*pair) for pair in zip(self.direct, self.through, strict=True)]


def exact_kind(bound: BoundCell, xs: Inputs) -> Kind | None:
    """The structure of the Jacobian of a step, by `jrnn.structure`; None for a dense Jacobian.

    None as well if the leaves of the carry are not all `[B, hidden]` with the same shape and dtype.
    """
    cell, params = bound.cell, bound.accum_params
    carry = jax.eval_shape(lambda: cell.init_carry(params, ()))
    states = jax.tree.leaves(carry)
    if any(s.ndim != 1 or (s.shape, s.dtype) != (states[0].shape, states[0].dtype) for s in states):
        return None
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), xs)
    if bound.is_linear(x):
        coefficients = jax.eval_shape(lambda x: bound.coefficients(bound.project(x)), x)
        return None if isinstance(coefficients, Dense) else "diagonal"
    return structure.jacobian_kind(cell, params, carry, jax.eval_shape(bound.project, x))


def is_elementwise(step: Step, prev_carries: Leaves) -> bool:
    """Whether `partials` applies: `update` is elementwise, and leaves and gates have one shape."""
    bound, carry = step.bound, step.carry(prev_carries)
    u = jax.eval_shape(bound.recur, carry)
    leaves = [*prev_carries, *jax.tree.leaves(u)]
    if any(leaf.ndim != 3 or leaf.shape != prev_carries[0].shape for leaf in leaves):
        return False
    if step.exact is not None:
        return True
    z = jax.eval_shape(lambda: step.z)
    return structure.update_is_elementwise(bound.cell, bound.accum_params, carry, z, u)


def partials(step: Step, prev_carries: Leaves) -> tuple[Leaves, Partials]:
    """The leaves after each step, and the partials, for a cell that `is_elementwise`."""
    us, gates = jax.tree.flatten(step.bound.recur(step.carry(prev_carries)))
    update = lambda prev_carries, us: step.next_carries(prev_carries, jax.tree.unflatten(gates, us))
    after, derivative = jax.linearize(update, prev_carries, us)
    inputs = [*prev_carries, *us]

    def column(k: int) -> Leaves:
        ones = [jnp.ones_like(a) if n == k else jnp.zeros_like(a) for n, a in enumerate(inputs)]
        return derivative(ones[: len(prev_carries)], ones[len(prev_carries) :])

    rows = tuple(zip(*(column(k) for k in range(len(inputs))), strict=True))
    count = len(prev_carries)
    return after, Partials(tuple(r[:count] for r in rows), tuple(r[count:] for r in rows))


def recurrent_weights(step: Step, prev_carries: Leaves) -> list[Leaves]:
    """R: for each leaf of the carry and each gate, the matrix `[leaf hidden, gate hidden]`."""
    units = [jnp.eye(leaf.shape[-1], dtype=leaf.dtype) for leaf in prev_carries]
    zeros = [jnp.zeros_like(unit) for unit in units]
    basis = lambda j: [units[n] if n == j else zeros[n] for n in range(len(units))]
    return [jax.tree.leaves(_recur_tangents(step, basis(j))) for j in range(len(units))]


def _recur_tangents(step: Step, tangents: Leaves) -> Gates:
    """The tangents of the gates from `recur`; a bias in `recur` has no effect."""
    zero = step.carry([jnp.zeros_like(t) for t in tangents])
    return jax.jvp(step.bound.recur, (zero,), (step.carry(tangents),))[1]


def diagonal(step: Step, prev_carries: Leaves) -> tuple[Leaves, tuple[jax.Array, ...]]:
    """The leaves after each step, and the diagonals of the Jacobians, one array for each leaf."""
    after, entry = _entries(step, prev_carries)
    return after, tuple(entry(i, i) for i in range(len(prev_carries)))


def blocks(step: Step, prev_carries: Leaves) -> tuple[Leaves, Rows]:
    """The leaves after each step, and the derivatives of unit k of each leaf by unit k of each."""
    after, entry = _entries(step, prev_carries)
    count = range(len(prev_carries))
    return after, tuple(tuple(entry(i, j) for j in count) for i in count)


def _entries(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    compute = _partial_blocks if is_elementwise(step, prev_carries) else _blocks_by_columns
    return compute(step, prev_carries)


def _partial_blocks(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    after, (direct, through) = partials(step, prev_carries)
    weights = [[jnp.diagonal(w) for w in leaf] for leaf in recurrent_weights(step, prev_carries)]

    def entry(i: int, j: int) -> jax.Array:
        return sum((e * w for e, w in zip(through[i], weights[j], strict=True)), direct[i][j])

    return after, entry


def _blocks_by_columns(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    """Entries of the full Jacobian, computed with one column in memory at a time."""
    after, derivative = jax.linearize(step.next_carries, prev_carries)

    def entry(i: int, j: int) -> jax.Array:
        count = math.prod(prev_carries[j].shape[2:])

        def column(unit: jax.Array) -> jax.Array:
            zeros = [jnp.zeros_like(leaf) for leaf in prev_carries]
            basis = (jnp.arange(count) == unit).astype(zeros[j].dtype)
            zeros[j] = jnp.broadcast_to(basis.reshape(zeros[j].shape[2:]), zeros[j].shape)
            tangent = derivative(zeros)[i]
            return tangent.reshape(*tangent.shape[:2], count)[..., unit]

        columns = lax.map(column, jnp.arange(count))
        return jnp.moveaxis(columns, 0, -1).reshape(prev_carries[j].shape)

    return after, entry


def full(step: Step, prev_carries: Leaves) -> tuple[Leaves, jax.Array]:
    """The leaves after each step, and the Jacobians `[T, B, n, n]` of the concatenated leaves."""
    if not is_elementwise(step, prev_carries):
        return _full_by_columns(step, prev_carries)
    after, (direct, through) = partials(step, prev_carries)
    weights = recurrent_weights(step, prev_carries)

    def block(i: int, j: int) -> jax.Array:
        diagonal = direct[i][j]
        start = diagonal[..., None] * jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype)
        return sum((e[..., None] * w.T for e, w in zip(through[i], weights[j], strict=True)), start)

    count = range(len(prev_carries))
    rows = [jnp.concatenate([block(i, j) for j in count], axis=-1) for i in count]
    return after, jnp.concatenate(rows, axis=-2)


def _full_by_columns(step: Step, prev_carries: Leaves) -> tuple[Leaves, jax.Array]:
    """The full Jacobian, by one tangent for each element of the carry."""
    flat = concat_leaves(prev_carries)
    function = lambda flat: concat_leaves(step.next_carries(split_leaves(flat, prev_carries)))
    after, derivative = jax.linearize(function, flat)
    units = jnp.eye(flat.shape[-1], dtype=flat.dtype)
    columns = jax.vmap(lambda unit: derivative(jnp.broadcast_to(unit, flat.shape)))(units)
    return split_leaves(after, prev_carries), jnp.moveaxis(columns, 0, -1)


def concat_leaves(leaves: Leaves) -> jax.Array:
    """Concatenates leaves `[T, B, ...]` into one array `[T, B, n]`."""
    flat = lambda leaf: leaf.reshape(*leaf.shape[:2], math.prod(leaf.shape[2:]))
    return jnp.concatenate([flat(leaf) for leaf in leaves], axis=-1)


def split_leaves(flat: jax.Array, like: Leaves) -> Leaves:
    """The inverse of `concat_leaves`, to leaves in the shapes of `like`."""
    sizes = [math.prod(leaf.shape[2:]) for leaf in like]
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1], axis=-1)
    return [a.reshape(leaf.shape).astype(leaf.dtype) for a, leaf in zip(parts, like, strict=True)]
