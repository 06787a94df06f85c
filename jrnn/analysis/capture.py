"""Captures the gates and carries of a layer at every step; gates are values named by `jrnn.tap`."""

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines.inputs import canonicalize, conform_arguments, validate_arguments
from jrnn.layer import Layer, SequenceInputs, check_layer
from jrnn.masking import apply_resets, tree_where, zero_where
from jrnn.signatures import SEQUENCE_HINTS, explain_signature
from jrnn.taps import capture_taps


class GateCapture(NamedTuple):
    """The values that a layer computed at each step. A pytree, for use with jit and vmap.

    Attributes:
      gates: the tapped values by name, in the order in which the cell taps them, each
        `[T, B, hidden]`; zero on padding. Empty for a cell without taps.
      carries: the carry after each step, leaves `[T, B, ...]`; on padding it is that of the
        previous step in scan order.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      ys: the outputs `[T, B, output]`, as `jrnn.unroll` returns them.
      lengths: the argument `lengths`, `[B]`, or None.
      resets: the argument `resets`, `[T, B]`, or None.
      reverse: whether the scan ran in reverse; all fields are in the order of time in both cases.
      mask: the argument `mask`, `[T, B]`, or None.
    """

    gates: OrderedDict[str, jax.Array]
    carries: Carry
    carry: Carry
    ys: Any
    lengths: jax.Array | None = None
    resets: jax.Array | None = None
    reverse: bool | jax.Array = False
    mask: jax.Array | None = None


@explain_signature(SEQUENCE_HINTS)
def capture_gates(
    layer: Layer,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> GateCapture:
    """Runs a layer like `jrnn.unroll`, and returns all gates and carries of each step.

    ::

        s = carry
        for each t in scan order:
            s, ys[t], gates[name][t] = step(params, s, xs[t])
            carries[t] = s

    The gates are the values that a cell names by `jrnn.tap(name, value)` in its `update` or
    `readout`. Gates and carries have the wider dtype of parameters and inputs; outputs have the
    dtype of `xs`. In a layer of several cells the names have the path of the cell as a prefix, such
    as "0.f" for the first layer of a stack, and "forward.f" for the forward direction.

    Args:
      layer: a cell, or a layer such as a stack.
      params: its parameters, from `layer.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the initial carry, leaves `[B, ...]`; by default `layer.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool, True where `layer.init_carry` replaces the carry before the step, in
        scan order.
      reverse: whether to scan from the last valid step to the first; results stay in the order of
        time.
      key: PRNG key for stochastic cells; None means the deterministic expected value.

    Returns:
      A `GateCapture`.

    Raises:
      ValueError: a shape is wrong, a tapped value has no batch axis, or two values of a cell are
        tapped with the same name.
      TypeError: `layer` is not a layer, a dtype or the structure of the parameters, the inputs or
        the carry is wrong, or a tap is inside a loop, a branch or a custom derivative.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> capture = capture_gates(cell, params, jnp.ones((5, 2, 3)))
    >>> {name: gate.shape for name, gate in capture.gates.items()}
    {'i': (5, 2, 4), 'f': (5, 2, 4), 'g': (5, 2, 4), 'o': (5, 2, 4)}
    >>> c = capture.carries.c
    >>> new = capture.gates["f"][1:] * c[:-1] + capture.gates["i"][1:] * capture.gates["g"][1:]
    >>> bool(jnp.allclose(c[1:], new))
    True
    """
    check_layer("capture_gates", "layer", layer)
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse, "capture_gates")
    with validate_arguments(inputs, params):
        gates, carries, carry, ys = _capture(layer, params, inputs)
    return GateCapture(
        gates, carries, carry, ys, inputs.lengths, inputs.resets, inputs.reverse, inputs.mask
    )


