"""Jaxprs nested in equations; shared by `taps` and `structure`."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core

INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Primitives that only call one jaxpr."""

REMATERIALIZED = frozenset({"remat2", "checkpoint", "remat"})
"""Primitives of `jax.checkpoint`."""

CALLS = INLINED | REMATERIALIZED | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
"""Primitives that apply one jaxpr to their operands."""


def inner_jaxprs(eqn: Any) -> Iterator[core.ClosedJaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item
            elif isinstance(item, core.Jaxpr):
                yield core.ClosedJaxpr(item, ())
