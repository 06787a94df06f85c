"""Commands that make a run or use one."""

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
from jrnn.train import FitResult, check, load_best, restore, train
from jrnn.train.config.experiment import Experiment
from jrnn.train.run.summary import figure, summarize, table

stdout = Console()


def train_command(args: list[str]) -> None:
    """`jrnn train CONFIG[:name=value,...] [--flag value ...]`, or `jrnn train --resume RUN`.

    In either case `--coordinator HOST:PORT --processes N --process I` is one of N processes that
    train together; the environment may say so instead.
    """
    if args and args[0] in ("-h", "--help"):
        stdout.print(
            "jrnn train CONFIG --help lists the arguments and flags of a config; "
            "jrnn ls configs lists the configs; jrnn train --resume RUN goes on with a run, and "
            "--mesh data=8 beside it on other devices; --coordinator HOST:PORT --processes N "
            "--process I makes it one of N processes that train together"
        )
        return
    given, args = _pop_flags(split_flags(args), ("coordinator", "processes", "process"))
    with init_process_group(Launcher.find(given, os.environ)) as group:
        doing = "--resume" if "--resume" in args else "a new run"
        # Before anything touches a device, where each process would wait for the others.
        if len(said := set(group.all_gather("command", doing))) > 1:
            raise ValueError(
                f"train: some processes were started with {' and some with '.join(sorted(said))}; "
                "start all of them alike"
            )
        _resume(args, group) if "--resume" in args else _train(args, group)


def _train(args: list[str], group: ProcessGroup) -> None:
    if not args or args[0].startswith("-"):
        raise ValueError(
            "train: name a config first, as in: jrnn train configs/digits.py; "
            "jrnn ls configs lists them"
        )
    spec, *flags = args
    if "--help" in flags or "-h" in flags:
        print(config.ConfigFile.parse(spec).help())
    experiment = config.load(spec, flags)
    data = tasks.load(experiment.task)
    check(experiment, data)  # before there is any folder
    _check_alike(experiment, data, group)
    folder = Path(
        group.broadcast("folder", str(new_folder(experiment)) if group.is_first else None)
    )
    if group.is_first:
        write_fingerprints(folder, [data])
        config.save(experiment, spec, folder / "config.json")  # last: it makes the folder a run
        stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    _train_in(folder, experiment, data, group, resume=False)


def _train_in(
    folder: Path, experiment: Experiment, data: Data, group: ProcessGroup, *, resume: bool
):
    """Trains, and reports what came of it."""
    result = train(experiment, data, folder, resume=resume, group=group)
    if group.is_first:
        report_run(experiment, data, result, folder)


def _check_alike(experiment: Experiment, data: Data, group: ProcessGroup) -> None:
    """Refuses processes that do not do the same."""
    if group.count == 1:
        return
    for name, own in {"config": config.encode(experiment), "data": data.fingerprint}.items():
        said = group.all_gather(name, own)
        if others := [str(index) for index, other in enumerate(said) if other != said[0]]:
            raise ValueError(
                f"train: the {name} of process {', '.join(others)} is not that of process 0; start "
                "all processes with the same arguments and files"
            )


OPTIONS = ("resume", "mesh", "coordinator", "processes", "process")
"""Flags of `jrnn train` that are none of a config."""


def split_flags(args: list[str]) -> list[str]:
    """Arguments with `--resume=RUN` and the like as two of them."""
    joint = tuple(f"--{name}=" for name in OPTIONS)
    return [
        part for arg in args for part in (arg.split("=", 1) if arg.startswith(joint) else [arg])
    ]


