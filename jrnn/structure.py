"""What the functions of a cell do, read off their jaxprs.

Engines and transforms ask here in place of flags on the cell: whether `update` is elementwise,
which parameters it reads, whether the Jacobian of a step is diagonal. An unknown operation counts
as one that mixes everything, so that the answer errs on the safe side.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jrnn.cell import Carry, Cell, Gates, Params
from jrnn.dtypes import of_floats
from jrnn.jaxprs import CALLS, inner_jaxprs

JacobianKind = Literal["diagonal", "block"]
Recurrence = Literal["dense", "block_diagonal", "diagonal", "linear"]

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 "
    "floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne "
    "neg nextafter not optimization_barrier or pow real reduce_precision rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
"""Primitives where each number of the output depends on the same number of each input alone."""


class Flow(NamedTuple):
    """How the outputs of a function depend on its arguments.

    Attributes:
      elementwise: whether nothing but elementwise operations is done with the arguments that were
        followed; others, such as parameters, may be sliced and reshaped.
      sources: for each leaf of the output, the numbers of the followed leaves that it depends on.
    """

    elementwise: bool
    sources: tuple[frozenset[int], ...]


class Reads(NamedTuple):
    """Which leaves of its arguments a function uses, in the order of its arguments."""

    params: tuple[bool, ...]
    carry: tuple[bool, ...]
    z: tuple[bool, ...]


def flow(function: Callable[..., Any], static: Any, followed: Any) -> Flow:
    """The flow from the leaves of `followed` to those of `function(static, followed)`.

    Where derivatives are defined by `jax.custom_jvp`, it is the flow of the tangents.
    """
    closed = jax.make_jaxpr(function)(static, followed)
    leaves, skip = jax.tree.leaves(followed), len(jax.tree.leaves(static))
    numbers = list(range(len(leaves)))
    if any(eqn.primitive.name == "custom_jvp_call" for eqn in _equations(closed.jaxpr)):
        numbers, _ = of_floats(partial(function, static), followed)

        def tangents(given: Any, moves: list[Any]) -> Any:
            static, followed = given
            _, moved = of_floats(partial(function, static), followed)
            leaves = jax.tree.leaves(followed)
            return jax.jvp(moved, [leaves[n] for n in numbers], moves)[1]

        closed = jax.make_jaxpr(tangents)((static, followed), [leaves[n] for n in numbers])
        skip += len(leaves)
    jaxpr = closed.jaxpr
    env = {v: frozenset([n]) for n, v in zip(numbers, jaxpr.invars[skip:], strict=True)}
    elementwise, outs = _follow(jaxpr, env)
    return Flow(elementwise, tuple(outs))


def update_is_elementwise(cell: Cell, params: Params, carry: Carry, z: Gates, u: Gates) -> bool:
    """Whether `update` does nothing but elementwise operations and broadcasts with its gates."""
    function = lambda p, rest: cell.update(p, *rest)
    return flow(function, params, (carry, z, u)).elementwise


def jacobian_kind(cell: Cell, params: Params, carry: Carry, z: Gates) -> JacobianKind | None:
    """The structure of the derivative of the new carry by the old one, if it has any.

    "diagonal": each number of the new carry depends on the same number of the old one alone;
    "block": unit k of each leaf depends on unit k of all leaves alone; None: it is dense, or the
    leaves of the carry are not all of one shape and floating.
    """
    leaves = jax.tree.leaves(carry)
    if not leaves or any(leaf.shape != leaves[0].shape for leaf in leaves):
        return None
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        return None

    def step(given: Any, carry: Carry) -> Carry:
        params, z = given
        return cell.update(params, carry, z, cell.recur(params, carry))

    found = flow(step, (params, z), carry)
    if not found.elementwise:
        return None
    own = all(sources <= {n} for n, sources in enumerate(found.sources))
    return "diagonal" if own else "block"


def has_reverse_mode_only(function: Callable[..., Any], *args: Any) -> bool:
    """Whether some operation has a derivative of reverse mode alone (`jax.custom_vjp`)."""
    closed = jax.make_jaxpr(function)(*args)
    return any(eqn.primitive.name.startswith("custom_vjp_call") for eqn in _equations(closed.jaxpr))


def multiplies_by_params(function: Callable[..., Any], params: Params, *args: Any) -> bool:
    """Whether parameters enter a matrix product or a convolution, at any depth."""
    closed = jax.make_jaxpr(function)(params, *args)
    held = set(closed.jaxpr.invars[: len(jax.tree.leaves(params))])
    return _params_in_product(closed.jaxpr, held)


def leaves_read(function: Callable[..., Any], params: Params, carry: Carry, z: Gates) -> Reads:
    """Which leaves of `params`, `carry` and `z` the function `(params, carry, z)` uses."""
    jaxpr = jax.make_jaxpr(function)(params, carry, z).jaxpr
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    used |= {id(v) for v in jaxpr.outvars}
    flags = iter([id(v) in used for v in jaxpr.invars])
    return Reads(*(tuple(next(flags) for _ in jax.tree.leaves(t)) for t in (params, carry, z)))


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from _equations(inner.jaxpr)


def _follow(
    jaxpr: core.Jaxpr, sources: dict[Any, frozenset[int]]
) -> tuple[bool, list[frozenset[int]]]:
    """Whether all is elementwise, and what the outputs depend on."""
    env, elementwise, none = dict(sources), True, frozenset[int]()
    read = lambda v: none if isinstance(v, core.Literal) else env.get(v, none)
    for eqn in jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        together = none.union(*given)
        outs = [together] * len(eqn.outvars)
        if together:
            closed = inner_jaxprs(eqn) if eqn.primitive.name in CALLS else ()
            inner = [one.jaxpr for one in closed]
            if len(inner) == 1 and len(inner[0].invars) == len(given):
                followed = {v: s for v, s in zip(inner[0].invars, given, strict=True) if s}
                fine, outs = _follow(inner[0], followed)
            else:
                fine = _is_elementwise(eqn, given)
            elementwise = elementwise and fine
        env.update(zip(eqn.outvars, outs, strict=True))
    return elementwise, [read(v) for v in jaxpr.outvars]


def _is_elementwise(eqn: Any, given: list[frozenset[int]]) -> bool:
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return True
    shapes = [v.aval.shape for v, s in zip(eqn.invars, given, strict=True) if s]
    if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        # Axes of size one may come and go; an axis may be repeated.
        (shape,), out = shapes, eqn.outvars[0].aval.shape
        if name == "broadcast_in_dim":
            dims = eqn.params["broadcast_dimensions"]
            return list(dims) == sorted(dims)
        return [n for n in shape if n != 1] == [n for n in out if n != 1]
    return False


def _params_in_product(jaxpr: core.Jaxpr, held: set[Any]) -> bool:
    held = set(held)
    for eqn in jaxpr.eqns:
        given = [not isinstance(v, core.Literal) and v in held for v in eqn.invars]
        inner = [one.jaxpr for one in inner_jaxprs(eqn)]
        if eqn.primitive.name in ("dot_general", "conv_general_dilated") and any(given):
            return True
        for one in inner:
            same = len(one.invars) == len(given)
            mine = {v for v, g in zip(one.invars, given, strict=True) if g} if same else set()
            if any(given) and (not same or _params_in_product(one, mine)):
                return True
        if any(given):
            held.update(eqn.outvars)
    return False


def adds_bias_last(
    function: Callable[..., Any], name: str, size: int, params: Params, *args: Any
) -> bool:
    """Whether the field `name` `[size]` of the parameters is added last, once, to all outputs.

    That is: `function(params, ...)` is a value without it, plus it, cut into the outputs.
    """
    bias = getattr(params, name, None)
    if bias is None or bias.shape != (size,):
        return False
    order = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    position = order.index(jax.tree_util.GetAttrKey(name))
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    return _only_added(jaxpr, {jaxpr.invars[position]}) == set(range(len(jaxpr.outvars)))


_CUTS = frozenset(
    "split slice squeeze reshape broadcast_in_dim convert_element_type name copy".split()
)


def _only_added(jaxpr: core.Jaxpr, biases: set[Any]) -> set[int] | None:
    """The outputs that are cut from a sum with the bias; None where it is used otherwise."""
    sums: set[Any] = set()
    for eqn in jaxpr.eqns:
        given = [v for v in eqn.invars if not isinstance(v, core.Literal)]
        name = eqn.primitive.name
        if any(v in sums for v in given):
            if name not in _CUTS:
                inner = [one.jaxpr for one in inner_jaxprs(eqn)] if name in CALLS else []
                if len(inner) != 1 or not _only_cuts(inner[0]):
                    return None
            sums.update(eqn.outvars)
        elif any(v in biases for v in given):
            if name in ("add", "add_any"):
                sums.update(eqn.outvars)
            elif name in _CUTS:
                biases.update(eqn.outvars)
            else:
                return None
    return {n for n, v in enumerate(jaxpr.outvars) if v in sums}


def _only_cuts(jaxpr: core.Jaxpr) -> bool:
    return all(eqn.primitive.name in _CUTS for eqn in jaxpr.eqns)


def recurrence(cell: Cell, input_size: int) -> Recurrence:
    """How the new carry of a cell depends on the old one.

    "linear": the cell has coefficients; "diagonal" and "block_diagonal": as `jacobian_kind` says;
    "dense": anything else.
    """
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    x = jax.eval_shape(lambda: cell.inputs(input_size, ()))
    z = jax.eval_shape(cell.project, params, x)
    if jax.eval_shape(cell.coefficients, params, z) is not None:
        return "linear"
    kind = jacobian_kind(cell, params, carry, z)
    return "dense" if kind is None else "block_diagonal" if kind == "block" else "diagonal"
