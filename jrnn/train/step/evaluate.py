"""Evaluation: exact means of loss and metric over all examples of a split."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Split
from jrnn.train.data.loader import batches_of
from jrnn.train.data.sampler import Examples, fits_on_device, num_examples, rows_in_order, take
from jrnn.train.step.loss import Loss, MetricSums, Objective, SequenceLoss, apply_model
from jrnn.train.step.state import TrainState, Weights, merge_model

Evaluate = Callable[[Weights | TrainState, Examples], dict[str, float]]


class Evaluation(NamedTuple):
    """How a model is evaluated.

    Attributes:
      sums: a pure function from `Weights` and a part of a split to `MetricSums`.
      parts: from a split to its parts, each the further arguments of `sums`.
    """

    sums: Callable[..., MetricSums]
    parts: Callable[[Examples], Iterator[tuple[Any, ...]]]

    def compiled(self) -> Evaluate:
        """A function `(weights, examples) -> {"loss", "metric"}`: means over all examples."""
        compiled = jax.jit(self.sums)

        def evaluate(weights: Weights | TrainState, examples: Examples) -> dict[str, float]:
            weights = Weights(weights.params, weights.rest)
            sums = [compiled(weights, *part) for part in self.parts(examples)]
            return jax.tree.map(lambda *each: sum(each), *sums).means()

        return evaluate


def evaluation(graphdef: nnx.GraphDef, loss: Loss, batch_size: int) -> Evaluation:
    """Evaluation on whole examples, by a loop over batches on the device."""

    def sums(
        weights: Weights, examples: Examples, rows: jax.Array, present: jax.Array
    ) -> MetricSums:
        def of_batch(rows: jax.Array, present: jax.Array) -> MetricSums:
            batch = take(examples, rows)
            return loss(merge_model(graphdef, weights), (), batch, present)[1]

        def add(total: MetricSums, batch: tuple[jax.Array, jax.Array]) -> tuple[MetricSums, None]:
            return jax.tree.map(jnp.add, total, of_batch(*batch)), None

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_batch, rows[0], present[0]))
        return jax.lax.scan(add, zeros, (rows, present))[0]

    def parts(examples: Examples) -> Iterator[tuple[Any, ...]]:
        rows, present = rows_in_order(num_examples(examples), batch_size)
        if fits_on_device(examples):
            yield examples, rows, present
            return
        positions = np.arange(batch_size, dtype=np.int32)[None]
        for batch_rows, batch_present in zip(rows, present, strict=True):
            yield take(examples, batch_rows), positions, batch_present[None]

    return Evaluation(sums, parts)


def evaluation_by_batches(graphdef: nnx.GraphDef, loss: Loss, batch_size: int) -> Evaluation:
    """Evaluation by a loss without support for padding: the last batch may be smaller.

    The examples are a pytree of arrays, or a list of batches.
    """

    def sums(weights: Weights, batch: Any) -> MetricSums:
        return loss(merge_model(graphdef, weights), (), batch)[1]

    def parts(examples: Any) -> Iterator[tuple[Any, ...]]:
        batches = examples if isinstance(examples, list) else batches_of(examples, batch_size)
        return ((batch,) for batch in batches)

    return Evaluation(sums, parts)


def shard_evaluation(evaluation: Evaluation, mesh: Mesh) -> Evaluation:
    """Splits the batches of an evaluation over the devices, if their number divides the batch."""
    if mesh.size == 1:
        return evaluation

    def parts(examples: Examples) -> Iterator[tuple[Any, ...]]:
        for source, *plans in evaluation.parts(examples):
            sharded = (jax.tree.map(mesh.shard_rows, plan) for plan in plans)
            yield mesh.replicate(source), *sharded

    sums = lambda weights, *part: evaluation.sums(mesh.gather(weights), *part)
    return Evaluation(sums, parts)


def make_evaluate(graphdef: nnx.GraphDef, objective: Objective, batch_size: int) -> Evaluate:
    """A function `(weights, split) -> {"loss", "metric"}`: means over all examples."""
    return evaluation(graphdef, SequenceLoss(objective), batch_size).compiled()


def predict(model: nnx.Module, split: Split, batch_size: int = 256) -> np.ndarray:
    """The float32 outputs of a model for all examples of a split, a batch at a time."""
    run = nnx.jit(lambda model, batch: apply_model(model, batch).astype(jnp.float32))
    batches = zip(*rows_in_order(len(split.xs), batch_size), strict=True)
    return np.concatenate([run(model, take(split, rows))[present] for rows, present in batches])
