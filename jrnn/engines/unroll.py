"""`jrnn.unroll`, which runs a layer over a batch of sequences."""

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
from jrnn.engines.inputs import canonicalize, conform_arguments, validate_arguments
from jrnn.engines.native import Native
from jrnn.engines.newton import Newton
from jrnn.engines.reverse_mode import forward_mode_message
from jrnn.engines.scan import Scan
from jrnn.layer import Layer, SequenceInputs, check_layer
from jrnn.masking import repeat_on_padding
from jrnn.signatures import SEQUENCE_HINTS, explain_signature
from jrnn.structure import is_symbolic

REGISTRY: dict[str, type[Engine]] = {
    "auto": Auto,
    "scan": Scan,
    "fused": Fused,
    "native": Native,
    "associative": Associative,
    "newton": Newton,
}
"""The engines that `unroll(engine=...)` accepts by name."""


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


@explain_signature(SEQUENCE_HINTS)
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

    For a cell, it computes::

        s = carry
        for t = 0 .. T-1 (T-1 .. 0 if reverse):
            s = init_carry where resets[t], else s
            s, ys[t] = step(params, s, xs[t]);  on padding: s unchanged, ys[t] = 0

    Matrix products are computed in the dtype of `xs`. The carry and the gate arithmetic are in the
    wider dtype of `xs` and `params`; so are matrix products inside `update`, as in
    `GRU(reset_after=False)`. For example, float32 parameters with bfloat16 inputs give bfloat16
    products and a float32 carry. If `carry` is not None, the final carry has its dtypes, so that
    windows of a long sequence can be run in `lax.scan`.

    A NaN on padding affects neither outputs nor gradients. A NaN before a reset does not affect
    outputs after the reset, nor their gradients.

    Args:
      layer: a cell, or a layer such as `jrnn.stack([...])`.
      params: its parameters, from `layer.init`. Dicts with the names of the fields, as checkpoints
        have them, are accepted too.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`. T and B may be 0.
      carry: the initial carry, which is the carry before the first step in scan order, leaves
        `[B, ...]`; by default `layer.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence. All later steps are padding,
        where the carry does not change and the output is zero. Lengths must be in [0, T]; if they
        are traced, as in `jax.jit`, their values are unknown, and they are clipped to [0, T].
      mask: `[T, B]` bool, True on valid steps, in any pattern. With `lengths`, a step is valid only
        if it is valid according to both.
      resets: `[T, B]` bool, True where `init_carry` replaces the carry before the step, in scan
        order. Resets on padding have no effect. For packed sequences see `jrnn.segment_resets`.
      reverse: whether to scan from the last valid step to the first. Outputs stay in the order of
        time.
      key: a PRNG key for stochastic cells; None means the deterministic expected value.
      engine: the algorithm: an engine such as `jrnn.Scan(unroll=2)`, or a name: "auto", "native",
        "fused", "associative", "newton" or "scan". "auto" selects one of the others, except
        "newton". It may select "native" or "fused", which have no forward-mode derivatives;
        "native" has only first derivatives.
      return_carries: whether to also return the carry after each step; for a single cell only.

    Returns:
      The carry after the last valid step in scan order, and the outputs `[T, B, output]`. With
      `return_carries` also the carry after each step, leaves `[T, B, ...]` in the order of time; on
      padding it is that of the previous step in scan order, or the initial carry.

    Raises:
      ValueError: a shape is wrong, a length is outside of [0, T], a leaf of the parameters has the
        wrong dtype or is missing, the engine is unknown or cannot run the cell, or `reverse` or
        `return_carries` is not a bool.
      TypeError: `layer` is not a layer, `key` is not a PRNG key, the parameters are of another
        type, a dtype or the structure of the inputs or of the carry is wrong, the engine cannot run
        the cell, or `return_carries` is True for a layer that is not a cell.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, ys = jrnn.unroll(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
    >>> ys.shape, bool((ys[3:, 1] == 0).all())
    ((5, 2, 4), True)
    """
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    return unroll_inputs(layer, params, inputs, engine, return_carries)


def unroll_inputs(
    layer: Layer,
    params: Params,
    inputs: SequenceInputs,
    engine: Engine | str,
    return_carries: bool = False,
) -> Any:
    """Computes `unroll` for arguments in a `SequenceInputs`.

    Messages about arguments begin with `inputs.owner`, the name of the function that the user
    called.
    """
    check_layer(inputs.owner, "layer", layer)
    if return_carries and not isinstance(layer, Cell):
        raise TypeError(
            f"{inputs.owner}: layer must be a single cell for return_carries, got "
            f"{checks.describe(layer)}; run its layers one by one"
        )
    engine = choose_engine(engine, inputs.owner)
    return_carries = checks.boolean(inputs.owner, "return_carries", return_carries)
    try:
        with validate_arguments(inputs, params):
            carry, ys = _unroll(layer, params, inputs, engine, return_carries)
    except TypeError as error:
        # `vmap` of a forward-mode derivative, as in jax.jacfwd, raises the error of
        # `jax.custom_vjp`, not that of `require_reverse_mode`.
        if "custom_vjp" in str(error):
            error.add_note(f"jrnn: {forward_mode_message(engine)}")
        raise
    return (carry, *ys) if return_carries else (carry, ys)


def choose_engine(engine: Engine | str, owner: str = "unroll") -> Engine:
    """Returns the engine with this name, or an `Engine` unchanged.

    Args:
      engine: an engine, or a name in `REGISTRY`.
      owner: the function that the user called, for the error message.

    Raises:
      ValueError: the name is unknown.
    """
    if isinstance(engine, Engine):
        return engine
    checks.one_of(owner, "engine", engine, REGISTRY)
    return REGISTRY[engine]()


@partial(jax.jit, static_argnames=("layer", "engine", "return_carries"))
def _unroll(
    layer: Layer, params: Params, inputs: SequenceInputs, engine: Engine, return_carries: bool
) -> tuple[Carry, Any]:
    params = conform_arguments(layer, params, inputs)
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
    """Runs one cell on an engine; `partial(_run_cell, engine)` is a `RunCell`."""
    del path
    shape = jax.tree.leaves(inputs.xs)[0].shape
    if is_symbolic(*shape) and not engine.supports_symbolic_shapes:
        raise ValueError(
            f"{inputs.owner}: xs must have a shape of ints for {engine}, got {shape} with symbolic "
            "dimensions of jax.export; use engine='scan'"
        )
    args = canonicalize(cell, params, inputs, return_carries=return_carries)
    carry, ys = engine.run(args.bound, args.carry, args.xs, args.masks, args.reverse)
    if return_carries:
        ys, carries = ys
        carries = repeat_on_padding(args.masks.valid, carries, args.carry, args.reverse)
        ys = args.restore_nans(ys), args.restore_nan_carries(carries)
        return args.cast_carry(carry), ys
    return args.cast_carry(carry), args.restore_nans(ys)
