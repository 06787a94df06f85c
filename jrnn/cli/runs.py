"""Commands that train a run or use a trained one."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape

from jrnn import config, tasks
from jrnn.distributed import Launcher, ProcessGroup, init_process_group
from jrnn.nn import SequenceToSequence, generate
from jrnn.tasks.task import Data
from jrnn.train import FitResult, check_experiment, load_best, restore, train
from jrnn.train.config.experiment import Experiment
from jrnn.train.run.summary import make_table, save_figure, summarize

stdout = Console()


def train_command(args: list[str]) -> None:
    """`jrnn train CONFIG[:name=value,...] [--flag value ...]`, or `jrnn train --resume RUN`.

    With `--coordinator HOST:PORT --processes N --process I`, or the environment variables of a
    launcher, the process is one of N processes that train together.
    """
    if args and args[0] in ("-h", "--help"):
        stdout.print(
            "jrnn train CONFIG --help lists the arguments and flags of a config; "
            "jrnn ls configs lists the configs; jrnn train --resume RUN resumes a run, on other "
            "devices with --mesh data=8; --coordinator HOST:PORT --processes N --process I makes "
            "it one of N processes that train together"
        )
        return
    options, args = _pop_flags(split_flags(args), ("coordinator", "processes", "process"))
    with init_process_group(Launcher.find(options, os.environ)) as group:
        mode = "--resume" if "--resume" in args else "a new run"
        # Checked before any use of a device, which would wait for all processes.
        if len(modes := set(group.all_gather("command", mode))) > 1:
            raise ValueError(
                f"train: some processes were started with {' and some with '.join(sorted(modes))}; "
                "start all processes with the same arguments"
            )
        _resume(args, group) if "--resume" in args else _train(args, group)


def _train(args: list[str], group: ProcessGroup) -> None:
    if not args or args[0].startswith("-"):
        raise ValueError(
            "train: the first argument must be a config, as in: jrnn train configs/digits.py; "
            "jrnn ls configs lists them"
        )
    spec, *flags = args
    if "--help" in flags or "-h" in flags:
        print(config.ConfigFile.parse(spec).help())
    experiment = config.load(spec, flags)
    data = tasks.load(experiment.task)
    check_experiment(experiment, data)  # before any folder is created
    _check_same(experiment, data, group)
    folder = Path(
        group.broadcast("folder", str(new_folder(experiment)) if group.is_first else None)
    )
    if group.is_first:
        write_fingerprints(folder, [data])
        # Written last, since it makes the folder a run.
        config.save(experiment, spec, folder / "config.json")
        stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    _train_and_report(folder, experiment, data, group, resume=False)


def _train_and_report(
    folder: Path, experiment: Experiment, data: Data, group: ProcessGroup, *, resume: bool
) -> None:
    """Trains, and reports the result."""
    result = train(experiment, data, folder, resume=resume, group=group)
    if group.is_first:
        report_run(experiment, data, result, folder)


def _check_same(experiment: Experiment, data: Data, group: ProcessGroup) -> None:
    """Raises unless all processes have the same experiment and data."""
    if group.count == 1:
        return
    for name, own in {"config": config.encode(experiment), "data": data.fingerprint}.items():
        values = group.all_gather(name, own)
        if others := [str(index) for index, value in enumerate(values) if value != values[0]]:
            raise ValueError(
                f"train: the {name} of process {', '.join(others)} differs from that of process 0; "
                "start all processes with the same arguments and files"
            )


RUN_FLAGS = ("resume", "mesh", "coordinator", "processes", "process")
"""Flags of `jrnn train` that do not belong to a config."""


def split_flags(args: list[str]) -> list[str]:
    """Splits `--resume=RUN`, and the same for other `RUN_FLAGS`, into two arguments."""
    prefixes = tuple(f"--{name}=" for name in RUN_FLAGS)
    return [
        part for arg in args for part in (arg.split("=", 1) if arg.startswith(prefixes) else [arg])
    ]


def _pop_flags(args: list[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the values of some flags by name, and the other arguments.

    Raises:
      ValueError: a flag has no value.
    """
    values, rest, remaining = {}, [], iter(args)
    for arg in remaining:
        name = arg.removeprefix("--")
        if arg == name or name not in names:
            rest.append(arg)
        elif (value := next(remaining, None)) is None:
            raise ValueError(f"train: --{name} needs a value")
        else:
            values[name] = value
    return values, rest


