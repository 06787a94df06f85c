"""`fit`: trains any model on any data, with checkpoints, resume and a progress bar."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from jrnn.distributed import Mesh, ProcessGroup
from jrnn.signals import Signals
from jrnn.signatures import explain_signature
from jrnn.tasks import validate
from jrnn.tasks.task import Data, hash_arrays
from jrnn.train.config.experiment import RunOptions
from jrnn.train.config.tbptt import TBPTT
from jrnn.train.data.arrays import describe_specs, is_iterable_of_batches, materialize_batches
from jrnn.train.data.sampler import DEVICE_BYTES, check_batch_size
from jrnn.train.data.windows import check_streams
from jrnn.train.inputs import (
    CALL_HINTS,
    canonicalize_data,
    check_loss,
    check_model,
    check_optimizer,
    check_other_arguments,
    check_task_model,
    make_run_options,
)
from jrnn.train.run.data_plan import DataPlan, plan_examples, plan_task
from jrnn.train.run.metrics_logger import MetricsWriter
from jrnn.train.run.non_finite import explain_non_finite
from jrnn.train.run.progress import Progress, ProgressMode
from jrnn.train.run.run_dir import open_run_dir
from jrnn.train.run.single import SingleNetwork
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import BatchLoss, Objective, UserLoss

log = logging.getLogger("jrnn")


class FitResult(NamedTuple):
    """The result of a run.

    Attributes:
      model: the model with the best weights, in evaluation mode; the last weights if there is no
        validation data.
      step: the training step of these weights.
      validation: `{"loss": float, "metric": float}` of these weights on the validation data; empty
        without validation data.
      test: the same on the test data; empty without test data.
      seconds: wall time of the training, which includes compilation, evaluation, saving and the
        time before the run was resumed; None if the result is restored from a checkpoint.
    """

    model: Any
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float | None = None


@explain_signature(CALL_HINTS)
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
    ema_decay: float | None = None,
    freeze: Sequence[str] = (),
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | np.ndarray | Literal["balanced"] | None = None,
    resume: bool = False,
    progress: bool | ProgressMode = True,
    writers: Sequence[MetricsWriter] = (),
    description: str = "",
    group: ProcessGroup | None = None,
    resume_command: str = "",
) -> FitResult:
    """Trains a model, saves checkpoints, and returns the model with the best validation metric.

    A training step is one update of the parameters with the gradient of one batch.

    A run that was stopped, even by SIGKILL, can be resumed exactly: on the same device and with the
    same versions of all libraries, its parameters and metrics are exactly equal to those of an
    uninterrupted run.

    To train one model on several processes, call `fit` in each process with the same arguments, in
    the context of `jrnn.distributed.init_process_group`, and pass its value as `group`. Only the
    first process reads and writes `run_dir`. A signal to any process stops all of them.

    Args:
      model: any `nnx.Module`, which is not changed. Parameters are its variables of type
        `nnx.Param`.
      data: the training data, in one of three forms. A pytree of arrays `[N, ...]` with N examples
        on the first axis, such as a tuple `(xs, ys)`; it is shuffled in each epoch. An iterable of
        batches, such as a list, a generator or a PyTorch `DataLoader`; each batch is a pytree of
        arrays, and all batches have the same shapes. The data of a task, from `jrnn.tasks.load`,
        which includes validation and test splits. Nested lists of numbers, and tensors and tables
        of other libraries, are converted by `numpy.asarray`.
      loss: a function `loss(model, batch)` that returns the mean loss of the batch, a real scalar,
        or a tuple `(loss, metric)` of two means; without a metric, the loss is also the metric. It
        is called within `jax.jit`. `model` has the type of the argument `model`, and is in training
        mode (`model.train()`) or, in evaluations, in evaluation mode (`model.eval()`). `batch` has
        the structure of `data`, with `batch_size` examples in training, `batch_size / accumulate`
        if gradients are accumulated, and possibly fewer in the last batch of an evaluation. For the
        data of a task, `batch` is a `Split`, and None selects the loss and metric of the task; the
        model must then be a `jrnn.nn.Classifier` or `jrnn.nn.SequenceToSequence`.
      optimizer: any optax gradient transformation.
      steps: number of training steps.
      run_dir: the folder of the run, created if it does not exist. `fit` writes `metrics.jsonl` and
        `checkpoints`, moves damaged checkpoints to `damaged`, and locks the folder. If an error is
        raised before the end of the first training step, these files are removed, unless they were
        there before. None uses a temporary folder, which is removed at the end.
      validation: validation data, a pytree of arrays or an iterable of batches, which is converted
        to a list. None means no validation: the last weights are returned. Must be None for the
        data of a task.
      test: test data in the same forms, for one evaluation of the best weights at the end, which
        logs a warning if the loss is not finite. Not used for the data of a task, which has a test
        split.
      metric: the name of the metric that `loss` returns, for the progress bar. Not used if `loss`
        is None.
      higher_is_better: whether a higher metric is better. Not used if `loss` is None.
      batch_size: number of examples per training step, at most N, and per batch of an evaluation on
        arrays. An iterable of batches determines the number of examples per training step itself.
      accumulate: number of micro-batches that each batch is split into. They are computed one after
        another, which saves memory; the gradient is that of the whole batch. Must divide
        `batch_size` and, for an iterable of batches, the number of examples of a batch.
      tbptt: options of truncated backpropagation through time, for the data of a task with
        `loss=None`. None trains on whole sequences.
      eval_every: number of training steps between evaluations on the validation data. There is also
        one after the last step.
      patience: number of consecutive evaluations without improvement of the metric after which the
        run stops early. None disables early stopping.
      save_every: seconds between checkpoints. A run is also saved before its first step, when a
        signal stops it, and at its end.
      seed: seed of the order of the examples. It does not affect the model, whose parameters and
        random streams are those of `model`.
      mesh: devices to train on: "data=8" shards each batch over 8 devices; "data=4,model=2" also
        shards the parameters over 2. The size of a micro-batch must be divisible by the number of
        devices. None means one device, or all devices if there are several processes.
      ema_decay: decay of an exponential moving average of the parameters, in [0, 1), which is
        evaluated and returned in place of the parameters; see `Experiment`. None disables it.
      freeze: paths of parameters that are not trained, such as ("body.rnns.0", "embedding"): all
        parameters below a path, in which `*` and `?` are wildcards.
      label_smoothing: fraction of the probability of the label that training distributes equally
        over all classes, in [0, 1); only for the data of a task with `loss=None`.
      class_weights: weight of each class in the loss of training, a sequence or a NumPy array, or
        "balanced"; see `Experiment`. Only for the data of a task with `loss=None`.
      resume: whether to continue from the newest intact checkpoint in `run_dir`. Batches that the
        run has used are skipped. If there is no checkpoint, a new run starts. Data, `batch_size`,
        `seed` and `accumulate` must be the same as before, of an iterable of batches only the
        shapes and dtypes. Needs `run_dir`.
      progress: whether to show the progress: True or "auto" shows a bar on a terminal, and a line
        every few seconds on standard error elsewhere. "bar" and "plain" choose one of them, and
        False or "none" shows nothing.
      writers: further outputs for the metrics, from `jrnn.train.run.writers`, such as
        `TensorBoardWriter(folder)`.
      description: a text that must be the same when the run is resumed, such as the options of the
        model. By default the name of the class of the model. The names, shapes and dtypes of the
        arrays must always be the same.
      group: the processes that train together. None means this process alone.
      resume_command: the command that resumes the run, for the messages of errors. By default they
        say to call `fit` with `resume=True`.

    Returns:
      The model with the best metric on the validation data, and its metrics.

    Raises:
      NonFiniteLoss: a loss or a gradient is NaN or infinite. The message has the training step, the
        step of the last good checkpoint, unless `run_dir` is None, and the first entry of the data
        that is NaN, infinite or not a class, if there is one.
      Interrupted: SIGINT, SIGTERM or SIGHUP was received. The run is saved, unless `run_dir` is
        None. The message says how to resume it.
      CheckpointError: a checkpoint could not be written, none could be read, or the run is of
        another model, another optimizer or another version of jrnn.
      TypeError: an argument has a wrong type, or an array in the data has a wrong dtype.
      ValueError: arguments and data are incompatible, the loss does not return a real scalar, there
        are several processes without a group, or `run_dir` has metrics without a checkpoint.
      FileExistsError: `run_dir` has checkpoints already, and `resume` is False.
      BlockingIOError: another process trains in `run_dir`.
      OSError: `run_dir` cannot be written to or locked.

    >>> import numpy as np
    >>> import optax
    >>> from flax import nnx
    >>> from jrnn.train import fit
    >>> xs = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]  # 64 examples
    >>> ys = 3 * xs
    >>> def mse(model, batch):
    ...     xs, ys = batch
    ...     return ((model(xs) - ys) ** 2).mean()
    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> optimizer = optax.adam(0.1)
    >>> result = fit(model, (xs, ys), loss=mse, optimizer=optimizer, steps=200, progress=False)
    >>> round(float(result.model.kernel[0, 0]), 2)
    3.0
    """
    options = make_run_options(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        eval_every=eval_every,
        patience=patience,
        save_every=save_every,
        seed=seed,
        mesh=mesh,
        ema_decay=ema_decay,
        freeze=freeze,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
    )
    check_other_arguments(
        run_dir=run_dir,
        resume=resume,
        metric=metric,
        higher_is_better=higher_is_better,
        tbptt=tbptt,
        progress=progress,
        writers=writers,
        description=description,
        group=group,
        resume_command=resume_command,
    )
    check_model(model, data)
    check_loss(loss)
    check_optimizer(optimizer)
    group = group or ProcessGroup()
    check_group(group)
    data = canonicalize_data(data)
    validation = materialize_batches(validation, "validation")
    test = materialize_batches(test, "test")
    if isinstance(data, Data):
        check_data(data, options, tbptt, "fit")
        test = data.test
        if loss is None:
            Objective.from_data(data, options, "fit")
            check_task_model(model, data)
    plan = _make_plan(data, validation, loss, options, tbptt, metric, higher_is_better)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        network = SingleNetwork(model, plan, optimizer, options, Mesh.parse_or_default(mesh), group)
        network.trace({} if loss is None else {"validation": plan.validation, "test": test})
        named = {
            "train": {"data": data} if not isinstance(data, Data) else {"data.train": data.train},
            "validation": {"validation": plan.validation},
            "test": {"test": test},
        }
        explain = lambda split: _explain_non_finite(model, loss, data, named[split])
        trainer: Trainer | None = None
        has_trained = lambda: trainer is not None and trainer.has_trained
        folder = stack.enter_context(open_run_dir(run_dir, group, has_trained))
        trainer = make_trainer(
            network,
            options,
            plan,
            folder,
            group,
            description or type(model).__qualname__,
            writers,
            resume_command=resume_command,
            is_temporary=run_dir is None,
            inputs={} if run_dir is None else _describe_inputs(data, plan, network, options),
            explain_non_finite=explain,
        )
        stack.enter_context(contextlib.closing(trainer))
        mode: ProgressMode = "auto" if progress is True else (progress or "none")
        mode = mode if group.is_first else "none"
        bar = stack.enter_context(Progress(steps, plan.metric, mode=mode))
        if resume:
            trainer.resume()
        else:
            trainer.begin()
        trainer.fit(signals, bar)
        test_metrics = {} if test is None else trainer.evaluate(test)[0]
        if test is not None and not np.isfinite(test_metrics["loss"]):
            cause = explain("test") or "Its arrays are finite; check the loss"
            log.warning("the test loss is %s. %s", test_metrics["loss"], cause)
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
    writers: Sequence[MetricsWriter] = (),
    *,
    resume_command: str = "",
    is_temporary: bool = False,
    inputs: Mapping[str, str] | None = None,
    explain_non_finite: Callable[[str], str] = lambda split: "",
) -> Trainer:
    """Creates the trainer of a single network, which raises if the loss is NaN or infinite.

    Args:
      network: the network to train.
      options: number of steps, and how often the network is evaluated and saved.
      plan: the data of the network.
      folder: the folder for `metrics.jsonl` and `checkpoints`.
      group: the processes that train together.
      description: a text that must be the same when the run is resumed.
      writers: further outputs for the metrics.
      resume_command: the command that resumes the run, for messages; "" if there is none.
      is_temporary: whether the folder is removed at the end, so that the run cannot be resumed.
      inputs: descriptions of data and arguments that must be the same when the run is resumed.
      explain_non_finite: returns the cause of a NaN or infinite loss; see `Trainer`.

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
        resume_command=resume_command,
        is_temporary=is_temporary,
        writers=writers,
        inputs=inputs,
        explain_non_finite=explain_non_finite,
    )


