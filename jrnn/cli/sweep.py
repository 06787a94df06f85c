"""`jrnn sweep`: trains many runs in one compilation, and compares them."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from jrnn import checks, config
from jrnn.cli.runs import (
    check_fingerprints,
    new_folder,
    report_run,
    split_flags,
    write_fingerprints,
)
from jrnn.distributed import Launcher
from jrnn.sweep.search_space import Trial, make_trials
from jrnn.sweep.summary import make_rows, make_table, save_figure
from jrnn.sweep.sweep import BEST, check_trials, load_tasks, sweep
from jrnn.tasks.task import Data, Task
from jrnn.train import Experiment, restore

stdout = Console()
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Options:
    """Trains many runs of a config; those that differ only in scalars share a compilation.

    Further flags set fields of the experiment, as for `jrnn train`.

    Args:
      over: names and values: seed=0:16, optimizer.learning_rate=1e-4:1e-2:log8 (or lin8),
        network.dropout=0.1,0.2, cell=lstm,gru (an argument of the config); every combination is a
        trial.
      random: number of random trials, for which ranges may be 1e-4:1e-2:log (or lin).
      draw_seed: of the random trials.
      width: trials in one vmap; by default all trials of a device, and on a CPU one.
    """

    over: tuple[str, ...] = ()
    random: int | None = None
    draw_seed: int = 0
    width: int | None = None

    def __post_init__(self) -> None:
        for name in ("random", "width"):
            if getattr(self, name) is not None:
                checks.positive_int("sweep", name, getattr(self, name))


def sweep_command(args: list[str]) -> None:
    """`jrnn sweep CONFIG --over NAME=VALUES ... [--flag value ...]`, or `--resume SWEEP`."""
    args = split_flags(args)
    if args and args[0] in ("-h", "--help"):
        tyro.cli(Options, args=["--help"], prog="jrnn sweep CONFIG")
    if Launcher.find({}, os.environ) is not None:
        raise ValueError(
            "sweep: uses the devices of one process, but the environment names several processes; "
            "start one process, in SLURM with JAX_NUM_PROCESSES=1"
        )
    if "--resume" in args:
        _resume(args)
        return
    if not args or args[0].startswith("-"):
        raise ValueError(
            "sweep: the first argument must be a config, as in: jrnn sweep configs/digits.py "
            "--over seed=0:4"
        )
    spec, *rest = args
    options, flags = tyro.cli(
        Options, args=rest, prog=f"jrnn sweep {spec}", return_unknown_args=True
    )
    source = config.ConfigFile.parse(spec)
    trials = make_trials(source, flags, options.over, options.random, options.draw_seed)
    experiments = [trial.experiment for trial in trials]
    loaded = load_tasks(experiments)
    check_trials(experiments, loaded)  # before any folder is created
    folder = new_folder(experiments[0], "sweep-")
    write_fingerprints(folder, [*loaded.values()])
    content = {
        "spec": spec,
        "flags": flags,
        "options": asdict(options),
        "trials": [{**t._asdict(), "experiment": config.encode(t.experiment)} for t in trials],
    }
    config.write(content, spec, folder / SWEEP)  # last, since it makes the folder a sweep
    stdout.print(escape(f"sweep folder: {folder}, {len(trials)} trials"), soft_wrap=True)
    _train(trials, loaded, spec, options.width, folder, resume=False)


def _resume(args: list[str]) -> None:
    if len(args) != 2 or args[0] != "--resume":
        raise ValueError(
            "sweep: --resume takes the folder of a sweep and no other arguments, since the sweep "
            "has its own config, as in: jrnn sweep --resume runs/sweep-mine"
        )
    folder = Path(args[1])
    if not (folder / SWEEP).is_file():
        raise FileNotFoundError(f"{folder} is not a sweep: it has no {SWEEP}")
    spec, width, trials = config.read_saved(folder / SWEEP, _decode)
    loaded = load_tasks([trial.experiment for trial in trials])
    check_fingerprints(folder, [*loaded.values()])
    _train(trials, loaded, spec, width, folder, resume=True)


def _decode(saved: dict[str, Any]) -> tuple[str, int | None, list[Trial]]:
    trials = [Trial(t["values"], config.decode(t["experiment"])) for t in saved["trials"]]
    return saved["spec"], saved["options"]["width"], trials


def _train(
    trials: list[Trial],
    loaded: dict[Task, Data],
    spec: str,
    width: int | None,
    folder: Path,
    *,
    resume: bool,
) -> None:
    """Trains and compares all trials, and writes the folder of a run of the best one."""
    experiments = [trial.experiment for trial in trials]
    result = sweep(experiments, folder, loaded=loaded, resume=resume, width=width)
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
    if result.best is not None:
        best = experiments[result.best]
        _report_best(best, loaded[best.task], spec, folder / BEST)


def _report_best(experiment: Experiment, data: Data, spec: str, folder: Path) -> None:
    write_fingerprints(folder, [data])
    config.save(experiment, spec, folder / "config.json")
    report_run(experiment, data, restore(experiment, data, folder), folder)
