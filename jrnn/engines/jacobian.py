"""Jacobians of the new carry with respect to the old carry, for all steps at once.

If `update` is elementwise, they follow from a few elementwise derivatives. With c the leaves of the
old carry, c' those of the new carry, and u the gates from `recur`::

    dc'_i / dc_j = diag(D_ij) + sum over gates g of diag(E_ig) R_gj
    D_ij = partial of c'_i by c_j,   E_ig = partial of c'_i by u_g,   R_gj = du_g / dc_j

R contains the recurrent weights, which are the same at all steps. For any other cell the Jacobian
is computed column by column, by forward-mode differentiation.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn import structure
from jrnn.broadcasting import multiply
from jrnn.cell import Carry, Dense, Gates, Inputs
from jrnn.engines.precision import BoundCell

JacobianKind = Literal["diagonal", "block", "full"]
"""The part of the Jacobian that is computed: its diagonal, one block per unit, or the full
matrix."""
Leaves = list[jax.Array]
Rows = tuple[tuple[jax.Array, ...], ...]
Entry = Callable[[int, int], jax.Array]
"""Maps (i, j) to element (i, j) of the result of `blocks`."""


class Step(NamedTuple):
    """The step function of a cell for all t at once, on carries `[T, B, ...]`.

    Attributes:
      bound: the cell with its parameters.
      structure: the tree structure of the carry.
      z: the result of `project` for all steps, leaves `[T, B, ...]`.
      exact: the result of `exact_kind` for the cell.
    """

    bound: BoundCell
    structure: Any
    z: Gates
    exact: JacobianKind | None

    def next_carries(self, prev_carries: Leaves, u: Gates | None = None) -> Leaves:
        """Returns the leaves of the carry after each step; `u` defaults to `recur` of the carry."""
        carry = self.carry(prev_carries)
        u = self.bound.recur(carry) if u is None else u
        return jax.tree.leaves(self.bound.update(carry, self.z, u))

    def carry(self, leaves: Leaves) -> Carry:
        """Returns the carry with these leaves."""
        return jax.tree.unflatten(self.structure, leaves)


class PartialDerivatives(NamedTuple):
    """The partial derivatives of `update`, arrays `[T, B, hidden]`.

    Attributes:
      by_carry: D of the module docstring: a row for each new leaf, of an array for each old leaf.
      by_gates: E of the module docstring: a row for each new leaf, of an array for each leaf of u.
    """

    by_carry: Rows
    by_gates: Rows

    def apply(self, step: Step, tangents: Leaves) -> Leaves:
        """Computes the exact Jacobian-vector product, without forming matrices `[n, n]`.

        Args:
          step: the step function, for its `recur`.
          tangents: the tangents of the old carry, leaves `[..., hidden]`.

        Returns:
          The tangents of the new carry.
        """
        u_tangents = jax.tree.leaves(_recur_tangents(step, tangents))
        row = lambda by_carry, by_gates: sum(
            (p * t for p, t in zip((*by_carry, *by_gates), (*tangents, *u_tangents), strict=True)),
            start=jnp.zeros((), by_carry[0].dtype),
        )
        return [row(*pair) for pair in zip(self.by_carry, self.by_gates, strict=True)]


def exact_kind(bound: BoundCell, xs: Inputs) -> JacobianKind | None:
    """Returns "diagonal" or "block" if that part is the whole Jacobian of a cell.

    The part is inferred by `jrnn.structure`, or from the coefficients of a linear cell. Returns
    None if the Jacobian is dense, or if the leaves of the carry are not all `[B, hidden]` with the
    same shape and dtype.
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
    return structure.jacobian_sparsity(cell, params, carry, jax.eval_shape(bound.project, x))


def is_elementwise(step: Step, prev_carries: Leaves) -> bool:
    """Returns whether `update` is elementwise, and carry and u consist of arrays of one shape.

    The arrays must be `[T, B, hidden]`.
    """
    bound, carry = step.bound, step.carry(prev_carries)
    u = jax.eval_shape(bound.recur, carry)
    leaves = [*prev_carries, *jax.tree.leaves(u)]
    if any(leaf.ndim != 3 or leaf.shape != prev_carries[0].shape for leaf in leaves):
        return False
    if step.exact is not None:
        return True
    z = jax.eval_shape(lambda: step.z)
    return structure.update_is_elementwise(bound.cell, bound.accum_params, carry, z, u)


def partials(step: Step, prev_carries: Leaves) -> tuple[Leaves, PartialDerivatives]:
    """Returns the leaves after each step, and the partial derivatives of an elementwise `update`.

    `is_elementwise` must be true for the arguments.
    """
    us, gates = jax.tree.flatten(step.bound.recur(step.carry(prev_carries)))
    update = lambda prev_carries, us: step.next_carries(prev_carries, jax.tree.unflatten(gates, us))
    next_leaves, jvp = jax.linearize(update, prev_carries, us)
    inputs = [*prev_carries, *us]

    def column(k: int) -> Leaves:
        ones = [jnp.ones_like(a) if n == k else jnp.zeros_like(a) for n, a in enumerate(inputs)]
        return jvp(ones[: len(prev_carries)], ones[len(prev_carries) :])

    rows = tuple(zip(*(column(k) for k in range(len(inputs))), strict=True))
    count = len(prev_carries)
    return next_leaves, PartialDerivatives(
        tuple(r[:count] for r in rows), tuple(r[count:] for r in rows)
    )


