"""Validates the arguments of `fit`, before anything is compiled or written."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, get_args

import jax
import numpy as np
import optax
from flax import nnx

from jrnn import Cell, checks
from jrnn.distributed import ProcessGroup
from jrnn.nn import Classifier, SequenceToSequence
from jrnn.tasks.task import Data, DataSpec, Task
from jrnn.train.config.experiment import RunOptions, check_run_options
from jrnn.train.config.optimizer import Optimizer
from jrnn.train.config.tbptt import TBPTT
from jrnn.train.data.arrays import (
    check_examples,
    check_list,
    is_iterable_of_batches,
    to_arrays,
)
from jrnn.train.run.progress import ProgressMode

STEPS = "use steps, the number of updates: epochs * (examples // batch_size)"
CALL_HINTS = {
    "*": "data must be one argument, such as a tuple (x, y)",
    "epochs": STEPS,
    "num_epochs": STEPS,
    "max_epochs": STEPS,
    "lr": "use optimizer=optax.adam(1e-3)",
    "learning_rate": "use optimizer=optax.adam(1e-3)",
    "loss_fn": "use loss",
    "criterion": "use loss, a function of (model, batch)",
    "validation_data": "use validation",
    "callbacks": "use writers for outputs, and patience to stop early",
    "shuffle": "arrays are shuffled in each epoch, and an iterable of batches is not",
    "verbose": "use progress",
}
"""What to use instead of options of PyTorch, Lightning and Keras; see `explain_signature`."""


def make_run_options(**values: Any) -> RunOptions:
    """Returns the options of a run; `freeze` and `class_weights` may be any sequences.

    Raises:
      TypeError, ValueError: an option is invalid; see `RunOptions`.
    """
    freeze, weights = values["freeze"], values["class_weights"]
    if isinstance(freeze, Sequence) and not isinstance(freeze, str):
        freeze = tuple(freeze)
    if isinstance(weights, np.ndarray | jax.Array) and weights.ndim == 1:
        weights = weights.tolist()
    if isinstance(weights, Sequence) and not isinstance(weights, str):
        weights = tuple(weights)
    values |= {"freeze": freeze, "class_weights": weights}
    check_run_options("fit", values)
    return RunOptions(**values)


def check_model(model: Any, data: Any) -> None:
    """Raises TypeError unless the model is an `nnx.Module`; `data` is the argument of `fit`."""
    if isinstance(model, nnx.Module):
        return
    advice = "pass a module such as jrnn.nn.Classifier(...)"
    if isinstance(data, nnx.Module):
        advice = "the order is fit(model, data)"
    elif isinstance(model, type):
        advice = "create an instance of the class"
    elif isinstance(model, Cell):
        advice = "wrap the cell: jrnn.nn.RNN(cell, input_size, rngs=nnx.Rngs(0))"
    elif inspect.isfunction(model):
        advice = "pass the module itself, with its parameters"
    raise TypeError(f"fit: model must be an nnx.Module, got {checks.describe(model)}; {advice}")


def check_task_model(model: Any, spec: DataSpec) -> None:
    """Raises unless a model has the outputs for the data of a task.

    Args:
      model: the model.
      spec: the properties of the data.

    Raises:
      TypeError: the model is not a `Classifier`, or a `SequenceToSequence` for targets per step.
      ValueError: the model has another number of outputs.
    """
    expected = SequenceToSequence if spec.per_step else Classifier
    if not isinstance(model, expected):
        raise TypeError(
            f"fit: model must be a jrnn.nn.{expected.__name__} for the data of a task with "
            f"target={spec.target!r} and loss=None, got {type(model).__name__}; wrap it in "
            f"jrnn.nn.{expected.__name__}, or pass a loss"
        )
    size = getattr(model.head, "out_features", spec.num_outputs)
    if size != spec.num_outputs:
        content = "classes" if spec.has_classes else "outputs"
        raise ValueError(
            f"fit: model must have output_size={spec.num_outputs} for the {spec.num_outputs} "
            f"{content} of the data, got output_size={size}; set output_size={spec.num_outputs}"
        )


def check_loss(loss: Any) -> None:
    """Raises TypeError unless the loss is None or can be called with `(model, batch)`."""
    if loss is None:
        return
    is_module = _is_of_torch(loss) or isinstance(loss, type)
    if not callable(loss) or is_module:
        raise TypeError(
            f"fit: loss must be a function of (model, batch), got {checks.describe(loss)}; pass a "
            "function that calls the model on the batch and returns the mean loss, such as of "
            "optax.losses"
        )
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # not known for some compiled functions
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"fit: loss must be a function of (model, batch), got arguments "
            f"{checks.shorten(signature)}; call the model on the batch in the loss"
        ) from error


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless the optimizer is a gradient transformation of optax."""
    functions = (getattr(optimizer, name, None) for name in ("init", "update"))
    if not isinstance(optimizer, type) and all(map(callable, functions)):
        return
    advice = "pass optax.adam(1e-3)"
    if isinstance(optimizer, Optimizer):
        advice = "pass optimizer.build(steps)"
    elif isinstance(optimizer, nnx.Optimizer):
        advice = "pass its attribute tx"
    elif inspect.isfunction(optimizer) and optimizer.__module__.partition(".")[0] == "optax":
        advice = f"call it, such as optax.{optimizer.__name__}(1e-3)"
    elif isinstance(optimizer, str) and callable(getattr(optax, optimizer, None)):
        advice = f"pass optax.{optimizer}(1e-3)"
    elif checks.is_number(checks.as_python(optimizer)):
        advice = f"pass optax.adam({optimizer})"
    raise TypeError(
        f"fit: optimizer must be an optax transformation, got {checks.describe(optimizer)}; "
        f"{advice}"
    )


