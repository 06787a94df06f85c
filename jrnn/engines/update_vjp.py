"""The VJP of `update` of a cell, with few residuals."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn.cell import Carry, Gates, Inputs, Params
from jrnn.engines.precision import BoundCell, bind
from jrnn.engines.readout import SplitReadout
from jrnn.engines.vjp import vjp
from jrnn.jaxprs import live_variables
from jrnn.masking import Masks, apply_resets, zero_where

RECOMPUTED = frozenset(
    "add add_any sub mul neg div max min name square one_minus_square select_n broadcast_in_dim "
    "convert_element_type slice reshape transpose squeeze expand_dims split concatenate "
    "complex real imag conj".split()
)
"""Primitives that the backward pass recomputes, since saving their results takes longer."""


class BackwardPlan(NamedTuple):
    """What the backward pass must know about a cell, found by tracing the cell.

    The gates z and u are merged into one list. If `update` uses z_k and u_n only in their sum, as
    in most cells, the list contains the sum. The cotangent of the sum is that of z_k and of u_n.

    Attributes:
      readout: the readout, split into a part in the loop and a part after the loop.
      params: the tree structure of the parameters.
      z: the tree structure of z.
      u: the tree structure of u.
      pairs: the pairs of leaves that are only used in their sum: index in u -> index in z.
      vjp_fn: the tree structure of the VJP function that `update_vjp` returns.
      sources: for each leaf of the VJP function, the tree that contains it ("bound", "prev" or
        "residual") and its index in this tree.
      used_in_update: for each leaf of the parameters, whether `update` or the part of the readout
        in the loop uses it.
    """

    readout: SplitReadout
    params: Any
    z: Any
    u: Any
    pairs: dict[int, int]
    vjp_fn: Any = None
    sources: tuple[tuple[str, int], ...] = ()
    used_in_update: tuple[bool, ...] = ()

    def merge_gates(self, z: Gates, u: Gates) -> list[Any]:
        """Adds the paired leaves of u to the leaves of z, and appends all other leaves of u."""
        merged, us = jax.tree.leaves(z), jax.tree.leaves(u)
        for n, k in self.pairs.items():
            merged[k] = merged[k] + us[n]
        return merged + [a for n, a in enumerate(us) if n not in self.pairs]

    def split_gates(self, merged: list[Any], paired: Callable[[Any], Any]) -> tuple[Gates, Gates]:
        """Splits merged gates or their cotangents into z and u.

        Args:
          merged: the leaves, in the order of `merge_gates`.
          paired: maps a merged leaf of z to the paired leaf of u: the identity for cotangents;
            zeros for values, so that z + u is the merged leaf.
        """
        count = self.z.num_leaves
        zs, rest = merged[:count], iter(merged[count:])
        leaves = range(self.u.num_leaves)
        us = [paired(zs[self.pairs[n]]) if n in self.pairs else next(rest) for n in leaves]
        return jax.tree.unflatten(self.z, zs), jax.tree.unflatten(self.u, us)

    def residuals(self, vjp_fn: Any) -> list[Any]:
        """Returns the leaves of a VJP function that must be saved: neither parameters nor carry."""
        leaves = zip(jax.tree.leaves(vjp_fn), self.sources, strict=True)
        return [leaf for leaf, (source, _) in leaves if source == "residual"]

    def restore_vjp(self, bound: BoundCell, prev: Carry, residuals: list[Any]) -> Any:
        """Restores the VJP function of a step from its residuals."""
        leaves = {
            "bound": jax.tree.leaves(bound),
            "prev": jax.tree.leaves(prev),
            "residual": residuals,
        }
        return jax.tree.unflatten(self.vjp_fn, [leaves[source][k] for source, k in self.sources])

    def select_used(self, ct_params: Any) -> list[Any]:
        """Returns the cotangents of the parameters in `used_in_update`, as a list."""
        leaves = self.params.flatten_up_to(ct_params)
        return [ct for ct, used in zip(leaves, self.used_in_update, strict=True) if used]

    def fill_unused(self, ct_used: list[Any], ct_params: Any) -> Any:
        """Inverts `select_used`; all other leaves are those of `ct_params`."""
        leaves, used_leaves = self.params.flatten_up_to(ct_params), iter(ct_used)
        pairs = zip(leaves, self.used_in_update, strict=True)
        return jax.tree.unflatten(
            self.params, [next(used_leaves) if used else ct for ct, used in pairs]
        )


def make_plan(
    readout: SplitReadout, bound: BoundCell, prev_carries: Carry, xs: Inputs, masks: Masks
) -> BackwardPlan:
    """Traces one step of a cell to find its `BackwardPlan`; computes nothing.

    Shapes, dtypes and shardings must be those of the actual steps. Otherwise the conversions that
    JAX inserts would become residuals.

    Args:
      readout: the split readout of the cell.
      bound: the cell with its parameters.
      prev_carries: carries before a step, leaves `[n, B, ...]` with n of at least 1.
      xs: inputs, leaves `[T, B, ...]`.
      masks: padding and resets.
    """
    plans = []

    def trace(bound: BoundCell, *steps: Any) -> None:
        prev, x, valid, reset = jax.tree.map(lambda a: a[0], steps)
        prev = apply_resets(reset, masks.reset_carry, prev)
        z, u = bound.project(zero_where(valid, x)), bound.recur(prev)
        plan = _plan_of_update(readout, bound, prev, z, u)
        _, vjp_fn = update_vjp(plan, bound, prev, plan.merge_gates(z, u))
        leaves, structure = jax.tree.flatten(vjp_fn)
        origins = {
            id(leaf): (name, k)
            for name, tree in (("bound", bound), ("prev", prev))
            for k, leaf in enumerate(jax.tree.leaves(tree))
        }
        index = iter(range(len(leaves)))
        sources = tuple(origins.get(id(leaf)) or ("residual", next(index)) for leaf in leaves)
        plans.append(plan._replace(vjp_fn=structure, sources=sources))

    jax.eval_shape(trace, bound, prev_carries, xs, masks.valid, masks.resets)
    return plans[0]


def _plan_of_update(
    readout: SplitReadout, bound: BoundCell, prev: Carry, z: Gates, u: Gates
) -> BackwardPlan:
    """Returns the plan without the VJP function: all fields except `vjp_fn` and `sources`."""
    step = lambda params, *rest: _update(readout, bound, params, *rest)
    jaxpr = jax.make_jaxpr(step)(bound.accum_params, prev, z, u).jaxpr
    reads = Counter(id(v) for eqn in jaxpr.eqns for v in eqn.invars)
    reads.update(id(v) for v in jaxpr.outvars)
    variables = iter(id(v) for v in jaxpr.invars)
    params, _, zs, us = (
        [next(variables) for _ in jax.tree.leaves(tree)]
        for tree in (bound.accum_params, prev, z, u)
    )
    pairs = {}
    for eqn in jaxpr.eqns:
        operands = {id(v) for v in eqn.invars}
        only_added = eqn.primitive.name == "add" and all(reads[v] == 1 for v in operands)
        if only_added and operands & set(zs) and operands & set(us):
            (n,) = (n for n, v in enumerate(us) if v in operands)
            (k,) = (k for k, v in enumerate(zs) if v in operands)
            pairs[n] = k
    live = live_variables(jaxpr)  # a cast of a parameter that is not used does not count
    used_in_update = tuple(v in live for v in params)
    structures = [jax.tree.structure(tree) for tree in (bound.accum_params, z, u)]
    return BackwardPlan(
        readout, structures[0], structures[1], structures[2], pairs, used_in_update=used_in_update
    )


def _update(
    readout: SplitReadout, bound: BoundCell, params: Params, prev: Carry, z: Gates, u: Gates
) -> tuple[Carry, Any]:
    """Runs `update` and the part of the readout in the loop, with these parameters."""
    # Both copies of the parameters in `bound` must depend on `params`, which is differentiated.
    bound = bind(bound.cell, params, bound.precision, bound.return_carries)
    carry = bound.update(prev, z, u)
    return carry, readout.in_loop(bound, carry, z)


def update_vjp(plan: BackwardPlan, bound: BoundCell, prev: Carry, merged: list[Any]) -> Any:
    """Computes the VJP of `update` and of the part of the readout in the loop.

    The VJP is taken with respect to parameters, carry and merged gates. The results of `RECOMPUTED`
    primitives, and of primitives with complex operands, are not residuals.

    Args:
      plan: the plan; its fields `vjp_fn` and `sources` are not used.
      bound: the cell with its parameters.
      prev: the carry before the step.
      merged: the gates, from `plan.merge_gates`.

    Returns:
      The pair of the new carry and the result of `readout.in_loop`; and the VJP function.
    """

    def update(params: Params, prev: Carry, merged: list[Any]) -> Any:
        z, u = plan.split_gates(merged, jnp.zeros_like)
        return _update(plan.readout, bound, params, prev, z, u)

    update = jax.checkpoint(update, policy=_is_saveable, prevent_cse=False)
    return vjp(update, bound.accum_params, prev, merged)


def _is_saveable(primitive: Any, *operands: Any, **_: Any) -> bool:
    """Returns whether to save the result of a primitive; the `policy` of `jax.checkpoint`."""
    # jax.checkpoint applies reduce_precision to saved values; it raises for complex (jax 0.10).
    has_complex = any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in operands)
    return primitive.name not in RECOMPUTED and not has_complex
