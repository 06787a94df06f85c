"""`jrnn.unroll`: the one way to run a cell over a sequence."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines import masking
from jrnn.engines.auto import Auto
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.masking import Masks
from jrnn.engines.native import Native
from jrnn.engines.precision import Precision, bind, cast, precision_of
from jrnn.engines.scan import Scan

REGISTRY: dict[str, type[Engine]] = {"auto": Auto, "scan": Scan, "fused": Fused, "native": Native}
"""Every engine by the name that `unroll(engine=...)` takes."""


def unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: Engine | str = "auto",
) -> tuple[Carry, jax.Array]:
    """Runs a cell over a batch of sequences, like `lax.scan` with masks and resets that are right.

    ::

        s = carry
        for t = 0 .. T-1 (T-1 .. 0 if reverse):
            s = init_carry where resets[t], else s
            s, ys[t] = step(params, s, xs[t]);  where t >= lengths: s kept, ys[t] = 0

    Products are computed in the dtype of `xs`; the carry and the gate arithmetic are in the wider
    one of `xs` and `params`; so is a product inside `update`, as `GRU(reset_after=False)` has it.
    So float32 parameters with bfloat16 inputs give bfloat16 products and a float32 carry.

    A NaN in the padding reaches neither outputs nor gradients; one before a reset reaches no output
    from the reset on, nor a gradient of those outputs.

    Args:
      cell: the cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`. T and B may be 0.
      carry: the first carry, leaves `[B, ...]`; by default `cell.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence; beyond it the carry stays and
        the output is zero. A length over T counts as T.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t,
        in the direction of travel. On padding it does nothing. For packed sequences see
        `jrnn.segment_resets`.
      reverse: go from the last valid step to the first; outputs stay in the order of time.
      key: randomness for cells with noise; None means deterministic, at the expected value.
      engine: an engine such as `jrnn.Scan(unroll=2)`, or a name: "auto", "native", "fused" or
        "scan". "scan" alone has forward-mode derivatives, and "native", which "auto" may choose,
        first derivatives alone.

    Returns:
      The carry after the last valid step, and the outputs `[T, B, output]`.

    Raises:
      ValueError: a shape does not fit, or the engine is unknown.
      TypeError: a dtype or the structure of the carry does not fit.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
    >>> ys.shape, bool((ys[3:, 1] == 0).all())
    ((5, 2, 4), True)
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"unroll: cell must be a jrnn.Cell such as jrnn.LSTM(64), got {cell!r}")
    lengths, resets = (None if a is None else jnp.asarray(a) for a in (lengths, resets))
    engine = choose_engine(engine)
    try:
        return _unroll(
            cell, params, xs, carry, lengths, resets, key, reverse=bool(reverse), engine=engine
        )
    except TypeError as error:
        if "forward-mode" in str(error):  # JAX's own, which knows nothing of engines
            error.add_note(
                f"jrnn: {engine} has derivatives of reverse mode alone; for jax.jvp, jax.jacfwd "
                "and jax.linearize use engine='scan'"
            )
        raise


def choose_engine(engine: Engine | str) -> Engine:
    """The engine meant by a name."""
    if isinstance(engine, Engine):
        return engine
    checks.one_of("unroll", "engine", engine, REGISTRY)
    return REGISTRY[engine]()


@partial(jax.jit, static_argnames=("cell", "reverse", "engine"))
def _unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None,
    lengths: jax.Array | None,
    resets: jax.Array | None,
    key: jax.Array | None,
    *,
    reverse: bool,
    engine: Engine,
) -> tuple[Carry, jax.Array]:
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
    carry = initial if carry is None else _checked_carry(cell, carry, initial, precision)
    masks = Masks(lengths, valid, resets, None if resets is None else initial)

    taken = None
    if resets is not None and steps > 0:
        xs, carry, taken = masking.quarantine(xs, carry, masks, reverse)
    if cell.perturb is not None:
        params, noise = cell.perturb(params, (steps, batch), key)
        xs = (xs, cast(noise, precision.compute))
    carry, ys = engine.run(bind(cell, params, precision), carry, xs, masks, reverse)
    return carry, ys if taken is None else masking.put_nan(taken, ys)


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


def _checked_carry(cell: Cell, carry: Carry, initial: Carry, precision: Precision) -> Carry:
    expected, got = jax.tree.structure(initial), jax.tree.structure(carry)
    if expected != got:
        raise TypeError(
            f"unroll: carry must have the structure of {type(cell).__name__}.init_carry, "
            f"{expected}, got {got}"
        )
    carry = jax.tree.map(jnp.asarray, carry)
    shapes, given = ([a.shape for a in jax.tree.leaves(tree)] for tree in (initial, carry))
    if shapes != given:
        raise ValueError(f"unroll: carry must have leaves of shapes {shapes}, got {given}")
    kinds, given = ([_kind(a) for a in jax.tree.leaves(tree)] for tree in (initial, carry))
    if any(have > want for want, have in zip(kinds, given, strict=True)):
        dtypes = ([a.dtype.name for a in jax.tree.leaves(tree)] for tree in (initial, carry))
        raise TypeError("unroll: carry must have leaves of dtypes {}, got {}".format(*dtypes))
    return jax.tree.map(lambda a, like: a.astype(like.dtype), carry, initial)


def _kind(leaf: jax.Array) -> int:
    """Bool, int, float, complex: a carry may be cast up this order, never down."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next(k for k, kind in enumerate(kinds) if jnp.issubdtype(leaf.dtype, kind))
