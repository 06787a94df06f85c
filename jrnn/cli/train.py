"""The command `jrnn train`: a new run, a fine-tuned one, a resumed one."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from jrnn import checks, config, run_data, run_folder, tasks
from jrnn.cli.outcome import OutputOptions, explaining_write_errors, new_folder, report_run
from jrnn.distributed import Launcher, ProcessGroup, init_process_group
from jrnn.tasks.task import Data
from jrnn.terminal import Console
from jrnn.train import check_experiment, find_learning_rate, train
from jrnn.train.config.experiment import Experiment
from jrnn.train.run.lock import run_lock
from jrnn.train.train import extend, has_checkpoint, make_resume_command
from jrnn.train.transfer import check_encoding, check_transfer

stdout = Console()

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
  --wandb PROJECT    send the config and the metrics to Weights & Biases

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
    output = OutputOptions(
        wandb=options.pop("wandb", None), **{switches[a]: True for a in args if a in switches}
    )
    args = [arg for arg in args if arg not in switches]
    if output.quiet and output.json:
        raise ValueError("train: --quiet must be given without --json, got both; remove one")
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


def _train(args: list[str], group: ProcessGroup, output: OutputOptions) -> None:
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
        _check_only_prints(output, group)
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
    if finds_rate:
        _find_learning_rate(experiment, data, source, output)
        return
    _check_equal(experiment, data, group)
    folder = Path(
        group.broadcast("folder", str(new_folder(experiment)) if group.is_first else None)
    )
    if group.is_first:
        run_data.write_data(folder, [data])
        # Written last, since a folder with this file is a run.
        config.save(experiment, spec, folder / config.CONFIG_FILE)
        output.print_folder(folder)
        if source is not None and not (output.quiet or output.json):
            rest = f", except {', '.join(skipped)}" if skipped else ""
            text = f"initialized from {source.folder}, step {source.best.step}{rest}"
            stdout.print(escape(text), soft_wrap=True)
    _train_and_report(folder, experiment, data, group, output, source, resume=False)


def _check_only_prints(output: OutputOptions, group: ProcessGroup) -> None:
    """Raises ValueError if there are options that `--find-learning-rate` would ignore."""
    ignored = {
        "--quiet": output.quiet,
        "--tensorboard": output.tensorboard,
        "--wandb": output.wandb is not None,
        "several processes": group.count > 1,
    }
    if given := [name for name, is_given in ignored.items() if is_given]:
        raise ValueError(
            "train: --find-learning-rate must be given without --quiet, --tensorboard, --wandb and "
            f"several processes, since it only prints, got {' and '.join(given)}; remove it"
        )


def _find_learning_rate(
    experiment: Experiment, data: Data, source: run_folder.Run | None, output: OutputOptions
) -> None:
    """Prints the learning rate that a range test suggests."""
    found = find_learning_rate(experiment, data, source=None if source is None else source.model)
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
    output: OutputOptions,
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
RUN_FLAGS = ("resume", "mesh", "steps", "init-from", "wandb", *PROCESS_FLAGS)
"""Flags with a value that `jrnn train` reads itself, and not only the config."""


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


def _resume(args: list[str], group: ProcessGroup, output: OutputOptions) -> None:
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
