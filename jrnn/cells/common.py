"""What the cells of this package share: products, gates out of one array, linear steps."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.cell import Carry, Cell

NamedGates = TypeVar("NamedGates", bound=tuple)

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def affine(cell: Cell, x: jax.Array, w_ih: jax.Array, b: jax.Array) -> jax.Array:
    """x·w_ih + b: `[..., input]` to `[..., G·hidden]`, after a check of the input size."""
    return product(cell, x, w_ih) + b


def product(cell: Cell, x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """x·w_ih: the same for a cell without biases."""
    owner = type(cell).__name__
    checks.last_axis(owner, "x", x, w_ih.shape[0], "input_size of the parameters")
    column = w_ih.shape[0] == 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return _column(x, w_ih) if column else x @ w_ih


@jax.custom_jvp
def _column(x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """x·w_ih for one input, padded to two.

    XLA would make an elementwise product of one, and a loop without vectors of all that it fuses
    with that; two columns, one of zeros, stay a product of matrices.
    """
    x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
    return x @ jnp.concatenate([w_ih, jnp.zeros_like(w_ih)])


@_column.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> Any:
    (x, w_ih), (d_x, d_w) = primals, tangents
    return _column(x, w_ih), d_x @ w_ih + x @ d_w


def split(joined: jax.Array, gates: type[NamedGates], names: tuple[str, ...]) -> NamedGates:
    """Cuts `[..., G·hidden]` into the named gates, each `[..., hidden]`; the others are None."""
    parts = dict(zip(names, jnp.split(joined, len(names), axis=-1), strict=True))
    named: Any = gates
    return named(**{name: parts.get(name) for name in named._fields})


def recurrent(
    h: jax.Array, w_hh: jax.Array, gates: type[NamedGates], names: tuple[str, ...]
) -> NamedGates:
    """h·w_hh, cut into the named gates, each `[..., hidden]`.

    Args:
      h: `[..., rows]`, where rows is hidden, but for a projected state.
      w_hh: `[rows, G·hidden]`; or `[heads, rows/heads, G·hidden/heads]`, where the units of a head
        hear one another and no others. The units of the first head come first.
      gates: the type of the result.
      names: the gates in the order of concatenation; the others are None.
    """
    if w_hh.ndim == 2:
        return split(h @ w_hh, gates, names)
    apart = h.reshape(*h.shape[:-1], *w_hh.shape[:2])
    by_head = split(jnp.einsum("...nr,nrc->...nc", apart, w_hh), gates, names)
    together = lambda gate: gate.reshape(*h.shape[:-1], gate.shape[-2] * gate.shape[-1])
    return jax.tree.map(together, by_head)


def advance(coefficients: tuple[Carry, Carry], carry: Carry, log_space: bool = False) -> Carry:
    """The new carry of a cell that is linear in it, element by element: a * carry + b."""
    a, b = jax.tree.map(jnp.exp, coefficients) if log_space else coefficients
    return jax.tree.map(lambda a, s, b: a * s + b, a, carry, b)
