"""A run as it lies in memory: what moves, how it goes on, and how it is saved."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn.cell import Carry
from jrnn.tasks.task import Data, Split
from jrnn.train.checkpoint import Checkpoint, CheckpointError, Checkpoints
from jrnn.train.data import Examples, Feed, Reader, fits
from jrnn.train.experiment import Experiment
from jrnn.train.metrics import MetricsFile
from jrnn.train.objective import Objective, better
from jrnn.train.step import (
    Evaluation,
    Forward,
    Report,
    TrainState,
    Weights,
    apply_whole,
    evaluation,
    init_state,
    make_train_steps,
)
from jrnn.train.tbptt import Windows, stateful_evaluation, streams

LINE_EVERY = 20
"""Steps that a line of `metrics.jsonl` is the mean of."""
MOST_STEPS, MOST_ROWS = 256, 2**16
"""Steps, and examples, in one dispatch at most."""
SLICE = 0.25
"""Seconds that a dispatch is to take at most, since a signal is heard after it."""


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient was NaN or infinite; checkpoints saved before it are whole."""


@dataclass
class Record:
    """What moves in a run and is no array.

    Attributes:
      best_step: the step of the best weights.
      best: loss and metric of these on the validation split; empty before the first evaluation.
      worse: evaluations since then.
      reports: of the steps since the last line of metrics.
      metrics_bytes: size of `metrics.jsonl`.
      seconds: time spent.
    """

    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    reports: list[list[float]] = field(default_factory=list)
    metrics_bytes: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Record":
        """From what a checkpoint holds.

        Raises:
          ValueError: another version of jrnn wrote it.
        """
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"the run is of another version of jrnn: {error}") from error


class Best(NamedTuple):
    """The best network of a run.

    Attributes:
      graphdef: its structure.
      weights: what training had made of it.
      step: when.
      validation: loss and metric there on the validation split.
    """

    graphdef: nnx.GraphDef
    weights: Weights
    step: int
    validation: dict[str, float]

    def model(self) -> Any:
        """The network, in evaluation mode."""
        model = nnx.merge(self.graphdef, *self.weights)
        model.eval()
        return model


def evaluator(graphdef: nnx.GraphDef, experiment: Experiment, data: Data) -> Evaluation:
    """How the networks of a run are evaluated: with the carry handed over if it is in training."""
    objective, rows = Objective.of(data), experiment.batch_size
    if experiment.tbptt is None:
        return evaluation(graphdef, objective, rows)
    return stateful_evaluation(graphdef, objective, data, experiment.tbptt.window(data).k1, rows)


class Course(NamedTuple):
    """How a run goes through its training split.

    Attributes:
      split: the split, cut into windows if it is trained by windows.
      reader: from a seed to what each step takes of it.
      forward: how the network runs through a batch.
      first_carry: from the structure of a network and its weights to the carry that is handed over
        at first; empty where none is.
    """

    split: Split
    reader: Callable[[int], Reader]
    forward: Forward
    first_carry: Callable[[nnx.GraphDef, Weights], Carry]

    @classmethod
    def of(cls, experiment: Experiment, data: Data) -> "Course":
        """The course of an experiment."""
        rows = experiment.batch_size
        if experiment.tbptt is None:
            size = len(data.train.xs)
            reader = lambda seed: Examples(size, rows, seed)
            return cls(data.train, reader, apply_whole, lambda graphdef, weights: ())
        window = experiment.tbptt.window(data)
        split = streams(data, data.train, window.k1, rows, whole=False)
        return cls(
            split,
            lambda seed: Windows(window, split, rows, seed),
            window.run,
            lambda graphdef, weights: window.first_carry(graphdef, weights, split, rows),
        )


