"""The training loop, from first step to last in one function."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from jrnn.nn import Classifier, SequenceToSequence
from jrnn.tasks.task import Data
from jrnn.train.checkpoint import Checkpoints
from jrnn.train.data import check_batch_size, shuffled_batches
from jrnn.train.experiment import Experiment
from jrnn.train.metrics import MetricsFile
from jrnn.train.objective import Objective
from jrnn.train.progress import Progress
from jrnn.train.step import (
    Report,
    TrainState,
    abstract_state,
    init_state,
    make_evaluate,
    make_train_step,
)

LOOK_EVERY = 20
"""Steps between two looks at the losses; a look makes the host wait for the device."""


class NonFiniteLoss(FloatingPointError):
    """A loss was NaN or infinite; checkpoints saved before it are whole."""


class Trained(NamedTuple):
    """What a run ends with.

    Attributes:
      model: the network with the best parameters.
      step: the training step that these are from.
      validation: loss and metric there on the validation split.
      test: loss and metric there on the test split.
      seconds: wall time of the training, with compilation, evaluation and saving; None for a run
        that was read back.
    """

    model: Classifier | SequenceToSequence
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float | None = None


def train(experiment: Experiment, data: Data, folder: Path) -> Trained:
    """Trains a network, evaluates it and saves it; all that comes of it lies in `folder`.

    Args:
      experiment: what to do.
      data: the loaded task of the experiment.
      folder: gets `metrics.jsonl` and `checkpoints`.

    Returns:
      The best network, by the metric on the validation split, and what it reaches.

    Raises:
      NonFiniteLoss: a loss was NaN or infinite; says at which step, and the last good checkpoint.
      ValueError: options and data do not fit.
      FileExistsError: the folder holds checkpoints already.
    """
    check(experiment, data)
    objective = Objective.of(data)
    optimizer = experiment.optim.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, experiment.seed), optimizer)
    train_step = make_train_step(graphdef, objective, optimizer)
    evaluate = make_evaluate(graphdef, objective, experiment.batch_size)
    batches = shuffled_batches(data.train, experiment.batch_size, experiment.seed)
    checkpoints = Checkpoints(folder / "checkpoints", data.metric)
    if checkpoints.steps():
        raise FileExistsError(f"train: {folder} holds the checkpoints of a run already")
    metrics = MetricsFile(folder / "metrics.jsonl")

    start = time.perf_counter()
    reports: list[Report] = []
    try:
        with Progress(experiment.steps, data.metric) as progress:
            for step in range(1, experiment.steps + 1):
                state, report = train_step(state, next(batches))
                reports.append(report)
                evaluating = step % experiment.eval_every == 0 or step == experiment.steps
                if evaluating or step % LOOK_EVERY == 0:
                    reports = jax.device_get(reports)
                    _check_losses([float(r.loss) for r in reports], step, checkpoints)
                    metrics.write(step, "train", _mean(reports))
                    progress.trained(step, _mean(reports))
                    reports = []
                if evaluating:
                    validation = evaluate(state, data.validation)
                    _check_losses([validation["loss"]], step, checkpoints)
                    checkpoints.save(state, validation)
                    metrics.write(step, "validation", validation)
                    progress.validated(validation)
    finally:
        checkpoints.close()  # also where the run is interrupted: what is being written is finished
    seconds = time.perf_counter() - start
    best = load_best(experiment, data, folder)
    test = evaluate(best.state, data.test)
    return Trained(best.model(), best.step, best.validation, test, seconds)


def check(experiment: Experiment, data: Data) -> tuple[nnx.GraphDef, TrainState]:
    """Refuses what does not fit, at no cost: nothing is drawn, and nothing is compiled.

    Returns:
      The structure of the network and the state of the run, with shapes for arrays.

    Raises:
      ValueError: options and data do not fit.
    """
    check_batch_size(data.train, experiment.batch_size)
    optimizer = experiment.optim.build(experiment.steps)
    return abstract_state(lambda: experiment.network.build(data, experiment.seed), optimizer)


class Best(NamedTuple):
    """The best checkpoint of a run.

    Attributes:
      graphdef: the structure of the network.
      state: what training had made of it.
      step: when.
      validation: loss and metric there on the validation split.
    """

    graphdef: nnx.GraphDef
    state: TrainState
    step: int
    validation: dict[str, float]

    def model(self) -> Classifier | SequenceToSequence:
        """The network, in evaluation mode."""
        model = nnx.merge(self.graphdef, self.state.params, self.state.rest)
        model.eval()
        return model


def restore(experiment: Experiment, data: Data, folder: Path) -> Trained:
    """Reads back the best network of a run, and evaluates it on the test split.

    Args:
      experiment: that of the run.
      data: the loaded task of the experiment.
      folder: that of the run.

    Returns:
      As `train`, without the time that it took.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    best = load_best(experiment, data, folder)
    evaluate = make_evaluate(best.graphdef, Objective.of(data), experiment.batch_size)
    return Trained(best.model(), best.step, best.validation, evaluate(best.state, data.test))


def load_best(experiment: Experiment, data: Data, folder: Path) -> Best:
    """Reads back the best checkpoint of a run.

    Args:
      experiment: that of the run.
      data: the loaded task of the experiment.
      folder: that of the run.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    graphdef, like = check(experiment, data)
    checkpoints = Checkpoints(folder / "checkpoints", data.metric)
    step = checkpoints.best_step()
    if step is None:
        raise FileNotFoundError(
            f"restore: {folder / 'checkpoints'} holds no checkpoint; train the run first"
        )
    best = Best(graphdef, checkpoints.restore(step, like), step, checkpoints.metrics(step))
    checkpoints.close()
    return best


def _check_losses(losses: list[float], step: int, checkpoints: Checkpoints) -> None:
    """Raises if one of the last losses, the newest of which is of `step`, is not a number."""
    bad = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad:
        return
    saved = checkpoints.steps()
    kept = f"the last good checkpoint is of step {saved[-1]}" if saved else "nothing was saved yet"
    raise NonFiniteLoss(
        f"train: the loss is {losses[bad[0]]} at step {step - len(losses) + 1 + bad[0]}; {kept}. "
        "Try a lower learning rate, a smaller clip_norm, or look for NaN in the data"
    )


def _mean(reports: list[Report]) -> dict[str, float]:
    return {
        name: sum(map(float, values)) / len(reports)
        for name, values in zip(Report._fields, zip(*reports, strict=True), strict=True)
    }
