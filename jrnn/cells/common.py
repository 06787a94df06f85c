"""Helpers for several cells: matrix products, and splitting arrays into gates."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jrnn import checks
from jrnn.broadcasting import add, multiply
from jrnn.cell import Cell

GatesT = TypeVar("GatesT", bound=tuple)

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def affine(cell: Cell, x: jax.Array, w_ih: jax.Array, b: jax.Array | None) -> jax.Array:
    """Returns x·w_ih + b `[..., G·hidden]`, without b if it is None; validates the input size."""
    a = input_matmul(cell, x, w_ih)
    return a if b is None else add(a, b)


def input_matmul(cell: Cell, x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """Returns x·w_ih `[..., G·hidden]`; raises ValueError if x has another input size."""
    owner = type(cell).__name__
    checks.last_axis(owner, "x", x, w_ih.shape[0], "input_size of the parameters")
    is_column = w_ih.shape[0] == 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return _column_matmul(x, w_ih) if is_column else x @ w_ih


@jax.custom_jvp
def _column_matmul(x: jax.Array, w_ih: jax.Array) -> jax.Array:
    """Returns x·w_ih for inputs of size 1, which it pads with a zero to size 2.

    XLA rewrites a product with one column as an elementwise multiplication, and fuses it with the
    operations around it into a loop that is not vectorized. With two columns it stays a matrix
    product.
    """
    x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
    return x @ jnp.concatenate([w_ih, jnp.zeros_like(w_ih)])


@_column_matmul.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> Any:
    (x, w_ih), (d_x, d_w) = primals, tangents
    return _column_matmul(x, w_ih), d_x @ w_ih + x @ d_w


def split_gates(array: jax.Array, gates: type[GatesT], names: tuple[str, ...]) -> GatesT:
    """Splits `[..., G·hidden]` into the named gates, each `[..., hidden]`.

    Fields of `gates` that are not in `names` are None.
    """
    parts = jnp.split(array, len(names), axis=-1)
    return _fill_gates(parts, gates, names)


def recurrent_matmul(
    h: jax.Array, w_hh: jax.Array, gates: type[GatesT], names: tuple[str, ...]
) -> GatesT:
    """Returns h·w_hh, split into the named gates, each `[..., hidden]`.

    With one unit per head, the product and its derivative are elementwise multiplications.

    Args:
      h: `[..., rows]`, where rows is the hidden size, or the size of a projected state.
      w_hh: a full matrix `[rows, G·hidden]`, or the blocks of a block-diagonal matrix
        `[heads, rows/heads, G·hidden/heads]`, in the order of the units.
      gates: NamedTuple type of the result.
      names: the gates in the order of concatenation; other fields of `gates` are None.
    """
    if w_hh.ndim == 2:
        return split_gates(h @ w_hh, gates, names)
    if w_hh.shape[1:] == (1, len(names)):
        return _fill_gates([multiply(h, w_hh[:, 0, k]) for k in range(len(names))], gates, names)
    by_head = h.reshape(*h.shape[:-1], *w_hh.shape[:2])
    blocks = split_gates(jnp.einsum("...nr,nrc->...nc", by_head, w_hh), gates, names)
    merge_heads = lambda gate: gate.reshape(*h.shape[:-1], gate.shape[-2] * gate.shape[-1])
    return jax.tree.map(merge_heads, blocks)


def _fill_gates(values: list[jax.Array], gates: type[GatesT], names: tuple[str, ...]) -> GatesT:
    """Constructs `gates` from named values; fields without a value are None."""
    by_name = dict(zip(names, values, strict=True))
    constructor: Any = gates
    return constructor(**{name: by_name.get(name) for name in constructor._fields})
