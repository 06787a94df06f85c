"""Loss and evaluation for truncated backpropagation through time (TBPTT).

A stream is a long sequence that is cut into windows; the carry is passed from window to window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn.cell import Carry
from jrnn.nn import SequenceToSequence
from jrnn.tasks.task import Data, Split
from jrnn.train.data.sampler import rows_in_order
from jrnn.train.data.windows import (
    Window,
    WindowIndex,
    count_windows,
    cut_streams,
    take_windows,
)
from jrnn.train.step.evaluate import Evaluator
from jrnn.train.step.loss import MetricSums, Objective
from jrnn.train.step.state import Weights, merge_model


@dataclass(frozen=True)
class TruncatedLoss:
    """The objective of a task on a batch of windows, with gradients through k2 time steps."""

    objective: Objective
    window: Window

    def __call__(
        self, model: Any, carry: Carry, batch: Split, row_mask: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch from `take_windows`; see `Loss`."""
        carry, outputs, targets = apply_to_window(self.window, model, carry, batch)
        return carry, self.objective.compute_sums(outputs, targets, row_mask)


def apply_to_window(
    window: Window, model: SequenceToSequence, carry: Carry, batch: Any
) -> tuple[Carry, jax.Array, Split]:
    """Runs a model on a batch of windows, with gradients through the last k2 time steps.

    Args:
      window: k1 and k2.
      model: the model.
      carry: the carry before the first time step of the batch; no gradient flows through it.
      batch: a batch from `take_windows`.

    Returns:
      The carry before the first time step of the next batch, the outputs `[B, S, K]` of the last
      S = min(k1, k2) time steps, which the loss includes, and their targets.
    """
    k1, k2 = window
    length = batch.xs.shape[1]
    no_grad_steps, loss_steps = max(k1 - k2, 0), min(k1, k2)
    outputs = []
    next_carry = carry = jax.lax.stop_gradient(carry)
    for begin, end in pairwise(sorted({0, no_grad_steps, k1, length})):
        carry, ys = model(
            batch.xs[:, begin:end],
            carry,
            lengths=_clip_lengths(batch.lengths, begin, end),
            resets=batch.resets[:, begin:end],
        )
        outputs.append(ys)
        if end == no_grad_steps:
            carry = jax.lax.stop_gradient(carry)
        if end == k1:
            next_carry = jax.lax.stop_gradient(carry)
    targets = Split(
        xs=batch.xs[:, -loss_steps:],
        ys=batch.ys[:, -loss_steps:],
        lengths=_clip_lengths(batch.lengths, length - loss_steps, length),
        metric_mask=None if batch.metric_mask is None else batch.metric_mask[:, -loss_steps:],
    )
    return next_carry, jnp.concatenate(outputs, axis=1)[:, -loss_steps:], targets


def zero_carry(graphdef: nnx.GraphDef, weights: Any, streams: Split, rows: int) -> Carry:
    """Returns a carry of zeros for `rows` streams.

    Its values do not matter, since each stream begins with a reset.
    """

    def run(weights: Any, xs: jax.Array) -> Carry:
        return nnx.merge(graphdef, *weights)(xs)[0]

    shape = jax.ShapeDtypeStruct((rows, 1, *streams.xs.shape[3:]), streams.xs.dtype)
    carry = jax.eval_shape(run, weights, shape)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)


def _clip_lengths(lengths: Any, begin: int, end: int) -> Any:
    """Returns the number of valid time steps in the range from `begin` to `end`."""
    return None if lengths is None else (lengths - begin).clip(0, end - begin)


def make_stateful_evaluator(
    graphdef: nnx.GraphDef, objective: Objective, data: Data, k1: int, batch_size: int
) -> Evaluator:
    """Returns an evaluator that passes the carry of each stream from window to window.

    Args:
      graphdef: the static structure of the model.
      objective: the loss and metric.
      data: the data of the task; `data.contiguous` selects how streams are made.
      k1: number of time steps per window.
      batch_size: maximum number of streams that are evaluated at the same time.
    """
    window = Window(k1, k1)

    def compute_sums(
        weights: Weights, streams: Split, index: WindowIndex, row_mask: jax.Array
    ) -> MetricSums:
        def window_sums(
            carry: Carry, index: WindowIndex, row_mask: jax.Array
        ) -> tuple[Carry, MetricSums]:
            batch = take_windows(window, streams, index)
            loss = TruncatedLoss(objective, window)
            return loss(merge_model(graphdef, weights), carry, batch, row_mask)

        def add(total: tuple[Carry, MetricSums], step: tuple[WindowIndex, jax.Array]) -> Any:
            carry, sums = window_sums(total[0], *step)
            return (carry, jax.tree.map(jnp.add, total[1], sums)), None

        carry = zero_carry(graphdef, weights, streams, row_mask.shape[1])
        first = jax.tree.map(lambda array: array[0], (index, row_mask))
        shapes = jax.eval_shape(window_sums, carry, *first)[1]
        zeros = jax.tree.map(jnp.zeros_like, shapes)
        return jax.lax.scan(add, (carry, zeros), (index, row_mask))[0][1]

    def iterate_chunks(split: Split) -> Iterator[tuple[Any, ...]]:
        max_rows = count_windows(split, k1) if data.contiguous else len(split.xs)
        rows = min(batch_size, max_rows)
        streams = cut_streams(data, split, k1, rows, keep_last=True)
        batches, row_mask = rows_in_order(len(streams.xs), rows)
        windows = streams.xs.shape[1]
        window_index = np.tile(np.arange(windows, dtype=np.int32), len(batches))
        index = WindowIndex(batches.repeat(windows, 0), window_index)
        yield streams, index, row_mask.repeat(windows, 0)

    return Evaluator(compute_sums, iterate_chunks)
