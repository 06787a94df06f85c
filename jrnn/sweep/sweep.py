"""Trains many runs, those that differ only in scalar hyper-parameters in one compilation."""

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from jrnn.distributed import ProcessGroup
from jrnn.sweep.trials import group_trials, stack_scalars, fix_scalars
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks import load
from jrnn.tasks.task import Data, Task
from jrnn.train.config.experiment import Experiment
from jrnn.train.run.best import BestTracker, index_of_best
from jrnn.train.run.checkpoint import Checkpoint, Checkpointer
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.progress import Progress
from jrnn.train.run.signals import Signals, run_lock
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import HIGHER_IS_BETTER
from jrnn.train.train import check_experiment

BEST = "best"
"""Subfolder of a sweep with the run of its best trial."""


class TrialResult(NamedTuple):
    """The result of one trial of a sweep.

    Attributes:
      step: training step of the weights with the best metric on the validation split.
      validation: loss and metric of these on the validation split; empty if never evaluated.
      test: loss and metric of these on the test split; empty if never evaluated.
      stopped: why the trial stopped before its last step; empty if it did not.
    """

    step: int
    validation: dict[str, float]
    test: dict[str, float]
    stopped: str


class SweepResult(NamedTuple):
    """The result of a sweep.

    Attributes:
      trials: one result for each trial.
      best: the index of the trial with the best metric on the validation split; None if none was
        evaluated.
      groups: the indices of the trials of each compilation.
      seconds: wall time of the training, over all parts of a sweep that was resumed.
    """

    trials: list[TrialResult]
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
) -> SweepResult:
    """Trains all trials of a sweep, and saves the best one as a run.

    Trials that differ in the seed, in scalars of the optimizer, in rates of dropout or in what is
    read only at initialization are one group, trained in one compilation and spread over all
    devices of this process; any other difference makes another group. Each trial is trained as it
    would be alone: with its own parameters, noise, order of examples, and end.

    Args:
      experiments: the trials; `run_dir` is not used.
      folder: for `trials/NUMBER/metrics.jsonl`, `groups/NUMBER/checkpoints`, and `best`, which has
        the checkpoint and the metrics of the best trial, in the same form as `train` writes them.
      loaded: the data of their tasks, if `load_tasks` has loaded them already.
      resume: whether to continue from the newest checkpoints in the folder.
      width: number of trials of one `jax.vmap`; by default all trials of a device, and on a CPU,
        which gains nothing from it, one.

    Returns:
      The result of each trial, and the best of them.

    Raises:
      ValueError: there are no experiments, or the options and data of a trial are incompatible.
      Interrupted, CheckpointError, BlockingIOError: as for `fit`.
    """
    loaded = load_tasks(experiments) if loaded is None else loaded
    check_trials(experiments, loaded)
    groups = group_trials(experiments, loaded)
    results: dict[int, TrialResult] = {}
    trackers: dict[int, BestTracker] = {}
    best: tuple[int, Checkpoint] | None = None
    seconds = 0.0
    devices = tuple(jax.local_devices())
    process = ProcessGroup(resume_command=f"jrnn sweep --resume {shlex.quote(str(folder))}")
    with run_lock(folder), Signals() as signals:
        for number, indices in enumerate(groups):
            group = [experiments[index] for index in indices]
            first, data = group[0], loaded[group[0].task]
            runs = VmappedRuns(
                [partial(e.network.build, data, e.seed) for e in group],
                plan_task(data, first, first.tbptt),
                first.optimizer,
                stack_scalars([e.optimizer for e in group]),
                first,
                [e.seed for e in group],
                TrialDevices(devices[: len(indices)], width),
            )
            trainer = Trainer(
                runs,
                first,
                HIGHER_IS_BETTER[data.metric],
                folder / "groups" / str(number),
                process,
                descriptions=[e.network.description() for e in group],
                metrics_folders=[trial_folder(folder, index) for index in indices],
                patience=[e.patience for e in group],
                stop_all_if_non_finite=False,
            )
            title = f"group {number + 1} of {len(groups)}, {len(indices)} trials:"
            with (
                contextlib.closing(trainer),
                Progress(first.steps, data.metric, title) as progress,
            ):
                trainer.resume() if resume else trainer.begin()
                trainer.fit(signals, progress)
                results |= zip(indices, _results(trainer, data), strict=True)
                trackers |= zip(indices, trainer.trackers, strict=True)
                seconds += trainer.seconds
                # Only the best trial so far stays in memory, since states may be large.
                index = _index_of_best(trackers)
                if index in indices:
                    best = index, trainer.checkpoint_of(indices.index(index))
        if best is not None:
            index, checkpoint = best
            _write_run(checkpoint, trial_folder(folder, index), folder / BEST)
        ordered = [results[index] for index in range(len(experiments))]
        return SweepResult(ordered, None if best is None else best[0], groups, seconds)


def load_tasks(experiments: Sequence[Experiment]) -> dict[Task, Data]:
    """The data of the tasks of some experiments, each loaded once."""
    return {task: load(task) for task in dict.fromkeys(e.task for e in experiments)}


def check_trials(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> None:
    """Raises unless all trials can be trained, without drawing or compiling anything.

    Args:
      experiments: the trials.
      loaded: the data of their tasks, from `load_tasks`.

    Raises:
      ValueError: there are no trials, one cannot be trained, or their metrics differ.
    """
    if not experiments:
        raise ValueError("sweep: there must be at least one trial")
    if jax.process_count() > 1:
        raise ValueError("sweep: uses the devices of one process, but there are several processes")
    first = {fix_scalars(e): index for index, e in reversed([*enumerate(experiments)])}
    for index in sorted(first.values()):
        experiment = experiments[index]
        if experiment.mesh is not None:
            raise ValueError(
                f"sweep: trial {index}: mesh must be None, since trials are spread over all "
                f"devices, got {experiment.mesh!r}; remove mesh"
            )
        try:
            check_experiment(experiment, loaded[experiment.task])
        except ValueError as error:
            raise ValueError(f"sweep: trial {index}: {error}") from error
    metrics = sorted({data.metric for data in loaded.values()})
    if len(metrics) > 1:
        raise ValueError(
            f"sweep: all trials must have the same metric, got {', '.join(metrics)}; sweep over "
            "one task at a time"
        )


def trial_folder(folder: Path, index: int) -> Path:
    """The folder of the metrics of a trial."""
    return folder / "trials" / f"{index:03d}"


def _index_of_best(trackers: dict[int, BestTracker]) -> int | None:
    indices = sorted(trackers)
    best = index_of_best([trackers[index] for index in indices])
    return None if best is None else indices[best]


def _results(trainer: Trainer, data: Data) -> list[TrialResult]:
    tests = trainer.evaluate(data.test)
    return [
        TrialResult(t.step, t.best, test if t.best else {}, trainer.stopped.get(index, ""))
        for index, (t, test) in enumerate(zip(trainer.trackers, tests, strict=True))
    ]


def _write_run(checkpoint: Checkpoint, trial: Path, folder: Path) -> None:
    """Writes the folder of a run of one trial."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    shutil.copyfile(trial / "metrics.jsonl", folder / "metrics.jsonl")
    with contextlib.closing(Checkpointer(folder / "checkpoints", writing=True)) as checkpoints:
        checkpoints.save(checkpoint)
        checkpoints.wait()
