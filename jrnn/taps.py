"""Named values inside a cell, which analysis can capture and transforms can replace.

A tap is an identity operation with a name, and is implemented by
`jax.ad_checkpoint.checkpoint_name`. The name is part of the jaxpr and does not depend on side
effects, so both `update` and the function that captures may be under `jax.jit` or `jax.checkpoint`.
If `update` itself uses `jax.vmap`, it may only map leading axes: JAX decides where a tapped value
has the mapped axis.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jrnn import checks
from jrnn.jaxprs import INLINED, REMATERIALIZED, inner_jaxprs

ROLES = ("candidate", "cell_state")
"""The roles of tapped values that transforms replace."""

_PREFIX = "jrnn.tap:"


class Tap(NamedTuple):
    """The name of a tapped value, and its role in the cell.

    Attributes:
      name: the name, unique within the cell, such as "f"; None for a value that is not captured.
      role: "candidate" for the candidate state, after its activation; "cell_state" for the cell
        state that the output is computed from, before its activation; None for no role.
    """

    name: str | None
    role: str | None = None


TapHandler = Callable[[Tap, jax.Array], jax.Array]
"""Maps a tap and its value to the value that replaces it."""


def tap(name: str | None, value: jax.Array, *, role: str | None = None) -> jax.Array:
    """Names a value within `update` or `readout`, and returns it unchanged.

    `jrnn.analysis.capture_gates` returns the tapped values of each step by name. Transforms replace
    values in `update` and `coefficients` by role: `dropout(candidate=...)` replaces "candidate",
    `layer_norm` "cell_state".

    Args:
      name: the name of the value, such as "f" for a forget gate; None if it is not captured.
      value: `[..., hidden]`.
      role: "candidate", "cell_state", or None for a value that no transform replaces.

    Returns:
      `value`.

    Raises:
      ValueError: `role` is unknown.

    >>> import jax.numpy as jnp
    >>> tap("f", jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    if role is not None:
        checks.one_of("tap", "role", role, ROLES)
    return checkpoint_name(value, f"{_PREFIX}{role or ''}:{name or ''}")


def capture_taps(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Returns a function that returns the result of `function`, and its tapped values by name.

    A call raises ValueError if two taps have the same name, and TypeError if a tap is inside a
    loop, a branch or a custom derivative.
    """

    def captured(*args: Any) -> tuple[Any, dict[str, jax.Array]]:
        out, values = _interpret(function, args, lambda tap, value: value)
        return out, {tap.name: value for tap, value in values.items() if tap.name}

    return captured


def replace_taps(
    function: Callable[..., Any], role: str, action: Callable[[jax.Array], jax.Array]
) -> Callable[..., Any]:
    """Returns a function that applies `action` to every tapped value with this role."""

    def replaced(*args: Any) -> Any:
        return _interpret(
            function, args, lambda tap, value: action(value) if tap.role == role else value
        )[0]

    return replaced


def tapped_shapes(function: Callable[..., Any], role: str, *args: Any) -> list[Any]:
    """Returns the shapes and dtypes of the tapped values with this role, in order of execution."""
    shapes = []

    def record(tap: Tap, value: jax.Array) -> jax.Array:
        if tap.role == role:
            shapes.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
        return value

    jax.eval_shape(lambda *args: _interpret(function, args, record)[0], *args)
    return shapes


def _interpret(
    function: Callable[..., Any], args: Any, handler: TapHandler
) -> tuple[Any, OrderedDict[Tap, jax.Array]]:
    """Evaluates a function, applies the handler at each tap, and also returns the tapped values."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    outs, values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), handler)
    return jax.tree.unflatten(jax.tree.structure(shape), outs), values


def _evaluate(
    jaxpr: core.Jaxpr, consts: Any, args: Any, handler: TapHandler
) -> tuple[list[Any], OrderedDict[Tap, jax.Array]]:
    env: dict[Any, Any] = {}
    values: OrderedDict[Tap, jax.Array] = OrderedDict()  # JAX sorts a plain dict by its keys
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        found = _parse_tap(eqn)
        if found is not None:
            outs = [tap(found.name, handler(found, inputs[0]), role=found.role)]
            _add_unique(values, {found: outs[0]})
        elif any(_has_tap(inner) for inner in inner_jaxprs(eqn)):
            outs, inner_values = _evaluate_inner(eqn, inputs, handler)
            _add_unique(values, inner_values)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            outs = eqn.primitive.bind(*inputs, **params)
            outs = outs if eqn.primitive.multiple_results else [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars], values


def _add_unique(values: dict[Tap, jax.Array], new: Mapping[Tap, jax.Array]) -> None:
    """Adds tapped values; raises ValueError if a name occurs twice."""
    names = {tap.name for tap in values}
    for tap, value in new.items():
        if tap.name is not None and tap.name in names:
            raise ValueError(
                f"jrnn.tap: names must be unique within a cell, got {tap.name!r} twice in one "
                "step; rename one of the taps"
            )
        values[tap] = value


def _evaluate_inner(
    eqn: Any, inputs: list[Any], handler: TapHandler
) -> tuple[list[Any], OrderedDict[Tap, jax.Array]]:
    """Evaluates an equation that calls a jaxpr with taps."""
    name = eqn.primitive.name
    if name in INLINED:
        (inner,) = inner_jaxprs(eqn)
        return _evaluate(inner.jaxpr, inner.consts, inputs, handler)
    if name in REMATERIALIZED:
        run = lambda *args: _evaluate(eqn.params["jaxpr"], (), args, handler)
        checkpointed = jax.checkpoint(
            run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        return checkpointed(*inputs)
    raise TypeError(
        "jrnn.tap: must be called outside of loops, branches and custom derivatives, got a tap "
        f"inside {name}; move it out of {name}"
    )


def _parse_tap(eqn: Any) -> Tap | None:
    """Returns the tap of an equation, or None if the equation is not a tap."""
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(_PREFIX):
        return None
    role, _, name = eqn.params["name"][len(_PREFIX) :].partition(":")
    return Tap(name or None, role or None)


def _has_tap(closed: core.ClosedJaxpr) -> bool:
    return any(
        _parse_tap(eqn) is not None or any(map(_has_tap, inner_jaxprs(eqn)))
        for eqn in closed.jaxpr.eqns
    )
