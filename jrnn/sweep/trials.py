"""Groups trials that differ only in scalar hyper-parameters, so that they share a compilation."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace

import jax
import jax.numpy as jnp

from jrnn.tasks.task import Data, Task
from jrnn.train.config.experiment import Experiment
from jrnn.train.config.optimizer import TRACEABLE_FIELDS, Optimizer
from jrnn.train.run.data_plan import plan_task
from jrnn.train.step.state import abstract_state
from jrnn.train.step.step import TrainStep

ScalarHyperparams = dict[str, jax.Array]
"""The values `[trials]`, float32, of each field in `TRACEABLE_FIELDS` that is not None."""


def group_trials(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> list[list[int]]:
    """Groups experiments that can be trained with one compilation.

    The experiments of a group differ only in the seed, in scalars of the optimizer (see
    `TRACEABLE_FIELDS`) or `network.dropout` above 0, in `patience`, `save_every` and `run_dir`, and
    in options that are read only at initialization, such as the forget bias. A group uses the
    `save_every` of its first experiment. Options that are read only at initialization do not change
    the lowered code of a training step and an evaluation, so the lowered codes are compared.

    Args:
      experiments: the experiments.
      loaded: the data of their tasks, from `load_tasks`.

    Returns:
      For each group, the indices of its experiments, in increasing order.
    """
    candidates: dict[Experiment, list[int]] = {}
    for index, experiment in enumerate(experiments):
        candidates.setdefault(fix_scalars(experiment), []).append(index)
    groups: dict[Hashable, list[int]] = {}
    for experiment, indices in candidates.items():
        options = [getattr(experiment, f.name) for f in fields(experiment) if f.name != "network"]
        code = _lower(experiment, loaded[experiment.task]) if len(candidates) > 1 else ""
        groups.setdefault((code, *options), []).extend(indices)
    return [sorted(indices) for indices in groups.values()]


def fix_scalars(experiment: Experiment) -> Experiment:
    """Replaces the fields that may differ within a group by constants.

    Options that are read only at initialization are not replaced, since they depend on the cell.
    """
    network = experiment.network
    return replace(
        experiment,
        seed=0,
        run_dir=None,
        patience=None,
        save_every=1.0,
        optimizer=_fix_optimizer_scalars(experiment.optimizer),
        network=replace(network, dropout=0.5 if network.dropout else 0.0),
    )


def stack_scalars(optimizers: Sequence[Optimizer]) -> ScalarHyperparams:
    """Stacks the scalars of the optimizers of one group into arrays `[trials]`."""
    names = [name for name in TRACEABLE_FIELDS if getattr(optimizers[0], name) is not None]
    values = lambda name: [getattr(optimizer, name) for optimizer in optimizers]
    return {name: jnp.array(values(name), jnp.float32) for name in names}


def _fix_optimizer_scalars(optimizer: Optimizer) -> Optimizer:
    present = {name: 0.5 for name in TRACEABLE_FIELDS if getattr(optimizer, name)}
    decay = 0.5 if optimizer.algorithm == "adamw" else 0.0
    return replace(optimizer, **(present | {"weight_decay": decay}))


def _lower(experiment: Experiment, data: Data) -> str:
    """Lowers a training step and an evaluation; returns their code as text."""
    optimizer = experiment.optimizer.build(experiment.steps)
    make_model = lambda: experiment.network.build(data, experiment.seed)
    graphdef, state = abstract_state(make_model, optimizer)
    plan = plan_task(data, experiment, experiment.tbptt)
    state = state._replace(carry=plan.init_carry(graphdef, state.weights))
    sampler = plan.make_sampler(0)
    step = TrainStep(graphdef, plan.loss, optimizer, experiment.accumulate)
    first = jax.tree.map(lambda array: array[0], sampler.plan(0, 1))
    train = lambda state, examples, plan: step(state, sampler.get_batch(examples, plan))
    batch = jax.tree.map(lambda array: array[: experiment.batch_size], data.validation)
    evaluator = plan.make_evaluator(graphdef)
    lowered = [
        jax.jit(train).lower(state, plan.examples, first),
        jax.jit(evaluator.compute_sums).lower(
            state.weights, *next(evaluator.iterate_chunks(batch))
        ),
    ]
    return "".join(part.as_text() for part in lowered)
