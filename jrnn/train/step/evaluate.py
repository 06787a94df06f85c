"""Evaluation: exact means of loss and metric over all examples of a split."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Split
from jrnn.train.data.loader import iterate_batches
from jrnn.train.data.sampler import Examples, fits_on_device, num_examples, rows_in_order, take
from jrnn.train.step.loss import Loss, MetricSums, Objective, SequenceLoss, apply_model
from jrnn.train.step.state import TrainState, Weights, merge_model

Evaluate = Callable[[Weights | TrainState, Examples], dict[str, float]]
"""A function `(weights, examples) -> {"loss": float, "metric": float}`, the means."""


class Evaluator(NamedTuple):
    """Evaluates a model on a split, one chunk of the split at a time.

    Attributes:
      compute_sums: a pure function `(weights, *chunk) -> MetricSums`.
      iterate_chunks: yields the chunks of a split, each a tuple of arguments for `compute_sums`.
    """

    compute_sums: Callable[..., MetricSums]
    iterate_chunks: Callable[[Examples], Iterator[tuple[Any, ...]]]

    def compile(self) -> Evaluate:
        """Returns a jitted function `(weights, examples) -> {"loss", "metric"}`, the means."""
        compute_sums = jax.jit(self.compute_sums)

        def evaluate(weights: Weights | TrainState, examples: Examples) -> dict[str, float]:
            weights = weights.weights if isinstance(weights, TrainState) else weights
            sums = [compute_sums(weights, *chunk) for chunk in self.iterate_chunks(examples)]
            return jax.tree.map(lambda *values: sum(values), *sums).means()

        return evaluate


def make_evaluator(graphdef: nnx.GraphDef, loss: Loss, batch_size: int) -> Evaluator:
    """Returns an evaluator for whole examples.

    The loop over batches runs on the device, or in Python for a split that does not fit on it.
    """

    def compute_sums(
        weights: Weights, examples: Examples, rows: jax.Array, row_mask: jax.Array
    ) -> MetricSums:
        # Without jit the examples are NumPy arrays, which traced rows cannot index.
        examples = jax.tree.map(jnp.asarray, examples)

        def batch_sums(rows: jax.Array, row_mask: jax.Array) -> MetricSums:
            batch = take(examples, rows)
            return loss(merge_model(graphdef, weights), (), batch, row_mask)[1]

        def add(total: MetricSums, batch: tuple[jax.Array, jax.Array]) -> tuple[MetricSums, None]:
            return jax.tree.map(jnp.add, total, batch_sums(*batch)), None

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(batch_sums, rows[0], row_mask[0]))
        return jax.lax.scan(add, zeros, (rows, row_mask))[0]

    def iterate_chunks(examples: Examples) -> Iterator[tuple[Any, ...]]:
        rows, row_mask = rows_in_order(num_examples(examples), batch_size)
        if fits_on_device(examples):
            yield examples, rows, row_mask
            return
        positions = np.arange(batch_size, dtype=np.int32)[None]
        for batch_rows, batch_mask in zip(rows, row_mask, strict=True):
            yield take(examples, batch_rows), positions, batch_mask[None]

    return Evaluator(compute_sums, iterate_chunks)


def make_batch_evaluator(graphdef: nnx.GraphDef, loss: Loss, batch_size: int) -> Evaluator:
    """Returns an evaluator for a loss that does not support padding.

    The last batch may be smaller. The examples are a pytree of arrays, or a list of batches.
    """

    def compute_sums(weights: Weights, batch: Any) -> MetricSums:
        return loss(merge_model(graphdef, weights), (), batch)[1]

    def iterate_chunks(examples: Any) -> Iterator[tuple[Any, ...]]:
        batches = examples if isinstance(examples, list) else iterate_batches(examples, batch_size)
        return ((batch,) for batch in batches)

    return Evaluator(compute_sums, iterate_chunks)


def shard_evaluator(evaluator: Evaluator, mesh: Mesh) -> Evaluator:
    """Runs an evaluator on the devices of a mesh.

    Batches that row indices select are sharded if the number of devices divides the batch size. All
    other batches, and the examples themselves, are replicated.
    """
    if mesh.size == 1:
        return evaluator

    def iterate_chunks(examples: Examples) -> Iterator[tuple[Any, ...]]:
        for source, *plans in evaluator.iterate_chunks(examples):
            sharded = (jax.tree.map(mesh.shard_rows, plan) for plan in plans)
            yield mesh.replicate(source), *sharded

    compute_sums = lambda weights, *chunk: evaluator.compute_sums(mesh.gather(weights), *chunk)
    return Evaluator(compute_sums, iterate_chunks)


def make_evaluate(graphdef: nnx.GraphDef, objective: Objective, batch_size: int) -> Evaluate:
    """Returns a jitted function that evaluates a model on whole examples.

    Args:
      graphdef: the static structure of the model, from `init_state`.
      objective: the loss and metric.
      batch_size: number of examples per batch; the result does not depend on it.

    Returns:
      A function `(weights, split) -> {"loss": float, "metric": float}`, the means over all
      examples, or over their time steps for targets at each time step; see `Objective`. `weights`
      is a `TrainState` or `Weights`.
    """
    return make_evaluator(graphdef, SequenceLoss(objective), batch_size).compile()


def predict(model: nnx.Module, split: Split, batch_size: int = 256) -> np.ndarray:
    """Returns the outputs of a model for all examples of a split, as float32.

    Args:
      model: a `Classifier` or `SequenceToSequence` in evaluation mode.
      split: the examples.
      batch_size: number of examples per forward pass.

    Returns:
      `[N, K]`, or `[N, T, K]` for targets at each time step.
    """
    run = nnx.jit(lambda model, batch: apply_model(model, batch).astype(jnp.float32))
    batches = zip(*rows_in_order(len(split.xs), batch_size), strict=True)
    return np.concatenate([run(model, take(split, rows))[row_mask] for rows, row_mask in batches])
