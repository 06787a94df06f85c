"""The derivative of a cell's gate arithmetic, with as few residuals as it needs."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn.cell import Carry, Gates, Inputs, Params
from jrnn.engines.precision import BoundCell, bind
from jrnn.engines.pullback import pullback
from jrnn.engines.readout import LoopReadout
from jrnn.masking import Masks, apply_resets, zero_where

RECOMPUTED = frozenset(
    "add add_any sub mul neg div max min name square one_minus_square select_n broadcast_in_dim "
    "convert_element_type slice reshape transpose squeeze expand_dims split concatenate "
    "complex real imag conj".split()
)
"""Primitives that the backward pass computes again, since saving their results costs more."""


class Plan(NamedTuple):
    """What a trace of one step tells about a cell.

    Gates are "joined" to one list: where `update` uses z_k and u_k only in their sum, as most
    gates do, the sum stands for both, and so does its cotangent.

    Attributes:
      readout: the part of the readout that is computed in the loop.
      params: the structure of the parameters.
      z: the structure of z.
      u: the structure of u.
      pairs: for each leaf of u that is added to a leaf of z, and to nothing else: which one.
      pull: the structure of the pullback of `update`.
      sources: where each leaf of that comes from: ("bound", "prev" or "residual", its number).
      in_update: for each leaf of the parameters, whether `update` uses it.
    """

    readout: LoopReadout
    params: Any
    z: Any
    u: Any
    pairs: dict[int, int]
    pull: Any = None
    sources: tuple[tuple[str, int], ...] = ()
    in_update: tuple[bool, ...] = ()

    def join(self, z: Gates, u: Gates) -> list[Any]:
        """Gates z, with u added where it is paired, and then the rest of u."""
        joined, us = jax.tree.leaves(z), jax.tree.leaves(u)
        for n, k in self.pairs.items():
            joined[k] = joined[k] + us[n]
        return joined + [a for n, a in enumerate(us) if n not in self.pairs]

    def part(self, joined: list[Any], twin: Callable[[Any], Any]) -> tuple[Gates, Gates]:
        """Gates z and u, with `twin` of its sum for each u that has been added."""
        count = self.z.num_leaves
        zs, rest = joined[:count], iter(joined[count:])
        leaves = range(self.u.num_leaves)
        us = [twin(zs[self.pairs[n]]) if n in self.pairs else next(rest) for n in leaves]
        return jax.tree.unflatten(self.z, zs), jax.tree.unflatten(self.u, us)

    def residuals(self, pull: Any) -> list[Any]:
        """What must be saved of a pullback: the leaves that are neither parameters nor carry."""
        leaves = zip(jax.tree.leaves(pull), self.sources, strict=True)
        return [leaf for leaf, (source, _) in leaves if source == "residual"]

    def pullback(self, bound: BoundCell, prev: Carry, residuals: list[Any]) -> Callable[..., Any]:
        """The pullback, from its residuals."""
        leaves = {
            "bound": jax.tree.leaves(bound),
            "prev": jax.tree.leaves(prev),
            "residual": residuals,
        }
        return jax.tree.unflatten(self.pull, [leaves[source][k] for source, k in self.sources])

    def used(self, ct_params: Any) -> list[Any]:
        """The cotangents of those parameters that `update` uses."""
        leaves = self.params.flatten_up_to(ct_params)
        return [ct for ct, used in zip(leaves, self.in_update, strict=True) if used]

    def all(self, in_update: list[Any], ct_params: Any) -> Any:
        """The inverse of `used`: these cotangents, and `ct_params` for all other leaves."""
        leaves, these = self.params.flatten_up_to(ct_params), iter(in_update)
        pairs = zip(leaves, self.in_update, strict=True)
        return jax.tree.unflatten(self.params, [next(these) if used else ct for ct, used in pairs])


def plan_of(
    readout: LoopReadout, bound: BoundCell, prev_carries: Carry, xs: Inputs, masks: Masks
) -> Plan:
    """Traces one step without computing it, the first along a leading axis of carry and input.

    The types must be those of a real step, with the mesh that arrays are sharded over: otherwise
    the conversions that JAX adds to a step would become residuals as well.
    """
    plans = []

    def trace(bound: BoundCell, *steps: Any) -> None:
        prev, x, valid, reset = jax.tree.map(lambda a: a[0], steps)
        prev = apply_resets(reset, masks.initial, prev)
        z, u = bound.project(zero_where(valid, x)), bound.recur(prev)
        plan = _plan_of_update(readout, bound, prev, z, u)
        _, pull = linearise(plan, bound, prev, plan.join(z, u))
        leaves, structure = jax.tree.flatten(pull)
        known = {
            id(leaf): (name, k)
            for name, tree in (("bound", bound), ("prev", prev))
            for k, leaf in enumerate(jax.tree.leaves(tree))
        }
        number = iter(range(len(leaves)))
        sources = tuple(known.get(id(leaf)) or ("residual", next(number)) for leaf in leaves)
        plans.append(plan._replace(pull=structure, sources=sources))

    jax.eval_shape(trace, bound, prev_carries, xs, masks.valid, masks.resets)
    return plans[0]


def _plan_of_update(
    readout: LoopReadout, bound: BoundCell, prev: Carry, z: Gates, u: Gates
) -> Plan:
    """Which gates `update` only adds to each other, and which parameters it reads."""
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
        once = eqn.primitive.name == "add" and all(reads[v] == 1 for v in operands)
        if once and operands & set(zs) and operands & set(us):
            (n,) = (n for n, v in enumerate(us) if v in operands)
            (k,) = (k for k, v in enumerate(zs) if v in operands)
            pairs[n] = k
    in_update = tuple(reads[v] > 0 for v in params)
    structures = [jax.tree.structure(tree) for tree in (bound.accum_params, z, u)]
    return Plan(readout, structures[0], structures[1], structures[2], pairs, in_update=in_update)


def _update(
    readout: LoopReadout, bound: BoundCell, params: Params, prev: Carry, z: Gates, u: Gates
) -> tuple[Carry, Any]:
    """`update` with these parameters, and the loop's part of the readout."""
    # Both copies of the parameters come from the one that is differentiated.
    bound = bind(bound.cell, params, bound.precision, bound.return_carries)
    carry = bound.update(prev, z, u)
    return carry, readout.emit(bound, carry, z)


def linearise(plan: Plan, bound: BoundCell, prev: Carry, joined: list[Any]) -> Any:
    """Value and pullback of `update` by parameters, carry and joined gates.

    Results of `RECOMPUTED` primitives are no residuals of the pullback.

    Args:
      plan: only its readout, structures and pairs are read.
      bound: the cell with its parameters.
      prev: the carry before the step.
      joined: `plan.join` of its gates.

    Returns:
      The new carry and the loop's output; and the pullback, as `jrnn.engines.pullback` returns it.
    """

    def update(params: Params, prev: Carry, joined: list[Any]) -> Any:
        z, u = plan.part(joined, jnp.zeros_like)
        return _update(plan.readout, bound, params, prev, z, u)

    update = jax.checkpoint(update, policy=_save, prevent_cse=False)
    return pullback(update, bound.accum_params, prev, joined)


def _save(primitive: Any, *operands: Any, **_: Any) -> bool:
    """Whether to save what a primitive computes; never complex numbers, which JAX fails to save."""
    # jax.checkpoint puts a reduce_precision on what it saves, which refuses them (jax 0.10).
    made_of_complex = any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in operands)
    return primitive.name not in RECOMPUTED and not made_of_complex
