"""Named values inside a cell's `update`, which code around it may read or replace.

A tap is an identity operation with a name. It stays in the jaxpr, so reading or replacing it does
not depend on what was traced or cached before: `update` may be under `jax.jit`, `jax.vmap` or
`jax.checkpoint`, and so may be the function that reads the taps.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jrnn.jaxprs import INLINED, REMATERIALIZED, inner_jaxprs

_PREFIX = "jrnn.tap:"


class Tap(NamedTuple):
    """The name of a tapped value, and its role in the cell.

    Attributes:
      name: unique within the cell, such as "f".
      role: "candidate" for what a cell may write, after its activation; "cell_state" for the state
        on its way to the output, before its activation; or "".
    """

    name: str
    role: str = ""


Action = Callable[[Tap, jax.Array], jax.Array]


def tap(name: str, value: jax.Array, *, role: str = "") -> jax.Array:
    """Names a value within `update`; returns it unchanged.

    `jrnn.analysis.capture_gates` returns what is tapped at each step. Transforms act on roles:
    `dropout(candidate=...)` on "candidate", `layer_norm` on "cell_state".

    Args:
      name: of the value, such as "f" for a forget gate; "" for one that is not captured.
      value: `[..., hidden]`.
      role: what transforms may do with it: "candidate", "cell_state" or nothing.

    >>> import jax.numpy as jnp
    >>> tap("f", jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return checkpoint_name(value, f"{_PREFIX}{role}:{name}")


def capture_taps(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """A function that returns what `function` returns, and every tapped value by its name."""

    def captured(*args: Any) -> tuple[Any, dict[str, jax.Array]]:
        out, values = _interpret(function, args, lambda tap, value: value)
        return out, {tap.name: value for tap, value in values.items() if tap.name}

    return captured


def replace_taps(
    function: Callable[..., Any], role: str, action: Callable[[jax.Array], jax.Array]
) -> Callable[..., Any]:
    """A function like `function` with `action` applied to every tapped value of a role."""

    def replaced(*args: Any) -> Any:
        return _interpret(
            function, args, lambda t, value: action(value) if t.role == role else value
        )[0]

    return replaced


def tapped_shapes(function: Callable[..., Any], role: str, *args: Any) -> list[Any]:
    """The shape and dtype of each tapped value of a role, in order."""
    found = []

    def note(tap: Tap, value: jax.Array) -> jax.Array:
        if tap.role == role:
            found.append(jax.ShapeDtypeStruct(value.shape, value.dtype))
        return value

    jax.eval_shape(lambda *given: _interpret(function, given, note)[0], *args)
    return found


def _interpret(
    function: Callable[..., Any], args: Any, action: Action
) -> tuple[Any, OrderedDict[Tap, jax.Array]]:
    """Evaluates a function with an action at each tap; returns the tapped values as well."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    outs, values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), action)
    return jax.tree.unflatten(jax.tree.structure(shape), outs), values


def _evaluate(
    jaxpr: core.Jaxpr, consts: Any, args: Any, action: Action
) -> tuple[list[Any], OrderedDict[Tap, jax.Array]]:
    env: dict[Any, Any] = {}
    values: OrderedDict[Tap, jax.Array] = OrderedDict()  # JAX sorts plain ones by their keys
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        label = _label(eqn)
        if label is not None:
            if label.name in (other.name for other in values if other.name):
                raise ValueError(
                    f"jrnn.tap: the name {label.name!r} is tapped twice in one step; names must be "
                    "unique within a cell"
                )
            outs = [tap(label.name, action(label, inputs[0]), role=label.role)]
            values[label] = outs[0]
        elif any(_has_tap(inner) for inner in inner_jaxprs(eqn)):
            outs, found = _evaluate_inner(eqn, inputs, action)
            values.update(found)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            outs = eqn.primitive.bind(*inputs, **params)
            outs = outs if eqn.primitive.multiple_results else [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars], values


def _evaluate_inner(
    eqn: Any, inputs: list[Any], action: Action
) -> tuple[list[Any], OrderedDict[Tap, jax.Array]]:
    """An equation that calls a jaxpr with taps in it."""
    name = eqn.primitive.name
    if name in INLINED:
        (inner,) = inner_jaxprs(eqn)
        return _evaluate(inner.jaxpr, inner.consts, inputs, action)
    if name in REMATERIALIZED:
        run = lambda *args: _evaluate(eqn.params["jaxpr"], (), args, action)
        again = jax.checkpoint(
            run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        return again(*inputs)
    raise TypeError(
        f"jrnn.tap: a value tapped inside of {name} can be neither read nor replaced; call "
        "jrnn.tap outside of loops, branches and custom derivatives"
    )


def _label(eqn: Any) -> Tap | None:
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(_PREFIX):
        return None
    role, _, name = eqn.params["name"][len(_PREFIX) :].partition(":")
    return Tap(name, role)


def _has_tap(closed: core.ClosedJaxpr) -> bool:
    return any(
        _label(eqn) is not None or any(map(_has_tap, inner_jaxprs(eqn)))
        for eqn in closed.jaxpr.eqns
    )
