"""A run as it lies in memory: what moves, how it goes on, and how it is saved."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jrnn.processes import Team
from jrnn.tasks.task import Data, Split
from jrnn.train.checkpoint import Checkpoint, CheckpointError
from jrnn.train.course import Course, evaluator
from jrnn.train.data import fits
from jrnn.train.experiment import Experiment
from jrnn.train.feed import Feed
from jrnn.train.keeper import Keeper, agreed
from jrnn.train.ledger import Ledger
from jrnn.train.mesh import Mesh
from jrnn.train.objective import Objective
from jrnn.train.pipeline import Pipeline, most_steps
from jrnn.train.step import TrainState, Weights, init_state, make_train_steps


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient was NaN or infinite; checkpoints saved before it are whole."""


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


class Run:
    """A run between two of its steps.

    Attributes:
      step: training steps done or under way.
    """

    def __init__(self, experiment: Experiment, data: Data, folder: Path, team: Team | None = None):
        """Draws the parameters and opens the folder; `begin` or `resume` comes next.

        Args:
          experiment: what to do.
          data: its data.
          folder: what the first process of the team writes to.
          team: the processes that do it together; by default this one alone.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        self.step = 0
        self._experiment, self._folder = experiment, folder
        team = self._team = team or Team()
        mesh = self._mesh = Mesh.of(experiment.mesh)
        split = data.validation
        self._validation = mesh.everywhere(split) if fits(split) else split
        optimizer = experiment.optim.build(experiment.steps)
        engine = mesh.engine(experiment.network.engine)
        network = experiment.network.build(data, experiment.seed, engine)
        self._graphdef, state = init_state(network, optimizer)
        state = agreed(state, team)
        course = Course.of(experiment, data)
        carry = course.first_carry(self._graphdef, Weights(state.params, state.rest))
        self._state = mesh.place(state._replace(carry=carry))
        self._best = self._weights()
        feed = Feed(course.split, course.reader(experiment.seed), most_steps(experiment), mesh)
        steps = make_train_steps(
            self._graphdef,
            Objective.of(data),
            optimizer,
            feed.batch,
            course.forward,
            experiment.accumulate,
            mesh.kept,
            mesh.whole,
        )
        self._pipeline = Pipeline(mesh.within(steps), feed, experiment, team)
        evaluation = mesh.evaluation(evaluator(self._graphdef, experiment, data))
        self._evaluate = mesh.within(evaluation.compiled())
        self._ledger = Ledger(experiment, data.metric, folder, writing=team.first)
        self._checkpoints = Keeper(folder / "checkpoints", team)
        self._saved = self._counted = time.perf_counter()

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
        self._ledger.begin()
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
        self._ledger.resume(found.record)
        self._checkpoints.put_aside(after=found.step)
        self._state = self._mesh.place(TrainState(**found.arrays["state"]))
        self._best = self._mesh.place(Weights(**found.arrays["best"]))
        self.step = found.step

    def advance(self) -> None:
        """Sends some steps off, and none beyond the next evaluation.

        Raises:
          NonFiniteLoss: a loss or gradient of the dispatch before is NaN or infinite.
        """
        self._state, count = self._pipeline.send(self._state, self.step)
        self.step += count
        if self._pipeline.waiting() > 1:
            self._read()

    def settle(self) -> None:
        """Waits for all steps that are under way, and writes down what they report.

        Raises:
          NonFiniteLoss: as for `advance`.
        """
        while self._pipeline.waiting():
            self._read()

    def validate(self) -> dict[str, float]:
        """Loss and metric on the validation split; keeps the weights if they are the best."""
        self.settle()
        found = self._team.told("validation", self._evaluate(self._state, self._validation))
        self._check("loss", np.array([found["loss"]]), self.step)
        if self._ledger.validated(self.step, found):
            self._best = self._weights()
        self._pipeline.rested()
        return found

    def save(self) -> None:
        """Saves all of it in the background.

        Raises:
          CheckpointError: this checkpoint or the one before could not be written.
          NonFiniteLoss: as for `advance`.
        """
        self.settle()
        now = time.perf_counter()
        self._ledger.record.seconds += now - self._counted
        arrays = self._mesh.fetched(self._arrays())
        self._checkpoints.save(Checkpoint(self.step, arrays, self._ledger.saved()))
        self._counted = now
        self._saved = time.perf_counter()
        self._pipeline.rested()

    def ended(self) -> bool:
        """Whether all steps are done, or the patience is."""
        return self._ledger.tired() or self.step == self._experiment.steps

    def means(self) -> dict[str, float]:
        """Loss, metric and norm of the gradient in the newest line of metrics; empty at first."""
        return self._ledger.means

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
        record, weights = self._ledger.record, self._mesh.fetched(self._best)
        return Best(self._graphdef, weights, record.best_step, record.best)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and metric of the best network so far on a split."""
        return self._evaluate(self._best, split)

    def seconds(self) -> float:
        """Time spent on the run up to its last checkpoint."""
        return self._ledger.record.seconds

    def _weights(self) -> Weights:
        """A copy of the weights, since the next step takes over the state."""
        return jax.tree.map(jnp.copy, Weights(self._state.params, self._state.rest))

    def _arrays(self) -> dict[str, Any]:
        return {"state": self._state._asdict(), "best": self._best._asdict()}

    def _read(self) -> None:
        """Reads the reports of the oldest dispatch, checks them and writes its lines."""
        first, count, values = self._pipeline.read()
        values = jax.tree.map(lambda all_: all_[:count], values)
        self._check("loss", values.loss, first)
        # A gradient that is no number spoils the parameters, which only the next loss would show.
        self._check("gradient", values.grad_norm, first)
        self._ledger.trained(first, values)

    def _check(self, name: str, values: np.ndarray, first: int) -> None:
        """Raises if one of the values, the first of which is of step `first`, is not a number."""
        bad = np.flatnonzero(~np.isfinite(values))
        if not len(bad):
            return
        with contextlib.suppress(CheckpointError):
            self.wait()
        raise NonFiniteLoss(
            f"train: the {name} is {values[bad[0]]} at step {first + bad[0]}; the "
            f"last good checkpoint is of step {self._checkpoints.steps()[-1]}. Try a lower "
            "learning rate, a smaller clip_norm, or look for NaN in the data"
        )
