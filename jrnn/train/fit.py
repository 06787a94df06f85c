"""`fit`: trains any model on any data, with checkpoints, resume and a progress bar."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from jrnn.distributed import Mesh, ProcessGroup
from jrnn.tasks import validate
from jrnn.tasks.task import Data
from jrnn.train.config.experiment import RunOptions
from jrnn.train.config.tbptt import TBPTT
from jrnn.train.data.sampler import check_batch_size
from jrnn.train.data.windows import check_streams
from jrnn.train.run.data_plan import (
    DataPlan,
    for_evaluation,
    is_iterable_of_batches,
    plan_examples,
    plan_task,
)
from jrnn.train.run.progress import Progress
from jrnn.train.run.signals import Signals, run_lock
from jrnn.train.run.single import SingleNetwork
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import BatchLoss, UserLoss


class FitResult(NamedTuple):
    """The result of a run.

    Attributes:
      model: the network with the best weights, in evaluation mode.
      step: the training step that these are from.
      validation: loss and metric there on the validation data; empty without validation data.
      test: loss and metric there on the test data; empty without test data.
      seconds: wall time of the training, with compilation, evaluation and saving, over all parts of
        a run that was resumed; None for a run that was read back.
    """

    model: Any
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float | None = None


def fit(
    model: nnx.Module,
    data: Data | Any | Iterable[Any],
    *,
    loss: UserLoss | None = None,
    optimizer: optax.GradientTransformation,
    steps: int,
    run_dir: str | Path | None = None,
    validation: Any | None = None,
    test: Any | None = None,
    metric: str = "loss",
    higher_is_better: bool = False,
    batch_size: int = 32,
    accumulate: int = 1,
    tbptt: TBPTT | None = None,
    eval_every: int = 100,
    patience: int | None = None,
    save_every: float = 30.0,
    seed: int = 0,
    mesh: str | None = None,
    resume: bool = False,
    progress: bool = True,
    description: str = "",
    group: ProcessGroup | None = None,
) -> FitResult:
    """Trains, evaluates and saves a model, and returns the one with the best metric.

    A run that is stopped, by a signal or by force, and then resumed continues exactly as it would
    have without the stop: on the same device and versions, parameters and metrics are the same bit
    for bit.

    Several processes train one model together if each of them calls `fit` with the same arguments
    within `jrnn.distributed.init_process_group`, which returns `group`. Only the first of them
    reads and writes the folder; a signal to any of them stops all.

    Args:
      model: any `nnx.Module`. It is not changed.
      data: the training data. Either a pytree of arrays with the examples on the first axis, such
        as `(xs, ys)`; each epoch has a new order that depends only on the seed. Or an iterable of
        batches, such as a list, a generator or a `DataLoader` of PyTorch; all batches have the same
        shapes, and a run that is resumed skips the batches it has used. Or the data of a task, from
        `jrnn.tasks.load`, with their validation and test splits.
      loss: `loss(model, batch)` returns the mean loss of a batch, or `(loss, metric)`. May be None
        for the data of a task, whose target and metric say what the loss is; the model is then a
        `jrnn.nn.Classifier` or `SequenceToSequence`.
      optimizer: any optax transformation.
      steps: number of training steps.
      run_dir: folder for `metrics.jsonl`, `checkpoints`, a lock, and `damaged` for checkpoints that
        cannot be read; created if it does not exist. None keeps nothing after the run.
      validation: as `data`, for evaluation; the best weights are chosen by its metric. Without it,
        the last weights are the best ones.
      test: as `data`, for the evaluation of the best weights at the end.
      metric: name of the metric that `loss` returns.
      higher_is_better: whether a higher metric is better.
      batch_size: number of examples of a step; an iterable sets its own.
      accumulate: number of parts of a batch, which run one after another with the memory of one.
      tbptt: truncated backpropagation through time; for the data of a task.
      eval_every: steps between evaluations.
      patience: number of evaluations without improvement after which the run ends; None never ends
        it early.
      save_every: seconds between checkpoints; the first and the last step are always saved.
      seed: of the order of the examples.
      mesh: devices, such as "data=8" or "data=4,model=2"; None means one device, or all devices if
        there are several processes.
      resume: whether to continue from the newest intact checkpoint in `run_dir`; without any, the
        run starts from the beginning.
      progress: whether to show a progress bar.
      description: of the model; a run of another description is not resumed. By default the names
        of its class and of its parameters with their shapes are compared.
      group: the processes that train together; by default this one alone.

    Returns:
      The best model and its metrics.

    Raises:
      NonFiniteLoss: a loss or a gradient was NaN or infinite; says at which step, and names the
        last good checkpoint.
      Interrupted: SIGINT or SIGTERM was received; everything is saved.
      CheckpointError: a checkpoint could not be written or read; says which are intact.
      TypeError: an array of the data has another dtype than it must have.
      ValueError: arguments and data are incompatible, or several processes have no group.
      FileExistsError: the folder has checkpoints already, and `resume` is not set.
      BlockingIOError: another process trains in the folder.

    >>> import numpy as np, optax
    >>> from flax import nnx
    >>> xs = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> mse = lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()
    >>> result = fit(model, (xs, 3 * xs), loss=mse, optimizer=optax.adam(0.1), steps=200,
    ...              progress=False)
    >>> round(float(result.model.kernel[0, 0]), 2)
    3.0
    """
    options = RunOptions(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        eval_every=eval_every,
        patience=patience,
        save_every=save_every,
        seed=seed,
        mesh=mesh,
    )
    group = group or ProcessGroup()
    check_group(group)
    plan = _plan(data, validation, loss, options, tbptt, metric, higher_is_better)
    if isinstance(data, Data):
        check_data(data, options, tbptt)
        test = data.test
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(run_dir, group))
        signals = stack.enter_context(Signals())
        network = SingleNetwork(model, plan, optimizer, options, Mesh.parse_or_default(mesh), group)
        description = description or type(model).__qualname__
        trainer = make_trainer(network, options, plan, folder, group, description)
        stack.enter_context(contextlib.closing(trainer))
        enabled = progress and group.is_first
        bar = stack.enter_context(Progress(steps, plan.metric, enabled=enabled))
        trainer.resume() if resume else trainer.begin()
        trainer.fit(signals, bar)
        test_metrics = {} if test is None else trainer.evaluate(for_evaluation(test))[0]
        tracker = trainer.trackers[0]
        model = network.model(trainer.best_weights())
        return FitResult(model, tracker.step, tracker.best, test_metrics, trainer.seconds)


def make_trainer(
    network: SingleNetwork,
    options: RunOptions,
    plan: DataPlan,
    folder: Path,
    group: ProcessGroup,
    description: str,
) -> Trainer:
    """The trainer of a single network, which raises if the loss is NaN or infinite.

    Args:
      network: what is trained.
      options: how long it is trained, and how often it is evaluated and saved.
      plan: its data.
      folder: for `metrics.jsonl` and `checkpoints`.
      group: the processes that train together.
      description: of the network; a run of another description is not resumed.

    Raises:
      CheckpointError: the folder cannot be written to.
    """
    return Trainer(
        network,
        options,
        plan.higher_is_better,
        folder,
        group,
        descriptions=[description],
        metrics_folders=[folder],
        patience=[options.patience],
        stop_all_if_non_finite=True,
    )


def _plan(
    data: Any,
    validation: Any | None,
    loss: UserLoss | None,
    options: RunOptions,
    tbptt: TBPTT | None,
    metric: str,
    higher_is_better: bool,
) -> DataPlan:
    """Checks that the arguments are compatible, and returns the plan of the data."""
    if isinstance(data, Data):
        if validation is not None:
            raise ValueError("fit: the data of a task have a validation split; remove validation")
        if loss is None:
            return plan_task(data, options, tbptt)
        data, validation = data.train, data.validation
    if loss is None:
        raise ValueError(
            "fit: loss must be a function of (model, batch), got None, which needs the data of a "
            "task from jrnn.tasks.load"
        )
    if tbptt is not None:
        raise ValueError("fit: tbptt needs the data of a task and its own loss; remove tbptt")
    if options.patience is not None and validation is None:
        raise ValueError("fit: patience needs validation data; pass validation")
    if not is_iterable_of_batches(data):
        _check_examples("data", data)
        check_batch_size(data, options.batch_size)
        Mesh.parse_or_default(options.mesh).validate(options.batch_size // options.accumulate)
    elif jax.process_count() > 1:
        raise ValueError("fit: several processes need arrays, got an iterable of batches")
    if validation is not None and not is_iterable_of_batches(validation):
        _check_examples("validation", validation)
    return plan_examples(data, validation, BatchLoss(loss), options, metric, higher_is_better)


def _check_examples(name: str, examples: Any) -> None:
    sizes = [len(leaf) if getattr(leaf, "ndim", 0) else None for leaf in jax.tree.leaves(examples)]
    if not sizes or None in sizes or len({*sizes}) > 1:
        raise ValueError(
            f"fit: the arrays of {name} must have the same first axis, the examples; got "
            f"{jax.tree.map(lambda leaf: getattr(leaf, 'shape', leaf), examples)}"
        )


def check_group(group: ProcessGroup) -> None:
    """Raises ValueError unless all processes of JAX are in a group."""
    if jax.process_count() != group.count:
        raise ValueError(
            f"fit: there are {jax.process_count()} processes and {group.count} in the group; pass "
            "the group of jrnn.distributed.init_process_group, and do not call "
            "jax.distributed.initialize"
        )


def check_data(data: Data, options: RunOptions, tbptt: TBPTT | None) -> None:
    """Raises unless the data of a task, options and devices are compatible.

    Raises:
      TypeError: an array of the data has another dtype than it must have.
      ValueError: options and data, or the arrays of the data, are incompatible.
    """
    if tbptt is None:
        check_batch_size(data.train, options.batch_size)
    else:
        check_streams(data, tbptt.window(data), options.batch_size)
    validate.check_arrays(data)
    Mesh.parse_or_default(options.mesh).validate(options.batch_size // options.accumulate)


@contextlib.contextmanager
def _folder(run_dir: str | Path | None, group: ProcessGroup) -> Iterator[Path]:
    """The folder of a run, locked by the first process; a temporary one if there is no name."""
    with contextlib.ExitStack() as stack:
        if run_dir is None:
            run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="jrnn-"))
        folder = Path(run_dir)
        if group.is_first:
            stack.enter_context(run_lock(folder))
        yield folder
