"""The gates and carries of every step, for any cell: what it names by `jrnn.record`."""

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jrnn.cell import Carry, Cell, Inputs, Params, recording
from jrnn.engines.masking import blank, restart, select, settle
from jrnn.engines.prepare import prepare


class Anatomy(NamedTuple):
    """What happened inside a cell at each step. A pytree: it passes through jit and vmap.

    Attributes:
      gates: the gates by the names that the cell gave them and in its order, each `[T, B, hidden]`;
        zero on padding. Empty for a cell that records nothing.
      carries: the carry after each step, leaves `[T, B, ...]`; on padding as it was before.
      carry: the final carry, leaves `[B, ...]`, as `jrnn.unroll` returns it.
      ys: the outputs `[T, B, output]`, as `jrnn.unroll` returns them.
      lengths: the lengths it was asked for, `[B]`, or None.
      resets: the resets it was asked for, `[T, B]`, or None.
      reverse: the direction of travel; everything else is in the order of time.
    """

    gates: dict[str, jax.Array]
    carries: Carry
    carry: Carry
    ys: Any
    lengths: jax.Array | None = None
    resets: jax.Array | None = None
    reverse: bool | jax.Array = False


def anatomy(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
) -> Anatomy:
    """Runs a cell as `jrnn.unroll` does, and keeps every gate and every carry on the way.

    ::

        for each t in the direction of travel:
            carries[t], ys[t] = step(params, carries[t-1], xs[t]),  and gates[name][t] of that step

    The gates are those that the cell names by `jrnn.record(...)` in its `update`, and a cell
    of your own may do so too, outside of any `jax.jit` or `jax.vmap` within `update`. Gates and
    carries are in the dtype that the gate arithmetic is done in, outputs in that of `xs`.

    Args:
      cell: any cell.
      params: its parameters, from `cell.init`.
      xs: inputs `[T, B, input]`, or a pytree of leaves `[T, B, ...]`.
      carry: the first carry, leaves `[B, ...]`; by default `cell.init_carry`.
      lengths: `[B]` ints, the number of valid steps of each sequence.
      resets: `[T, B]` bool; True replaces the carry by the cell's own initial carry before step t.
      reverse: go from the last valid step to the first; the result stays in the order of time.
      key: randomness for cells with noise; None means deterministic, at the expected value.

    Returns:
      An `Anatomy`.

    Raises:
      ValueError: a shape does not fit, or a recorded gate lacks the batch axis.
      TypeError: a dtype or the structure of the carry does not fit.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> seen = anatomy(cell, params, jnp.ones((5, 2, 3)))
    >>> {name: gate.shape for name, gate in seen.gates.items()}
    {'i': (5, 2, 4), 'f': (5, 2, 4), 'g': (5, 2, 4), 'o': (5, 2, 4)}
    >>> c = seen.carries.c
    >>> new = seen.gates["f"][1:] * c[:-1] + seen.gates["i"][1:] * seen.gates["g"][1:]
    >>> bool(jnp.allclose(c[1:], new))
    True
    """
    lengths, resets = (None if a is None else jnp.asarray(a) for a in (lengths, resets))
    reverse = bool(reverse)
    gates, carries, carry, ys = _anatomy(cell, params, xs, carry, lengths, resets, key, reverse)
    return Anatomy(gates, carries, carry, ys, lengths, resets, reverse)


def retention(
    forget: jax.Array, resets: jax.Array | None = None, *, reverse: bool = False
) -> jax.Array:
    """How much of the state of each step is left at each later step, by the forget gate alone.

    ::

        kept[s, t] = f[s+1] * f[s+2] * ... * f[t]    for t >= s (so 1 at t = s), and 0 for t < s

    For an LSTM this is the derivative of c_t by c_s with the gates held fixed.
    Memory grows as T·T·hidden: take one sequence, not a batch.

    Args:
      forget: the gate that keeps the old state, `[T, ...]`: f of an LSTM, z of a GRU.
      resets: `[T]` bool, or None; nothing survives a reset.
      reverse: the direction of travel; if True, s is later than t.

    Returns:
      `[T, T, ...]`: first the step s at which it was there, then the step t at which it is left.

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
        forget = select(~resets, forget, jnp.zeros_like(forget))
    if reverse:
        return lax.rev(retention(lax.rev(forget, (0,))), (0, 1))
    later = steps > steps[:, None]
    factors = select(later, jnp.broadcast_to(forget, later.shape + forget.shape[1:]), 1)
    return blank(steps >= steps[:, None], jnp.cumprod(factors, axis=1))


@partial(jax.jit, static_argnames=("cell", "reverse"))
def _anatomy(
    cell: Cell,
    params: Params,
    xs: Inputs,
    carry: Carry | None,
    lengths: jax.Array | None,
    resets: jax.Array | None,
    key: jax.Array | None,
    reverse: bool,
) -> tuple[Any, Carry, Carry, Any]:
    """Gates, carries, last carry and outputs: the `Scan` engine that keeps all on its way."""
    run = prepare(cell, params, xs, carry, lengths, resets, key, reverse)

    def body(carry, inputs):
        x, valid, reset = inputs
        before = restart(reset, run.masks.initial, carry)
        with recording() as gates:
            after, y = run.parts.step(before, blank(valid, x))
        _check_gates(cell, gates, batch=y.shape[0])
        # A plain dict would come out of the scan in alphabetical order.
        after, (y, gates) = settle(valid, before, after, (y, OrderedDict(gates)))
        return after, (y, after, gates)

    steps = (run.xs, run.masks.valid, run.masks.resets)
    carry, (ys, carries, gates) = lax.scan(body, run.carry, steps, reverse=reverse)
    return run.outputs(gates), run.outputs(carries), carry, run.outputs(ys)


def _check_gates(cell: Cell, gates: dict[str, jax.Array], *, batch: int) -> None:
    for name, gate in gates.items():
        if jnp.shape(gate)[:1] != (batch,):
            raise ValueError(
                f"anatomy: {type(cell).__name__} must record gate {name!r} with shape (batch, "
                f"hidden), batch = {batch}, got {jnp.shape(gate)}; broadcast it first"
            )
