"""The loss of windows of streams, and the evaluation that passes the carry on between them."""

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
    batch_of_windows,
    count_windows,
    cut_streams,
)
from jrnn.train.step.evaluate import Evaluation
from jrnn.train.step.loss import MetricSums, Objective
from jrnn.train.step.state import Weights, merge_model


@dataclass(frozen=True)
class TruncatedLoss:
    """The objective of a task on a batch of windows, with gradients through the last k2 steps."""

    objective: Objective
    window: Window

    def __call__(
        self, model: Any, carry: Carry, batch: Split, present: jax.Array | None = None
    ) -> tuple[Carry, MetricSums]:
        """Runs the model on a batch from `batch_of_windows`; see `Loss`."""
        carry, outputs, targets = apply_to_window(self.window, model, carry, batch)
        return carry, self.objective.sums(outputs, targets, present)


def apply_to_window(
    window: Window, model: SequenceToSequence, carry: Carry, batch: Any
) -> tuple[Carry, jax.Array, Split]:
    """Runs a model on a batch of windows, with gradients through the last k2 steps.

    Returns:
      The carry for the next window, the outputs of the steps that the loss counts, and their
      targets.
    """
    k1, k2 = window
    length = batch.xs.shape[1]
    without_gradient, counted = max(k1 - k2, 0), min(k1, k2)
    outputs = []
    next_carry = carry = jax.lax.stop_gradient(carry)
    for begin, end in pairwise(sorted({0, without_gradient, k1, length})):
        carry, ys = model(
            batch.xs[:, begin:end],
            carry,
            lengths=_clip_lengths(batch.lengths, begin, end),
            resets=batch.resets[:, begin:end],
        )
        outputs.append(ys)
        if end == without_gradient:
            carry = jax.lax.stop_gradient(carry)
        if end == k1:
            next_carry = jax.lax.stop_gradient(carry)
    targets = Split(
        xs=batch.xs[:, -counted:],
        ys=batch.ys[:, -counted:],
        lengths=_clip_lengths(batch.lengths, length - counted, length),
        metric_mask=None if batch.metric_mask is None else batch.metric_mask[:, -counted:],
    )
    return next_carry, jnp.concatenate(outputs, axis=1)[:, -counted:], targets


def zero_carry(graphdef: nnx.GraphDef, weights: Any, streams: Split, rows: int) -> Carry:
    """Zeros with the shapes of a carry: every stream begins with a reset."""

    def run(weights: Any, xs: jax.Array) -> Carry:
        return nnx.merge(graphdef, *weights)(xs)[0]

    shape = jax.ShapeDtypeStruct((rows, 1, *streams.xs.shape[3:]), streams.xs.dtype)
    carry = jax.eval_shape(run, weights, shape)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)


def _clip_lengths(lengths: Any, begin: int, end: int) -> Any:
    """The number of valid steps among the steps from `begin` to `end`."""
    return None if lengths is None else (lengths - begin).clip(0, end - begin)


def stateful_evaluation(
    graphdef: nnx.GraphDef, objective: Objective, data: Data, k1: int, batch_size: int
) -> Evaluation:
    """Evaluation on all steps: each stream from its first window to its last."""
    window = Window(k1, k1)

    def sums(
        weights: Weights, streams: Split, index: WindowIndex, present: jax.Array
    ) -> MetricSums:
        def of_window(
            carry: Carry, index: WindowIndex, present: jax.Array
        ) -> tuple[Carry, MetricSums]:
            batch = batch_of_windows(window, streams, index)
            loss = TruncatedLoss(objective, window)
            return loss(merge_model(graphdef, weights), carry, batch, present)

        def add(total: tuple[Carry, MetricSums], one: tuple[WindowIndex, jax.Array]) -> Any:
            carry, sums = of_window(total[0], *one)
            return (carry, jax.tree.map(jnp.add, total[1], sums)), None

        carry = zero_carry(graphdef, weights, streams, present.shape[1])
        first = jax.tree.map(lambda array: array[0], (index, present))
        shapes = jax.eval_shape(of_window, carry, *first)[1]
        zeros = jax.tree.map(jnp.zeros_like, shapes)
        return jax.lax.scan(add, (carry, zeros), (index, present))[0][1]

    def parts(split: Split) -> Iterator[tuple[Any, ...]]:
        max_rows = count_windows(split, k1) if data.contiguous else len(split.xs)
        rows = min(batch_size, max_rows)
        streams = cut_streams(data, split, k1, rows, keep_last=True)
        batches, present = rows_in_order(len(streams.xs), rows)
        windows = streams.xs.shape[1]
        number = np.tile(np.arange(windows, dtype=np.int32), len(batches))
        index = WindowIndex(batches.repeat(windows, 0), number)
        yield streams, index, present.repeat(windows, 0)

    return Evaluation(sums, parts)