def _pop_flags(args: list[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes flags out of arguments, with their values.

    Raises:
      ValueError: one has no value.
    """
    taken, rest, words = {}, [], iter(args)
    for word in words:
        name = word.removeprefix("--")
        if word == name or name not in names:
            rest.append(word)
        elif (value := next(words, None)) is None:
            raise ValueError(f"train: --{name} needs a value")
        else:
            taken[name] = value
    return taken, rest


def _resume(args: list[str], group: ProcessGroup) -> None:
    options = dict(zip(args[::2], args[1::2], strict=False))
    if len(args) % 2 or "--resume" not in options or not options.keys() <= {"--resume", "--mesh"}:
        raise ValueError(
            "train: --resume takes the folder of a run and nothing else but --mesh, since the run "
            "keeps its own config, as in: jrnn train --resume runs/mine"
        )
    folder = Path(options["--resume"])
    experiment, data = _open(folder)
    if "--mesh" in options:
        experiment = replace(experiment, mesh=options["--mesh"])
    _check_alike(experiment, data, group)
    _train_in(folder, experiment, data, group, resume=True)


def eval_command(args: list[str]) -> None:
    """`jrnn eval RUN`."""
    folder = Path(tyro.cli(_run, args=args, prog="jrnn eval"))
    experiment, data = _open(folder)
    stdout.print(table(summarize(experiment, data, restore(experiment, data, folder))))


def sample_command(args: list[str]) -> None:
    """`jrnn sample RUN [--prompt TEXT] [--length N] [--temperature X] [--seed N]`."""
    tyro.cli(_sample, args=args, prog="jrnn sample")


def _run(run: tyro.conf.Positional[str]) -> str:
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
    """Prints text drawn from a run on text.

    Args:
        run: the run's folder.
        prompt: text to begin with; by default a new line.
        length: number of characters to draw.
        temperature: 1 draws as the network predicts, less is bolder, 0 takes the likeliest.
        seed: of the draw.
    """
    experiment, data = _open(Path(run))
    if data.vocabulary is None:
        raise ValueError(f"sample: {run} is not a run on text")
    if prompt is None:
        prompt = "\n" if "\n" in data.vocabulary else data.vocabulary[0]
    if not prompt:
        raise ValueError("sample: the prompt must have at least one character")
    ids = {character: number for number, character in enumerate(data.vocabulary)}
    unknown = sorted({character for character in prompt if character not in ids})
    if unknown:
        raise ValueError(f"sample: the training text has no {' '.join(map(repr, unknown))}")
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


def _open(folder: Path) -> tuple[Experiment, Data]:
    """The config of a run and its data, if they are still what the run was trained on."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no config.json")
    experiment = config.read(folder / "config.json")
    data = tasks.load(experiment.task)
    check_fingerprints(folder, [data])
    return experiment, data


def write_fingerprints(folder: Path, data: Sequence[Data]) -> None:
    """Writes down what the data of a run are, for `check_fingerprints`."""
    (folder / "data.txt").write_text("".join(each.fingerprint + "\n" for each in data))


def check_fingerprints(folder: Path, data: Sequence[Data]) -> None:
    """Refuses data that are not what they were when the run began."""
    known = folder / "data.txt"
    if known.is_file() and known.read_text().split() != [each.fingerprint for each in data]:
        raise ValueError(
            f"{folder}: the data of this run are not what they were when it was trained; restore "
            f"them, or train anew"
        )


def new_folder(experiment: Experiment, prefix: str = "") -> Path:
    """Makes the folder of a new run, and never uses one that holds something."""
    if experiment.run_dir is not None:
        folder = Path(experiment.run_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"train: {folder} holds something already; name another folder by --run-dir"
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
    raise FileExistsError(f"train: there are too many folders runs/{stem}-*")


def report_run(experiment: Experiment, data: Data, result: FitResult, folder: Path) -> None:
    """Writes the result and the figure of a run into its folder, and prints the result."""
    summary = summarize(experiment, data, result)
    config.write_json(summary, folder / "result.json")
    stdout.print(table(summary))
    stdout.print(escape(f"run folder: {folder}"), soft_wrap=True)
    try:
        stdout.print(escape(f"figure:     {figure(data, result, folder)}"), soft_wrap=True)
    except ImportError as error:
        stdout.print(escape(f"no figure:  {error}"), soft_wrap=True)
