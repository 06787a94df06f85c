"""The engine for training: one scan, and a backward pass of its own, derived for every cell."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.dtypes import cast
from jrnn.engines.engine import Engine
from jrnn.engines.linearise import Plan, linearise, plan_of
from jrnn.engines.precision import BoundCell
from jrnn.engines.pullback import add, even_chunk, floats, pullback, scan_chunks, zeros
from jrnn.engines.readout import LoopReadout, loop_readout
from jrnn.engines.scan import Scan, scan_steps
from jrnn.masking import Masks, apply_padding, apply_resets, step_of, zero_where

ROWS = 256
"""Rows of a weight gradient's product where no chunk is given: enough for a good product, and few
enough that what is multiplied is still in the cache."""

SMALL = 32768
"""With fewer weights than this, and a batch of 32 or more, a chunk is one step."""


@dataclass(frozen=True)
class Fused(Engine):
    r"""One scan as in `Scan`, with a backward pass that carries no weight gradient.

    With s_t the carry before step t, p = project, q = recur, and primes for cotangents::

        s'_t, z'_t, u'_t = transpose(d update)(s'_{t+1}, y'_t)      step by step, backwards
        s'_t             = s'_t + transpose(d q)(u'_t)
        w' = sum over chunks of transpose(d p, d q by w)(z'_chunk, u'_chunk)

    JAX's own derivative adds to the gradient of every weight at every step. Here a chunk of
    steps is one matrix product, and one step is a chunk only where a small cell has a large batch.
    The forward pass saves s_t and what `update` computes by anything more expensive than an
    addition or a product, such as the gates. A readout with products by parameters is one product
    for all steps, forward and backward; on a CPU with a larger batch it stays in the loop (see
    `jrnn.engines.readout`), and its weight gradients are accumulated step by step.

    The gradient of a parameter that `update` itself uses (a peephole) is accumulated step by step.

    With `remat` only the carry before each chunk is saved, and each chunk is run again in the
    backward pass: memory O(sqrt(T)), and about a third more time.

    Gradients of any order work, and `jax.hessian`; forward mode of the values themselves
    (`jax.jvp`, `jax.jacfwd`) does not: JAX refuses it, and it needs `engine="scan"`.

    Args:
      chunk: number of steps whose weight gradients are one product; with `remat` also the number of
        steps between two saved carries. By default it depends on the sizes of batch and cell; with
        `remat` it is sqrt(T).
      remat: whether to save memory at the cost of time.

    Raises:
      ValueError: `chunk` is neither None nor a positive int, or `remat` is no bool.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.GRU(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> run = lambda p: jrnn.unroll(cell, p, jnp.ones((9, 2, 3)), engine=Fused(remat=True))
    >>> jax.grad(lambda p: run(p)[1].sum())(params).w_hh.shape
    (4, 12)

    References:
      Werbos, 1990, Backpropagation through time: what it does and how to do it.
      Appleyard, Kocisky and Blunsom, 2016, Optimizing performance of recurrent neural networks on
        GPUs (weight gradients of all steps in one product).
      Chen et al., 2016, Training deep nets with sublinear memory cost (remat).
    """

    chunk: int | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.chunk is not None:
            checks.positive_int("Fused", "chunk", self.chunk)
        if not isinstance(self.remat, bool):
            raise ValueError(f"Fused: remat must be True or False, got {self.remat!r}")

    def run(
        self, bound: BoundCell, carry: Carry, xs: Inputs, masks: Masks, reverse: bool
    ) -> tuple[Carry, Any]:
        steps, _ = _time_and_batch(xs)
        if steps == 0:
            return Scan().run(bound, carry, xs, masks, reverse)
        readout = loop_readout(bound, carry, step_of(xs))
        ran: Any = _run(self, readout, reverse, bound, carry, xs, masks)
        carry, outs = ran
        return carry, zero_where(masks.valid, readout.finish(bound, outs))

    def chunk_of(self, steps: int, batch: int, weights: int = SMALL) -> int:
        """The number of steps of a chunk, by default a divisor of T where there is one."""
        if self.chunk is not None:
            return self.chunk
        if not self.remat and batch >= 32 and weights < SMALL:
            return 1
        wanted = math.isqrt(steps) if self.remat else ROWS // max(1, batch)
        return even_chunk(steps, wanted)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    options: Fused,
    readout: LoopReadout,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
) -> tuple[Carry, Any]:
    return scan_steps(readout, bound, carry, xs, masks, reverse)


def _forward(
    options: Fused,
    readout: LoopReadout,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
) -> tuple[tuple[Carry, Any], Any]:
    if not options.remat:
        plan = plan_of(readout, bound, jax.tree.map(lambda a: a[None], carry), xs, masks)
        steps = (xs, masks.valid, masks.resets)
        last, (outs, saved) = _saving(plan, bound, masks.initial, carry, steps, reverse)
        return (last, outs), (bound, xs, masks, saved, None)

    def run_chunk(carry: Carry, steps: Any, _: None) -> Any:
        xs, valid, resets = steps
        inner = masks._replace(valid=valid, resets=resets)
        last, outs = scan_steps(readout, bound, carry, xs, inner, reverse)
        return last, (outs, carry)

    steps, chunk = (xs, masks.valid, masks.resets), options.chunk_of(*_time_and_batch(xs))
    last, (outs, starts) = scan_chunks(run_chunk, carry, steps, None, chunk, reverse=reverse)
    return (last, outs), (bound, xs, masks, None, starts)


def _backward(
    options: Fused, readout: LoopReadout, reverse: bool, residuals: Any, cotangents: Any
) -> Any:
    bound, xs, masks, saved, starts = residuals
    ct_carry, ct_outs = floats(cotangents)
    prev_carries = starts if saved is None else saved[0]
    plan = plan_of(readout, bound, prev_carries, xs, masks)
    wide = bound.precision.accum

    def chunk_back(state: Any, steps: Any, start: Carry) -> Any:
        *state, totals = state
        xs, valid, resets, saved, ct_outs = steps
        if saved is None:
            again = (xs, valid, resets)
            _, (_, saved) = _saving(plan, bound, masks.initial, start, again, reverse)
        body = partial(_step_back, plan, bound)
        inputs = (saved, valid, resets, ct_outs)
        state, ct_joined = lax.scan(body, tuple(state), inputs, reverse=not reverse)
        products = lambda bound, xs: (bound.project(zero_where(valid, xs)), bound.recur(saved[0]))
        _, pull = pullback(products, bound, xs)
        share, ct_xs = pull(plan.part(ct_joined, lambda ct: ct))
        return (*state, add(totals, cast(share.compute_params, wide))), (ct_xs, None)

    in_update = plan.used(zeros(bound.accum_params))
    totals = cast(zeros(bound.compute_params), wide)
    state = (ct_carry, in_update, zeros(masks.initial), totals)
    steps = (xs, masks.valid, masks.resets, saved, ct_outs)
    chunk = options.chunk_of(*_time_and_batch(xs), bound.size)
    state, (ct_xs, _) = scan_chunks(chunk_back, state, steps, starts, chunk, reverse=not reverse)
    ct_carry, in_update, ct_initial, totals = state
    ct_bound = dataclasses.replace(
        bound,
        compute_params=jax.tree.map(
            lambda ct, w: ct.astype(w.dtype), totals, floats(bound.compute_params)
        ),
        accum_params=plan.all(in_update, zeros(bound.accum_params)),
    )
    return ct_bound, ct_carry, ct_xs, Masks(None, None, None, ct_initial)


_run.defvjp(_forward, _backward)


def _saving(
    plan: Plan, bound: BoundCell, initial: Carry | None, carry: Carry, steps: Any, reverse: bool
) -> Any:
    """The scan that saves, for each step, the carry before it and the residuals of its pullback."""

    def body(carry: Carry, inputs: Any) -> Any:
        x, valid, reset = inputs
        prev = apply_resets(reset, initial, carry)
        joined = plan.join(bound.project(zero_where(valid, x)), bound.recur(prev))
        (carry, out), pull = linearise(plan, bound, prev, joined)
        carry, out = apply_padding(valid, prev, carry, out)
        return carry, (out, (prev, plan.residuals(pull)))

    return lax.scan(body, carry, steps, reverse=reverse)


def _step_back(plan: Plan, bound: BoundCell, state: Any, inputs: Any) -> Any:
    """One step of the backward scan: cotangents of the carry alone, and of small parameters."""
    ct_carry, in_update, ct_initial = state
    (prev, residuals), valid, reset, ct_out = inputs
    pull = plan.pullback(bound, prev, residuals)
    share, ct_prev, ct_joined = pull((zero_where(valid, ct_carry), zero_where(valid, ct_out)))
    if valid is not None:
        ct_prev = add(ct_prev, zero_where(~valid, ct_carry))
    _, pull = pullback(bound.recur, prev)
    ct_prev = add(ct_prev, pull(plan.part(ct_joined, lambda ct: ct)[1])[0])
    if reset is not None:
        ct_initial = add(ct_initial, zero_where(reset, ct_prev))
        ct_prev = zero_where(~reset, ct_prev)
    return (ct_prev, add(in_update, plan.used(share)), ct_initial), ct_joined


def _time_and_batch(xs: Inputs) -> tuple[int, int]:
    return jax.tree.leaves(xs)[0].shape[:2]
