"""Properties of cells that are derived from the jaxprs of their methods.

Cells need not declare whether `update` is elementwise, which parameters it reads, or whether the
Jacobian of a step is diagonal. The analysis is conservative: every output of an unknown primitive
is assumed to depend on every input.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jrnn.cell import Carry, Cell, Gates, Params
from jrnn.dtypes import restrict_to_floats
from jrnn.jaxprs import CALLS, inner_jaxprs, live_variables

JacobianSparsity = Literal["diagonal", "block"]
RecurrenceKind = Literal["dense", "block_diagonal", "diagonal", "linear"]

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 "
    "floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne "
    "neg nextafter not optimization_barrier or pow real reduce_precision rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
"""Primitives where each output element depends only on the same element of each input."""


class Dependencies(NamedTuple):
    """How the outputs of a function depend on its traced argument.

    Attributes:
      is_elementwise: whether all operations on values that depend on the traced argument are
        elementwise. Values that do not depend on it, such as parameters, may be used in any way.
      sources: for each output leaf, the indices of those leaves of the traced argument that the
        output leaf depends on.
    """

    is_elementwise: bool
    sources: tuple[frozenset[int], ...]


class UsedLeaves(NamedTuple):
    """For each leaf of each argument of a function, whether the function uses it."""

    params: tuple[bool, ...]
    carry: tuple[bool, ...]
    z: tuple[bool, ...]


def trace_dependencies(function: Callable[..., Any], static: Any, traced: Any) -> Dependencies:
    """Finds how the leaves of `function(static, traced)` depend on those of `traced`.

    If the function contains `jax.custom_jvp`, the dependencies are those of its tangents, and
    `sources` has entries only for floating output leaves.
    """
    closed = jax.make_jaxpr(function)(static, traced)
    leaves, skip = jax.tree.leaves(traced), len(jax.tree.leaves(static))
    indices = list(range(len(leaves)))
    if any(eqn.primitive.name == "custom_jvp_call" for eqn in _equations(closed.jaxpr)):
        indices, _ = restrict_to_floats(partial(function, static), traced)

        def jvp(args: Any, tangents: list[Any]) -> Any:
            static, traced = args
            _, restricted = restrict_to_floats(partial(function, static), traced)
            leaves = jax.tree.leaves(traced)
            return jax.jvp(restricted, [leaves[n] for n in indices], tangents)[1]

        closed = jax.make_jaxpr(jvp)((static, traced), [leaves[n] for n in indices])
        skip += len(leaves)
    jaxpr = closed.jaxpr
    env = {v: frozenset([n]) for n, v in zip(indices, jaxpr.invars[skip:], strict=True)}
    is_elementwise, outs = _propagate_sources(jaxpr, env)
    return Dependencies(is_elementwise, tuple(outs))


def update_is_elementwise(cell: Cell, params: Params, carry: Carry, z: Gates, u: Gates) -> bool:
    """Returns whether `update` has only elementwise operations and broadcasts.

    Operations on parameters alone may be of any kind.
    """
    function = lambda p, rest: cell.update(p, *rest)
    return trace_dependencies(function, params, (carry, z, u)).is_elementwise


def jacobian_sparsity(
    cell: Cell, params: Params, carry: Carry, z: Gates
) -> JacobianSparsity | None:
    """Returns the sparsity of the Jacobian of the new carry with respect to the old carry.

    "diagonal": each element of the new carry depends only on the same element of the old carry.
    "block": each element of a leaf depends only on the elements of all leaves at the same indices.
    None: the Jacobian is not known to have either form; or the carry has no leaves, leaves of
    different shapes, or leaves that are not floating.
    """
    leaves = jax.tree.leaves(carry)
    if not leaves or any(leaf.shape != leaves[0].shape for leaf in leaves):
        return None
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        return None

    def step(args: Any, carry: Carry) -> Carry:
        params, z = args
        return cell.update(params, carry, z, cell.recur(params, carry))

    dependencies = trace_dependencies(step, (params, z), carry)
    if not dependencies.is_elementwise:
        return None
    diagonal = all(sources <= {n} for n, sources in enumerate(dependencies.sources))
    return "diagonal" if diagonal else "block"


def has_reverse_mode_only(function: Callable[..., Any], *args: Any) -> bool:
    """Returns whether a function contains `jax.custom_vjp`, which forward mode does not support."""
    closed = jax.make_jaxpr(function)(*args)
    return any(eqn.primitive.name.startswith("custom_vjp_call") for eqn in _equations(closed.jaxpr))


def multiplies_by_params(function: Callable[..., Any], params: Params, *args: Any) -> bool:
    """Returns whether an operand of a matrix product or convolution depends on parameters.

    Nested jaxprs, such as those of `jax.jit`, are included.
    """
    closed = jax.make_jaxpr(function)(params, *args)
    param_vars = set(closed.jaxpr.invars[: len(jax.tree.leaves(params))])
    return _params_in_product(closed.jaxpr, param_vars)


def find_used_leaves(
    function: Callable[..., Any], params: Params, carry: Carry, z: Gates
) -> UsedLeaves:
    """Finds the leaves of `params`, `carry` and `z` that `function(params, carry, z)` uses."""
    jaxpr = jax.make_jaxpr(function)(params, carry, z).jaxpr
    live = live_variables(jaxpr)
    flags = iter([id(v) in live for v in jaxpr.invars])
    return UsedLeaves(*(tuple(next(flags) for _ in jax.tree.leaves(t)) for t in (params, carry, z)))


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from _equations(inner.jaxpr)


def _propagate_sources(
    jaxpr: core.Jaxpr, sources: dict[Any, frozenset[int]]
) -> tuple[bool, list[frozenset[int]]]:
    """Returns whether all operations are elementwise, and the sources of each output."""
    env, is_elementwise, none = dict(sources), True, frozenset[int]()
    read = lambda v: none if isinstance(v, core.Literal) else env.get(v, none)
    for eqn in jaxpr.eqns:
        in_sources = [read(v) for v in eqn.invars]
        all_sources = none.union(*in_sources)
        outs = [all_sources] * len(eqn.outvars)
        if all_sources:
            closed = inner_jaxprs(eqn) if eqn.primitive.name in CALLS else ()
            inner = [inner_jaxpr.jaxpr for inner_jaxpr in closed]
            if len(inner) == 1 and len(inner[0].invars) == len(in_sources):
                inner_env = {v: s for v, s in zip(inner[0].invars, in_sources, strict=True) if s}
                eqn_elementwise, outs = _propagate_sources(inner[0], inner_env)
            else:
                eqn_elementwise = _is_elementwise(eqn, in_sources)
            is_elementwise = is_elementwise and eqn_elementwise
        env.update(zip(eqn.outvars, outs, strict=True))
    return is_elementwise, [read(v) for v in jaxpr.outvars]


def _is_elementwise(eqn: Any, in_sources: list[frozenset[int]]) -> bool:
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return True
    shapes = [v.aval.shape for v, s in zip(eqn.invars, in_sources, strict=True) if s]
    if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        # Axes may be added by broadcasting, and axes of size 1 may be added, removed or broadcast.
        (shape,), out = shapes, eqn.outvars[0].aval.shape
        if name == "broadcast_in_dim":
            dims = eqn.params["broadcast_dimensions"]
            return list(dims) == sorted(dims)
        return [n for n in shape if n != 1] == [n for n in out if n != 1]
    return False


def _params_in_product(jaxpr: core.Jaxpr, param_vars: set[Any]) -> bool:
    """Returns whether an operand of a matrix product or convolution depends on `param_vars`.

    Also returns True if a dependent operand enters a nested jaxpr whose arguments cannot be matched
    with the operands.
    """
    dependent = set(param_vars)
    for eqn in jaxpr.eqns:
        depends = [not isinstance(v, core.Literal) and v in dependent for v in eqn.invars]
        inner_list = [closed.jaxpr for closed in inner_jaxprs(eqn)]
        if eqn.primitive.name in ("dot_general", "conv_general_dilated") and any(depends):
            return True
        for inner in inner_list if any(depends) else ():
            if len(inner.invars) != len(depends):  # unknown mapping of operands to arguments
                return True
            inner_vars = {v for v, d in zip(inner.invars, depends, strict=True) if d}
            if _params_in_product(inner, inner_vars):
                return True
        if any(depends):
            dependent.update(eqn.outvars)
    return False


def adds_bias_last(
    function: Callable[..., Any], name: str, size: int, params: Params, *args: Any
) -> bool:
    """Returns whether a function adds a bias once, as its last operation, to all outputs.

    The outputs must be slices of sums of the bias, or a slice of it, and another value.

    Args:
      function: a function of `params` and `args`.
      name: the field of `params` with the bias.
      size: the expected size of the bias; for a bias of another shape the result is False.
      params: the parameters.
      *args: the other arguments.
    """
    bias = getattr(params, name, None)
    if bias is None or bias.shape != (size,):
        return False
    order = [path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    position = order.index(jax.tree_util.GetAttrKey(name))
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    return _only_added(jaxpr, {jaxpr.invars[position]}) == set(range(len(jaxpr.outvars)))


_SPLITS = frozenset(
    "split slice squeeze reshape broadcast_in_dim convert_element_type name copy".split()
)
"""Primitives that slice, reshape, broadcast or cast a bias, or a sum with it."""


def _only_added(jaxpr: core.Jaxpr, biases: set[Any]) -> set[int] | None:
    """Returns the indices of the outputs that are slices of a sum with a bias.

    Returns None if a bias or a sum is used in another way. Adds slices of biases to `biases`.
    """
    sums: set[Any] = set()
    for eqn in jaxpr.eqns:
        operands = [v for v in eqn.invars if not isinstance(v, core.Literal)]
        name = eqn.primitive.name
        if any(v in sums for v in operands):
            if name not in _SPLITS:
                inner = [closed.jaxpr for closed in inner_jaxprs(eqn)] if name in CALLS else []
                if len(inner) != 1 or not _only_splits(inner[0]):
                    return None
            sums.update(eqn.outvars)
        elif any(v in biases for v in operands):
            if name in ("add", "add_any"):
                sums.update(eqn.outvars)
            elif name in _SPLITS:
                biases.update(eqn.outvars)
            else:
                return None
    return {n for n, v in enumerate(jaxpr.outvars) if v in sums}


def _only_splits(jaxpr: core.Jaxpr) -> bool:
    return all(eqn.primitive.name in _SPLITS for eqn in jaxpr.eqns)


def recurrence_kind(cell: Cell, input_size: int) -> RecurrenceKind:
    """Classifies how the new carry of a cell depends on the old carry.

    "linear": the cell has `coefficients`. "diagonal" and "block_diagonal": `jacobian_sparsity` is
    "diagonal" or "block". "dense": any other cell.
    """
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    x = jax.eval_shape(lambda: cell.inputs(input_size, ()))
    z = jax.eval_shape(cell.project, params, x)
    if jax.eval_shape(cell.coefficients, params, z) is not None:
        return "linear"
    kind = jacobian_sparsity(cell, params, carry, z)
    return "dense" if kind is None else "block_diagonal" if kind == "block" else "diagonal"


def is_symbolic(*sizes: Any) -> bool:
    """Returns whether any size of an axis is a symbolic dimension of `jax.export`, not an int."""
    return not all(isinstance(size, int) for size in sizes)
