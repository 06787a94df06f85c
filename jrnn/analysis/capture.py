"""The gates and carries of every step, for any layer: what its cells name by `jrnn.tap`."""

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.engines.inputs import canonicalize
from jrnn.layer import Layer, SequenceInputs
from jrnn.masking import apply_resets, tree_where, zero_where
from jrnn.taps import capture_taps


class GateCapture(NamedTuple):
    """What a layer computed at each step. A pytree: it passes through jit and vmap.

    Attributes:
      gates: the tapped values by their names and in their order, each `[T, B, hidden]`; zero on
        padding. Empty for a cell without taps.
      carries: the carry after each step, leaves `[T, B, ...]`; on padding the carry before it.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      ys: the outputs `[T, B, output]`, as `jrnn.unroll` returns them.
      lengths: the lengths that were given, `[B]`, or None.
      resets: the resets that were given, `[T, B]`, or None.
      reverse: whether the scan ran in reverse; everything else is in the order of time.
      mask: the mask that was given, `[T, B]`, or None.
    """

    gates: OrderedDict[str, jax.Array]
    carries: Carry
    carry: Carry
    ys: Any
    lengths: jax.Array | None = None
    resets: jax.Array | None = None
    reverse: bool | jax.Array = False
    mask: jax.Array | None = None


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
    """Runs a layer as `jrnn.unroll` does, and returns every gate and every carry of each step.

    ::

        for each t in scan order:
            carries[t], ys[t] = step(params, carries[t-1], xs[t]),  and gates[name][t] of that step

    The gates are the values that a cell names by `jrnn.tap(name, value)` in its `update` or
    `readout`. Gates and carries are in the dtype of the gate arithmetic, outputs in that of `xs`.
    In a layer of several cells the names have the layer in front, as "0.f" for the first layer of a
    stack and "forward.f" for a direction.

    Args:
      layer: a cell, or a layer such as a stack.
      params: its parameters, from `layer.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`; by default `layer.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence.
      mask: `[T, B]` bool, True on valid steps, in any pattern.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t.
      reverse: scan from the last valid step to the first; the result stays in the order of time.
      key: randomness for stochastic cells; None means deterministic, at the expected value.

    Returns:
      A `GateCapture`.

    Raises:
      ValueError: a shape does not fit, or a tapped value lacks the batch axis.
      TypeError: a dtype or the structure of the carry does not fit.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> seen = capture_gates(cell, params, jnp.ones((5, 2, 3)))
    >>> {name: gate.shape for name, gate in seen.gates.items()}
    {'i': (5, 2, 4), 'f': (5, 2, 4), 'g': (5, 2, 4), 'o': (5, 2, 4)}
    >>> c = seen.carries.c
    >>> new = seen.gates["f"][1:] * c[:-1] + seen.gates["i"][1:] * seen.gates["g"][1:]
    >>> bool(jnp.allclose(c[1:], new))
    True
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"capture_gates: layer must be a cell such as jrnn.LSTM(64), or a layer, got {layer!r}"
        )
    inputs = SequenceInputs(xs, carry, lengths, mask, resets, key, reverse)
    gates, carries, carry, ys = _capture(layer, params, inputs)
    return GateCapture(
        gates, carries, carry, ys, inputs.lengths, inputs.resets, inputs.reverse, inputs.mask
    )


def retention(
    forget: jax.Array, resets: jax.Array | None = None, *, reverse: bool = False
) -> jax.Array:
    """The share of the state of each step that is left at each later step, by the forget gate.

    ::

        kept[s, t] = f[s+1] * f[s+2] * ... * f[t]    for t >= s (so 1 at t = s), and 0 for t < s

    For an LSTM this is the derivative of c_t by c_s with the gates held fixed.
    Memory grows as T·T·hidden: take one sequence, not a batch.

    Args:
      forget: the gate that keeps the old state, `[T, ...]`: f of an LSTM, z of a GRU.
      resets: `[T]` bool, or None; nothing survives a reset.
      reverse: whether the scan ran in reverse; if so, s is later than t.

    Returns:
      `[T, T, ...]`: first the step s of the state, then the step t at which it is left.

    Raises:
      ValueError: `forget` has no axis of time, or `resets` is not `[T]`.

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
    later = steps > steps[:, None]
    factors = tree_where(later, jnp.broadcast_to(forget, later.shape + forget.shape[1:]), 1)
    return zero_where(steps >= steps[:, None], jnp.cumprod(factors, axis=1))


class _Carries(NamedTuple):
    """What stands for the last carry of a cell until a layer has put its carries together."""

    last: Carry
    every: Carry


@partial(jax.jit, static_argnames="layer")
def _capture(
    layer: Layer, params: Params, inputs: SequenceInputs
) -> tuple[OrderedDict[str, jax.Array], Carry, Carry, Any]:
    """Gates, carries, last carry and outputs."""
    # A plain dict would leave jit in alphabetical order.
    gates: OrderedDict[str, jax.Array] = OrderedDict()

    def run(
        cell: Cell,
        params: Params,
        inputs: SequenceInputs,
        *,
        path: tuple[str, ...] = (),
        return_carries: bool = False,
    ) -> tuple[Any, Any]:
        found, every, last, ys = _capture_cell(cell, params, inputs)
        gates.update({".".join((*path, name)): gate for name, gate in found.items()})
        return _Carries(last, every), (ys, every) if return_carries else ys

    carries, ys = layer.apply(run, params, inputs)
    is_leaf = lambda node: isinstance(node, _Carries)
    every = jax.tree.map(lambda c: c.every, carries, is_leaf=is_leaf)
    return gates, every, jax.tree.map(lambda c: c.last, carries, is_leaf=is_leaf), ys


def _capture_cell(
    cell: Cell, params: Params, inputs: SequenceInputs
) -> tuple[dict[str, jax.Array], Carry, Carry, Any]:
    """One cell: the `Scan` engine, which returns everything that it computes."""
    given = canonicalize(cell, params, inputs)

    def body(carry: Carry, step: Any) -> tuple[Carry, Any]:
        x, valid, reset = step
        prev = apply_resets(reset, given.masks.initial, carry)
        (carry, y), gates = capture_taps(given.bound.step)(prev, zero_where(valid, x))
        _check_gates(cell, gates, batch=jax.tree.leaves(y)[0].shape[0])
        carry = tree_where(valid, carry, prev)
        y, gates = zero_where(valid, (y, OrderedDict(gates)))
        return carry, (y, carry, gates)

    steps = (given.xs, given.masks.valid, given.masks.resets)
    last, (ys, carries, gates) = lax.scan(body, given.carry, steps, reverse=given.reverse)
    return (
        given.restore_nans(gates),
        given.restore_nans(carries),
        given.cast_carry(last),
        given.restore_nans(ys),
    )


def _check_gates(cell: Cell, gates: dict[str, jax.Array], *, batch: int) -> None:
    for name, gate in gates.items():
        if jnp.shape(gate)[:1] != (batch,):
            raise ValueError(
                f"capture_gates: {type(cell).__name__} must tap {name!r} with shape (batch, "
                f"hidden), batch = {batch}, got {jnp.shape(gate)}; broadcast it first"
            )
