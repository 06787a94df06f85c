"""`jrnn sweep`: many runs in one compiled code, compared."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from jrnn import checks, config, space
from jrnn.cli.runs import apart, check_data, keep_data, new_folder, report_run
from jrnn.processes import Cluster
from jrnn.space import Member
from jrnn.tasks.task import Data, Task
from jrnn.train import restore
from jrnn.train.experiment import Experiment
from jrnn.train.sweep import BEST, check_members, sweep, tasks_of
from jrnn.train.sweep_report import figure, rows, table

stdout = Console()
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Options:
    """Trains many runs of a config, those that differ in numbers alone in one compiled code.

    Further flags are over the fields of the experiment, as for `jrnn train`.

    Args:
      over: names and values: seed=0:16, optim.learning_rate=1e-4:1e-2:log8 (or lin8),
        network.dropout=0.1,0.2, cell=lstm,gru (an argument of the config); every combination is a
        member.
      random: draw so many members instead; ranges may then be 1e-4:1e-2:log (or lin).
      draw_seed: of that draw.
      width: members in one vmap; by default all of a device, and on a CPU one.
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
    args = apart(args)
    if args and args[0] in ("-h", "--help"):
        tyro.cli(Options, args=["--help"], prog="jrnn sweep CONFIG")
    if Cluster.find({}, os.environ) is not None:
        raise ValueError(
            "sweep: takes the devices of one process, and the environment says that there are "
            "several; start one, and for what it starts in SLURM set JAX_NUM_PROCESSES=1"
        )
    if "--resume" in args:
        _resume(args)
        return
    if not args or args[0].startswith("-"):
        raise ValueError(
            "sweep: name a config first, as in: jrnn sweep configs/digits.py --over seed=0:4"
        )
    spec, *rest = args
    options, flags = tyro.cli(
        Options, args=rest, prog=f"jrnn sweep {spec}", return_unknown_args=True
    )
    members = space.members(spec, flags, options.over, options.random, options.draw_seed)
    experiments = [member.experiment for member in members]
    loaded = tasks_of(experiments)
    check_members(experiments, loaded)  # before there is any folder
    folder = new_folder(experiments[0], "sweep-")
    keep_data(folder, [*loaded.values()])
    content = {
        "spec": spec,
        "flags": flags,
        "options": asdict(options),
        "members": [{**m._asdict(), "experiment": config.encode(m.experiment)} for m in members],
    }
    config.write(content, spec, folder / SWEEP)  # last: it makes the folder a sweep
    stdout.print(escape(f"sweep folder: {folder}, {len(members)} members"), soft_wrap=True)
    _finish(members, loaded, spec, options.width, folder, resume=False)


def _resume(args: list[str]) -> None:
    if len(args) != 2 or args[0] != "--resume":
        raise ValueError(
            "sweep: --resume takes the folder of a sweep and nothing else, since it keeps its own "
            "config, as in: jrnn sweep --resume runs/sweep-mine"
        )
    folder = Path(args[1])
    if not (folder / SWEEP).is_file():
        raise FileNotFoundError(f"{folder} is not a sweep: it has no {SWEEP}")
    spec, width, members = config.reading(folder / SWEEP, _decode)
    loaded = tasks_of([member.experiment for member in members])
    check_data(folder, [*loaded.values()])
    _finish(members, loaded, spec, width, folder, resume=True)


def _decode(saved: dict[str, Any]) -> tuple[str, int | None, list[Member]]:
    members = [Member(m["values"], config.decode(m["experiment"])) for m in saved["members"]]
    return saved["spec"], saved["options"]["width"], members


def _finish(
    members: list[Member],
    loaded: dict[Task, Data],
    spec: str,
    width: int | None,
    folder: Path,
    *,
    resume: bool,
) -> None:
    """Trains, compares, and makes a run of the best member."""
    experiments = [member.experiment for member in members]
    swept = sweep(experiments, folder, loaded=loaded, resume=resume, width=width)
    values = [member.values for member in members]
    data = loaded[experiments[0].task]
    result = {
        "metric": data.metric,
        "best": swept.best,
        "groups": swept.groups,
        "seconds": swept.seconds,
        "members": rows(values, swept),
    }
    config.write_json(result, folder / "result.json")
    stdout.print(table(values, swept, data.metric))
    try:
        drawn = figure(values, swept, data, folder)
        stdout.print(escape(f"figure:       {drawn}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:    {error}"), soft_wrap=True)
    if swept.best is not None:
        best = experiments[swept.best]
        _report_best(best, loaded[best.task], spec, folder / BEST)


def _report_best(experiment: Experiment, data: Data, spec: str, folder: Path) -> None:
    keep_data(folder, [data])
    config.save(experiment, spec, folder / "config.json")
    report_run(experiment, data, restore(experiment, data, folder), folder)