def canonicalize_data(data: Any) -> Any:
    """Returns the data of `fit`: of a task, a pytree of arrays, or an iterable of batches.

    Raises:
      TypeError: the data have another type, or a leaf is not an array.
      ValueError: arrays have different numbers of examples, or none; a list of arrays, which should
        be a tuple.
    """
    if isinstance(data, Data):
        return data
    if data is None or isinstance(data, Task | str | type | nnx.Module):
        advice = (
            "load it by jrnn.tasks.load(task)"
            if isinstance(data, Task)
            else "pass arrays such as the tuple (x, y)"
        )
        raise TypeError(
            "fit: data must be arrays, an iterable of batches or the data of a task, got "
            f"{checks.describe(data)}; {advice}"
        )
    if is_iterable_of_batches(data):
        check_list("data", data)
        return data
    data = to_arrays("data", data)
    check_examples("data", data)
    return data


def check_other_arguments(
    *,
    run_dir: Any,
    resume: Any,
    metric: Any,
    higher_is_better: Any,
    tbptt: Any,
    progress: Any,
    writers: Any,
    description: Any,
    group: Any,
    resume_command: Any,
) -> None:
    """Raises unless the arguments of `fit` with these names have the right types.

    Raises:
      TypeError, ValueError: an argument is invalid.
    """
    for name, text in (
        ("metric", metric),
        ("description", description),
        ("resume_command", resume_command),
    ):
        checks.instance("fit", name, text, str)
    checks.boolean("fit", "higher_is_better", higher_is_better)
    if not isinstance(run_dir, str | os.PathLike | None):
        raise TypeError(f"fit: run_dir must be a path or None, got {checks.describe(run_dir)}")
    if checks.boolean("fit", "resume", resume) and run_dir is None:
        raise ValueError(
            "fit: run_dir must be the folder of the run for resume=True, got None; pass run_dir, "
            "or remove resume"
        )
    if not isinstance(progress, bool):
        checks.one_of("fit", "progress", progress, get_args(ProgressMode))
    for name, value, cls in (("tbptt", tbptt, TBPTT), ("group", group, ProcessGroup)):
        if value is not None:
            checks.instance("fit", name, value, cls)
    methods = ("begin", "write", "close")
    if not isinstance(writers, Sequence) or not all(
        not isinstance(writer, type) and callable(getattr(writer, method, None))
        for writer in writers
        for method in methods
    ):
        raise TypeError(
            "fit: writers must be a sequence of writers, such as "
            "[jrnn.train.TensorBoardWriter(folder)], got "
            f"{checks.describe(writers)}"
        )


def _is_of_torch(value: Any) -> bool:
    """Returns whether a value is an instance of a class of PyTorch, or of a subclass."""
    return any(cls.__module__.partition(".")[0] == "torch" for cls in type(value).__mro__)
