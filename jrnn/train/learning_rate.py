"""Finds a learning rate by a range test: the loss while the rate increases."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from flax import nnx

from jrnn import checks
from jrnn.distributed import Mesh, ProcessGroup
from jrnn.tasks.task import Data
from jrnn.train.config.experiment import Experiment
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.single import SingleNetwork
from jrnn.train.train import check_experiment
from jrnn.train.transfer import copy_params

SMOOTHING = 0.9
"""Decay of the average of the losses."""


class RangeTest(NamedTuple):
    """The result of a learning rate range test.

    Attributes:
      learning_rates: the learning rate of each training step.
      losses: the loss of each training step.
      smoothed: the average of the losses up to each step, which is not biased to the first one.
      suggestion: one tenth of the learning rate at which `smoothed` is least.
    """

    learning_rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def find_learning_rate(
    experiment: Experiment,
    data: Data,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    source: nnx.Module | None = None,
) -> RangeTest:
    """Trains for some steps while the learning rate increases from `low` to `high`, on a log scale.

    The network of the experiment is trained with its optimizer, but not saved or evaluated.

    Args:
      experiment: the experiment; its schedule, warm-up, steps and mesh are not used.
      data: the data of its task.
      low: the first learning rate, above 0.
      high: the last learning rate, above `low`.
      steps: number of training steps, at least 10.
      source: the network of the run `experiment.init_from`, as for `train`; None starts from random
        parameters.

    Returns:
      The losses, and a suggestion.

    Raises:
      ValueError: an argument is out of range, the learning rate of the optimizer cannot change, as
        for `check_experiment` and `copy_params`, or the loss is not finite in the first steps.

    References:
      Smith, 2017, Cyclical learning rates for training neural networks.
    """
    checks.positive_number("find_learning_rate", "low", low)
    checks.int_at_least("find_learning_rate", "steps", steps, 10)
    if checks.positive_number("find_learning_rate", "high", high) <= low:
        raise ValueError(f"find_learning_rate: high must be above low={low}, got {high}")
    if not experiment.optimizer.accepts_schedule:
        raise ValueError(
            "find_learning_rate: the algorithm must accept a learning rate that changes, got "
            f"{experiment.optimizer.algorithm!r}; try several values of learning_rate"
        )
    factor = (high / low) ** (1 / (steps - 1))
    optimizer = replace(
        experiment.optimizer,
        learning_rate=low,
        warmup=0.0,
        schedule="exponential_decay",
        schedule_options=(("transition_steps", 1), ("decay_rate", factor)),
    )
    options = replace(experiment, optimizer=optimizer, steps=steps, mesh=None)
    check_experiment(options, data)
    plan = plan_task(data, options, experiment.tbptt)
    model = experiment.network.build(data, experiment.seed)
    if source is not None:
        copy_params(source, model, experiment.init_skip)
    network = SingleNetwork(model, plan, optimizer.build(steps), options, Mesh(), ProcessGroup())
    state, losses = network.init_state(), list[float]()
    while len(losses) < steps and all(map(math.isfinite, losses[-1:])):
        count = min(network.max_steps, steps - len(losses))
        state, metrics = network.train_steps(state, len(losses), count, [True])
        losses += np.asarray(metrics.loss[:count]).tolist()
    return _summarize(low, factor, losses)


def _summarize(low: float, factor: float, losses: list[float]) -> RangeTest:
    """Returns the result; the losses are used up to the first one that is not finite."""
    finite = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    losses = losses[:finite]
    if len(losses) < 2:
        raise ValueError(
            f"find_learning_rate: the loss must be finite at the rate low={low}, got a loss that "
            "is not; check the data, or set a smaller low"
        )
    rates = [low * factor**k for k in range(len(losses))]
    smoothed, average = [], 0.0
    for k, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING ** (k + 1)))
    return RangeTest(rates, losses, smoothed, rates[int(np.argmin(smoothed))] / 10)
