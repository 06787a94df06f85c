"""Padding, resets and the isolation of NaNs, for every engine."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.typing import ArrayLike

from jrnn.layer import Carry, Inputs


class Masks(NamedTuple):
    """Padding and resets of each step. Fields that are None cost nothing.

    Attributes:
      lengths: `[B]` ints, the number of valid steps of each sequence, if these come first; None for
        any other pattern.
      valid: `[T, B]` bool, False on padding, where the carry does not change and the output is
        zero. Inputs on padding may be NaN: pass them through `zero_where` before use.
      resets: `[T, B]` bool, False on padding; where True, `initial` replaces the carry before the
        step, in scan order.
      initial: the initial carry of the cell, leaves `[B, ...]`; None without resets.
    """

    lengths: jax.Array | None
    valid: jax.Array | None
    resets: jax.Array | None
    initial: Carry | None


def tree_where(mask: jax.Array | None, chosen: Any, other: Any) -> Any:
    """`jnp.where(mask, chosen, other)` over pytrees; the mask has the leading axes of each leaf.

    Either tree may lack leading axes, as a first carry lacks the time axis.
    """
    if mask is None:
        return chosen
    where = lambda a, b: jnp.where(expand_mask(mask, max(a, b, key=jnp.ndim)), a, b)
    return jax.tree.map(where, chosen, other)


def zero_where(mask: jax.Array | None, tree: Any) -> Any:
    """Replaces values by zero where the mask is False, which also stops their gradient."""
    if mask is None:
        return tree
    return jax.tree.map(lambda a: jnp.where(expand_mask(mask, a), a, jnp.zeros((), a.dtype)), tree)


def apply_resets(reset: jax.Array | None, initial: Carry | None, carry: Carry) -> Carry:
    """The carry before a step: the initial carry where `reset` is True."""
    return carry if reset is None else tree_where(reset, initial, carry)


def step_shapes(xs: Any) -> Any:
    """Shapes and dtypes of one step, from leaves `[T, ...]`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)


def hold_on_padding(valid: jax.Array | None, carries: Carry, first: Carry, reverse: bool) -> Carry:
    """Repeats the carry of the last valid step on padding, for carries `[T, B, ...]`."""
    if valid is None or len(valid) == 0:
        return carries
    steps = jnp.arange(len(valid), dtype=jnp.int32)[:, None]
    if reverse:
        source = lax.cummin(jnp.where(valid, steps, len(valid)), axis=0, reverse=True)
    else:
        source = lax.cummax(jnp.where(valid, steps, -1), axis=0)
    inside = (source >= 0) & (source < len(valid))
    rows = jnp.arange(valid.shape[1])
    source = jnp.where(inside, source, 0)
    held = jax.tree.map(lambda leaf: _gather(leaf, source, rows), carries)
    return tree_where(inside, held, first)


def valid_steps(lengths: jax.Array, steps: int) -> jax.Array:
    """`[T, B]` bool, True on the first `lengths[b]` steps of sequence b."""
    return jnp.arange(steps)[:, None] < lengths


