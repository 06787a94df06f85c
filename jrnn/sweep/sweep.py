"""Trains the trials of a sweep.

Trials that differ only in scalar hyper-parameters share a compilation.
"""

import contextlib
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from jrnn import checks
from jrnn.distributed import ProcessGroup
from jrnn.files import naming_file, replace_folder
from jrnn.signals import Signals
from jrnn.sweep.ray_files import STAGED_CHECKPOINT
from jrnn.sweep.trials import fix_scalars, group_trials, stack_scalars
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks import load
from jrnn.tasks.task import Data, Task
from jrnn.train.config.experiment import Experiment, resume_flags
from jrnn.train.run.checkpoint import Checkpoint, Checkpointer, list_steps
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.lock import run_lock
from jrnn.train.run.progress import Progress
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import HIGHER_IS_BETTER
from jrnn.train.train import check_experiment, check_memory

BEST = "best"
"""Name of the subfolder of a sweep that contains its best trial as a run; see `best_folder`."""


class TrialResult(NamedTuple):
    """The result of one trial of a sweep.

    Attributes:
      step: training step of the best weights, those with the best metric on the validation split.
      validation: loss and metric of the best weights on the validation split; empty if the trial
        was not evaluated.
      test: loss and metric of the best weights on the test split; empty if the trial was not
        evaluated.
      stopped: reason why the trial stopped early; empty if it did not.
    """

    step: int
    validation: dict[str, float]
    test: dict[str, float]
    stopped: str


class SweepResult(NamedTuple):
    """The result of a sweep.

    Attributes:
      trials: the result of each trial.
      best: index of the trial with the best metric on the validation split; None if no trial was
        evaluated.
      groups: for each compilation, the indices of the trials that share it.
      seconds: wall time of training, including the time before the sweep was resumed.
      kept: indices of the trials whose weights are saved as runs, the best one first.
    """

    trials: list[TrialResult]
    best: int | None
    groups: list[list[int]]
    seconds: float
    kept: Sequence[int] = ()


class Trials(NamedTuple):
    """The trials of a sweep, which are ready to be trained.

    Attributes:
      experiments: the trials.
      loaded: the data of their tasks.
      groups: for each compilation the indices of its trials, in increasing order.
      width: number of trials in one `jax.vmap`, or None; see `sweep`.
      keep: number of the best trials whose weights are saved as runs.
    """

    experiments: Sequence[Experiment]
    loaded: Mapping[Task, Data]
    groups: list[list[int]]
    width: int | None
    keep: int = 1


TrainTrials = Callable[[Trials, Path, bool, Signals], SweepResult]
"""A function that trains all trials, from `(trials, folder, resume, signals)`; see `sweep`.

It raises `Interrupted` if a signal is received, after it has saved everything.
"""


def sweep(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    loaded: Mapping[Task, Data] | None = None,
    resume: bool = False,
    width: int | None = None,
    keep: int = 1,
    train_trials: TrainTrials | None = None,
) -> SweepResult:
    """Trains all trials of a sweep, and saves the best ones as runs.

    Trials form one group if they differ only in the seed, in scalars of the optimizer (see
    `TRACEABLE_FIELDS`), `ema_decay`, `label_smoothing` or `network.dropout` above 0, in `patience`,
    `save_every` or `run_dir`, or in options that are read only at initialization; any other
    difference makes another group. A
    group is trained with one compilation, distributed over all devices of this process, and uses
    the `save_every` of its first trial. Each trial is trained as in a separate run: with its own
    parameters, noise, order of examples, and early stopping.

    Args:
      experiments: the trials; `run_dir` is ignored.
      folder: folder for `trials/NUMBER/metrics.jsonl`, `groups/NUMBER/checkpoints`, and `best`,
        which contains the checkpoint and the metrics of the best trial as `train` writes them;
        `best-2`, `best-3`, ... contain those of the next ones.
      loaded: the data of the tasks, from `load_tasks`; None loads them.
      resume: whether to continue from the latest checkpoints in the folder.
      width: number of trials in one `jax.vmap`; None means all trials of a device, or one trial on
        a CPU, where larger batches are not faster.
      keep: number of the best trials whose weights are saved as runs; this many checkpoints are
        stored in memory at a time.
      train_trials: where to train: the method `train` of a `RayCluster` trains on a cluster; None
        trains in this process.

    Returns:
      The results.

    Raises:
      ValueError, TypeError: as for `check_trials`; also ValueError if a split does not fit on the
        device, or `keep` is not a positive int.
      Interrupted, CheckpointError, FileExistsError, BlockingIOError, OSError: as for `fit`.
    """
    keep = checks.positive_int("sweep", "keep", keep)
    loaded = load_tasks(experiments) if loaded is None else loaded
    check_trials(experiments, loaded)
    trials = Trials(experiments, loaded, group_trials(experiments, loaded), width, keep)
    with run_lock(folder), Signals() as signals:
        return (train_trials or train_in_process)(trials, folder, resume, signals)


