"""`jrnn.unroll`: the one way to run a cell over a sequence."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines.associative import Associative
from jrnn.engines.auto import Auto
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.masking import reverse_resets
from jrnn.engines.native import Native
from jrnn.engines.newton import Newton
from jrnn.engines.prepare import prepare
from jrnn.engines.scan import Scan

REGISTRY: dict[str, type[Engine]] = {
    "auto": Auto,
    "scan": Scan,
    "fused": Fused,
    "native": Native,
    "associative": Associative,
    "newton": Newton,
}
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
      engine: an engine such as `jrnn.Scan(unroll=2)`, or a name: "auto", "native", "fused",
        "associative", "newton" or "scan". "native" and "fused", which "auto" may choose, have no
        forward-mode derivatives, and "native" first derivatives alone.

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
    if isinstance(cell, Cell) and cell.sequence is not None:
        each = partial(_unroll_part, lengths, resets, reverse, engine)
        return cell.sequence(each, params, xs, carry, key)
    run = prepare(cell, params, xs, carry, lengths, resets, key, reverse)
    carry, ys = engine.run(run.parts, run.carry, run.xs, run.masks, reverse)
    return carry, run.outputs(ys)


def _unroll_part(
    lengths: jax.Array | None,
    resets: jax.Array | None,
    reverse: bool,
    engine: Engine,
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None,
    key: jax.Array | None,
    backwards: bool = False,
) -> tuple[Carry, Any]:
    """One cell of those that a cell is made of, as `Cell.sequence` calls it."""
    if backwards and reverse:
        raise ValueError(
            "unroll: a bidirectional cell goes both ways; reverse must be False, got True"
        )
    if backwards and resets is not None:
        resets = reverse_resets(resets, lengths)
    return _unroll(
        cell, params, xs, carry, lengths, resets, key, reverse=reverse or backwards, engine=engine
    )
