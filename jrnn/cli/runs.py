"""The commands `jrnn train`, `jrnn eval` and `jrnn sample`."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jrnn import checks, config, files, run_data, run_folder, tasks
from jrnn.cli import forecasts, inference
from jrnn.distributed import Launcher, ProcessGroup, init_process_group
from jrnn.tasks.task import Data, Task
from jrnn.terminal import Console
from jrnn.train import FitResult, check_experiment, find_learning_rate, train
from jrnn.train.config.experiment import Experiment
from jrnn.train.forecasting import fit_half_widths, forecast_rows, score_rows
from jrnn.train.run.lock import run_lock
from jrnn.train.run.metrics_logger import MetricsWriter
from jrnn.train.run.progress import ProgressMode
from jrnn.train.run.summary import (
    describe_comparison,
    make_table,
    make_title,
    save_figure,
    summarize,
)
from jrnn.train.run.writers import JsonLinesWriter, TensorBoardWriter, WandbWriter
from jrnn.train.scores import score
from jrnn.train.step.evaluate import predict
from jrnn.train.train import extend, has_checkpoint, make_resume_command
from jrnn.train.transfer import check_encoding, check_transfer

stdout = Console()

BACKTEST_ORIGINS = 50
"""Number of recursive forecasts that are scored after the training."""

TRAIN_HELP = """\
usage: jrnn train CONFIG[:NAME=VALUE,...] [--FLAG VALUE ...]
       jrnn train CONFIG --init-from RUN [--init-skip PATH ...] [--keep-encoding] [--FLAG VALUE ...]
       jrnn train --resume RUN [--steps N] [--mesh MESH] [--trust]

Trains the network of a config on its task, and writes the folder of a run.

arguments:
  CONFIG       a config file, such as configs/digits.py; `jrnn ls configs` lists those of jrnn
  NAME=VALUE   arguments of the function get_config in this file

options:
  --FLAG VALUE    set a field of the experiment; `jrnn train CONFIG --help` lists all flags
  --resume RUN    continue an interrupted run from its latest checkpoint
  --steps N       with --resume, train to more steps, if the learning rate does not depend on them
  --mesh MESH     devices to train on, such as data=8 or data=4,model=2
  --trust         with --resume or --init-from, execute the code of the run, such as its config.py,
                  if its config names a class that is not in jrnn, and accept symbolic links in its
                  folder
  -h, --help      show this message

fine-tuning:
  --init-from RUN       start from the best parameters of a run, with other data or options
  --init-skip PATH ...  start these parameters from random values, such as head
  --keep-encoding       use the normalization, vocabulary and classes of RUN for the data
  --freeze PATH ...     do not train these parameters, such as body.rnns.0

output, also with --resume:
  --quiet            print nothing but errors
  --json             print the metrics and the result as JSON, one object per line
  --tensorboard      write event files for TensorBoard to the folder tensorboard of the run
  --wandb PROJECT    send the metrics to Weights & Biases

  --find-learning-rate   train some steps while the learning rate increases, print the rate that the
                         losses suggest, and write nothing

options of a run with several processes, with the environment variables that can replace them; they
are not needed under torchrun and SLURM:
  --coordinator-address HOST:PORT   host of process 0 and a free port (JAX_COORDINATOR_ADDRESS)
  --num-processes N                 number of processes (JAX_NUM_PROCESSES)
  --process-id I                    index of this process, from 0 (JAX_PROCESS_ID)
  --cluster-detection-method NAME   how JAX detects these three: ompi, mpi4py, k8s, ...

examples:
  jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
  jrnn train --resume runs/mine --mesh data=8
  jrnn train configs/arrays.py:path=new.npz --init-from runs/mine --freeze body
