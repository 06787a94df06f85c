"""Padding, resets and what may not pass through them: one set of rules for every engine."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jrnn.cell import Carry, Inputs


class Masks(NamedTuple):
    """What an engine must heed at each step; a None costs nothing.

    Attributes:
      lengths: `[B]` ints, the number of valid steps of each sequence; may be below 0 or over T.
      valid: `[T, B]` bool, the same: where False the step is padding, whose input is never to be
        read without `blank`: carry kept, output zero.
      resets: `[T, B]` bool, False on padding; where True `initial` replaces the carry before the
        step, in the direction of travel.
      initial: the cell's own initial carry, leaves `[B, ...]`; None without resets.
    """

    lengths: jax.Array | None
    valid: jax.Array | None
    resets: jax.Array | None
    initial: Carry | None


def select(mask: jax.Array | None, chosen: Any, other: Any) -> Any:
    """`where(mask, chosen, other)` over a pytree; the mask covers the leading axes of each leaf.

    One of the two may lack leading axes of the other, as a first carry lacks those of time.
    """
    if mask is None:
        return chosen
    where = lambda a, b: jnp.where(cover(mask, max(a, b, key=jnp.ndim)), a, b)
    return jax.tree.map(where, chosen, other)


def blank(mask: jax.Array | None, tree: Any) -> Any:
    """Zeros where the mask is False, so that nothing planted there has a value or a gradient."""
    if mask is None:
        return tree
    return jax.tree.map(lambda a: jnp.where(cover(mask, a), a, jnp.zeros((), a.dtype)), tree)


def restart(reset: jax.Array | None, initial: Carry | None, carry: Carry) -> Carry:
    """What a step begins with: the initial carry where it is reset."""
    return carry if reset is None else select(reset, initial, carry)


def settle(valid: jax.Array | None, before: Carry, after: Carry, out: Any) -> tuple[Carry, Any]:
    """What a step ends with: on padding the carry stays, and what is out is zero."""
    return select(valid, after, before), blank(valid, out)


def valid_steps(lengths: jax.Array, steps: int) -> jax.Array:
    """`[T, B]` bool from `lengths [B]`: True on the first lengths[b] steps."""
    return jnp.arange(steps)[:, None] < lengths


def segment_resets(segment_ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Resets for packed sequences, for both directions of travel.

    Args:
      segment_ids: `[T, B]` ints; a new value starts a new segment.

    Returns:
      `[T, B]` bool for a forward pass, True at the start of each segment but the first; and
      `[T, B]` bool for a `reverse` pass, True at the end of each segment but the last. The segment
      that a pass meets first begins with the carry it is given. Where `segment_ids` are padded,
      give `lengths` to `reverse_resets` on the first of the two instead.

    Raises:
      ValueError: `segment_ids` has another number of axes.

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


def reverse_resets(resets: ArrayLike, lengths: ArrayLike | None = None) -> jax.Array:
    """The resets for a `reverse` pass that match those for a forward pass.

    Args:
      resets: `[T, B]` bool, True at the start of each segment.
      lengths: `[B]` ints, where sequences are padded: a reset on padding is none in reverse either.

    Returns:
      `[T, B]` bool, True at the end of the segment before each of these.
    """
    resets = jnp.asarray(resets)
    if lengths is not None:
        resets = resets & valid_steps(jnp.asarray(lengths), len(resets))
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])


def quarantine(
    xs: Inputs, carry: Carry, masks: Masks, reverse: bool
) -> tuple[Inputs, Carry, jax.Array]:
    """Takes out NaNs that a later reset would wipe out, before they can reach a gradient.

    The steps from a NaN to the next reset have no bearing on what follows: the forward pass is
    right by `where` alone. But their share of a parameter's gradient is 0·NaN. So these steps are
    run on zeros instead, and the caller puts NaN over their outputs, as they would have been. A
    NaN that no reset follows is left alone: it must show in the carry and in the gradient.

    Args:
      xs: inputs, leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`.
      masks: with `resets` and `initial`.
      reverse: direction of travel.

    Returns:
      The cleaned inputs and first carry, and `[T, B]` bool: the steps that were taken out.
    """
    resets = masks.resets
    if resets is None or len(resets) == 0:
        raise ValueError("quarantine: needs resets over at least one step")
    steps = jnp.arange(len(resets))[:, None]
    bad = _has_nan(xs, 2) if masks.valid is None else _has_nan(xs, 2) & masks.valid
    resets, bad = (lax.rev(a, (0,)) if reverse else a for a in (resets, bad))
    last_reset = lax.cummax(jnp.where(resets, steps, -1))
    bad_carry = _has_nan(carry, 1)
    last_bad = jnp.maximum(lax.cummax(jnp.where(bad, steps, -2)), jnp.where(bad_carry, -1, -2))
    reset_follows = jnp.cumsum(resets, axis=0) < jnp.sum(resets, axis=0)
    taken = (last_bad >= last_reset) & reset_follows
    taken = lax.rev(taken, (0,)) if reverse else taken
    # In reverse a bad carry is kept over the padding first; the output there is zero all the same.
    taken = taken if masks.valid is None else taken & masks.valid
    carry = select(~(bad_carry & resets.any(axis=0)), carry, masks.initial)
    return blank(~taken, xs), carry, taken


def put_nan(taken: jax.Array, ys: Any) -> Any:
    """Gives the steps that `quarantine` took out the outputs they would have had."""

    def put(y: jax.Array) -> jax.Array:
        inexact = jnp.issubdtype(y.dtype, jnp.inexact)
        # A sum, not a choice: where a loss reads these NaNs, its gradient is to be NaN as well.
        return y + jnp.where(cover(taken, y), jnp.nan, 0).astype(y.dtype) if inexact else y

    return jax.tree.map(put, ys)


def largest(a: jax.Array, axis: int) -> jax.Array:
    """The largest number along an axis, and NaN where there is one.

    `jnp.max` alone drops NaNs on a CPU (jaxlib 0.10.2): of nothing but NaNs it makes -inf.
    """
    return jnp.where(jnp.isnan(a).any(axis=axis), jnp.nan, a.max(axis=axis))


def cover(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """The mask with axes of size one for those of the leaf that it lacks."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


def _has_nan(tree: Any, leading: int) -> jax.Array:
    """Over the leading axes, whether any leaf holds a NaN; a tree without floats holds none."""
    found = [
        jnp.isnan(leaf).any(axis=tuple(range(leading, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_or, found, jnp.zeros((), bool))
