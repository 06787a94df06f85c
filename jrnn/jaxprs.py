"""Access to the jaxprs that are nested in equations, such as those of `jax.jit`."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core

INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Primitives that call one jaxpr and have no other effect."""

REMATERIALIZED = frozenset({"remat2", "checkpoint", "remat"})
"""Primitives of `jax.checkpoint`."""

CALLS = INLINED | REMATERIALIZED | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
"""Primitives that apply one jaxpr to their operands."""


def live_variables(jaxpr: Any) -> set[int]:
    """Returns the ids of the variables of a jaxpr on which its outputs depend."""
    live = {id(v) for v in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in live for v in eqn.outvars):
            live.update(id(v) for v in eqn.invars)
    return live


def inner_jaxprs(eqn: Any) -> Iterator[core.ClosedJaxpr]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item
            elif isinstance(item, core.Jaxpr):
                yield core.ClosedJaxpr(item, ())
