"""The command `jrnn sweep`: trains many variants of a config, and compares them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape

from jrnn import checks, config, files, run_data
from jrnn.cli.outcome import explaining_write_errors, new_folder, report_run
from jrnn.cli.train import split_flags
from jrnn.distributed import Launcher
from jrnn.report.sweep_folder import SWEEP_FILE, check_values
from jrnn.sweep.search_space import Trial, make_trials
from jrnn.sweep.summary import make_rows, make_table, save_figure
from jrnn.sweep.sweep import (
    SweepResult,
    TrainTrials,
    best_folder,
    check_trials,
    load_tasks,
    resume_command,
    sweep,
)
from jrnn.tasks import load as load_task
from jrnn.tasks.task import Data, Task
from jrnn.terminal import Console, parse_flags
from jrnn.train import Experiment, restore
from jrnn.train.run.summary import make_title, summarize
from jrnn.train.run.summary import save_figure as save_run_figure

stdout = Console()


@dataclass(frozen=True)
class ClusterOptions:
    """Where to train.

    Args:
      on: "ray" trains the groups of trials on the nodes of a Ray cluster; None means this machine.
      ray_address: address HOST:PORT of the cluster; None means the environment variable
        RAY_ADDRESS, or, if it is not set, a new cluster of this machine alone.
      ray_cpus: number of CPUs that Ray reserves for each group.
      ray_gpus: number of GPUs that Ray reserves for each group; None means 1 if any node has GPUs,
        and otherwise 0.
    """

    on: Literal["ray"] | None = None
    ray_address: str | None = None
    ray_cpus: float = 1.0
    ray_gpus: float | None = None

    def __post_init__(self) -> None:
        for name in ("ray_cpus", "ray_gpus"):
            if getattr(self, name) is not None:
                checks.non_negative_number("sweep", name, getattr(self, name))
        if self.on is None and ClusterOptions(on="ray") != replace(self, on="ray"):
            raise ValueError("sweep: --ray-address, --ray-cpus and --ray-gpus need --on ray")

    @contextlib.contextmanager
    def connect(self) -> Iterator[TrainTrials | None]:
        """Yields the function that trains the trials, for `sweep`; None on this machine."""
        if self.on is None:
            yield None
            return
        from jrnn.sweep.ray_cluster import RayCluster

        with RayCluster(self.ray_address, self.ray_cpus, self.ray_gpus) as cluster:
            yield cluster.train


@dataclass(frozen=True)
class SweepOptions:
    """Trains many variants of a config, and compares them.

    Example: jrnn sweep configs/digits.py --over seed=0:4 network.dropout=0,0.2 --steps 400

    Trials that differ only in scalar hyper-parameters share a compilation. All other flags set
    fields of the experiment, as in `jrnn train`. `jrnn sweep --resume SWEEP` resumes an interrupted
    sweep, with `--trust` if a class in its config, such as a cell, is not in jrnn.

    Args:
      over: one or more axes NAME=VALUES of the search space, required. NAME is a field of the
        experiment or an argument of the config. VALUES is a list such as 0.1,0.2 or lstm,gru, a
        range of ints such as 0:16, or evenly spaced values such as 1e-4:1e-2:log8 or 0:0.5:lin6.
      random: number of random trials, for which VALUES may also be a distribution such as
        1e-4:1e-2:log or 0:0.5:lin; None means a grid of all combinations of values.
      draw_seed: seed of the random trials.
      width: number of trials in one jax.vmap; None means all trials of a device, or one trial on a
        CPU.
      keep: number of the best trials whose weights are kept as runs, in the folders best, best-2,
        best-3, ... of the sweep.
      cluster: where to train.
    """

    over: tuple[str, ...] = ()
    random: int | None = None
    draw_seed: int = 0
    width: int | None = None
    keep: int = 1
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = field(
        default_factory=ClusterOptions
    )

    def __post_init__(self) -> None:
        for name in ("random", "width"):
            if getattr(self, name) is not None:
                checks.positive_int("sweep", name, getattr(self, name))
        checks.positive_int("sweep", "keep", self.keep)
        checks.int_between("sweep", "draw_seed", self.draw_seed, 0, checks.MAX_SEED)


def sweep_command(args: list[str]) -> None:
    """`jrnn sweep CONFIG --over NAME=VALUES ... [--flag value ...]`, or `--resume SWEEP`.

    With `--on ray`, the trials are trained on a Ray cluster.
    """
    args = split_flags(args)
    if args and args[0] in ("-h", "--help"):
        parse_flags(SweepOptions, ["--help"], prog="jrnn sweep CONFIG")
    if Launcher.find({}, os.environ) is not None:
        raise ValueError(
            "sweep: number of processes must be 1, got environment variables for several "
            "processes; start one process, in SLURM with JAX_NUM_PROCESSES=1"
        )
    if "--resume" in args:
        _resume(args)
        return
    if not args or args[0].startswith("-"):
        raise ValueError(
            f"sweep: the first argument must be a config, got {args[0] if args else 'none'}; run "
            "for example: jrnn sweep configs/digits.py --over seed=0:4"
        )
    spec, *rest = args
    options, flags = parse_flags(
        SweepOptions, rest, prog=f"jrnn sweep {spec}", return_unknown_args=True
    )
    source = config.ConfigFile.parse(spec)
    trials = make_trials(source, flags, options.over, options.random, options.draw_seed)
    experiments = [trial.experiment for trial in trials]
    loaded = load_tasks(experiments)
    check_trials(experiments, loaded)  # so that an invalid sweep creates no folder
    # Connects before the folder is created, so that a failure leaves no folder.
    with options.cluster.connect() as train_trials:
        folder = new_folder(experiments[0], "sweep-")
        run_data.write_data(folder, [*loaded.values()])
        saved_options = {k: v for k, v in asdict(options).items() if k != "cluster"}
        content = {
            "spec": spec,
            "flags": flags,
            "options": saved_options,
            "trials": [{**t._asdict(), "experiment": config.encode(t.experiment)} for t in trials],
        }
        # Written last, since a folder with this file is a sweep.
        config.write(content, spec, folder / SWEEP_FILE)
        stdout.print(escape(f"sweep folder: {folder}, {len(trials)} trials"), soft_wrap=True)
        _train(trials, loaded, spec, options, folder, train_trials, resume=False)


def _resume(args: list[str]) -> None:
    args, trust = [arg for arg in args if arg != "--trust"], "--trust" in args
    position = args.index("--resume")
    folders, others = args[position + 1 : position + 2], args[:position] + args[position + 2 :]
    cluster, unknown = parse_flags(
        ClusterOptions, others, prog="jrnn sweep --resume SWEEP", return_unknown_args=True
    )
    if not folders or unknown:
        raise ValueError(
            f"sweep: --resume must have the folder of a sweep, and no other arguments than "
            f"--trust, --on ray and its options, got {' '.join(args)}; run for example: jrnn sweep "
            "--resume runs/sweep-mine"
        )
    folder = Path(folders[0])
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} must be the folder of a sweep, got no {SWEEP_FILE} in it"
        )
    if not trust:
        files.check_tree(folder)
    spec, options, trials = config.read_saved(
        path,
        lambda saved: _decode(saved, trust),
        trust=trust,
        max_bytes=config.MAX_SWEEP_BYTES,
    )
    started_in = run_data.read_data(folder)[0].folder
    loaded = {
        task: load_task(run_data.find_task(task, started_in))
        for task in dict.fromkeys(trial.experiment.task for trial in trials)
    }
    run_data.check_data(folder, [*loaded.values()])
    with cluster.connect() as train_trials:
        _train(trials, loaded, spec, options, folder, train_trials, resume=True)


def _decode(saved: dict[str, Any], trust: bool) -> tuple[str, SweepOptions, list[Trial]]:
    """Decodes a sweep file; returns the config, the options `width` and `keep`, and the trials.

    Raises:
      ValueError, TypeError, AttributeError, KeyError: the file is invalid.
    """
    spec, saved_options = saved["spec"], saved["options"]
    # An earlier version of jrnn kept one trial.
    options = SweepOptions(width=saved_options["width"], keep=saved_options.get("keep", 1))
    trials = [
        Trial(
            check_values(trial["values"]),
            config.decode_experiment(trial["experiment"], trust=trust),
        )
        for trial in saved["trials"]
    ]
    if not isinstance(spec, str) or not trials or len({tuple(t.values) for t in trials}) > 1:
        raise ValueError(
            "spec must be a string, and there must be trials with the same axes, got "
            f"spec={spec!r} and {len(trials)} trials"
        )
    return spec, options, trials


def _train(
    trials: list[Trial],
    loaded: dict[Task, Data],
    spec: str,
    options: SweepOptions,
    folder: Path,
    train_trials: TrainTrials | None,
    *,
    resume: bool,
) -> None:
    """Trains and compares all trials."""
    experiments = [trial.experiment for trial in trials]
    result = sweep(
        experiments,
        folder,
        loaded=loaded,
        resume=resume,
        width=options.width,
        keep=options.keep,
        train_trials=train_trials,
    )
    with explaining_write_errors(resume_command(folder, experiments)):
        _report(trials, result, loaded, spec, folder)


def _report(
    trials: list[Trial],
    result: SweepResult,
    loaded: dict[Task, Data],
    spec: str,
    folder: Path,
) -> None:
    """Writes and prints the results of all trials, and writes the best trials as runs."""
    experiments = [trial.experiment for trial in trials]
    values = [trial.values for trial in trials]
    data = loaded[experiments[0].task]
    summary = {
        "metric": data.metric,
        "best": result.best,
        "groups": result.groups,
        "seconds": result.seconds,
        "trials": make_rows(values, result),
    }
    config.write_json(summary, folder / "result.json")
    stdout.print(make_table(values, result, data.metric))
    try:
        path = save_figure(values, result, data, folder)
        stdout.print(escape(f"figure:       {path}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:    {error}"), soft_wrap=True)
    for rank, index in reversed([*enumerate(result.kept)]):
        best = experiments[index]
        _report_best(best, loaded[best.task], spec, folder, rank)


def _report_best(
    experiment: Experiment, data: Data, spec: str, sweep_folder: Path, rank: int
) -> None:
    """Writes one of the best trials as a run; prints the result of the best one."""
    folder = best_folder(sweep_folder, rank)
    started_in = run_data.read_data(sweep_folder)[0].folder
    run_data.write_data(folder, [data], started_in)
    source = (sweep_folder / SWEEP_FILE).with_suffix(".py")
    config.save(experiment, spec, folder / config.CONFIG_FILE, source)
    result = restore(experiment, data, folder)
    if rank == 0:
        report_run(experiment, data, result, folder)
        return
    config.write_json(summarize(experiment, data, result), folder / "result.json")
    with contextlib.suppress(ImportError):
        save_run_figure(data, result, folder, title=make_title(experiment, result))
    stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
