"""Data plans: the examples of a run, how they are sampled, and the loss on them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn.cell import Carry
from jrnn.distributed.mesh import Mesh
from jrnn.tasks.task import Data
from jrnn.train.config.experiment import RunOptions
from jrnn.train.config.tbptt import TBPTT
from jrnn.train.data.arrays import is_iterable_of_batches
from jrnn.train.data.loader import DataLoader, IteratorLoader, Loader
from jrnn.train.data.sampler import EpochSampler, Examples, Sampler, num_examples
from jrnn.train.data.windows import WindowSampler, cut_streams
from jrnn.train.run.dispatch import max_dispatch_steps
from jrnn.train.step.evaluate import Evaluator, make_batch_evaluator, make_evaluator
from jrnn.train.step.loss import HIGHER_IS_BETTER, BatchLoss, Loss, Objective, SequenceLoss
from jrnn.train.step.state import Weights
from jrnn.train.step.truncated import TruncatedLoss, make_stateful_evaluator, zero_carry


class DataPlan(NamedTuple):
    """The examples of a run, how they are sampled, and the loss and metric on them.

    Attributes:
      examples: the training examples: a pytree of arrays, or an iterable of batches.
      sampler_factory: a function from a seed to a sampler; None for an iterable of batches.
      validation: the validation examples, or None.
      loss: the loss to minimize.
      make_evaluator: a function from the `nnx.GraphDef` of a model to its evaluator.
      init_carry: a function `(graphdef, weights)` that returns the carry for the first batch; `()`
        if no carry is passed from batch to batch.
      metric: name of the metric.
      higher_is_better: whether a higher metric is better.
    """

    examples: Any
    sampler_factory: Callable[[int], Sampler] | None
    validation: Any | None
    loss: Loss
    make_evaluator: Callable[[nnx.GraphDef], Evaluator]
    init_carry: Callable[[nnx.GraphDef, Weights], Carry]
    metric: str
    higher_is_better: bool

    def make_sampler(self, seed: int) -> Sampler:
        """Creates the sampler for a seed.

        Raises:
          ValueError: the examples are an iterable of batches, which has its own order.
        """
        if self.sampler_factory is None:
            raise ValueError(
                "train: data must be arrays to be sampled, got an iterable of batches; pass arrays"
            )
        return self.sampler_factory(seed)

    def make_loader(self, options: RunOptions, mesh: Mesh) -> Loader:
        """Creates the loader of the training examples of a single network.

        Raises:
          ValueError: the examples are an iterable of batches, which is empty, or whose batches
            cannot be split into `options.accumulate` micro-batches or over the devices of `mesh`.
        """
        max_steps = max_dispatch_steps(options)
        if self.sampler_factory is not None:
            return DataLoader(self.examples, self.make_sampler(options.seed), max_steps, mesh)
        loader = IteratorLoader(self.examples, max_steps, mesh)
        if loader.batch_size % options.accumulate:
            raise ValueError(
                f"fit: accumulate must divide the {loader.batch_size} examples of a batch of data, "
                f"got {options.accumulate}; pass batches of another size, or set accumulate=1"
            )
        mesh.validate(loader.batch_size // options.accumulate)
        return loader


def plan_task(data: Data, options: RunOptions, tbptt: TBPTT | None) -> DataPlan:
    """Returns the data plan of a task: whole examples or, with `tbptt`, windows of streams."""
    evaluated, batch_size = Objective.from_data(data), options.batch_size
    objective = Objective.from_data(data, options)
    metric = data.metric, HIGHER_IS_BETTER[data.metric]
    if tbptt is None:
        return DataPlan(
            data.train,
            lambda seed: EpochSampler(num_examples(data.train), batch_size, seed),
            data.validation,
            SequenceLoss(objective),
            lambda graphdef: make_evaluator(graphdef, SequenceLoss(evaluated), batch_size),
            lambda graphdef, weights: (),
            *metric,
        )
    window = tbptt.window(data)
    streams = cut_streams(data, data.train, window.k1, batch_size, keep_last=False)
    microbatches = options.accumulate

    def init_carry(graphdef: nnx.GraphDef, weights: Weights) -> Carry:
        carry = zero_carry(graphdef, weights, streams, batch_size // microbatches)
        if microbatches == 1:
            return carry
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * microbatches), carry)

    return DataPlan(
        streams,
        lambda seed: WindowSampler(window, streams, batch_size, seed),
        data.validation,
        TruncatedLoss(objective, window),
        lambda graphdef: make_stateful_evaluator(graphdef, evaluated, data, window.k1, batch_size),
        init_carry,
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
    """Returns the data plan of the data and loss of a user.

    Args:
      examples: the training examples: a pytree of arrays, or an iterable of batches.
      validation: a pytree of arrays, a list of batches, or None.
      loss: the loss.
      options: batch size.
      metric: name of the metric.
      higher_is_better: whether a higher metric is better.
    """
    is_iterable = is_iterable_of_batches(examples)
    batch_size = options.batch_size
    return DataPlan(
        examples,
        None
        if is_iterable
        else lambda seed: EpochSampler(num_examples(examples), batch_size, seed),
        validation,
        loss,
        lambda graphdef: make_batch_evaluator(graphdef, loss, batch_size),
        lambda graphdef, weights: (),
        metric,
        higher_is_better,
    )
