"""Trains the network of an experiment, and restores the best network of a run."""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn import checks, memory
from jrnn.distributed import Mesh, ProcessGroup
from jrnn.tasks.task import Data, DataSpec
from jrnn.train.config.experiment import Experiment, resume_flags
from jrnn.train.fit import FitResult, check_data, check_group, fit
from jrnn.train.run.checkpoint import Checkpointer, list_steps
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.metrics_logger import MetricsWriter
from jrnn.train.run.progress import ProgressMode
from jrnn.train.run.record import Record
from jrnn.train.step.freeze import check_freeze, freeze
from jrnn.train.step.loss import Objective
from jrnn.train.step.state import TrainState, Weights, abstract_state, merge_model
from jrnn.train.transfer import copy_params


def train(
    experiment: Experiment,
    data: Data,
    folder: str | Path,
    *,
    resume: bool = False,
    group: ProcessGroup | None = None,
    source: nnx.Module | None = None,
    progress: ProgressMode = "auto",
    writers: Sequence[MetricsWriter] = (),
) -> FitResult:
    """Builds the network of an experiment, and trains, evaluates and saves it by `fit`.

    Args:
      experiment: the experiment.
      data: the data of its task, from `jrnn.tasks.load`.
      folder: the folder of the run, the `run_dir` of `fit`; created if it does not exist.
      resume: whether to continue from the newest intact checkpoint in the folder.
      group: the processes that train together, from `jrnn.distributed.init_process_group`; None
        means this process alone.
      source: the network of the run `experiment.init_from`, such as `jrnn.load(path).model`; not
        needed if the folder has checkpoints.
      progress: as for `fit`.
      writers: as for `fit`.

    Returns:
      The network with the best metric on the validation split, and its metrics.

    Raises:
      ValueError, TypeError: see `check_experiment`; also ValueError if `experiment.init_from` is
        set and `source` is None, or its parameters have other shapes.
      NonFiniteLoss, Interrupted, CheckpointError, FileExistsError, BlockingIOError, OSError: see
        `fit`.
    """
    folder = Path(folder)
    group = group or ProcessGroup()
    check_group(group)
    check_experiment(experiment, data)
    engine = Mesh.parse_or_default(experiment.mesh).make_engine(experiment.network.engine)
    model = experiment.network.build(data, experiment.seed, engine)
    if source is not None:
        copy_params(source, model, experiment.init_skip)
    elif experiment.init_from is not None and not has_checkpoint(folder):
        raise ValueError(
            "train: init_from needs the network of that run; pass "
            f"source=jrnn.load({experiment.init_from!r}).model"
        )
    return fit(
        model,
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
        ema_decay=experiment.ema_decay,
        freeze=experiment.freeze,
        label_smoothing=experiment.label_smoothing,
        class_weights=experiment.class_weights,
        resume=resume,
        description=experiment.network.description(),
        group=group,
        resume_command=make_resume_command(folder, experiment),
        progress=progress,
        writers=writers,
    )


def make_resume_command(folder: Path, experiment: Experiment) -> str:
    """Returns the command that resumes the run of an experiment in a folder."""
    return f"jrnn train --resume {shlex.quote(str(folder))}{resume_flags([experiment])}"


def has_checkpoint(folder: Path) -> bool:
    """Returns whether the folder of a run has a checkpoint, damaged or not."""
    return bool(list_steps(folder / "checkpoints"))


def extend(experiment: Experiment, steps: int) -> Experiment:
    """Returns the experiment of a run that is continued to more steps.

    Its parameters are those of a run of this length. The evaluation after the old last step stays,
    also if `eval_every` does not divide this step: it may select the best weights, and counts for
    `patience`.

    Args:
      experiment: the experiment of the run.
      steps: the new number of training steps.

    Raises:
      ValueError: `steps` is less than before, or the learning rate of the steps before depends on
        the number of steps, so that the result would differ from that of a run of this length.
    """
    checks.positive_int("train", "--steps", steps)
    old, optimizer = experiment.steps, experiment.optimizer
    if steps < old:
        raise ValueError(f"train: --steps must be at least the {old} of the run, got {steps}")
    if steps > old and optimizer.depends_on_steps:
        raise ValueError(
            f"train: --steps must be {old}, since the learning rate of this run depends on its "
            f"number of steps (schedule={optimizer.schedule!r}, warmup={optimizer.warmup}), got "
            f"{steps}; train its network further in a new run: jrnn train CONFIG --init-from RUN"
        )
    return replace(experiment, steps=steps)


def check_experiment(experiment: Experiment, data: Data) -> tuple[nnx.GraphDef, TrainState]:
    """Checks that an experiment and its data are compatible, without initialization or compilation.

    It does not check for NaN and infinity in the data; `jrnn.tasks.load` does.

    Args:
      experiment: the experiment.
      data: the data of its task, from `jrnn.tasks.load`.

    Returns:
      The `nnx.GraphDef` of the network, and the initial state of the run with
      `jax.ShapeDtypeStruct` leaves instead of arrays.

    Raises:
      TypeError: an array of the data has a wrong dtype.
      ValueError: options and data are incompatible, a shape of the data is wrong, or the memory
        does not suffice for the network or for a batch.
    """
    check_data(data, experiment, experiment.tbptt)
    Objective.from_data(data, experiment)
    graphdef, state = _abstract_run(experiment, data)
    check_memory(experiment, data, graphdef, state)
    return graphdef, state


