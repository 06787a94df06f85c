"""What several cells share: matrix products, and splitting an array into gates."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.cell import Cell

NamedGates = TypeVar("NamedGates", bound=tuple)

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def affine(cell: Cell, x: jax.Array, w_ih: jax.Array, b: jax.Array) -> jax.Array:
    """x·w_ih + b: `[..., input]` to `[..., G·hidden]`, after a check of the input size."""
    return product(cell, x, w_ih) + b


def product(cell: Cell, x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """x·w_ih, as `affine` without a bias."""
    owner = type(cell).__name__
    checks.last_axis(owner, "x", x, w_ih.shape[0], "input_size of the parameters")
    column = w_ih.shape[0] == 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return _column(x, w_ih) if column else x @ w_ih


@jax.custom_jvp
def _column(x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """x·w_ih for an input of size 1, padded with zeros to size 2.

    XLA rewrites a product with one column as an elementwise multiplication, and fuses it with the
    operations around it into a loop that is not vectorised. With two columns it stays a matrix
    product.
    """
    x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
    return x @ jnp.concatenate([w_ih, jnp.zeros_like(w_ih)])


@_column.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> Any:
    (x, w_ih), (d_x, d_w) = primals, tangents
    return _column(x, w_ih), d_x @ w_ih + x @ d_w


def split(joined: jax.Array, gates: type[NamedGates], names: tuple[str, ...]) -> NamedGates:
    """Splits `[..., G·hidden]` into the named gates, each `[..., hidden]`; the others are None."""
    parts = jnp.split(joined, len(names), axis=-1)
    return _named(parts, gates, names)


def recurrent(
    h: jax.Array, w_hh: jax.Array, gates: type[NamedGates], names: tuple[str, ...]
) -> NamedGates:
    """h·w_hh, split into the named gates, each `[..., hidden]`.

    Where each head has one unit the product is elementwise, and so is its derivative.

    Args:
      h: `[..., rows]`, where rows is the hidden size, or the size of the projected state.
      w_hh: `[rows, G·hidden]`; or `[heads, rows/heads, G·hidden/heads]`, the blocks of a
        block-diagonal matrix. The units of the first head come first.
      gates: the type of the result.
      names: the gates in the order of concatenation; the others are None.
    """
    if w_hh.ndim == 2:
        return split(h @ w_hh, gates, names)
    if w_hh.shape[1:] == (1, len(names)):
        return _named([h * w_hh[:, 0, k] for k in range(len(names))], gates, names)
    by_head = h.reshape(*h.shape[:-1], *w_hh.shape[:2])
    blocks = split(jnp.einsum("...nr,nrc->...nc", by_head, w_hh), gates, names)
    join = lambda gate: gate.reshape(*h.shape[:-1], gate.shape[-2] * gate.shape[-1])
    return jax.tree.map(join, blocks)


def _named(values: list[jax.Array], gates: type[NamedGates], names: tuple[str, ...]) -> NamedGates:
    """The values as fields of `gates`; fields without a value are None."""
    by_name = dict(zip(names, values, strict=True))
    named: Any = gates
    return named(**{name: by_name.get(name) for name in named._fields})