def train_in_process(
    trials: Trials,
    folder: Path,
    resume: bool,
    signals: Signals,
    make_progress: Callable[..., Progress] = Progress,
) -> SweepResult:
    """Trains all groups in this process, one after another, and saves the best trials as runs.

    Args:
      trials: the trials.
      folder: the folder of the sweep; the caller holds its lock.
      resume: whether to continue from the latest checkpoints in the folder.
      signals: a signal stops the sweep.
      make_progress: makes the progress bar of a group, from the arguments of `Progress`.

    Returns:
      The results.

    Raises:
      ValueError: the training or validation split does not fit on the device.
      Interrupted, CheckpointError, FileExistsError, OSError: as for `fit`.
    """
    experiments, loaded, groups, width, keep = trials
    results: dict[int, TrialResult] = {}
    checkpoints: dict[int, Checkpoint] = {}
    seconds = 0.0
    devices = tuple(jax.local_devices())
    command = resume_command(folder, experiments)
    for number, indices in enumerate(groups):
        if resume:
            discard_staged(folder, number, indices)
        group = [experiments[index] for index in indices]
        first, data = group[0], loaded[group[0].task]
        runs = VmappedRuns(
            [partial(e.network.build, data, e.seed) for e in group],
            plan_task(data, first, first.tbptt),
            first.optimizer,
            stack_scalars([e.optimizer for e in group], group),
            first,
            [e.seed for e in group],
            TrialDevices(devices[: len(indices)], width),
        )
        trainer = Trainer(
            runs,
            first,
            HIGHER_IS_BETTER[data.metric],
            group_folder(folder, number),
            ProcessGroup(),
            descriptions=[e.network.description() for e in group],
            metrics_folders=[trial_folder(folder, index) for index in indices],
            patience=[e.patience for e in group],
            stop_all_if_non_finite=False,
            resume_command=command,
        )
        title = f"group {number + 1} of {len(groups)}, {len(indices)} trials:"
        with (
            contextlib.closing(trainer),
            make_progress(first.steps, data.metric, title) as progress,
        ):
            trainer.resume() if resume else trainer.begin()
            trainer.fit(signals, progress)
            results |= zip(indices, _make_results(trainer, data), strict=True)
            seconds += trainer.seconds
            # Only the weights of the best trials so far stay in memory, since they may be large.
            kept = rank_trials(results, data)[:keep]
            checkpoints = {index: c for index, c in checkpoints.items() if index in kept}
            for index in sorted({*kept} & {*indices}):
                checkpoints[index] = trainer.trial_checkpoint(indices.index(index))
    kept = rank_trials(results, loaded[experiments[0].task])[:keep]
    for rank, index in enumerate(kept):
        _write_best(checkpoints[index], trial_folder(folder, index), best_folder(folder, rank))
    remove_best_folders(folder, from_rank=len(kept))
    ordered = [results[index] for index in range(len(experiments))]
    return SweepResult(ordered, kept[0] if kept else None, groups, seconds, kept)


def load_tasks(experiments: Sequence[Experiment]) -> dict[Task, Data]:
    """Loads the data of the tasks of all experiments, each task once."""
    return {task: load(task) for task in dict.fromkeys(e.task for e in experiments)}


