"""The commands `jrnn train`, `jrnn eval` and `jrnn sample`."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from jrnn import config, files, run_data, run_folder, tasks
from jrnn.cli import forecasts, inference
from jrnn.distributed import Launcher, ProcessGroup, init_process_group
from jrnn.tasks.task import Data, Task
from jrnn.terminal import Console
from jrnn.train import FitResult, check_experiment, train
from jrnn.train.config.experiment import Experiment
from jrnn.train.forecasting import fit_half_widths, forecast_rows, score_rows
from jrnn.train.run.summary import (
    describe_comparison,
    make_table,
    make_title,
    save_figure,
    summarize,
)
from jrnn.train.scores import score
from jrnn.train.step.evaluate import predict
from jrnn.train.train import make_resume_command

stdout = Console()

BACKTEST_ORIGINS = 50
"""Number of recursive forecasts that are scored after the training."""

TRAIN_HELP = """\
usage: jrnn train CONFIG[:NAME=VALUE,...] [--FLAG VALUE ...]
       jrnn train --resume RUN [--mesh MESH] [--trust]

Trains the network of a config on its task, and writes the folder of a run.

arguments:
  CONFIG       a config file, such as configs/digits.py; `jrnn ls configs` lists those of jrnn
  NAME=VALUE   arguments of the function get_config in this file

options:
  --FLAG VALUE    set a field of the experiment; `jrnn train CONFIG --help` lists all flags
  --resume RUN    continue an interrupted run from its latest checkpoint
  --mesh MESH     devices to train on, such as data=8 or data=4,model=2
  --trust         with --resume, execute the code of the run, such as its config.py, if its config
                  names a class that is not in jrnn, and accept symbolic links in its folder
  -h, --help      show this message

options of a run with several processes, with the environment variables that can replace them; they
are not needed under torchrun and SLURM:
  --coordinator-address HOST:PORT   host of process 0 and a free port (JAX_COORDINATOR_ADDRESS)
  --num-processes N                 number of processes (JAX_NUM_PROCESSES)
  --process-id I                    index of this process, from 0 (JAX_PROCESS_ID)
  --cluster-detection-method NAME   how JAX detects these three: ompi, mpi4py, k8s, ...

examples:
  jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
  jrnn train --resume runs/mine --mesh data=8
"""


def train_command(args: list[str]) -> None:
    """`jrnn train CONFIG[:name=value,...] [--flag value ...]`, or `jrnn train --resume RUN`.

    With flags for several processes, or the environment variables of a launcher, this process is
    one of several that train the same run.
    """
    if args and args[0] in ("-h", "--help"):
        print(TRAIN_HELP, end="")
        return
    options, args = _pop_flags(split_flags(args), PROCESS_FLAGS)
    with init_process_group(Launcher.find(options, os.environ)) as group:
        mode = "--resume" if "--resume" in args else "a new run"
        # Checked before any use of a device, which blocks until all processes use it.
        if len(modes := set(group.all_gather("mode", mode))) > 1:
            raise ValueError(
                "train: all processes must have the same arguments, got "
                f"{' and '.join(sorted(modes))}; start all processes with the same arguments"
            )
        _resume(args, group) if "--resume" in args else _train(args, group)


def _train(args: list[str], group: ProcessGroup) -> None:
    if not args or args[0].startswith("-"):
        raise ValueError(
            f"train: the first argument must be a config, got {args[0] if args else 'none'}; run "
            "for example: jrnn train configs/digits.py; jrnn ls configs lists the configs"
        )
    spec, *flags = args
    if "--help" in flags or "-h" in flags:
        print(config.ConfigFile.parse(spec).help())
    experiment = config.load(spec, flags)
    data = tasks.load(experiment.task)
    check_experiment(experiment, data)  # so that an invalid run creates no folder
    _check_equal(experiment, data, group)
    folder = Path(
        group.broadcast("folder", str(new_folder(experiment)) if group.is_first else None)
    )
    if group.is_first:
        run_data.write_data(folder, [data])
        # Written last, since a folder with this file is a run.
        config.save(experiment, spec, folder / "config.json")
        stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    _train_and_report(folder, experiment, data, group, resume=False)


def _train_and_report(
    folder: Path, experiment: Experiment, data: Data, group: ProcessGroup, *, resume: bool
) -> None:
    """Trains, and reports the result in the first process."""
    group.resume_command = make_resume_command(folder, experiment)
    result = train(experiment, data, folder, resume=resume, group=group)
    if group.is_first:
        with explaining_write_errors(group.resume_command):
            report_run(experiment, data, result, folder)


@contextlib.contextmanager
def explaining_write_errors(command: str) -> Iterator[None]:
    """Adds a note to errors of writing the results, which says that the training is saved.

    Args:
      command: the command that writes the results, for the note.
    """
    try:
        yield
    except files.WriteError as error:
        error.add_note(f"The training is done and saved; write the results with: {command}")
        raise


def _check_equal(experiment: Experiment, data: Data, group: ProcessGroup) -> None:
    """Raises ValueError unless all processes have the same config and data."""
    if group.count == 1:
        return
    for name, own in {"config": config.encode(experiment), "data": data.fingerprint}.items():
        values = group.all_gather(name, own)
        if others := [str(index) for index, value in enumerate(values) if value != values[0]]:
            raise ValueError(
                f"train: the {name} must be the same in all processes, got another one in process "
                f"{', '.join(others)} than in process 0; start all processes with the same "
                "arguments and files"
            )


PROCESS_FLAGS = ("coordinator-address", "num-processes", "process-id", "cluster-detection-method")
"""Flags of a run with several processes."""
RUN_FLAGS = ("resume", "mesh", *PROCESS_FLAGS)
"""Flags of `jrnn train` that a config does not define."""


def split_flags(args: list[str]) -> list[str]:
    """Splits each argument such as `--resume=RUN`, with one of `RUN_FLAGS`, into two arguments."""
    prefixes = tuple(f"--{name}=" for name in RUN_FLAGS)
    return [
        part for arg in args for part in (arg.split("=", 1) if arg.startswith(prefixes) else [arg])
    ]


def _pop_flags(args: list[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the values of the named flags, by name, and the other arguments.

    Raises:
      ValueError: a flag has no value.
    """
    values, rest, remaining = {}, [], iter(args)
    for arg in remaining:
        name = arg.removeprefix("--")
        if arg == name or name not in names:
            rest.append(arg)
        elif (value := next(remaining, None)) is None:
            raise ValueError(f"train: --{name} must have a value, got none")
        else:
            values[name] = value
    return values, rest