def segment_resets(segment_ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Resets for packed sequences, for both scan directions.

    Args:
      segment_ids: `[T, B]` ints; a new value starts a new segment.

    Returns:
      `[T, B]` bool for a forward pass, True at the start of each segment but the first; and
      `[T, B]` bool for a `reverse` pass, True at the end of each segment but the last. The first
      segment of a pass starts from the first carry. For padded sequences, compute the second from
      the first by `reverse_resets` with `lengths` instead.

    Raises:
      ValueError: `segment_ids` does not have two axes.

    >>> import jax.numpy as jnp
    >>> forward, backward = segment_resets(jnp.array([[0], [0], [1], [1]]))
    >>> forward[:, 0].tolist(), backward[:, 0].tolist()
    ([False, False, True, False], [False, True, False, False])
    """
    segment_ids = jnp.asarray(segment_ids)
    if segment_ids.ndim != 2:
        raise ValueError(
            f"segment_resets: segment_ids must have shape (time, batch), got {segment_ids.shape}"
        )
    first = jnp.zeros_like(segment_ids[:1], dtype=bool)
    starts = jnp.concatenate([first, segment_ids[1:] != segment_ids[:-1]])[: len(segment_ids)]
    return starts, reverse_resets(starts)


def reverse_resets(
    resets: ArrayLike, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
) -> jax.Array:
    """The resets for a `reverse` pass that match those for a forward pass.

    Args:
      resets: `[T, B]` bool, True at the start of each segment.
      lengths: `[B]` ints, the number of valid steps, or None. Resets on padding have no effect.
      mask: `[T, B]` bool, True on valid steps, or None.

    Returns:
      `[T, B]` bool, True at the last valid step before each reset.
    """
    resets = jnp.asarray(resets)
    if lengths is not None:
        resets = resets & valid_steps(jnp.asarray(lengths), len(resets))
    if mask is None or len(resets) == 0:
        return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    mask = jnp.asarray(mask)
    steps = jnp.arange(len(resets), dtype=jnp.int32)[:, None]
    # The first valid step at or after each step, and strictly after it.
    at_or_after = lax.cummin(jnp.where(mask, steps, len(resets)), axis=0, reverse=True)
    after = jnp.concatenate([at_or_after[1:], jnp.full_like(at_or_after[:1], len(resets))])
    exists = after < len(resets)
    is_reset = jnp.take_along_axis(resets & mask, jnp.where(exists, after, 0), axis=0)
    return is_reset & exists & mask


def isolate_nans(
    xs: Inputs, carry: Carry, masks: Masks, reverse: bool
) -> tuple[Inputs, Carry, jax.Array]:
    """Replaces NaNs that a later reset discards, so that they reach no gradient.

    The steps from a NaN to the next reset do not affect later outputs, but they contribute 0 * NaN
    to the gradients of parameters. These steps therefore run on zeros, and the caller restores the
    NaNs of their outputs by `restore_nans`. A NaN without a later reset is not replaced: it must
    reach the last carry and the gradient.

    Args:
      xs: inputs, leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`.
      masks: with `resets` and `initial`.
      reverse: whether the scan runs in reverse.

    Returns:
      The cleaned inputs and first carry, and `[T, B]` bool: the steps after which the carry would
      have been NaN, padding included.
    """
    resets = masks.resets
    if resets is None or len(resets) == 0:
        raise ValueError("isolate_nans: masks.resets must cover at least one step, got none")
    steps = jnp.arange(len(resets))[:, None]
    bad = _has_nan(xs, 2) if masks.valid is None else _has_nan(xs, 2) & masks.valid
    resets, bad = (lax.rev(a, (0,)) if reverse else a for a in (resets, bad))
    last_reset = lax.cummax(jnp.where(resets, steps, -1))
    bad_carry = _has_nan(carry, 1)
    last_bad = jnp.maximum(lax.cummax(jnp.where(bad, steps, -2)), jnp.where(bad_carry, -1, -2))
    reset_follows = jnp.cumsum(resets, axis=0) < jnp.sum(resets, axis=0)
    nan_carries = (last_bad >= last_reset) & reset_follows
    nan_carries = lax.rev(nan_carries, (0,)) if reverse else nan_carries
    carry = tree_where(~(bad_carry & resets.any(axis=0)), carry, masks.initial)
    return zero_where(~nan_carries, xs), carry, nan_carries


def restore_nans(nan_steps: jax.Array, ys: Any) -> Any:
    """Sets the outputs to NaN on the steps that `isolate_nans` replaced."""

    def restore(y: jax.Array) -> jax.Array:
        if not jnp.issubdtype(y.dtype, jnp.inexact):
            return y
        # A sum instead of `where`: the gradient of a loss that reads these NaNs must be NaN, too.
        return y + jnp.where(expand_mask(nan_steps, y), jnp.nan, 0).astype(y.dtype)

    return jax.tree.map(restore, ys)


def max_propagating_nan(a: jax.Array, axis: int) -> jax.Array:
    """The maximum along an axis, or NaN if any element is NaN.

    `jnp.max` may drop NaNs on a CPU (jaxlib 0.10.2), and returns -inf if all elements are NaN.
    """
    return jnp.where(jnp.isnan(a).any(axis=axis), jnp.nan, a.max(axis=axis))


def expand_mask(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """Appends axes of size 1 to the mask, so that it broadcasts against the leaf."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


def _gather(leaf: jax.Array, steps: jax.Array, rows: jax.Array) -> jax.Array:
    """`leaf[steps, rows]`; on a mesh of explicit axes the result is sharded as the leaf is."""
    sharding = jax.typeof(leaf).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return leaf.at[steps, rows].get(out_sharding=sharding if explicit else None)


def _has_nan(tree: Any, leading: int) -> jax.Array:
    """Whether any leaf is NaN, as bool with the leading axes; False for a tree without floats."""
    is_nan = [
        jnp.isnan(leaf).any(axis=tuple(range(leading, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_or, is_nan, jnp.zeros((), bool))
