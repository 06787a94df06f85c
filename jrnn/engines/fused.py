"""The engine for training any cell: one scan with a custom backward pass."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
from jax import lax

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.dtypes import cast
from jrnn.engines.chunks import choose_chunk_size, scan_chunks
from jrnn.engines.engine import Engine
from jrnn.engines.precision import BoundCell
from jrnn.engines.readout import SplitReadout, split_readout
from jrnn.engines.reverse_mode import require_reverse_mode
from jrnn.engines.scan import Scan, scan_steps
from jrnn.engines.update_vjp import BackwardPlan, make_plan, update_vjp
from jrnn.engines.vjp import add_cotangents, float_leaves, vjp, zero_cotangents
from jrnn.masking import Masks, apply_resets, step_shapes, tree_where, zero_where
from jrnn.structure import is_symbolic

CHUNK_ROWS = 256
"""The default number of rows (steps times batch) of the matrix product of a weight gradient: such a
product is efficient, and its operands fit into the cache."""

SINGLE_STEP_MAX_WEIGHTS, SINGLE_STEP_MIN_BATCH = 32768, 32
"""Without `remat`, the default chunk is one step if a cell has fewer parameters than the former and
the batch size is at least the latter."""


@dataclass(frozen=True)
class Fused(Engine):
    r"""One scan over time, with a backward pass that computes weight gradients by chunks of steps.

    With s_t the carry before step t, p = project, q = recur, w the weights, and primes denoting
    cotangents, the backward pass is::

        s'_t, z'_t, u'_t = vjp(update)(s'_{t+1}, y'_t)              step by step, in reverse
        s'_t             = s'_t + vjp(q)(u'_t)
        w' = sum over chunks of vjp(p, q with respect to w)(z'_chunk, u'_chunk)

    The gradient of `lax.scan` in JAX adds to all weight gradients at every step. This engine
    computes them by one matrix product for each chunk of steps. By default a chunk has about
    `CHUNK_ROWS` rows, steps times batch; for a small cell and a batch of at least 32 it is a single
    step. The forward pass saves s_t and those results of `update` that take long to recompute, such
    as the gates.

    A readout with matrix products is one product for all steps, forward and backward, except for
    batches of 4 or more on a CPU (see `jrnn.engines.readout`). Gradients of parameters that
    `update` or a readout in the loop uses, such as peepholes, are accumulated step by step.

    With `remat` the forward pass saves only the carry before each chunk, and the backward pass
    recomputes each chunk. This takes O(sqrt(T)) memory and about a third more time.

    Reverse-mode derivatives of any order and `jax.hessian` are supported. Forward mode (`jax.jvp`,
    `jax.jacfwd`) raises: use `engine="scan"`.

    Args:
      chunk: number of steps whose weight gradients are one product; with `remat` also the number of
        steps between saved carries. The default depends on the sizes of batch and cell; with
        `remat` it is about sqrt(T).
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

    supports_symbolic_shapes: ClassVar[bool] = True

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
        steps, batch = _time_and_batch(xs)
        if steps == 0 or is_symbolic(steps, batch):
            return Scan().run(bound, carry, xs, masks, reverse)
        bound, carry, xs, masks = require_reverse_mode(self, (bound, carry, xs, masks))
        readout = split_readout(bound, carry, step_shapes(xs))
        result: Any = _run(self, readout, reverse, bound, carry, xs, masks)
        carry, outs = result
        return carry, readout.outputs(bound, outs, masks.valid)

    def chunk_size(self, steps: int, batch: int, weights: int = SINGLE_STEP_MAX_WEIGHTS) -> int:
        """Returns the number of steps of a chunk: the field `chunk`, or its default.

        Args:
          steps: the number of steps T; the default is a divisor of T if one is close enough.
          batch: the batch size.
          weights: the number of parameters of the cell, which has no effect with `remat`.
        """
        if self.chunk is not None:
            return self.chunk
        is_small = batch >= SINGLE_STEP_MIN_BATCH and weights < SINGLE_STEP_MAX_WEIGHTS
        if is_small and not self.remat:
            return 1
        target = math.isqrt(steps) if self.remat else CHUNK_ROWS // max(1, batch)
        return choose_chunk_size(steps, target)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    options: Fused,
    readout: SplitReadout,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
) -> tuple[Carry, Any]:
    return scan_steps(readout, bound, carry, xs, masks, reverse)


def _forward(
    options: Fused,
    readout: SplitReadout,
    reverse: bool,
    bound: BoundCell,
    carry: Carry,
    xs: Inputs,
    masks: Masks,
) -> tuple[tuple[Carry, Any], Any]:
    if not options.remat:
        plan = make_plan(readout, bound, jax.tree.map(lambda a: a[None], carry), xs, masks)
        steps = (xs, masks.valid, masks.resets)
        final, (outs, saved) = _scan_with_residuals(
            plan, bound, masks.reset_carry, carry, steps, reverse
        )
        return (final, outs), (bound, xs, masks, saved, None)

    def run_chunk(carry: Carry, steps: Any, _: None) -> Any:
        xs, valid, resets = steps
        chunk_masks = masks._replace(valid=valid, resets=resets)
        final, outs = scan_steps(readout, bound, carry, xs, chunk_masks, reverse)
        return final, (outs, carry)

    steps, chunk = (xs, masks.valid, masks.resets), options.chunk_size(*_time_and_batch(xs))
    final, (outs, chunk_carries) = scan_chunks(
        run_chunk, carry, steps, None, chunk, reverse=reverse
    )
    return (final, outs), (bound, xs, masks, None, chunk_carries)