def _make_plan(
    data: Any,
    validation: Any | None,
    loss: UserLoss | None,
    options: RunOptions,
    tbptt: TBPTT | None,
    metric: str,
    higher_is_better: bool,
) -> DataPlan:
    """Returns the data plan; raises ValueError if the arguments are incompatible."""
    if isinstance(data, Data):
        if validation is not None:
            raise ValueError(
                "fit: validation must be None for the data of a task, which has a validation "
                "split; remove validation"
            )
        if loss is None:
            return plan_task(data, options, tbptt)
        data, validation = data.train, data.validation
    if loss is None:
        raise ValueError(
            "fit: loss must be a function of (model, batch), got None; pass a loss, or the data "
            "of a task from jrnn.tasks.load"
        )
    if options.label_smoothing or options.class_weights is not None:
        raise ValueError(
            "fit: label_smoothing and class_weights need the data of a task and loss=None; apply "
            "them in your loss"
        )
    if tbptt is not None:
        raise ValueError(
            "fit: tbptt needs the data of a task and loss=None; remove tbptt, or pass such data "
            "and remove loss"
        )
    if options.patience is not None and validation is None:
        raise ValueError("fit: patience needs validation data; pass validation")
    if not is_iterable_of_batches(data):
        check_batch_size(data, options.batch_size, "fit")
        Mesh.parse_or_default(options.mesh).validate(options.batch_size // options.accumulate)
    elif jax.process_count() > 1:
        raise ValueError(
            "fit: data must be arrays if there are several processes, got an iterable of batches; "
            "pass arrays"
        )
    return plan_examples(data, validation, BatchLoss(loss), options, metric, higher_is_better)


def _explain_non_finite(model: Any, loss: UserLoss | None, data: Any, named: dict[str, Any]) -> str:
    """Returns the cause of a NaN or infinite loss, as far as the data show it, else "".

    Args:
      model: the model.
      loss: the argument of `fit`.
      data: the argument of `fit`.
      named: the examples on which the loss is not finite, by the name of the argument.
    """
    if loss is not None or not isinstance(data, Data):
        return explain_non_finite(model, named)
    try:
        validate.check_finite(data)
    except ValueError as error:
        return str(error)
    return ""


def _describe_inputs(
    data: Any, plan: DataPlan, network: SingleNetwork, options: RunOptions
) -> dict[str, str]:
    """Returns descriptions of the data and options on which the batches of a run depend.

    Of an iterable of batches, only the shapes and dtypes are described.
    """
    inputs = {"accumulate": str(options.accumulate)}
    if is_iterable_of_batches(data):
        inputs["data"] = f"batches of {network.batch_specs}"
    else:
        inputs |= {"batch_size": str(options.batch_size), "seed": str(options.seed)}
        inputs["data"] = _describe_values(data)
    if not isinstance(data, Data) and plan.validation is not None:
        inputs["validation"] = _describe_values(plan.validation)
    return inputs


def _describe_values(data: Any) -> str:
    """Returns the shapes and dtypes of data, and a hash of their entries.

    Of arrays that are too large for a device, equally spaced examples are hashed.
    """
    if isinstance(data, Data):
        return f"{describe_specs(data.train)} (hash {data.fingerprint})"
    leaves = jax.tree.leaves(data)
    step = -(-sum(leaf.nbytes for leaf in leaves) // DEVICE_BYTES)
    arrays = (leaf[:: max(step, 1)] for leaf in leaves)
    return f"{describe_specs(data)} (hash {hash_arrays(arrays)})"


def check_group(group: ProcessGroup) -> None:
    """Raises ValueError unless all processes of JAX are in `group`."""
    if jax.process_count() != group.count:
        raise ValueError(
            f"fit: group must have all processes, got {jax.process_count()} processes and "
            f"{group.count} in the group; pass the group of jrnn.distributed.init_process_group, "
            "and do not call jax.distributed.initialize"
        )


def check_data(data: Data, options: RunOptions, tbptt: TBPTT | None, owner: str = "train") -> None:
    """Checks that the data of a task, the options and the devices are compatible.

    Raises:
      TypeError: an array of the data has a wrong dtype.
      ValueError: the data, the options or the devices are incompatible.
    """
    if tbptt is None:
        check_batch_size(data.train, options.batch_size, owner)
    else:
        check_streams(data, tbptt.window(data), options.batch_size, owner)
    validate.check_arrays(data)
    Mesh.parse_or_default(options.mesh).validate(options.batch_size // options.accumulate)
