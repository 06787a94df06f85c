"""The engine for training: one scan with a custom backward pass, derived for every cell."""

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
from jrnn.engines.linearise import BackwardPlan, linearize, make_plan
from jrnn.engines.precision import BoundCell
from jrnn.engines.pullback import add, even_chunk, floats, pullback, scan_chunks, zeros
from jrnn.engines.readout import LoopReadout, loop_readout
from jrnn.engines.scan import Scan, scan_steps
from jrnn.masking import Masks, apply_resets, step_shapes, tree_where, zero_where

CHUNK_ROWS = 256
"""Rows of the matrix product of a weight gradient by default: a product of this size is efficient,
and its operands fit into the cache."""

SMALL_CELL = 32768
"""With fewer weights than this, and a batch of at least 32, a chunk is one step."""


@dataclass(frozen=True)
class Fused(Engine):
    r"""One scan as in `Scan`, with a backward pass whose carry contains no weight gradients.

    With s_t the carry before step t, p = project, q = recur, and primes denoting cotangents::

        s'_t, z'_t, u'_t = transpose(d update)(s'_{t+1}, y'_t)      step by step, backwards
        s'_t             = s'_t + transpose(d q)(u'_t)
        w' = sum over chunks of transpose(d p, d q by w)(z'_chunk, u'_chunk)

    JAX's derivative of `lax.scan` adds to all weight gradients at every step. This engine computes
    them by one matrix product for each chunk of steps; a chunk is a single step only for a small
    cell with a large batch. The forward pass saves s_t and those results of `update` that are more
    expensive than an addition or a product, such as the gates. A readout that multiplies by
    parameters is one product for all steps, forward and backward, except on a CPU with a larger
    batch, where it stays in the loop (see `jrnn.engines.readout`) and its weight gradients are
    accumulated step by step. Gradients of parameters that `update` uses, such as peepholes, are
    also accumulated step by step.

    With `remat` only the carry before each chunk is saved, and each chunk is recomputed in the
    backward pass. This takes O(sqrt(T)) memory and about a third more time.

    Gradients of any order and `jax.hessian` work. Forward mode (`jax.jvp`, `jax.jacfwd`) raises:
    use `engine="scan"`.

    Args:
      chunk: number of steps whose weight gradients are one product; with `remat` also the number of
        steps between saved carries. The default depends on the sizes of batch and cell; with
        `remat` it is sqrt(T).
      remat: whether to recompute each chunk in the backward pass, to save memory.

    Raises:
      ValueError: `chunk` is neither None nor a positive int, or `remat` is not a bool.

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
        readout = loop_readout(bound, carry, step_shapes(xs))
        result: Any = _run(self, readout, reverse, bound, carry, xs, masks)
        carry, outs = result
        return carry, readout.outputs(bound, outs, masks.valid)

    def chunk_of(self, steps: int, batch: int, weights: int = SMALL_CELL) -> int:
        """The number of steps of a chunk; the default divides T if possible."""
        if self.chunk is not None:
            return self.chunk
        if not self.remat and batch >= 32 and weights < SMALL_CELL:
            return 1
        target = math.isqrt(steps) if self.remat else CHUNK_ROWS // max(1, batch)
        return even_chunk(steps, target)


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
        plan = make_plan(readout, bound, jax.tree.map(lambda a: a[None], carry), xs, masks)
        steps = (xs, masks.valid, masks.resets)
        last, (outs, saved) = _scan_with_residuals(
            plan, bound, masks.initial, carry, steps, reverse
        )
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
    plan = make_plan(readout, bound, prev_carries, xs, masks)
    wide = bound.precision.accum

    def backward_chunk(state: Any, steps: Any, start: Carry) -> Any:
        *state, totals = state
        xs, valid, resets, saved, ct_outs = steps
        if saved is None:
            inputs = (xs, valid, resets)
            _, (_, saved) = _scan_with_residuals(plan, bound, masks.initial, start, inputs, reverse)
        body = partial(_backward_step, plan, bound)
        inputs = (saved, valid, resets, ct_outs)
        state, ct_merged = lax.scan(body, tuple(state), inputs, reverse=not reverse)
        products = lambda bound, xs: (bound.project(zero_where(valid, xs)), bound.recur(saved[0]))
        _, pull = pullback(products, bound, xs)
        ct_chunk, ct_xs = pull(plan.split_gates(ct_merged, lambda ct: ct))
        return (*state, add(totals, cast(ct_chunk.compute_params, wide))), (ct_xs, None)

    in_update = plan.select_used(zeros(bound.accum_params))
    totals = cast(zeros(bound.compute_params), wide)
    state = (ct_carry, in_update, zeros(masks.initial), totals)
    steps = (xs, masks.valid, masks.resets, saved, ct_outs)
    chunk = options.chunk_of(*_time_and_batch(xs), bound.size)
    state, (ct_xs, _) = scan_chunks(
        backward_chunk, state, steps, starts, chunk, reverse=not reverse
    )
    ct_carry, in_update, ct_initial, totals = state
    ct_bound = dataclasses.replace(
        bound,
        compute_params=jax.tree.map(
            lambda ct, w: ct.astype(w.dtype), totals, floats(bound.compute_params)
        ),
        accum_params=plan.fill_unused(in_update, zeros(bound.accum_params)),
    )
    return ct_bound, ct_carry, ct_xs, Masks(None, None, None, ct_initial)


_run.defvjp(_forward, _backward)


def _scan_with_residuals(
    plan: BackwardPlan,
    bound: BoundCell,
    initial: Carry | None,
    carry: Carry,
    steps: Any,
    reverse: bool,
) -> Any:
    """Scans over time, and saves the carry before each step and the residuals of its pullback."""

    def body(carry: Carry, inputs: Any) -> Any:
        x, valid, reset = inputs
        prev = apply_resets(reset, initial, carry)
        merged = plan.merge_gates(bound.project(zero_where(valid, x)), bound.recur(prev))
        (carry, out), pull = linearize(plan, bound, prev, merged)
        carry = tree_where(valid, carry, prev)
        return carry, (plan.readout.pad(valid, out), (prev, plan.residuals(pull)))

    return lax.scan(body, carry, steps, reverse=reverse)


def _backward_step(plan: BackwardPlan, bound: BoundCell, state: Any, inputs: Any) -> Any:
    """One step of the backward scan: cotangents of the carry and of parameters in `update`."""
    ct_carry, in_update, ct_initial = state
    (prev, residuals), valid, reset, ct_out = inputs
    pull = plan.pullback(bound, prev, residuals)
    ct_step, ct_prev, ct_merged = pull((zero_where(valid, ct_carry), zero_where(valid, ct_out)))
    if valid is not None:
        ct_prev = add(ct_prev, zero_where(~valid, ct_carry))
    _, pull = pullback(bound.recur, prev)
    ct_prev = add(ct_prev, pull(plan.split_gates(ct_merged, lambda ct: ct)[1])[0])
    if reset is not None:
        ct_initial = add(ct_initial, zero_where(reset, ct_prev))
        ct_prev = zero_where(~reset, ct_prev)
    return (ct_prev, add(in_update, plan.select_used(ct_step)), ct_initial), ct_merged


def _time_and_batch(xs: Inputs) -> tuple[int, int]:
    return jax.tree.leaves(xs)[0].shape[:2]