def most_steps(experiment: Experiment) -> int:
    """The most steps in one dispatch."""
    return max(1, min(MOST_STEPS, MOST_ROWS // experiment.batch_size))


class Run:
    """A run between two of its steps.

    One dispatch is always under way while the reports of the one before are written down, so that
    the device does not wait for Python.

    Attributes:
      step: training steps done or under way.
      means: loss, metric and norm of the gradient in the newest line of metrics; empty at first.
    """

    def __init__(self, experiment: Experiment, data: Data, folder: Path):
        """Draws the parameters and opens the folder; `begin` or `resume` comes next.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        self.step, self.means = 0, dict[str, float]()
        self._experiment, self._folder, self._metric = experiment, folder, data.metric
        split = data.validation
        self._validation = jax.device_put(split) if fits(split) else split
        objective = Objective.of(data)
        optimizer = experiment.optim.build(experiment.steps)
        network = experiment.network.build(data, experiment.seed)
        self._graphdef, self._state = init_state(network, optimizer)
        self._best = self._weights()
        self._record = Record()
        course = Course.of(experiment, data)
        carry = course.first_carry(self._graphdef, self._best)
        self._state = self._state._replace(carry=carry)
        self._feed = Feed(course.split, course.reader(experiment.seed), most_steps(experiment))
        self._steps = make_train_steps(
            self._graphdef, objective, optimizer, self._feed.batch, course.forward
        )
        self._evaluate = evaluator(self._graphdef, experiment, data).compiled()
        self._pace = 1
        self._under_way: deque[tuple[int, int, Report]] = deque()
        self._metrics = MetricsFile(folder / "metrics.jsonl")
        self._checkpoints = Checkpoints(folder / "checkpoints", writing=True)
        self._saved = self._counted = self._drained = time.perf_counter()

    def begin(self) -> None:
        """Begins anew, with a checkpoint of step 0: what cannot be saved is known at once.

        Raises:
          FileExistsError: the folder holds checkpoints.
          ValueError: it holds metrics and no checkpoint.
          CheckpointError: nothing can be written there.
        """
        if self._checkpoints.steps():
            raise FileExistsError(
                f"train: {self._folder} holds the checkpoints of a run already; go on with it by "
                "--resume, or name another folder"
            )
        if self._metrics.lines():
            raise ValueError(
                f"train: {self._folder} has lines in metrics.jsonl and no checkpoint: those of its "
                "run are lost. To train it anew, remove metrics.jsonl, or name another folder"
            )
        self._metrics.cut(0)
        self.save()
        self.wait()

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, and takes away the metrics after it.

        Raises:
          CheckpointError: all checkpoints are damaged.
          ValueError: lines of the metrics are missing.
        """
        found = self._checkpoints.newest(self._arrays())
        if found is None:
            self.begin()
            return
        self._record = Record.read(found.record)
        self._metrics.cut(self._record.metrics_bytes)
        self._checkpoints.put_aside(after=found.step)
        self._state = TrainState(**found.arrays["state"])
        self._best = Weights(**found.arrays["best"])
        self.step = found.step

    def advance(self) -> None:
        """Sends some steps off, and none beyond the next evaluation."""
        every, steps = self._experiment.eval_every, self._experiment.steps
        count = min(every - self.step % every, steps - self.step, self._pace)
        source, rows = self._feed.next(self.step, count)
        self._state, reports = self._steps(self._state, source, rows, count)
        self._under_way.append((self.step + 1, count, reports))
        self.step += count
        if len(self._under_way) > 1:
            self._drain()

    def settle(self) -> None:
        """Waits for all steps that are under way, and writes down what they report.

        Raises:
          NonFiniteLoss: a loss was NaN or infinite; says at which step.
        """
        while self._under_way:
            self._drain()

    def validate(self) -> dict[str, float]:
        """Loss and metric on the validation split; keeps the weights if they are the best."""
        self.settle()
        found = self._evaluate(self._state, self._validation)
        self._check("loss", [found["loss"]], self.step)
        self._metrics.write(self.step, "validation", found)
        self._record.worse += 1
        best = self._record.best
        if not best or better(self._metric, found["metric"], best["metric"]):
            self._best = self._weights()
            self._record.best_step, self._record.best, self._record.worse = self.step, found, 0
        self._drained = time.perf_counter()
        return found

    def save(self) -> None:
        """Saves all of it in the background.

        Raises:
          CheckpointError: this checkpoint or the one before could not be written.
          NonFiniteLoss: as for `advance`.
        """
        self.settle()
        now = time.perf_counter()
        self._record.seconds += now - self._counted
        self._record.metrics_bytes = self._metrics.size()
        self._checkpoints.save(Checkpoint(self.step, self._arrays(), asdict(self._record)))
        self._counted = now
        self._saved = self._drained = time.perf_counter()

    def ended(self) -> bool:
        """Whether all steps are done, or the patience is."""
        patience = self._experiment.patience
        tired = patience is not None and self._record.worse >= patience
        return tired or self.step == self._experiment.steps

    def unsaved_seconds(self) -> float:
        """Time since the last checkpoint."""
        return time.perf_counter() - self._saved

    def wait(self) -> None:
        """Waits until all is saved.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        self._checkpoints.wait()

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder."""
        self._checkpoints.close()

    def best(self) -> Best:
        """The best network so far."""
        return Best(self._graphdef, self._best, self._record.best_step, self._record.best)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and metric of the best network so far on a split."""
        return self._evaluate(self._best, split)

    def seconds(self) -> float:
        """Time spent on the run up to its last checkpoint."""
        return self._record.seconds

    def _weights(self) -> Weights:
        """A copy of the weights, since the next step takes over the state."""
        return jax.tree.map(jnp.copy, Weights(self._state.params, self._state.rest))

    def _arrays(self) -> dict[str, Any]:
        return {"state": self._state._asdict(), "best": self._best._asdict()}

    def _drain(self) -> None:
        """Waits for the oldest dispatch, checks its losses and writes its lines."""
        first, count, on_device = self._under_way.popleft()
        values = jax.device_get(on_device)
        now = time.perf_counter()
        step_seconds, self._drained = (now - self._drained) / count, now
        fitting = int(SLICE / max(step_seconds, 1e-9))
        self._pace = max(1, min(self._feed.most, 2 * self._pace, fitting))
        self._check("loss", values.loss[:count].tolist(), first + count - 1)
        # A gradient that is no number spoils the parameters, which only the next loss would show.
        self._check("gradient", values.grad_norm[:count].tolist(), first + count - 1)
        every, steps = self._experiment.eval_every, self._experiment.steps
        for k in range(count):
            step = first + k
            self._record.reports.append([float(value[k]) for value in values])
            if step % LINE_EVERY == 0 or step % every == 0 or step == steps:
                self.means = _means(self._record.reports)
                self._metrics.write(step, "train", self.means)
                self._record.reports = []

    def _check(self, name: str, values: list[float], step: int) -> None:
        """Raises if one of the last values, the newest of which is of `step`, is not a number."""
        bad = [k for k, value in enumerate(values) if not math.isfinite(value)]
        if not bad:
            return
        with contextlib.suppress(CheckpointError):
            self.wait()
        raise NonFiniteLoss(
            f"train: the {name} is {values[bad[0]]} at step {step - len(values) + 1 + bad[0]}; the "
            f"last good checkpoint is of step {self._checkpoints.steps()[-1]}. Try a lower "
            "learning rate, a smaller clip_norm, or look for NaN in the data"
        )


def _means(reports: list[list[float]]) -> dict[str, float]:
    columns = zip(*reports, strict=True)
    return {n: sum(c) / len(reports) for n, c in zip(Report._fields, columns, strict=True)}