def _resume(args: list[str], group: ProcessGroup) -> None:
    args, trust = [arg for arg in args if arg != "--trust"], "--trust" in args
    options, others = _pop_flags(args, ("resume", "mesh"))
    if others or "resume" not in options:
        raise ValueError(
            "train: --resume must have the folder of a run, and no other flag than --mesh and "
            f"--trust, got {' '.join(args)}; run for example: jrnn train --resume runs/mine"
        )
    folder = Path(options["resume"])
    run = run_folder.load(folder, trust=trust)
    experiment, data = run.config, run.load_data()
    if "mesh" in options:
        experiment = replace(experiment, mesh=options["mesh"])
    _check_equal(experiment, data, group)
    _train_and_report(folder, experiment, data, group, resume=True)


def new_folder(experiment: Experiment, prefix: str = "") -> Path:
    """Creates the folder of a new run.

    Args:
      experiment: the experiment; its `run_dir` is the folder; None means a new folder in `runs`.
      prefix: prefix of the name of a new folder in `runs`.

    Raises:
      FileExistsError: `run_dir` exists and is not an empty folder, or `runs` has 999 folders of the
        same name.
    """
    if experiment.run_dir is not None:
        folder = Path(experiment.run_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"train: --run-dir must be a new or empty folder, got {folder}; use another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    task, cell = type(experiment.task).__name__, type(experiment.network.cell).__name__
    stem = f"{prefix}{task}-{cell}-{datetime.now():%Y%m%d-%H%M%S}".lower()
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"train: there are too many folders runs/{stem}-*; remove some of them")


def report_run(experiment: Experiment, data: Data, result: FitResult, folder: Path) -> None:
    """Writes the result and the figure of a run to its folder, and prints the result."""
    summary = summarize(experiment, data, result)
    scores = None if data.forecast is None else _score_forecast(experiment, data, result, folder)
    if scores is not None:
        summary["baselines"] = scores["baselines"]
    config.write_json(summary, folder / "result.json")
    stdout.print(make_table(summary))
    if scores is not None:
        _print_forecast_scores(experiment, data, result, folder, scores)
    stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    try:
        path = save_figure(data, result, folder, title=make_title(experiment, result))
        stdout.print(escape(f"figure:     {path}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:  {error}"), soft_wrap=True)


def _score_forecast(
    experiment: Experiment, data: Data, result: FitResult, folder: Path
) -> dict[str, Any]:
    """Writes the intervals of a forecast to the folder of the run; returns its test scores."""
    apply = lambda examples: predict(result.model, examples)
    widths = fit_half_widths(_find_task(experiment, folder), data, apply)
    run_data.write_intervals(folder, widths)
    baselines = None if data.baselines is None else data.baselines("test")
    steps = None if widths is None else widths[: data.output_size]
    return score(data.spec, data.test, apply(data.test), baselines, steps)


def _find_task(experiment: Experiment, folder: Path) -> Task:
    """Returns the task of a run, whose file may be relative to the folder where it was started."""
    return run_data.find_task(experiment.task, run_data.read_data(folder)[0].folder)


def _print_forecast_scores(
    experiment: Experiment, data: Data, result: FitResult, folder: Path, scores: dict[str, Any]
) -> None:
    """Prints the test errors of a forecast in original units, and how it compares."""
    tables = inference.make_tables(experiment.network.cell, data.spec, scores, "test split")
    for table in itertools.islice(tables, 1, None):  # the first is that of the summary
        stdout.print(table)
    if "coverage" in scores:
        text = f"Intervals cover {scores['coverage']:.1%} of the test values ({scores['level']:.0%}"
        stdout.print(f"{text} nominal).", soft_wrap=True)
    stdout.print(escape(describe_comparison(data.metric, scores)), soft_wrap=True)
    if data.forecast is not None and data.forecast.recursive:
        stdout.print("These are errors of one row ahead. Of recursive forecasts:")
        task = _find_task(experiment, folder)
        origins = task.find_origins(data.spec, "test", BACKTEST_ORIGINS)
        rows = forecast_rows(
            data.spec, lambda examples: predict(result.model, examples), origins.context
        )
        for table in forecasts.make_backtest_tables(score_rows(data.spec, rows, origins)):
            stdout.print(table)
