"""Padding, resets and isolation of NaNs, for all engines."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.typing import ArrayLike

from jrnn.dtypes import promote_dtypes
from jrnn.layer import Carry, Inputs


class Masks(NamedTuple):
    """Padding and resets of each step. A field that is None adds no operations.

    Attributes:
      lengths: `[B]` ints, the number of valid steps of each sequence. None if there is no padding,
        or if the valid steps of a sequence need not be its first ones.
      valid: `[T, B]` bool, False on padding, where the carry does not change and the output is
        zero; None without padding. Inputs on padding may be NaN: pass them through `zero_where`
        before use.
      resets: `[T, B]` bool, False on padding; where True, `reset_carry` replaces the carry before
        the step, in scan order. None without resets.
      reset_carry: the carry from `init_carry`, leaves `[B, ...]`; None without resets.
    """

    lengths: jax.Array | None
    valid: jax.Array | None
    resets: jax.Array | None
    reset_carry: Carry | None


def tree_where(mask: jax.Array | None, if_true: Any, if_false: Any) -> Any:
    """Applies `jnp.where` to the leaves of two pytrees; returns `if_true` if the mask is None.

    The axes of the mask are the leading axes of the leaves. The leaves of one pytree may lack
    leading axes, as those of an initial carry lack the time axis.
    """
    if mask is None:
        return if_true
    where = lambda a, b: jnp.where(expand_mask(mask, max(a, b, key=jnp.ndim)), a, b)
    return jax.tree.map(where, if_true, if_false)


def zero_where(mask: jax.Array | None, tree: Any) -> Any:
    """Replaces values by zero where the mask is False; no gradient reaches the replaced values.

    Returns the pytree unchanged if the mask is None.
    """
    if mask is None:
        return tree
    return jax.tree.map(lambda a: jnp.where(expand_mask(mask, a), a, jnp.zeros((), a.dtype)), tree)


def apply_resets(reset: jax.Array | None, reset_carry: Carry | None, carry: Carry) -> Carry:
    """Replaces the carry by `reset_carry` where `reset` is True; nowhere if `reset` is None."""
    return carry if reset is None else tree_where(reset, reset_carry, carry)


def step_shapes(xs: Any) -> Any:
    """Returns the shapes and dtypes of one step, from leaves `[T, ...]`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)


def repeat_on_padding(
    valid: jax.Array | None, carries: Carry, initial: Carry, reverse: bool
) -> Carry:
    """Replaces each carry on padding by that of the last valid step before it in scan order.

    Args:
      valid: `[T, B]` bool, or None without padding.
      carries: the carry after each step, leaves `[T, B, ...]`.
      initial: the initial carry, leaves `[B, ...]`, used on padding before the first valid step.
      reverse: whether the scan runs in reverse.
    """
    if valid is None or valid.shape[0] == 0:
        return carries
    steps = jnp.arange(valid.shape[0], dtype=jnp.int32)[:, None]
    if reverse:
        source = lax.cummin(jnp.where(valid, steps, valid.shape[0]), axis=0, reverse=True)
    else:
        source = lax.cummax(jnp.where(valid, steps, -1), axis=0)
    exists = (source >= 0) & (source < valid.shape[0])
    batch_indices = jnp.arange(valid.shape[1])
    source = jnp.where(exists, source, 0)
    repeated = jax.tree.map(lambda leaf: _gather(leaf, source, batch_indices), carries)
    return tree_where(exists, repeated, initial)


def valid_steps(lengths: jax.Array, steps: int) -> jax.Array:
    """Returns `[T, B]` bool, True on the first `lengths[b]` steps of sequence b."""
    dtype = promote_dtypes(lengths.dtype, jnp.int32)
    return jnp.arange(steps, dtype=dtype)[:, None] < lengths.astype(dtype)[None]


