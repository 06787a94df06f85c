"""Groups trials that differ only in scalar hyper-parameters, so that they share a compilation."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace

import jax
import jax.numpy as jnp

from jrnn.tasks.task import Data, Task
from jrnn.train.config.experiment import Experiment, RunOptions
from jrnn.train.config.optimizer import TRACEABLE_FIELDS, Optimizer
from jrnn.train.run.data_plan import plan_task
from jrnn.train.step.freeze import freeze
from jrnn.train.step.state import abstract_state
from jrnn.train.step.step import TrainStep

TRACEABLE_OPTIONS = ("ema_decay", "label_smoothing")
"""Fields of `RunOptions` that may be traced arrays."""
ScalarHyperparams = dict[str, jax.Array]
"""The values `[trials]`, float32, of each field in `TRACEABLE_FIELDS` and `TRACEABLE_OPTIONS` that
is not None."""


def group_trials(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> list[list[int]]:
    """Groups experiments that can be trained with one compilation.

    The experiments of a group differ only in the seed, in scalars of the optimizer (see
    `TRACEABLE_FIELDS`), `ema_decay`, `label_smoothing` or `network.dropout` above 0, in `patience`,
    `save_every` and `run_dir`, and in options that are read only at initialization, such as the
    forget bias. A group uses the
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
        ema_decay=None if experiment.ema_decay is None else 0.5,
        label_smoothing=0.5 if experiment.label_smoothing else 0.0,
        optimizer=_fix_optimizer_scalars(experiment.optimizer),
        network=replace(network, dropout=0.5 if network.dropout else 0.0),
    )


def stack_scalars(
    optimizers: Sequence[Optimizer], options: Sequence[RunOptions] = ()
) -> ScalarHyperparams:
    """Stacks the scalars of the trials of one group into arrays `[trials]`.

    Args:
      optimizers: the optimizer of each trial.
      options: the options of each trial; empty if none has an option in `TRACEABLE_OPTIONS`.
    """
    stacked = {}
    for names, sources in ((TRACEABLE_FIELDS, optimizers), (TRACEABLE_OPTIONS, options)):
        for name in names:
            values = [getattr(source, name) for source in sources]
            if values and values[0] is not None:
                stacked[name] = jnp.array(values, jnp.float32)
    return stacked


def _fix_optimizer_scalars(optimizer: Optimizer) -> Optimizer:
    present = {name: 0.5 for name in TRACEABLE_FIELDS if getattr(optimizer, name)}
    decay = 0.5 if optimizer.has_weight_decay else 0.0
    return replace(optimizer, **(present | {"weight_decay": decay}))


def _lower(experiment: Experiment, data: Data) -> str:
    """Lowers a training step and an evaluation; returns their code as text."""
    optimizer = freeze(experiment.optimizer.build(experiment.steps), experiment.freeze)
    make_model = lambda: experiment.network.build(data, experiment.seed)
    decay = experiment.ema_decay
    graphdef, state = abstract_state(make_model, optimizer, ema=decay is not None)
    plan = plan_task(data, experiment, experiment.tbptt)
    state = state._replace(carry=plan.init_carry(graphdef, state.weights))
    sampler = plan.make_sampler(0)
    step = TrainStep(
        graphdef,
        plan.loss,
        optimizer,
        experiment.accumulate,
        freeze=experiment.freeze,
        ema_decay=decay,
    )
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
