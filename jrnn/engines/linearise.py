"""The derivative of a cell's gate arithmetic, with as little saved for it as it can do with."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn.cell import Carry, Gates, Inputs
from jrnn.engines.masking import Masks, blank, restart
from jrnn.engines.precision import Parts
from jrnn.engines.pullback import pullback

CHEAP = frozenset(
    "add add_any sub mul neg div max min square one_minus_square select_n broadcast_in_dim "
    "convert_element_type slice reshape transpose squeeze expand_dims split concatenate "
    "complex real imag conj".split()
)
"""What is computed again in the backward pass, where saving it would cost more."""


class Plan(NamedTuple):
    """What a trace of one step tells of a cell.

    Gates are "joined" to one list: where `update` sees z_k and u_k by their sum alone, as most
    gates do, the sum stands for both, and so does its cotangent.

    Attributes:
      params: the structure of the parameters.
      z: the structure of z.
      u: the structure of u.
      pairs: for each leaf of u that is added to a leaf of z, and to nothing else: which one.
      pull: the structure of the pullback of `update`.
      sources: where each leaf of that comes from: ("parts" or "before" or "kept", its number).
      in_update: for each leaf of the parameters, whether `update` uses it.
    """

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

    def kept(self, pull: Any) -> list[Any]:
        """What must be saved of a pullback: the leaves that are neither parameters nor carry."""
        leaves = zip(jax.tree.leaves(pull), self.sources, strict=True)
        return [leaf for leaf, (source, _) in leaves if source == "kept"]

    def pullback(self, parts: Parts, before: Carry, kept: list[Any]) -> Callable[..., Any]:
        """The pullback again, out of what was saved."""
        leaves = {"parts": jax.tree.leaves(parts), "before": jax.tree.leaves(before), "kept": kept}
        return jax.tree.unflatten(self.pull, [leaves[source][k] for source, k in self.sources])

    def used(self, ct_params: Any) -> list[Any]:
        """Of the cotangents of the parameters, those of the ones that `update` uses."""
        leaves = self.params.flatten_up_to(ct_params)
        return [ct for ct, used in zip(leaves, self.in_update, strict=True) if used]

    def all(self, in_update: list[Any], ct_params: Any) -> Any:
        """The other way round: these, and those of `ct_params` that `used` left out."""
        leaves, these = self.params.flatten_up_to(ct_params), iter(in_update)
        pairs = zip(leaves, self.in_update, strict=True)
        return jax.tree.unflatten(self.params, [next(these) if used else ct for ct, used in pairs])


def plan_of(parts: Parts, befores: Carry, xs: Inputs, masks: Masks) -> Plan:
    """Traces one step without computing it. Carry and input have one leading axis to be cut off.

    The types must be those of a real step, with the mesh that arrays lie on: what JAX adds to a
    step where these differ would be kept as well.
    """
    plans = []

    def trace(parts: Parts, *steps: Any) -> None:
        before, x, valid, reset = jax.tree.map(lambda a: a[0], steps)
        before = restart(reset, masks.initial, before)
        z, u = parts.project(blank(valid, x)), parts.recur(before)
        plan = _plan_of_update(parts, before, z, u)
        _, pull = linearise(plan, parts, before, plan.join(z, u))
        leaves, structure = jax.tree.flatten(pull)
        known = {
            id(leaf): (name, k)
            for name, tree in (("parts", parts), ("before", before))
            for k, leaf in enumerate(jax.tree.leaves(tree))
        }
        kept = iter(range(len(leaves)))
        sources = tuple(known.get(id(leaf)) or ("kept", next(kept)) for leaf in leaves)
        plans.append(plan._replace(pull=structure, sources=sources))

    jax.eval_shape(trace, parts, befores, xs, masks.valid, masks.resets)
    return plans[0]


def _plan_of_update(parts: Parts, before: Carry, z: Gates, u: Gates) -> Plan:
    """Which gates `update` does nothing with but to add them, and which parameters it reads."""
    jaxpr = jax.make_jaxpr(parts.cell.update)(parts.wide_params, before, z, u).jaxpr
    reads = Counter(id(v) for eqn in jaxpr.eqns for v in eqn.invars)
    reads.update(id(v) for v in jaxpr.outvars)
    variables = iter(id(v) for v in jaxpr.invars)
    params, _, zs, us = (
        [next(variables) for _ in jax.tree.leaves(tree)]
        for tree in (parts.wide_params, before, z, u)
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
    structures = [jax.tree.structure(tree) for tree in (parts.wide_params, z, u)]
    return Plan(structures[0], structures[1], structures[2], pairs, in_update=in_update)


def linearise(plan: Plan, parts: Parts, before: Carry, joined: list[Any]) -> Any:
    """Value and pullback of `update` by parameters, carry and joined gates; it keeps nothing cheap.

    Args:
      plan: of which the structures and pairs are read.
      parts: the cell with its parameters.
      before: the carry before the step.
      joined: `plan.join` of its gates.

    Returns:
      The new carry and the output; and the pullback, as `jrnn.engines.pullback` returns it.
    """

    def update(wide_params: Any, before: Carry, joined: list[Any]) -> Any:
        z, u = plan.part(joined, jnp.zeros_like)
        return dataclasses.replace(parts, wide_params=wide_params).update(before, z, u)

    update = jax.checkpoint(update, policy=_dear, prevent_cse=False)
    return pullback(update, parts.wide_params, before, joined)


def _dear(primitive: Any, *operands: Any, **_: Any) -> bool:
    """Whether to save what a primitive computes; never complex numbers, which JAX fails to save."""
    # jax.checkpoint puts a reduce_precision on what it saves, which refuses them (jax 0.10).
    made_of_complex = any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in operands)
    return primitive.name not in CHEAP and not made_of_complex
