"""The data of a run: examples for training and evaluation, and the loss on them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn.cell import Carry
from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Data
from jrnn.train.config.experiment import RunOptions
from jrnn.train.config.tbptt import TBPTT
from jrnn.train.data.loader import DataLoader, IteratorLoader, Loader
from jrnn.train.data.sampler import EpochSampler, Examples, Sampler, num_examples
from jrnn.train.data.windows import WindowSampler, cut_streams
from jrnn.train.run.dispatch import max_steps_of
from jrnn.train.step.evaluate import Evaluation, evaluation, evaluation_by_batches
from jrnn.train.step.loss import HIGHER_IS_BETTER, BatchLoss, Loss, Objective, SequenceLoss
from jrnn.train.step.state import Weights
from jrnn.train.step.truncated import TruncatedLoss, stateful_evaluation, zero_carry


class DataPlan(NamedTuple):
    """The data of a run, and its loss and metric.

    Attributes:
      examples: for training: a pytree of arrays, or an iterable of batches.
      sampler: from a seed to the examples of each step; None for an iterable of batches.
      validation: examples, or None.
      loss: what is minimized.
      evaluation: from the structure of a model to its evaluation.
      first_carry: from the structure of a model and its weights to the carry of the first batch;
        empty if no carry is passed on.
      metric: name of the metric.
      higher_is_better: whether a higher metric is better.
    """

    examples: Any
    sampler: Callable[[int], Sampler] | None
    validation: Any | None
    loss: Loss
    evaluation: Callable[[nnx.GraphDef], Evaluation]
    first_carry: Callable[[nnx.GraphDef, Weights], Carry]
    metric: str
    higher_is_better: bool

    def make_sampler(self, seed: int) -> Sampler:
        """The sampler of a seed.

        Raises:
          ValueError: the examples are an iterable of batches, which has its own order.
        """
        if self.sampler is None:
            raise ValueError("an iterable of batches cannot be sampled from; pass arrays")
        return self.sampler(seed)

    def loader(self, options: RunOptions, mesh: Mesh) -> Loader:
        """The loader of the examples of each step, for a single network."""
        max_steps = max_steps_of(options)
        if self.sampler is None:
            return IteratorLoader(self.examples, max_steps, mesh)
        return DataLoader(self.examples, self.make_sampler(options.seed), max_steps, mesh)


def plan_task(data: Data, options: RunOptions, tbptt: TBPTT | None) -> DataPlan:
    """The plan of a task: whole examples, or windows of streams."""
    objective, rows = Objective.of(data), options.batch_size
    metric = data.metric, HIGHER_IS_BETTER[data.metric]
    if tbptt is None:
        loss = SequenceLoss(objective)
        return DataPlan(
            data.train,
            lambda seed: EpochSampler(num_examples(data.train), rows, seed),
            data.validation,
            loss,
            lambda graphdef: evaluation(graphdef, loss, rows),
            lambda graphdef, weights: (),
            *metric,
        )
    window = tbptt.window(data)
    streams = cut_streams(data, data.train, window.k1, rows, keep_last=False)
    parts = options.accumulate

    def first_carry(graphdef: nnx.GraphDef, weights: Weights) -> Carry:
        carry = zero_carry(graphdef, weights, streams, rows // parts)
        return carry if parts == 1 else jax.tree.map(lambda a: jnp.stack([a] * parts), carry)

    return DataPlan(
        streams,
        lambda seed: WindowSampler(window, streams, rows, seed),
        data.validation,
        TruncatedLoss(objective, window),
        lambda graphdef: stateful_evaluation(graphdef, objective, data, window.k1, rows),
        first_carry,
        *metric,
    )


def plan_examples(
    examples: Examples | Iterable[Any],
    validation: Any | None,
    loss: BatchLoss,
    options: RunOptions,
    metric: str,
    higher_is_better: bool,
) -> DataPlan:
    """The plan of a user's own data and loss."""
    is_stream = is_iterable_of_batches(examples)
    rows = options.batch_size
    return DataPlan(
        examples,
        None if is_stream else lambda seed: EpochSampler(num_examples(examples), rows, seed),
        for_evaluation(validation),
        loss,
        lambda graphdef: evaluation_by_batches(graphdef, loss, rows),
        lambda graphdef, weights: (),
        metric,
        higher_is_better,
    )


def is_iterable_of_batches(data: Any) -> bool:
    """Whether data are a list or another iterable of batches, and not a pytree of arrays."""
    is_pytree = data is None or isinstance(data, tuple | dict | np.ndarray | jax.Array)
    return not is_pytree and isinstance(data, Iterable)


def for_evaluation(examples: Any) -> Any:
    """Data that can be evaluated several times: an iterable of batches as a list."""
    return [*examples] if is_iterable_of_batches(examples) else examples
