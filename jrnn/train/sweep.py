"""Many runs at once: those that differ in numbers alone are trained by one compiled code."""

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jrnn.processes import Team
from jrnn.tasks import load
from jrnn.tasks.task import Data, Task
from jrnn.train.checkpoint import Checkpoint, Checkpoints
from jrnn.train.experiment import Experiment
from jrnn.train.guard import Signals, one_process
from jrnn.train.loop import check, drive
from jrnn.train.members import Layout, groups, without_numbers
from jrnn.train.population import Population, best_of
from jrnn.train.progress import Progress

BEST = "best"
"""Folder within that of a sweep which is the run of its best member."""


class Outcome(NamedTuple):
    """What one member of a sweep reached.

    Attributes:
      step: of its best weights on the validation split.
      validation: loss and metric there on the validation split; empty if it was never evaluated.
      test: loss and metric there on the test split.
      ended: why it ended before its last step; empty if it did not.
    """

    step: int
    validation: dict[str, float]
    test: dict[str, float]
    ended: str


class Swept(NamedTuple):
    """What a sweep ends with.

    Attributes:
      outcomes: one for each member.
      best: the member with the best metric on the validation split; None if none has any.
      groups: the members that were trained by the same compiled code, for each such code.
      seconds: wall time of the training, over all parts of a sweep that was resumed.
    """

    outcomes: list[Outcome]
    best: int | None
    groups: list[list[int]]
    seconds: float


def sweep(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    loaded: Mapping[Task, Data] | None = None,
    resume: bool = False,
    width: int | None = None,
) -> Swept:
    """Trains all members of a sweep, and keeps the best one as a run of its own.

    Members that differ in the seed, in numbers of the optimiser, in rates of dropout or in what the
    initialisation alone reads are one group, trained by one compiled code and spread over all
    devices of this process; any other difference makes a further group. Each member goes as its run
    by itself would go: with its own parameters, noise and order of examples, and its own end.

    Args:
      experiments: the members; `run_dir` is not used.
      folder: gets `members/NUMBER/metrics.jsonl`, `groups/NUMBER/checkpoints`, and `best`, which
        holds the checkpoint and the metrics of the best member, as `train` leaves them.
      loaded: the data of their tasks, if `tasks_of` has loaded them already.
      resume: go on from the newest checkpoints in the folder.
      width: members in one `jax.vmap`; by default all members on a device, and on a CPU, where it
        gains nothing, one after another.

    Returns:
      What each member reached, and which was the best.

    Raises:
      ValueError: no experiments, or options and data do not fit; says which member.
      Interrupted, CheckpointError, BlockingIOError: as for `train`.
    """
    loaded = tasks_of(experiments) if loaded is None else loaded
    check_members(experiments, loaded)
    parts = groups(experiments, loaded)
    outcomes: dict[int, Outcome] = {}
    kept: dict[int, Checkpoint] = {}
    seconds = 0.0
    devices = tuple(jax.local_devices())
    with one_process(folder), Signals() as signals:
        for number, places in enumerate(parts):
            layout = Layout(devices[: len(places)], width)
            members = [experiments[place] for place in places]
            data = loaded[members[0].task]
            paths = [member_folder(folder, place) for place in places]
            home = folder / "groups" / str(number)
            title = f"group {number + 1} of {len(parts)}, {len(places)} members:"
            with (
                contextlib.closing(Population(members, data, home, paths, layout)) as population,
                Progress(members[0].steps, data.metric, title) as progress,
            ):
                population.resume() if resume else population.begin()
                team = Team(again=f"jrnn sweep --resume {shlex.quote(str(folder))}")
                drive(population, members[0], team, signals, progress)
                outcomes |= zip(places, _outcomes(population, data), strict=True)
                seconds += population.seconds()
                # Of all groups so far one member is kept, since states may be large.
                best = _best(data.metric, outcomes)
                if best in places:
                    kept = {best: population.checkpoint(places.index(best))}
        ordered = [outcomes[place] for place in range(len(experiments))]
        for place, checkpoint in kept.items():
            _keep(checkpoint, member_folder(folder, place), folder / BEST)
        return Swept(ordered, next(iter(kept), None), parts, seconds)


def tasks_of(experiments: Sequence[Experiment]) -> dict[Task, Data]:
    """The data of each task among some experiments, loaded once."""
    return {task: load(task) for task in dict.fromkeys(e.task for e in experiments)}


def check_members(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> None:
    """Refuses what does not fit, before anything is drawn or compiled.

    Args:
      experiments: the members.
      loaded: as from `tasks_of`.

    Raises:
      ValueError: no members, one that cannot be trained, or members whose metrics differ.
    """
    if not experiments:
        raise ValueError("sweep: there must be at least one member")
    if jax.process_count() > 1:
        raise ValueError("sweep: takes the devices of one process, and there are several")
    first = {without_numbers(e): number for number, e in reversed([*enumerate(experiments)])}
    for number in sorted(first.values()):
        experiment = experiments[number]
        if experiment.mesh is not None:
            raise ValueError(
                f"sweep: member {number}: members are spread over all devices by themselves; leave "
                "out mesh"
            )
        try:
            check(experiment, loaded[experiment.task])
        except ValueError as error:
            raise ValueError(f"sweep: member {number}: {error}") from error
    metrics = sorted({data.metric for data in loaded.values()})
    if len(metrics) > 1:
        raise ValueError(
            f"sweep: members must share a metric to be compared by, got {', '.join(metrics)}; "
            "sweep over one task at a time"
        )


def member_folder(folder: Path, number: int) -> Path:
    """Where the metrics of a member lie."""
    return folder / "members" / f"{number:03d}"


def _best(metric: str, outcomes: dict[int, Outcome]) -> int | None:
    places = sorted(outcomes)
    found = best_of(metric, [outcomes[place].validation for place in places])
    return None if found is None else places[found]


def _outcomes(population: Population, data: Data) -> list[Outcome]:
    test = population.evaluate(data.test)
    return [
        Outcome(
            population.best_step(number),
            validation,
            test[number] if validation else {},
            population.stopped.get(number, ""),
        )
        for number, validation in enumerate(population.bests())
    ]


def _keep(checkpoint: Checkpoint, member: Path, folder: Path) -> None:
    """Makes a run of a member."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    shutil.copyfile(member / "metrics.jsonl", folder / "metrics.jsonl")
    with contextlib.closing(Checkpoints(folder / "checkpoints", writing=True)) as checkpoints:
        checkpoints.save(checkpoint)
        checkpoints.wait()
