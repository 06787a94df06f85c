"""What comes before every engine: checks of the arguments, masks, dtypes and noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines import masking
from jrnn.engines.masking import Masks
from jrnn.engines.precision import Parts, bind, cast, precision_of


class Run(NamedTuple):
    """All that an engine runs on, checked.

    Attributes:
      parts: the cell with its parameters.
      carry: the first carry, leaves `[B, ...]`.
      xs: inputs, leaves `[T, B, ...]`.
      masks: padding and resets.
      taken: `[T, B]` bool, the steps in quarantine, or None.
    """

    parts: Parts
    carry: Carry
    xs: Inputs
    masks: Masks
    taken: jax.Array | None

    def outputs(self, ys: Any) -> Any:
        """The outputs of an engine as the user is to see them."""
        return ys if self.taken is None else masking.put_nan(self.taken, ys)


def prepare(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None,
    lengths: jax.Array | None,
    resets: jax.Array | None,
    key: jax.Array | None,
    reverse: bool,
) -> Run:
    """Checks the arguments of `jrnn.unroll`, and makes of them what engines take."""
    if not isinstance(cell, Cell):
        raise TypeError(f"unroll: cell must be a jrnn.Cell such as jrnn.LSTM(64), got {cell!r}")
    steps, batch = _time_and_batch(xs)
    valid = None
    if lengths is not None:
        lengths = _checked_lengths(lengths, steps, batch)
        valid = masking.valid_steps(lengths, steps)
    if resets is not None:
        resets = _checked_resets(resets, steps, batch)
        resets = resets if valid is None else resets & valid

    precision = precision_of(params, xs)
    initial = cast(cell.init_carry(params, (batch,)), precision.wide)
    if carry is None:
        carry = initial
    else:
        carry = checked_like("unroll: carry", f"{type(cell).__name__}.init_carry", carry, initial)
    masks = Masks(lengths, valid, resets, None if resets is None else initial)

    taken = None
    if resets is not None and steps > 0:
        xs, carry, taken = masking.quarantine(xs, carry, masks, reverse)
    if cell.perturb is not None:
        shapes = jax.eval_shape(lambda: xs)
        params, noise = cell.perturb(params, shapes, (steps, batch), key)
        xs = (xs, cast(noise, precision.compute))
    return Run(bind(cell, params, precision), carry, xs, masks, taken)


def _time_and_batch(xs: Inputs) -> tuple[int, int]:
    leaves = jax.tree.leaves(xs)
    if not leaves:
        raise ValueError("unroll: xs must hold at least one array [time, batch, ...], got none")
    for leaf in leaves:
        if leaf.ndim < 2 or leaf.shape[:2] != leaves[0].shape[:2]:
            raise ValueError(
                "unroll: every array of xs must have shape (time, batch, ...), time first and "
                f"alike in all of them, got {[leaf.shape for leaf in leaves]}; one sequence alone "
                "is xs[:, None]"
            )
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(
            f"unroll: xs must be floating, got {leaves[0].dtype}; embed or one-hot tokens first"
        )
    if len(leaves) == 1 and leaves[0].ndim < 3:
        raise ValueError(
            f"unroll: xs must have shape (time, batch, input), got {leaves[0].shape}; one sequence "
            "alone is xs[:, None]"
        )
    return leaves[0].shape[:2]


def _checked_lengths(lengths: jax.Array, steps: int, batch: int) -> jax.Array:
    if lengths.shape != (batch,):
        raise ValueError(
            f"unroll: lengths must have shape (batch,) = ({batch},), got {lengths.shape}"
        )
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"unroll: lengths must be ints, the number of valid steps, got {lengths.dtype}"
        )
    most = min(steps, jnp.iinfo(lengths.dtype).max)
    return jnp.clip(lengths, 0, most).astype(jnp.int32)  # an int32 of more could be negative


def _checked_resets(resets: jax.Array, steps: int, batch: int) -> jax.Array:
    if resets.shape != (steps, batch):
        raise ValueError(
            f"unroll: resets must have shape (time, batch) = ({steps}, {batch}), got {resets.shape}"
        )
    if resets.dtype != jnp.bool_:
        raise TypeError(f"unroll: resets must be bool, got {resets.dtype}; write resets != 0")
    return resets


def checked_like(subject: str, source: str, given: Any, like: Any) -> Any:
    """A tree as the user gave it, in the dtypes of another that it must be like."""
    expected, got = jax.tree.structure(like), jax.tree.structure(given)
    if expected != got:
        raise TypeError(f"{subject} must have the structure of {source}, {expected}, got {got}")
    given = jax.tree.map(jnp.asarray, given)
    wanted, have = ([a.shape for a in jax.tree.leaves(tree)] for tree in (like, given))
    if wanted != have:
        raise ValueError(f"{subject} must have leaves of shapes {wanted}, got {have}")
    kinds, have = ([_kind(a) for a in jax.tree.leaves(tree)] for tree in (like, given))
    if any(got > want for want, got in zip(kinds, have, strict=True)):
        dtypes = ([a.dtype.name for a in jax.tree.leaves(tree)] for tree in (like, given))
        raise TypeError("{} must have leaves of dtypes {}, got {}".format(subject, *dtypes))
    return jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), given, like)


def _kind(leaf: jax.Array) -> int:
    """Bool, int, float, complex: a carry may be cast up this order, never down."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next(k for k, kind in enumerate(kinds) if jnp.issubdtype(leaf.dtype, kind))
