"""A group of runs that are trained together, as it lies in memory."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrnn.tasks.task import Data, Split
from jrnn.train.checkpoint import Checkpoint, Checkpoints
from jrnn.train.course import Course, evaluator
from jrnn.train.data import Plan, Reader, filled, fits
from jrnn.train.experiment import Experiment
from jrnn.train.ledger import Ledger
from jrnn.train.members import (
    Layout,
    Numbers,
    member,
    member_evaluate,
    member_steps,
    numbers_of,
    stacked,
)
from jrnn.train.objective import Objective, better
from jrnn.train.pipeline import Pipeline, most_steps
from jrnn.train.step import TrainState, Weights, init_state


class Plans:
    """What the next steps of every member take of a split that lies on the device."""

    def __init__(self, readers: Sequence[Reader], most: int):
        """With one reader a member, and at most so many steps at once."""
        self._readers, self.most = readers, most

    def next(self, first: int, count: int) -> tuple[Plan, ...]:
        """Plans `[members, most, ...]`, of which the first `count` of each are to be used."""
        each = [filled(reader.plan(first, count), self.most) for reader in self._readers]
        return (jax.tree.map(lambda *plans: np.stack(plans), *each),)


class Population:
    """Runs that differ in numbers alone, between two of their steps.

    It goes as `Run` does, with all members at once. A member whose loss is not a number, or whose
    patience is at its end, stays as it is while the others go on.

    Attributes:
      step: training steps done or under way.
      stopped: why members ended before the others, by their number.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        data: Data,
        folder: Path,
        ledgers: Sequence[Path],
        layout: Layout,
    ):
        """Draws all parameters and opens the folder; `begin` or `resume` comes next.

        Args:
          experiments: of one part of `members.groups`.
          data: their data.
          folder: gets `checkpoints`.
          ledgers: for each member the folder of its `metrics.jsonl`.
          layout: where they lie.

        Raises:
          ValueError: the training split does not fit on the device.
          CheckpointError: the folder cannot be written to.
        """
        self.step = 0
        self.stopped = dict[int, str]()
        self._experiment = experiments[0]
        self._layout, self._metric = layout, data.metric
        course = Course.of(self._experiment, data)
        if not (fits(course.split) and fits(data.validation)):
            raise ValueError(
                "sweep: the members share splits that lie on the device, and those of this task "
                "are too large for that; train the members one by one by jrnn train"
            )
        # Places beyond the members, which fill up the devices, hold copies that never move.
        spare = layout.places(len(experiments)) - len(experiments)
        everyone = [*experiments, *[experiments[-1]] * spare]
        self._draw(everyone, data, course)
        source = layout.put_shared(course.split)
        self._validation = layout.put_shared(data.validation)
        objective, reader = Objective.of(data), course.reader(0)
        steps = member_steps(
            self._experiment, self._graphdef, objective, course, reader.batch, layout
        )
        readers = [course.reader(each.seed) for each in everyone]
        self._pipeline = Pipeline(
            lambda state, plans, count: steps(
                state, self._numbers, layout.put(plans), layout.put(self._counts(count)), source
            ),
            Plans(readers, most_steps(self._experiment)),
            self._experiment,
        )
        evaluation = evaluator(self._graphdef, self._experiment, data)
        self._evaluate = member_evaluate(evaluation, layout)
        self._ledgers = [
            Ledger(each, data.metric, path) for each, path in zip(experiments, ledgers, strict=True)
        ]
        self._checkpoints = Checkpoints(folder / "checkpoints", writing=True)
        self._seconds = 0.0
        self._saved = self._counted = time.perf_counter()

    def begin(self) -> None:
        """Begins anew, with a checkpoint of step 0.

        Raises:
          CheckpointError: nothing can be written there.
          ValueError: the folder of a member holds metrics.
        """
        for ledger in self._ledgers:
            ledger.begin()
        self.save()
        self.wait()

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, or begins where there is none.

        Raises:
          CheckpointError: all checkpoints are damaged.
          ValueError: lines of the metrics are missing.
        """
        found = self._checkpoints.newest(self._arrays())
        if found is None:
            self.begin()
            return
        record = found.record
        for ledger, each in zip(self._ledgers, record["members"], strict=True):
            ledger.resume(each)
        self._checkpoints.put_aside(after=found.step)
        self._state = self._layout.put(TrainState(**found.arrays["state"]))
        self._best = self._layout.put(Weights(**found.arrays["best"]))
        self.stopped = {int(number): why for number, why in record["stopped"].items()}
        self.step, self._seconds = found.step, record["seconds"]

    def advance(self) -> None:
        """Sends some steps of all members off, and none beyond the next evaluation."""
        self._state, count = self._pipeline.send(self._state, self.step)
        self.step += count
        if self._pipeline.waiting() > 1:
            self._read()

    def settle(self) -> None:
        """Waits for all steps that are under way, and writes down what they report."""
        while self._pipeline.waiting():
            self._read()

    def validate(self) -> dict[str, float]:
        """Loss and metric of each member on the validation split; keeps the weights of the best.

        Returns:
          The loss and metric of the member that is best so far.
        """
        self.settle()
        improved = np.zeros(len(self._counts(1)), bool)
        found = self._evaluate(self._weights(), self._validation)
        for number in self._going():
            if not np.isfinite(found[number]["loss"]):
                self.stopped[number] = f"loss {found[number]['loss']} at step {self.step}"
                continue
            improved[number] = self._ledgers[number].validated(self.step, found[number])
            if self._ledgers[number].tired() and self.step < self._experiment.steps:
                self.stopped[number] = f"patience ended at step {self.step}"
        self._best = _chosen(self._layout.put(improved), self._weights(), self._best)
        self._pipeline.rested()
        leader = best_of(self._metric, self.bests())
        return {} if leader is None else self.bests()[leader]

    def save(self) -> None:
        """Saves all members in the background.

        Raises:
          CheckpointError: this checkpoint or the one before could not be written.
        """
        self.settle()
        now = time.perf_counter()
        self._seconds += now - self._counted
        record = {
            "members": [ledger.saved() for ledger in self._ledgers],
            "stopped": {str(number): why for number, why in self.stopped.items()},
            "seconds": self._seconds,
        }
        self._checkpoints.save(Checkpoint(self.step, self._arrays(), record))
        self._counted = now
        self._saved = time.perf_counter()
        self._pipeline.rested()

    def ended(self) -> bool:
        """Whether all steps are done, or no member goes on."""
        return not self._going() or self.step == self._experiment.steps

    def means(self) -> dict[str, float]:
        """The means over all members that go on of the newest lines of their metrics."""
        lines = [self._ledgers[number].means for number in self._going()]
        if not lines or not all(lines):
            return {}
        return {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}

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

    def bests(self) -> list[dict[str, float]]:
        """For each member its best loss and metric on the validation split; empty where none is."""
        return [ledger.record.best for ledger in self._ledgers]

    def best_step(self, number: int) -> int:
        """The step of the best weights of a member."""
        return self._ledgers[number].record.best_step

    def evaluate(self, split: Split) -> list[dict[str, float]]:
        """Loss and metric of the best network of each member so far on a split."""
        return self._evaluate(self._best, split)[: len(self._ledgers)]

    def seconds(self) -> float:
        """Time spent on all members up to the last checkpoint."""
        return self._seconds

    def checkpoint(self, number: int) -> Checkpoint:
        """All that moves in the run of one member, as a run by itself would save it."""
        arrays = {name: member(tree, number) for name, tree in self._arrays().items()}
        record = self._ledgers[number].saved() | {"seconds": self._seconds}
        return Checkpoint(int(self._state.step[number]), arrays, record)

    def _draw(self, everyone: Sequence[Experiment], data: Data, course: Course) -> None:
        optimizer = self._experiment.optim.build(self._experiment.steps)
        drawn = [init_state(e.network.build(data, e.seed), optimizer) for e in everyone]
        self._graphdef = drawn[0][0]
        state = stacked([state for _, state in drawn])
        carry = course.first_carry(self._graphdef, Weights(drawn[0][1].params, drawn[0][1].rest))
        carry = stacked([carry] * len(everyone))
        self._state: TrainState = self._layout.put(state._replace(carry=carry))
        self._numbers: Numbers = self._layout.put(numbers_of([e.optim for e in everyone]))
        self._best = jax.tree.map(jnp.copy, self._weights())

    def _weights(self) -> Weights:
        return Weights(self._state.params, self._state.rest)

    def _arrays(self) -> dict[str, Any]:
        return {"state": self._state._asdict(), "best": self._best._asdict()}

    def _going(self) -> list[int]:
        """The members that have not ended."""
        return [number for number in range(len(self._ledgers)) if number not in self.stopped]

    def _counts(self, count: int) -> np.ndarray:
        """So many steps for each place with a member that goes on, and none for the others."""
        counts = np.zeros(self._layout.places(len(self._ledgers)), np.int32)
        counts[self._going()] = count
        return counts

    def _read(self) -> None:
        """Reads the reports of the oldest dispatch, and writes the lines of each member."""
        first, steps, values = self._pipeline.read()
        for number in self._going():
            mine = jax.tree.map(lambda all_, n=number: all_[n, :steps], values)
            bad = np.flatnonzero(~np.isfinite(mine.loss) | ~np.isfinite(mine.grad_norm))
            if len(bad):
                name, found = (
                    ("loss", mine.loss)
                    if not np.isfinite(mine.loss[bad[0]])
                    else ("gradient", mine.grad_norm)
                )
                self.stopped[number] = f"{name} {found[bad[0]]} at step {first + bad[0]}"
            else:
                self._ledgers[number].trained(first, mine)


def best_of(metric: str, found: Sequence[dict[str, float]]) -> int | None:
    """Which of some has the best metric; the first of equals, and None where there is none."""
    best = None
    for number, each in enumerate(found):
        if each and (best is None or better(metric, each["metric"], found[best]["metric"])):
            best = number
    return best


@jax.jit
def _chosen(first: jax.Array, ours: Any, theirs: Any) -> Any:
    """For each member ours where `first` is True, else theirs."""
    each = lambda choice, one, other: jax.tree.map(lambda a, b: jnp.where(choice, a, b), one, other)
    return jax.vmap(each)(first, ours, theirs)