def segment_resets(segment_ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Computes the resets for packed sequences, for both scan directions.

    Args:
      segment_ids: `[T, B]` ints; a step with another id than the previous step starts a segment.

    Returns:
      `[T, B]` bool for a forward scan, True at the start of each segment except the first; and
      `[T, B]` bool for a `reverse` scan, True at the end of each segment except the last. The first
      segment in scan order starts from the initial carry. For padded sequences, use only the
      former, and compute the latter by `reverse_resets` with `lengths` or `mask`.

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
    """Computes the resets for a `reverse` scan from those for a forward scan.

    Args:
      resets: `[T, B]` bool, the resets for a forward scan: True at the start of each segment.
      lengths: `[B]` ints, the number of valid steps of each sequence, or None.
      mask: `[T, B]` bool, True on valid steps, or None.

    Returns:
      `[T, B]` bool, True at the last valid step before each reset on a valid step.
    """
    resets = jnp.asarray(resets)
    if lengths is not None:
        resets = resets & valid_steps(jnp.asarray(lengths), resets.shape[0])
    if mask is None or resets.shape[0] == 0:
        return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    mask = jnp.asarray(mask)
    steps = jnp.arange(resets.shape[0], dtype=jnp.int32)[:, None]
    # For each step, the first valid step at or after it, and the first one after it.
    at_or_after = lax.cummin(jnp.where(mask, steps, resets.shape[0]), axis=0, reverse=True)
    after = jnp.concatenate([at_or_after[1:], jnp.full_like(at_or_after[:1], resets.shape[0])])
    exists = after < resets.shape[0]
    is_reset = jnp.take_along_axis(resets & mask, jnp.where(exists, after, 0), axis=0)
    return is_reset & exists & mask


def isolate_nans(
    xs: Inputs, carry: Carry, masks: Masks, reverse: bool
) -> tuple[Inputs, Carry, jax.Array]:
    """Replaces inputs by zeros from each NaN to the next reset, and on padding.

    An initial carry with a NaN is replaced by `reset_carry` if a reset follows. The replaced NaNs
    then reach no gradient: the steps before the reset do not affect outputs after it, but they
    would contribute 0 * NaN to the gradients of parameters. The caller sets the outputs of these
    steps to NaN again by `restore_nans`. A NaN on a valid step without a later reset is not
    replaced, since it must reach the final carry and the gradient.

    Args:
      xs: inputs, leaves `[T, B, ...]`.
      carry: the initial carry, leaves `[B, ...]`.
      masks: padding and resets; `resets` and `reset_carry` must not be None.
      reverse: whether the scan runs in reverse.

    Returns:
      The inputs and the initial carry without these NaNs; and `[T, B]` bool, True on the steps,
      padding included, that a reset follows and after which the carry would have been NaN.

    Raises:
      ValueError: there are no resets, or no steps.
    """
    resets = masks.resets
    if resets is None or resets.shape[0] == 0:
        raise ValueError(
            "isolate_nans: masks.resets must be an array of at least one step, got "
            + ("None" if resets is None else "0 steps")
        )
    steps = jnp.arange(resets.shape[0])[:, None]
    nan_inputs = _has_nan(xs, 2) if masks.valid is None else _has_nan(xs, 2) & masks.valid
    nan_first = _has_nan(carry, 1)
    resets, nan_inputs = (lax.rev(a, (0,)) if reverse else a for a in (resets, nan_inputs))
    # Steps in scan order; -1 is before the first step, and -2 means never.
    last_reset = lax.cummax(jnp.where(resets, steps, -1))
    last_nan = lax.cummax(jnp.where(nan_inputs, steps, -2))
    last_nan = jnp.maximum(last_nan, jnp.where(nan_first, -1, -2)[None])
    reset_follows = jnp.cumsum(resets, axis=0) < jnp.sum(resets, axis=0, keepdims=True)
    nan_carries = (last_nan >= last_reset) & reset_follows
    nan_carries = lax.rev(nan_carries, (0,)) if reverse else nan_carries
    carry = tree_where(~(nan_first & resets.any(axis=0)), carry, masks.reset_carry)
    # Padding becomes zero too: a NaN there would stay in a residual, which `jax_debug_nans` checks.
    finite = ~nan_carries if masks.valid is None else ~nan_carries & masks.valid
    return zero_where(finite, xs), carry, nan_carries


def restore_nans(nan_steps: jax.Array, ys: Any) -> Any:
    """Sets the floating outputs `[T, B, ...]` to NaN where `nan_steps` `[T, B]` is True."""

    def restore(y: jax.Array) -> jax.Array:
        if not jnp.issubdtype(y.dtype, jnp.inexact):
            return y
        # NaN is added instead of selected by `where`, so that the gradient of a nonlinear loss that
        # reads these outputs is NaN.
        return y + jnp.where(expand_mask(nan_steps, y), jnp.nan, 0).astype(y.dtype)

    return jax.tree.map(restore, ys)


def max_propagating_nan(a: jax.Array, axis: int) -> jax.Array:
    """Returns the maximum along an axis, or NaN if any element is NaN.

    It replaces `jnp.max`, which does not always propagate NaN on a CPU (jaxlib 0.10.2).
    """
    return jnp.where(jnp.isnan(a).any(axis=axis), jnp.nan, a.max(axis=axis))


def expand_mask(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """Appends axes of size 1 to the mask, so that it broadcasts against the leaf."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


def _gather(leaf: jax.Array, steps: jax.Array, batch_indices: jax.Array) -> jax.Array:
    """Returns `leaf[steps, batch_indices]`, with the sharding of the leaf on an explicit mesh."""
    sharding = jax.typeof(leaf).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return leaf.at[steps, batch_indices].get(out_sharding=sharding if explicit else None)


def _has_nan(tree: Any, leading: int) -> jax.Array:
    """Returns whether any leaf has a NaN, as a bool array of the leading axes."""
    is_nan = [
        jnp.isnan(leaf).any(axis=tuple(range(leading, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_or, is_nan, jnp.zeros((), bool))