def recurrent_weights(step: Step, prev_carries: Leaves) -> list[Leaves]:
    """Returns the transposes of R_gj of the module docstring.

    For each leaf j of the carry and each gate g, the result has a matrix `[hidden, hidden]`. Its
    rows belong to the units of the leaf, its columns to the units of the gate.
    """
    identities = [jnp.eye(leaf.shape[-1], dtype=leaf.dtype) for leaf in prev_carries]
    tangents_of = lambda j: [a if n == j else jnp.zeros_like(a) for n, a in enumerate(identities)]
    return [jax.tree.leaves(_recur_tangents(step, tangents_of(j))) for j in range(len(identities))]


def _recur_tangents(step: Step, tangents: Leaves) -> Gates:
    """Returns the tangents of the gates from `recur`, which is linear up to a bias."""
    zero = step.carry([jnp.zeros_like(t) for t in tangents])
    return jax.jvp(step.bound.recur, (zero,), (step.carry(tangents),))[1]


def diagonal(step: Step, prev_carries: Leaves) -> tuple[Leaves, tuple[jax.Array, ...]]:
    """Returns the leaves after each step, and the diagonals of the Jacobians.

    The diagonals are one array for each leaf, in its shape.
    """
    next_leaves, entry = _entries(step, prev_carries)
    return next_leaves, tuple(entry(i, i) for i in range(len(prev_carries)))


def blocks(step: Step, prev_carries: Leaves) -> tuple[Leaves, Rows]:
    """Returns the leaves after each step, and the block-diagonal part of the Jacobians.

    Element (i, j) of the latter has the derivatives of unit k of the new leaf i by unit k of the
    old leaf j, for all k, in the shape of leaf j.
    """
    next_leaves, entry = _entries(step, prev_carries)
    count = range(len(prev_carries))
    return next_leaves, tuple(tuple(entry(i, j) for j in count) for i in count)


def _entries(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    """Returns the leaves after each step, and a function that computes one element of `blocks`."""
    compute = _blocks_from_partials if is_elementwise(step, prev_carries) else _blocks_by_columns
    return compute(step, prev_carries)


def _blocks_from_partials(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    """Computes `_entries` from the partial derivatives of an elementwise `update`."""
    next_leaves, (by_carry, by_gates) = partials(step, prev_carries)
    weights = [[jnp.diagonal(w) for w in leaf] for leaf in recurrent_weights(step, prev_carries)]

    def entry(i: int, j: int) -> jax.Array:
        return sum((e * w for e, w in zip(by_gates[i], weights[j], strict=True)), by_carry[i][j])

    return next_leaves, entry


def _blocks_by_columns(step: Step, prev_carries: Leaves) -> tuple[Leaves, Entry]:
    """Computes `_entries` for any cell, by one tangent for each unit, one after another."""
    next_leaves, jvp = jax.linearize(step.next_carries, prev_carries)

    def entry(i: int, j: int) -> jax.Array:
        count = math.prod(prev_carries[j].shape[2:])

        def column(unit: jax.Array) -> jax.Array:
            tangents = [jnp.zeros_like(leaf) for leaf in prev_carries]
            one_hot = (jnp.arange(count) == unit).astype(tangents[j].dtype)
            one_hot = one_hot.reshape(tangents[j].shape[2:])
            tangents[j] = jnp.broadcast_to(one_hot, tangents[j].shape)
            tangent = jvp(tangents)[i]
            return tangent.reshape(*tangent.shape[:2], count)[..., unit]

        columns = lax.map(column, jnp.arange(count))
        return jnp.moveaxis(columns, 0, -1).reshape(prev_carries[j].shape)

    return next_leaves, entry


def full(step: Step, prev_carries: Leaves) -> tuple[Leaves, jax.Array]:
    """Returns the leaves after each step, and the Jacobians `[T, B, n, n]`.

    n is the number of elements of the concatenated leaves.
    """
    if not is_elementwise(step, prev_carries):
        return _full_by_columns(step, prev_carries)
    next_leaves, (by_carry, by_gates) = partials(step, prev_carries)
    weights = recurrent_weights(step, prev_carries)

    def block(i: int, j: int) -> jax.Array:
        diagonal = by_carry[i][j]
        matrix = multiply(diagonal[..., None], jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype))
        pairs = zip(by_gates[i], weights[j], strict=True)
        return sum((multiply(e[..., None], w.T) for e, w in pairs), matrix)

    count = range(len(prev_carries))
    rows = [jnp.concatenate([block(i, j) for j in count], axis=-1) for i in count]
    return next_leaves, jnp.concatenate(rows, axis=-2)


def _full_by_columns(step: Step, prev_carries: Leaves) -> tuple[Leaves, jax.Array]:
    """Computes `full` for any cell, by one tangent for each element of the carry."""
    flat = concat_leaves(prev_carries)
    function = lambda flat: concat_leaves(step.next_carries(split_leaves(flat, prev_carries)))
    next_leaves, jvp = jax.linearize(function, flat)
    basis = jnp.eye(flat.shape[-1], dtype=flat.dtype)
    columns = jax.vmap(lambda unit: jvp(jnp.broadcast_to(unit, flat.shape)))(basis)
    return split_leaves(next_leaves, prev_carries), jnp.moveaxis(columns, 0, -1)


def concat_leaves(leaves: Leaves) -> jax.Array:
    """Concatenates leaves `[T, B, ...]` into one array `[T, B, n]`."""
    flat = lambda leaf: leaf.reshape(*leaf.shape[:2], math.prod(leaf.shape[2:]))
    return jnp.concatenate([flat(leaf) for leaf in leaves], axis=-1)


def split_leaves(flat: jax.Array, like: Leaves) -> Leaves:
    """Splits `[T, B, n]` into leaves with the shapes and dtypes of `like`."""
    sizes = [math.prod(leaf.shape[2:]) for leaf in like]
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1], axis=-1)
    return [a.reshape(leaf.shape).astype(leaf.dtype) for a, leaf in zip(parts, like, strict=True)]