def _resume(args: list[str], group: ProcessGroup) -> None:
    options = dict(zip(args[::2], args[1::2], strict=False))
    if len(args) % 2 or "--resume" not in options or not options.keys() <= {"--resume", "--mesh"}:
        raise ValueError(
            "train: --resume takes the folder of a run and no other flag than --mesh, since the "
            "run has its own config, as in: jrnn train --resume runs/mine"
        )
    folder = Path(options["--resume"])
    experiment, data = _load_run(folder)
    if "--mesh" in options:
        experiment = replace(experiment, mesh=options["--mesh"])
    _check_same(experiment, data, group)
    _train_and_report(folder, experiment, data, group, resume=True)


def eval_command(args: list[str]) -> None:
    """`jrnn eval RUN`."""
    folder = Path(tyro.cli(_parse_eval, args=args, prog="jrnn eval"))
    experiment, data = _load_run(folder)
    stdout.print(make_table(summarize(experiment, data, restore(experiment, data, folder))))


def sample_command(args: list[str]) -> None:
    """`jrnn sample RUN [--prompt TEXT] [--length N] [--temperature X] [--seed N]`."""
    tyro.cli(_sample, args=args, prog="jrnn sample")


def _parse_eval(run: tyro.conf.Positional[str]) -> str:
    """Evaluates the best checkpoint of a run on its test split.

    Args:
        run: the run's folder.
    """
    return run


def _sample(
    run: tyro.conf.Positional[str],
    prompt: str | None = None,
    length: int = 400,
    temperature: float = 0.7,
    seed: int = 0,
) -> None:
    """Prints text sampled from a run on text.

    Args:
        run: the run's folder.
        prompt: text to start with; by default a new line.
        length: number of characters to sample.
        temperature: divides the logits; 0 chooses the most probable character.
        seed: of the samples.
    """
    experiment, data = _load_run(Path(run))
    if data.vocabulary is None:
        raise ValueError(
            f"sample: {run} must be a run on text, got {type(experiment.task).__name__}"
        )
    if prompt is None:
        prompt = "\n" if "\n" in data.vocabulary else data.vocabulary[0]
    if not prompt:
        raise ValueError("sample: prompt must have at least one character")
    ids = {character: id for id, character in enumerate(data.vocabulary)}
    unknown = sorted({character for character in prompt if character not in ids})
    if unknown:
        raise ValueError(
            "sample: prompt must have characters of the training text, got "
            f"{' '.join(map(repr, unknown))}"
        )
    model = load_best(experiment, data, Path(run)).model
    if not isinstance(model, SequenceToSequence):
        raise ValueError(f"sample: the network of {run} does not predict a token at each step")
    tokens = generate(
        model,
        jnp.array([[ids[character] for character in prompt]], jnp.int32),
        length,
        temperature=temperature,
        key=jax.random.key(seed),
    )
    print(prompt + "".join(data.vocabulary[token] for token in np.asarray(tokens[0])))


def _load_run(folder: Path) -> tuple[Experiment, Data]:
    """Loads the config of a run and its data; raises if the data have changed."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no config.json")
    experiment = config.read(folder / "config.json")
    data = tasks.load(experiment.task)
    check_fingerprints(folder, [data])
    return experiment, data


def write_fingerprints(folder: Path, data: Sequence[Data]) -> None:
    """Writes the fingerprints of the data of a run, for `check_fingerprints`."""
    (folder / "data.txt").write_text("".join(each.fingerprint + "\n" for each in data))


def check_fingerprints(folder: Path, data: Sequence[Data]) -> None:
    """Raises if the data have changed since the run began."""
    path = folder / "data.txt"
    if path.is_file() and path.read_text().split() != [each.fingerprint for each in data]:
        raise ValueError(
            f"{folder}: the data of this run have changed since it was trained; restore them, or "
            "start a new run"
        )


def new_folder(experiment: Experiment, prefix: str = "") -> Path:
    """Creates the folder of a new run; raises FileExistsError if it exists and is not empty."""
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
    raise FileExistsError(f"train: too many folders runs/{stem}-*; remove some of them")


def report_run(experiment: Experiment, data: Data, result: FitResult, folder: Path) -> None:
    """Writes the result and the figure of a run to its folder, and prints the result."""
    summary = summarize(experiment, data, result)
    config.write_json(summary, folder / "result.json")
    stdout.print(make_table(summary))
    stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    try:
        stdout.print(escape(f"figure:     {save_figure(data, result, folder)}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:  {error}"), soft_wrap=True)
