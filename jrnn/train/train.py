"""Checks an experiment, trains its network, and restores the best network of a run."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

from flax import nnx

from jrnn.distributed import Mesh, ProcessGroup
from jrnn.tasks.task import Data
from jrnn.train.config.experiment import Experiment
from jrnn.train.fit import FitResult, check_data, check_group, fit
from jrnn.train.run.checkpoint import Checkpointer
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.record import Record
from jrnn.train.step.state import TrainState, Weights, abstract_state, merge_model


def train(
    experiment: Experiment,
    data: Data,
    folder: Path,
    *,
    resume: bool = False,
    group: ProcessGroup | None = None,
) -> FitResult:
    """Trains the network of an experiment by `fit`, evaluates it and saves it.

    Args:
      experiment: the experiment.
      data: the loaded task of the experiment.
      folder: for all that the run writes; see `fit`.
      resume: whether to continue from the newest intact checkpoint in the folder.
      group: the processes that train together; by default this one alone.

    Returns:
      The best network, by the metric on the validation split, and its metrics.

    Raises:
      ValueError, TypeError: as for `check_experiment`.
      NonFiniteLoss, Interrupted, CheckpointError, FileExistsError, BlockingIOError: as for `fit`.
    """
    group = group or ProcessGroup()
    check_group(group)
    check_experiment(experiment, data)
    group.resume_command = f"jrnn train --resume {shlex.quote(str(folder))}"
    engine = Mesh.parse_or_default(experiment.mesh).make_engine(experiment.network.engine)
    return fit(
        experiment.network.build(data, experiment.seed, engine),
        data,
        optimizer=experiment.optimizer.build(experiment.steps),
        steps=experiment.steps,
        run_dir=folder,
        batch_size=experiment.batch_size,
        accumulate=experiment.accumulate,
        tbptt=experiment.tbptt,
        eval_every=experiment.eval_every,
        patience=experiment.patience,
        save_every=experiment.save_every,
        seed=experiment.seed,
        mesh=experiment.mesh,
        resume=resume,
        description=experiment.network.description(),
        group=group,
    )


def check_experiment(experiment: Experiment, data: Data) -> tuple[nnx.GraphDef, TrainState]:
    """Raises unless an experiment and its data are compatible; it draws and compiles nothing.

    Whether all values are finite is checked by `jrnn.tasks.load`, not here.

    Returns:
      The structure of the network and the state of the run, with shapes in place of arrays.

    Raises:
      TypeError: an array of the data has another dtype than it must have.
      ValueError: options and data, or the arrays of the data, are incompatible.
    """
    check_data(data, experiment, experiment.tbptt)
    optimizer = experiment.optimizer.build(experiment.steps)
    make_model = lambda: experiment.network.build(data, experiment.seed)
    graphdef, state = abstract_state(make_model, optimizer)
    if experiment.tbptt is not None and not experiment.network.causal:
        raise ValueError(
            "TBPTT: the network must be causal, since other layers have no carry to pass on; set "
            "bidirectional=False and use a causal cell, or remove tbptt"
        )
    return graphdef, state


def restore(experiment: Experiment, data: Data, folder: Path) -> FitResult:
    """Restores the best network of a run, and evaluates it on the test split.

    Args:
      experiment: the experiment of the run.
      data: the loaded task of the experiment.
      folder: the folder of the run.

    Returns:
      The same as `train`, without the time.

    Raises:
      FileNotFoundError: no checkpoint of the run has an evaluated network.
      CheckpointError: all checkpoints are damaged.
    """
    best = load_best(experiment, data, folder)
    plan = plan_task(data, experiment, experiment.tbptt)
    graphdef, params, rest = nnx.split(best.model, nnx.Param, ...)
    evaluate = plan.evaluation(graphdef).compiled()
    return best._replace(test=evaluate(Weights(params, rest), data.test))


def load_best(experiment: Experiment, data: Data, folder: Path) -> FitResult:
    """Restores the best network of a run from its newest checkpoint, without evaluating it.

    Args:
      experiment: the experiment of the run.
      data: the loaded task of the experiment.
      folder: the folder of the run.

    Raises:
      FileNotFoundError: no checkpoint of the run has an evaluated network.
      CheckpointError: all checkpoints are damaged.
    """
    graphdef, like = check_experiment(replace(experiment, mesh=None), data)  # needs one device only
    checkpoint = None
    if (folder / "checkpoints").is_dir():
        with contextlib.closing(Checkpointer(folder / "checkpoints")) as checkpoints:
            checkpoint = checkpoints.newest({"best": like.weights._asdict()})
    best = {}
    if checkpoint is not None:
        record = Record.decode(checkpoint.record, [experiment.network.description()])
        best = record.trials[0].best
    if checkpoint is None or not best["best"]:
        raise FileNotFoundError(
            f"restore: {folder / 'checkpoints'} has no evaluated network; train the run first, or "
            "resume it with --resume"
        )
    model = merge_model(graphdef, Weights(**checkpoint.arrays["best"]))
    return FitResult(model, best["step"], best["best"], {})