"""


@dataclass(frozen=True)
class Output:
    """What a command prints and writes besides the files of the run.

    Attributes:
      quiet: whether to print only errors.
      json: whether to print JSON lines.
      tensorboard: whether to write event files.
      wandb: a project of Weights & Biases, or None.
    """

    quiet: bool = False
    json: bool = False
    tensorboard: bool = False
    wandb: str | None = None

    @property
    def progress(self) -> ProgressMode:
        """How progress is shown."""
        return "none" if self.quiet or self.json else "auto"

    def make_writers(self, folder: Path, experiment: Experiment) -> list[MetricsWriter]:
        """Creates the writers of metrics; raises ImportError if a library is not installed."""
        writers: list[MetricsWriter] = [JsonLinesWriter(sys.stdout)] if self.json else []
        if self.tensorboard:
            writers.append(TensorBoardWriter(folder / "tensorboard"))
        if self.wandb is not None:
            writers.append(WandbWriter(self.wandb, folder, config.encode(experiment)))
        return writers

    def print_folder(self, folder: Path) -> None:
        """Prints the folder of the run."""
        if self.json:
            print(json.dumps({"run": str(folder)}), flush=True)
        elif not self.quiet:
            stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)


def train_command(args: list[str]) -> None:
    """`jrnn train CONFIG[:name=value,...] [--flag value ...]`, or `jrnn train --resume RUN`.

    With flags for several processes, or the environment variables of a launcher, this process is
    one of several that train the same run.
    """
    if args and args[0] in ("-h", "--help"):
        print(TRAIN_HELP, end="")
        return
    options, args = _pop_flags(split_flags(args), (*PROCESS_FLAGS, "wandb"))
    switches = {f"--{name}": name for name in ("quiet", "json", "tensorboard")}
    output = Output(
        wandb=options.pop("wandb", None), **{switches[a]: True for a in args if a in switches}
    )
    args = [arg for arg in args if arg not in switches]
    with init_process_group(Launcher.find(options, os.environ)) as group:
        mode = "--resume" if "--resume" in args else "a new run"
        # Checked before any use of a device, which blocks until all processes use it.
        if len(modes := set(group.all_gather("mode", mode))) > 1:
            raise ValueError(
                "train: all processes must have the same arguments, got "
                f"{' and '.join(sorted(modes))}; start all processes with the same arguments"
            )
        command = _resume if "--resume" in args else _train
        command(args, group, output)


def _train(args: list[str], group: ProcessGroup, output: Output) -> None:
    if not args or args[0].startswith("-"):
        raise ValueError(
            f"train: the first argument must be a config, got {args[0] if args else 'none'}; run "
            "for example: jrnn train configs/digits.py; jrnn ls configs lists the configs"
        )
    spec, *flags = args
    if "--help" in flags or "-h" in flags:
        print(config.ConfigFile.parse(spec).help())
    trust = "--trust" in flags and "--init-from" in flags
    flags = [flag for flag in flags if not trust or flag != "--trust"]
    finds_rate = "--find-learning-rate" in flags
    experiment = config.load(spec, [flag for flag in flags if flag != "--find-learning-rate"])
    if finds_rate:
        _find_learning_rate(experiment, output)
        return
    if experiment.init_from is not None:
        # The run may be resumed from another folder.
        experiment = replace(experiment, init_from=str(Path(experiment.init_from).absolute()))
    source = _load_source(experiment, trust)
    like = source.data.spec if source is not None and experiment.keep_encoding else None
    data = tasks.load(experiment.task, like)
    # These checks come first, so that an invalid run creates no folder.
    _, state = check_experiment(experiment, data)
    output.make_writers(Path(), experiment)
    skipped = []
    if source is not None:
        check_encoding(source.data.spec, data.spec, experiment.init_skip)
        skipped = check_transfer(source.model, state.params, experiment.init_skip)
    _check_equal(experiment, data, group)
    folder = Path(
        group.broadcast("folder", str(new_folder(experiment)) if group.is_first else None)
    )
    if group.is_first:
        run_data.write_data(folder, [data])
        # Written last, since a folder with this file is a run.
        config.save(experiment, spec, folder / "config.json")
        output.print_folder(folder)
        if source is not None and not (output.quiet or output.json):
            rest = f", except {', '.join(skipped)}" if skipped else ""
            text = f"initialized from {source.folder}, step {source.best.step}{rest}"
            stdout.print(escape(text), soft_wrap=True)
    _train_and_report(folder, experiment, data, group, output, source, resume=False)


def _find_learning_rate(experiment: Experiment, output: Output) -> None:
    """Prints the learning rate that a range test suggests."""
    found = find_learning_rate(experiment, tasks.load(experiment.task))
    if output.json:
        print(json.dumps(found._asdict()))
        return
    table = Table(title="learning rate range test", title_justify="left")
    table.add_column("learning rate", justify="right")
    table.add_column("loss", justify="right")
    step = max(1, len(found.losses) // 12)
    for rate, loss in [*zip(found.learning_rates, found.smoothed, strict=True)][::step]:
        table.add_row(f"{rate:.1e}", f"{loss:.4f}")
    stdout.print(table)
    stdout.print(f"suggestion: --optimizer.learning-rate {found.suggestion:.1e}", soft_wrap=True)


def _load_source(experiment: Experiment, trust: bool) -> run_folder.Run | None:
    """Loads the run from which the parameters are read; None if they are random."""
    if experiment.init_from is None:
        return None
    return run_folder.load(experiment.init_from, trust=trust)


def _train_and_report(
    folder: Path,
    experiment: Experiment,
    data: Data,
    group: ProcessGroup,
    output: Output,
    source: run_folder.Run | None,
    *,
    resume: bool,
) -> None:
    """Trains, and reports the result in the first process."""
    group.resume_command = make_resume_command(folder, experiment)
    result = train(
        experiment,
        data,
        folder,
        resume=resume,
        group=group,
        source=None if source is None else source.model,
        progress=output.progress,
        writers=output.make_writers(folder, experiment),
    )
    if group.is_first:
        with explaining_write_errors(group.resume_command):
            report_run(experiment, data, result, folder, output)


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
RUN_FLAGS = ("resume", "mesh", "steps", "wandb", *PROCESS_FLAGS)
"""Flags of `jrnn train` with a value that a config does not define, or that `--resume` takes."""


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


def _resume(args: list[str], group: ProcessGroup, output: Output) -> None:
    args, trust = [arg for arg in args if arg != "--trust"], "--trust" in args
    options, others = _pop_flags(args, ("resume", "mesh", "steps"))
    if others or "resume" not in options:
        raise ValueError(
            "train: --resume must have the folder of a run, and no other flag than --steps, "
            f"--mesh and --trust, got {' '.join(args)}; run for example: jrnn train --resume "
            "runs/mine; for other options start a new run: jrnn train CONFIG --init-from runs/mine"
        )
    folder = Path(options["resume"])
    run = run_folder.load(folder, trust=trust)
    experiment, data = run.config, run.load_data()
    if "mesh" in options:
        experiment = replace(experiment, mesh=options["mesh"])
    if "steps" in options:
        experiment = extend(experiment, _parse_int("steps", options["steps"]))
    check_experiment(experiment, data)
    output.make_writers(folder, experiment)
    source = None if has_checkpoint(folder) else _load_source(experiment, trust)
    _check_equal(experiment, data, group)
    if group.is_first:
        if experiment.steps != run.config.steps:
            with run_lock(folder):
                run.write_steps(experiment.steps)
        if output.json:
            output.print_folder(folder)
    _train_and_report(folder, experiment, data, group, output, source, resume=True)


def _parse_int(name: str, text: str) -> int:
    """Returns the int; raises ValueError unless it is one of at most 18 digits."""
    if not text.isdecimal() or not text.isascii() or len(text) > 18:
        raise ValueError(f"train: --{name} must be a positive int, got {checks.describe(text)}")
    return int(text)


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


def report_run(
    experiment: Experiment,
    data: Data,
    result: FitResult,
    folder: Path,
    output: Output = Output(),
) -> None:
    """Writes the result and the figure of a run to its folder, and prints the result."""
    summary = summarize(experiment, data, result)
    scores = None if data.forecast is None else _score_forecast(experiment, data, result, folder)
    if scores is not None:
        summary["baselines"] = scores["baselines"]
    config.write_json(summary, folder / "result.json")
    if output.quiet or output.json:
        with contextlib.suppress(ImportError):
            save_figure(data, result, folder, title=make_title(experiment, result))
        if output.json:
            print(json.dumps({"result": summary}), flush=True)
        return
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