def _backward(
    options: Fused, readout: SplitReadout, reverse: bool, residuals: Any, cotangents: Any
) -> Any:
    # Without remat, `saved` has the carry before each step and the residuals of `update`. With
    # remat it is None, and `chunk_carries` has the carry before each chunk.
    bound, xs, masks, saved, chunk_carries = residuals
    ct_carry, ct_outs = float_leaves(cotangents)
    prev_carries = chunk_carries if saved is None else saved[0]
    plan = make_plan(readout, bound, prev_carries, xs, masks)
    accum = bound.precision.accum

    def backward_chunk(state: Any, steps: Any, chunk_carry: Carry) -> Any:
        *state, ct_weights = state
        xs, valid, resets, saved, ct_outs = steps
        if saved is None:
            inputs = (xs, valid, resets)
            _, (_, saved) = _scan_with_residuals(
                plan, bound, masks.reset_carry, chunk_carry, inputs, reverse
            )
        body = partial(_backward_step, plan, bound)
        inputs = (saved, valid, resets, ct_outs)
        state, ct_merged = lax.scan(body, tuple(state), inputs, reverse=not reverse)
        products = lambda bound, xs: (bound.project(zero_where(valid, xs)), bound.recur(saved[0]))
        _, vjp_fn = vjp(products, bound, xs)
        ct_bound, ct_xs = vjp_fn(plan.split_gates(ct_merged, lambda ct: ct))
        ct_weights = add_cotangents(ct_weights, cast(ct_bound.compute_params, accum))
        return (*state, ct_weights), (ct_xs, None)

    ct_used = plan.select_used(zero_cotangents(bound.accum_params))
    ct_weights = cast(zero_cotangents(bound.compute_params), accum)
    state = (ct_carry, ct_used, zero_cotangents(masks.reset_carry), ct_weights)
    steps = (xs, masks.valid, masks.resets, saved, ct_outs)
    chunk = options.chunk_size(*_time_and_batch(xs), bound.size)
    state, (ct_xs, _) = scan_chunks(
        backward_chunk, state, steps, chunk_carries, chunk, reverse=not reverse
    )
    ct_carry, ct_used, ct_reset_carry, ct_weights = state
    ct_bound = dataclasses.replace(
        bound,
        compute_params=jax.tree.map(
            lambda ct, w: ct.astype(w.dtype), ct_weights, float_leaves(bound.compute_params)
        ),
        accum_params=plan.fill_unused(ct_used, zero_cotangents(bound.accum_params)),
    )
    return ct_bound, ct_carry, ct_xs, Masks(None, None, None, ct_reset_carry)


_run.defvjp(_forward, _backward)


def _scan_with_residuals(
    plan: BackwardPlan,
    bound: BoundCell,
    reset_carry: Carry | None,
    carry: Carry,
    steps: Any,
    reverse: bool,
) -> Any:
    """Scans over time, and saves what the backward pass needs.

    Returns:
      The final carry; and the pair of the results of `readout.in_loop` and the saved arrays, which
      are the carry before each step, after resets, and the residuals of `update`.
    """

    def body(carry: Carry, inputs: Any) -> Any:
        x, valid, reset = inputs
        prev = apply_resets(reset, reset_carry, carry)
        merged = plan.merge_gates(bound.project(zero_where(valid, x)), bound.recur(prev))
        (carry, out), vjp_fn = update_vjp(plan, bound, prev, merged)
        carry = tree_where(valid, carry, prev)
        return carry, (plan.readout.zero_padding(valid, out), (prev, plan.residuals(vjp_fn)))

    return lax.scan(body, carry, steps, reverse=reverse)


def _backward_step(plan: BackwardPlan, bound: BoundCell, state: Any, inputs: Any) -> Any:
    """Runs one step of the backward scan.

    Args:
      plan: the plan.
      bound: the cell with its parameters.
      state: cotangents of the carry after the step, of the parameters in `plan.used_in_update`, and
        of the reset carry.
      inputs: for this step, the saved carry and residuals, the masks, and the cotangent of the
        result of `readout.in_loop`.

    Returns:
      The new state, and the cotangents of the merged gates.
    """
    ct_carry, ct_used, ct_reset_carry = state
    (prev, residuals), valid, reset, ct_out = inputs
    vjp_fn = plan.restore_vjp(bound, prev, residuals)
    ct_params, ct_prev, ct_merged = vjp_fn((zero_where(valid, ct_carry), zero_where(valid, ct_out)))
    if valid is not None:
        ct_prev = add_cotangents(ct_prev, zero_where(~valid, ct_carry))
    _, vjp_fn = vjp(bound.recur, prev)
    ct_prev = add_cotangents(ct_prev, vjp_fn(plan.split_gates(ct_merged, lambda ct: ct)[1])[0])
    if reset is not None:
        ct_reset_carry = add_cotangents(ct_reset_carry, zero_where(reset, ct_prev))
        ct_prev = zero_where(~reset, ct_prev)
    ct_used = add_cotangents(ct_used, plan.select_used(ct_params))
    return (ct_prev, ct_used, ct_reset_carry), ct_merged


def _time_and_batch(xs: Inputs) -> tuple[int, int]:
    return jax.tree.leaves(xs)[0].shape[:2]