def _abstract_run(experiment: Experiment, data: DataSpec) -> tuple[nnx.GraphDef, TrainState]:
    """Checks the options of the network; see `check_experiment`."""
    optimizer = freeze(experiment.optimizer.build(experiment.steps), experiment.freeze)
    make_model = lambda: experiment.network.build(data, experiment.seed)
    graphdef, state = abstract_state(make_model, optimizer, ema=experiment.ema_decay is not None)
    check_freeze(experiment.freeze, state.params)
    if experiment.tbptt is not None and not experiment.network.causal:
        raise ValueError(
            "TBPTT: the network must be causal, since other layers have no carry to pass on; set "
            "bidirectional=False and use a causal cell, or remove tbptt"
        )
    return graphdef, state


def check_memory(
    experiment: Experiment, data: Data, graphdef: nnx.GraphDef, state: TrainState, trials: int = 1
) -> None:
    """Raises ValueError if the arrays of a run are certainly too large for the devices.

    The estimates are lower bounds. For the network they include its state, the best weights and the
    gradient, and for a batch the inputs and the outputs of the last recurrent layer.

    Args:
      experiment: the experiment.
      data: the data of its task.
      graphdef: the structure of its network.
      state: its initial state, as `jax.ShapeDtypeStruct` leaves.
      trials: number of trials of a sweep that are stored at the same time.
    """
    mesh = Mesh.parse_or_default(experiment.mesh)
    devices = mesh.data * mesh.model if trials == 1 else jax.local_device_count()
    count_bytes = memory.num_bytes
    network = count_bytes(state) + count_bytes(state.weights) + count_bytes(state.params)
    cell = f"{type(experiment.network.cell).__name__} of {memory.format_bytes(network)}"
    memory.check_devices(
        "train",
        f"{trials} trials of the network" if trials > 1 else f"the network ({cell} in training)",
        trials * network,
        "use fewer hidden units or layers" + (", or fewer trials" if trials > 1 else ""),
        devices,
    )
    rows, length = experiment.batch_size // experiment.accumulate, data.train.xs.shape[1]
    if experiment.tbptt is not None:
        length = experiment.tbptt.window(data).k1
    xs = jax.ShapeDtypeStruct(
        (rows, length, *data.train.xs.shape[2:]), jnp.int32 if data.has_tokens else jnp.float32
    )

    def run_layers(weights: Weights, xs: jax.Array) -> jax.Array:
        model = merge_model(graphdef, weights)
        return model.body(xs if model.embedding is None else model.embedding(xs))[1]

    outputs = jax.eval_shape(run_layers, state.weights, xs)
    memory.check_devices(
        "train",
        f"a batch of {rows} x {length} steps",
        count_bytes((xs, outputs)),
        "use a smaller batch_size, a larger accumulate, or shorter sequences",
        devices,
    )


def restore(experiment: Experiment, data: Data, folder: Path) -> FitResult:
    """Restores the best network of a run, and evaluates it on the test split.

    Args:
      experiment: the experiment of the run.
      data: the data of its task, from `jrnn.tasks.load`.
      folder: the folder of the run.

    Returns:
      The result of the run so far, as `train` returns it, but `seconds` is None.

    Raises:
      FileNotFoundError: the folder has no checkpoint, or none after the first evaluation.
      CheckpointError: all checkpoints are damaged, of another network, or of another version of
        jrnn.
      ValueError, TypeError: see `check_experiment`.
    """
    best = load_best(experiment, data, folder)
    plan = plan_task(data, experiment, experiment.tbptt)
    graphdef, params, rest = nnx.split(best.model, nnx.Param, ...)
    evaluate = plan.make_evaluator(graphdef).compile()
    return best._replace(test=evaluate(Weights(params, rest), data.test))


def load_best(experiment: Experiment, data: DataSpec, folder: Path) -> FitResult:
    """Restores the best network of a run from its newest checkpoint, without evaluating it.

    Args:
      experiment: the experiment of the run.
      data: the properties of the data of its task; their arrays are not used.
      folder: the folder of the run.

    Returns:
      The result of the run so far, as `train` returns it, but `test` is empty, and `seconds` is
      None.

    Raises:
      FileNotFoundError, CheckpointError, ValueError, TypeError: see `restore`.
    """
    graphdef, like = _abstract_run(replace(experiment, mesh=None), data)  # one device suffices
    checkpoint = None
    if (folder / "checkpoints").is_dir():
        with contextlib.closing(Checkpointer(folder / "checkpoints")) as checkpoints:
            checkpoint = checkpoints.read_newest({"best": like.weights._asdict()})
    best = {}
    if checkpoint is not None:
        record = Record.decode(checkpoint.record, [experiment.network.description()])
        best = record.trials[0].best
    if checkpoint is None and (folder / "result.json").is_file():
        raise FileNotFoundError(
            f"restore: {folder / 'checkpoints'} must have the checkpoints of the run, which has "
            "ended, got none; restore them from a copy, or train the run again"
        )
    if checkpoint is None or not best["best"]:
        raise FileNotFoundError(
            f"restore: {folder / 'checkpoints'} has no evaluated network; train the run until its "
            "first evaluation, or resume it"
        )
    model = merge_model(graphdef, Weights(**checkpoint.arrays["best"]))
    return FitResult(model, best["step"], best["best"], {})