def retention(
    forget: jax.Array, resets: jax.Array | None = None, *, reverse: bool = False
) -> jax.Array:
    """Computes the fraction of the state of each step that remains at each later step.

    ::

        retention[s, t] = f[s+1] * f[s+2] * ... * f[t]    for t >= s (1 at t = s), 0 for t < s

    For an LSTM this is the derivative of c_t with respect to c_s if the gates are constant.
    The result has T·T·hidden elements, so pass a single sequence, not a batch.

    Args:
      forget: the gate that multiplies the previous state, `[T, ...]`: f of an LSTM, z of a GRU.
      resets: `[T]` bool, or None; after a reset, the retention of the states before it is 0.
      reverse: whether the scan ran in reverse; then "later" means earlier in time: the retention is
        0 for t > s.

    Returns:
      `[T, T, ...]`, indexed by the step s of the state and the step t that follows in scan order.

    Raises:
      ValueError: `forget` has no time axis, or `resets` does not have the shape `[T]`.

    >>> import jax.numpy as jnp
    >>> retention(jnp.array([0.9, 0.5, 0.5])).tolist()
    [[1.0, 0.5, 0.25], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    """
    forget = jnp.asarray(forget)
    if forget.ndim == 0:
        raise ValueError("retention: forget must have shape (time, ...), got a scalar")
    steps = jnp.arange(len(forget))
    if resets is not None:
        resets = jnp.asarray(resets)
        if resets.shape != steps.shape:
            raise ValueError(
                f"retention: resets must have shape (time,) = {steps.shape}, got {resets.shape}"
            )
        forget = tree_where(~resets, forget, jnp.zeros_like(forget))
    if reverse:
        return lax.rev(retention(lax.rev(forget, (0,))), (0, 1))
    is_later = steps > steps[:, None]
    factors = tree_where(is_later, jnp.broadcast_to(forget, is_later.shape + forget.shape[1:]), 1)
    return zero_where(steps >= steps[:, None], jnp.cumprod(factors, axis=1))


class _Carries(NamedTuple):
    """The final carry of a cell, with the carries of all steps.

    `Layer.apply` combines the final carries of its cells. These pairs are passed to it in place of
    the final carries.
    """

    final: Carry
    all_steps: Carry


@partial(jax.jit, static_argnames="layer")
def _capture(
    layer: Layer, params: Params, inputs: SequenceInputs
) -> tuple[OrderedDict[str, jax.Array], Carry, Carry, Any]:
    """Returns gates, carries of all steps, final carry and outputs."""
    # The gates are in an OrderedDict, because jit sorts the keys of a dict.
    gates: OrderedDict[str, jax.Array] = OrderedDict()

    def run(
        cell: Cell,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
        return_carries: bool = False,
    ) -> tuple[Any, Any]:
        cell_gates, all_steps, final, ys = _capture_cell(cell, params, inputs)
        gates.update({".".join((*path, name)): gate for name, gate in cell_gates.items()})
        return _Carries(final, all_steps), (ys, all_steps) if return_carries else ys

    params = conform_arguments(layer, params, inputs)
    carries, ys = layer.apply(run, params, inputs)
    is_leaf = lambda node: isinstance(node, _Carries)
    all_steps = jax.tree.map(lambda c: c.all_steps, carries, is_leaf=is_leaf)
    return gates, all_steps, jax.tree.map(lambda c: c.final, carries, is_leaf=is_leaf), ys


def _capture_cell(
    cell: Cell, params: Params, inputs: SequenceInputs
) -> tuple[dict[str, jax.Array], Carry, Carry, Any]:
    """Scans one cell; returns gates, carries of all steps, final carry and outputs."""
    args = canonicalize(cell, params, inputs)

    def body(carry: Carry, step: Any) -> tuple[Carry, Any]:
        x, valid, reset = step
        prev_carry = apply_resets(reset, args.masks.reset_carry, carry)
        (new_carry, y), gates = capture_taps(args.bound.step)(prev_carry, zero_where(valid, x))
        _check_gates(cell, gates, batch=jax.tree.leaves(y)[0].shape[0])
        carry = tree_where(valid, new_carry, prev_carry)
        y, gates = zero_where(valid, (y, OrderedDict(gates)))
        return carry, (y, carry, gates)

    steps = (args.xs, args.masks.valid, args.masks.resets)
    final, (ys, carries, gates) = lax.scan(body, args.carry, steps, reverse=args.reverse)
    gates, ys = args.restore_nans((gates, ys))
    return gates, args.restore_nan_carries(carries), args.cast_carry(final), ys


def _check_gates(cell: Cell, gates: dict[str, jax.Array], *, batch: int) -> None:
    """Raises unless every gate has a batch axis."""
    for name, gate in gates.items():
        if jnp.shape(gate)[:1] != (batch,):
            raise ValueError(
                f"capture_gates: {type(cell).__name__} must tap {name!r} with shape (batch, "
                f"hidden), batch = {batch}, got {jnp.shape(gate)}; broadcast it first"
            )
