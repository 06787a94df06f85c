"""A check that raises in forward mode, for engines with reverse-mode derivatives only.

`jax.custom_vjp` raises in forward mode too, but its message does not mention engines. Under
`jax.jit`, the check raises when the computation is lowered.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_tangents_p = Primitive("jrnn_require_reverse_mode")
_tangents_p.multiple_results = True


def require_reverse_mode(engine: Any, tree: Any) -> Any:
    """Returns a tree unchanged; forward-mode derivatives of it raise and name the engine.

    Args:
      engine: the engine, for the message.
      tree: the arguments of the engine.

    Raises:
      TypeError: when a forward-mode derivative is computed or lowered.
    """

    @jax.custom_jvp
    def identity(*leaves: Any) -> Any:
        return leaves

    def rule(primals: Any, tangents: Any) -> Any:
        # Symbolic zeros are not passed to the primitive, so that no cotangents are computed for
        # them.
        given = [t for t in tangents if not isinstance(t, SymbolicZero)]
        checked = iter(_tangents_p.bind(*given, engine=repr(engine)))
        return primals, tuple(t if isinstance(t, SymbolicZero) else next(checked) for t in tangents)

    identity.defjvp(rule, symbolic_zeros=True)
    leaves, structure = jax.tree.flatten(tree)
    indices = [n for n, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    for n, leaf in zip(indices, identity(*(leaves[n] for n in indices)), strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(structure, leaves)


def _raise(*_: Any, engine: str) -> Any:
    raise TypeError(f"unroll: {forward_mode_message(engine)}")


def forward_mode_message(engine: Any) -> str:
    """Returns the message for a forward-mode derivative of an engine that has none."""
    return (
        f"{engine} has reverse-mode derivatives only, got a forward-mode derivative; for jax.jvp, "
        "jax.jacfwd and jax.linearize use engine='scan'"
    )


_tangents_p.def_impl(_raise)
_tangents_p.def_abstract_eval(lambda *avals, engine: list(avals))
mlir.register_lowering(_tangents_p, lambda _, *operands, engine: _raise(engine=engine))
ad.deflinear2(_tangents_p, lambda cts, *_, engine: cts)
batching.primitive_batchers[_tangents_p] = lambda operands, dims, engine: (
    _tangents_p.bind(*operands, engine=engine),
    dims,
)
