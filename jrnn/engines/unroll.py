"""`jrnn.unroll`: the one way to run a layer over a batch of sequences."""

from functools import partial
from typing import Any, Literal, overload

import jax
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines.associative import Associative
from jrnn.engines.auto import Auto
from jrnn.engines.engine import Engine
from jrnn.engines.fused import Fused
from jrnn.engines.inputs import canonicalize
from jrnn.engines.native import Native
from jrnn.engines.newton import Newton
from jrnn.engines.scan import Scan
from jrnn.layer import Layer, SequenceInputs
from jrnn.masking import hold_on_padding

REGISTRY: dict[str, type[Engine]] = {
    "auto": Auto,
    "scan": Scan,
    "fused": Fused,
    "native": Native,
    "associative": Associative,
    "newton": Newton,
}
"""Every engine by the name that `unroll(engine=...)` takes."""


@overload
def unroll(
    layer: Layer,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: Engine | str = "auto",
    return_carries: Literal[False] = False,
) -> tuple[Carry, Any]: ...


@overload
def unroll(
    layer: Layer,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: Engine | str = "auto",
    return_carries: Literal[True],
) -> tuple[Carry, Any, Carry]: ...


def unroll(
    layer: Layer,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: Engine | str = "auto",
    return_carries: bool = False,
) -> Any:
    """Runs a layer over a batch of sequences, like `lax.scan` with masks and resets.

    ::

        s = carry
        for t = 0 .. T-1 (T-1 .. 0 if reverse):
            s = init_carry where resets[t], else s
            s, ys[t] = step(params, s, xs[t]);  on padding: s kept, ys[t] = 0

    Products are computed in the dtype of `xs`; the carry and the gate arithmetic are in the wider
    one of `xs` and `params`, and so is a product inside `update`, as in `GRU(reset_after=False)`.
    So float32 parameters with bfloat16 inputs give bfloat16 products and a float32 carry. The last
    carry has the dtypes of `carry` where one is given, so that windows can be run in `lax.scan`.

    A NaN in the padding reaches neither outputs nor gradients; one before a reset reaches no output
    from the reset on, nor a gradient of those outputs.

    Args:
      layer: a cell, or a layer such as `jrnn.stack([...])`.
      params: its parameters, from `layer.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`. T and B may be 0.
      carry: the first carry, leaves `[B, ...]`; by default `layer.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence; the steps after them are
        padding, on which the carry is kept and the output is zero. A length over T counts as T.
      mask: `[T, B]` bool, True on valid steps, in any pattern; with `lengths`, steps are valid
        where both say so.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t,
        in scan order. On padding it has no effect. For packed sequences see `jrnn.segment_resets`.
      reverse: scan from the last valid step to the first; outputs stay in the order of time.
      key: randomness for stochastic cells; None means deterministic, at the expected value.
      engine: an engine such as `jrnn.Scan(unroll=2)`, or a name: "auto", "native", "fused",
        "associative", "newton" or "scan". "native" and "fused", which "auto" may choose, have no
        forward-mode derivatives, and "native" has first derivatives only.
      return_carries: whether to return the carry after each step as well, of one cell.

    Returns:
      The carry after the last valid step, and the outputs `[T, B, output]`. With `return_carries`
      also the carries, leaves `[T, B, ...]` in the order of time; on padding the carry is repeated.

    Raises:
      ValueError: a shape does not fit, or the engine is unknown.
      TypeError: a dtype or the structure of the carry does not fit, or `return_carries` is asked
        of a layer that is no cell.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
    >>> ys.shape, bool((ys[3:, 1] == 0).all())
    ((5, 2, 4), True)
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"unroll: layer must be a cell such as jrnn.LSTM(64), or a layer, got {layer!r}"
        )
    if return_carries and not isinstance(layer, Cell):
        raise TypeError(
            f"unroll: return_carries needs a single cell, got {layer!r}; run its layers one by one"
        )
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    engine = choose_engine(engine)
    try:
        carry, ys = _unroll(layer, params, inputs, engine, bool(return_carries))
    except TypeError as error:
        if "forward-mode" in str(error):  # JAX's own message, which does not mention engines
            error.add_note(
                f"jrnn: {engine} has derivatives of reverse mode only; for jax.jvp, jax.jacfwd "
                "and jax.linearize use engine='scan'"
            )
        raise
    return (carry, *ys) if return_carries else (carry, ys)


def choose_engine(engine: Engine | str) -> Engine:
    """The engine with a name."""
    if isinstance(engine, Engine):
        return engine
    checks.one_of("unroll", "engine", engine, REGISTRY)
    return REGISTRY[engine]()


@partial(jax.jit, static_argnames=("layer", "engine", "return_carries"))
def _unroll(
    layer: Layer, params: Params, inputs: SequenceInputs, engine: Engine, return_carries: bool
) -> tuple[Carry, Any]:
    if return_carries and isinstance(layer, Cell):
        return _run_cell(engine, layer, params, inputs, return_carries=True)
    return layer.apply(partial(_run_cell, engine), params, inputs)


def _run_cell(
    engine: Engine,
    cell: Cell,
    params: Params,
    inputs: SequenceInputs,
    *,
    path: tuple[str, ...] = (),
    return_carries: bool = False,
) -> tuple[Carry, Any]:
    """Runs one cell by an engine, as `RunCell`."""
    del path  # engines have no use for it
    given = canonicalize(cell, params, inputs, return_carries=return_carries)
    carry, ys = engine.run(given.bound, given.carry, given.xs, given.masks, given.reverse)
    if return_carries:
        ys, carries = ys
        carries = hold_on_padding(given.masks.valid, carries, given.carry, given.reverse)
        return given.result(carry), (given.restore(ys), given.restore_carries(carries))
    return given.result(carry), given.restore(ys)