def check_trials(experiments: Sequence[Experiment], loaded: Mapping[Task, Data]) -> None:
    """Checks that all trials can be trained, without initialization or compilation.

    Args:
      experiments: the trials.
      loaded: the data of their tasks, from `load_tasks`.

    Raises:
      TypeError: an array of the data has a wrong dtype.
      ValueError: there are no trials, the options and data of a trial are incompatible, a trial has
        a mesh or `init_from`, the memory does not suffice, the metrics of the trials differ, or
        there are several processes.
    """
    if not experiments:
        raise ValueError("sweep: experiments must have at least one trial, got none")
    if jax.process_count() > 1:
        raise ValueError(
            f"sweep: number of processes must be 1, got {jax.process_count()}; start one process"
        )
    fixed = [fix_scalars(e) for e in experiments]
    # The first of the trials that differ only in scalar hyper-parameters.
    representatives = {e: index for index, e in reversed([*enumerate(fixed)])}
    counts = Counter(fixed)
    for index in sorted(representatives.values()):
        experiment = experiments[index]
        if experiment.mesh is not None:
            raise ValueError(
                f"sweep: trial {index}: mesh must be None, since trials are distributed over all "
                f"devices, got {experiment.mesh!r}; remove mesh"
            )
        if experiment.init_from is not None:
            raise ValueError(
                f"sweep: trial {index}: init_from must be None, got {experiment.init_from!r}; "
                "fine-tune by jrnn train"
            )
        try:
            data = loaded[experiment.task]
            graphdef, state = check_experiment(experiment, data)
            check_memory(experiment, data, graphdef, state, trials=counts[fixed[index]])
        except ValueError as error:
            raise ValueError(f"sweep: trial {index}: {error}") from error
    metrics = sorted({data.metric for data in loaded.values()})
    if len(metrics) > 1:
        raise ValueError(
            f"sweep: all trials must have the same metric, got {', '.join(metrics)}; sweep over "
            "one task at a time"
        )


def trial_folder(folder: Path, index: int) -> Path:
    """Returns the folder with the metrics of a trial."""
    return folder / "trials" / f"{index:03d}"


def group_folder(folder: Path, number: int) -> Path:
    """Returns the folder with the checkpoints of a group."""
    return folder / "groups" / str(number)


def discard_staged(folder: Path, number: int, indices: Sequence[int]) -> None:
    """Removes a checkpoint of a group that a sweep on a Ray cluster has not written completely.

    If it would be the first one of the group, the metrics of its trials are removed too, because
    training cannot continue from them. Metrics without any checkpoint, complete or not, are kept.

    Args:
      folder: the folder of the sweep.
      number: the index of the group.
      indices: the indices of its trials.

    Raises:
      WriteError: the metrics cannot be removed.
    """
    group = group_folder(folder, number)
    if not (group / STAGED_CHECKPOINT).is_dir():
        return
    if not list_steps(group / "checkpoints"):
        for index in indices:
            path = trial_folder(folder, index) / "metrics.jsonl"
            with naming_file(path):
                path.unlink(missing_ok=True)
    shutil.rmtree(group / STAGED_CHECKPOINT, ignore_errors=True)


def best_folder(folder: Path, rank: int) -> Path:
    """Returns the folder of the run of a trial by its rank: `best`, `best-2`, `best-3`, ..."""
    return folder / (BEST if rank == 0 else f"{BEST}-{rank + 1}")


def staged_folder(best: Path) -> Path:
    """Returns the folder of a run that is renamed to `best` when it is complete."""
    return best.with_name(f"{best.name}.part")


def remove_best_folders(folder: Path, from_rank: int) -> None:
    """Removes the runs of earlier results of a sweep, such as `best-3` if two trials are kept."""
    for path in folder.glob(f"{BEST}*"):
        number = path.name.removeprefix(f"{BEST}-")
        rank = 0 if path.name == BEST else int(number) - 1 if number.isdecimal() else -1
        if rank >= from_rank:
            shutil.rmtree(path)


def resume_command(folder: Path, experiments: Sequence[Experiment]) -> str:
    """Returns the command that resumes a sweep of these trials."""
    return f"jrnn sweep --resume {shlex.quote(str(folder))}{resume_flags(experiments)}"


def rank_trials(results: Mapping[int, TrialResult], data: Data) -> list[int]:
    """Returns the indices of all evaluated trials, the one with the best validation metric first.

    Trials with equal metrics are in their order.
    """
    sign = -1 if HIGHER_IS_BETTER[data.metric] else 1
    evaluated = sorted(index for index in results if results[index].validation)
    return sorted(evaluated, key=lambda index: sign * results[index].validation["metric"])


def _make_results(trainer: Trainer, data: Data) -> list[TrialResult]:
    tests = trainer.evaluate(data.test)
    return [
        TrialResult(t.step, t.best, test if t.best else {}, trainer.stopped.get(index, ""))
        for index, (t, test) in enumerate(zip(trainer.trackers, tests, strict=True))
    ]


def _write_best(checkpoint: Checkpoint, trial_dir: Path, best: Path) -> None:
    """Writes the checkpoint and the metrics of a trial to `best`, after they are complete."""
    partial = staged_folder(best)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shutil.copyfile(trial_dir / "metrics.jsonl", partial / "metrics.jsonl")
    with contextlib.closing(Checkpointer(partial / "checkpoints", writing=True)) as checkpoints:
        checkpoints.save(checkpoint)
        checkpoints.wait()
    replace_folder(partial, best)
