"""The command `jrnn completion`: a script by which a shell completes commands, flags and files."""

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Mapping

import shtab

from jrnn import checks, config
from jrnn.cli.inspect import TABLES
from jrnn.flag_hints import field_flags

SHELLS = ("bash", "zsh", "tcsh")
COMPLETION_HELP = """\
usage: jrnn completion bash|zsh|tcsh

Prints a script by which the shell completes commands, flags, configs, folders and files.

examples:
  jrnn completion bash > ~/.local/share/bash-completion/completions/jrnn
  jrnn completion zsh > ~/.zsh/completions/_jrnn    with this folder in fpath, before compinit
  eval "$(jrnn completion bash)"                    for this shell only
"""
POSITIONALS: Mapping[str, tuple[str, ...]] = {
    "train": ("config",),
    "sweep": ("config",),
    "validate": ("configs",),
    "eval": ("run",),
    "predict": ("run", "data"),
    "sample": ("run",),
    "report": ("run",),
    "compare": ("runs",),
    "ls": ("kind",),
    "completion": ("shell",),
}
"""Positional arguments of each command, by which their completion is chosen."""
NAMES: Mapping[str, tuple[str, ...]] = {"kind": (*TABLES, "runs"), "shell": SHELLS}
"""The values of positional arguments that are one of several names."""
FILES = re.compile(r"--(out|data|figure)")
FOLDERS = re.compile(r"--(resume|init-from|run-dir)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
FLAG_WITH_VALUE = re.compile(FLAG.pattern + r"(?= [A-Z{])")
FLAG_WITH_CHOICES = re.compile(f"({FLAG.pattern})" + r" \{([\w,-]+)\}")
SENTENCE = re.compile(r"^[A-Z][^\n]*[a-z,.]$", re.MULTILINE)

_CONFIGS = {
    "bash": (
        "_jrnn_configs() {{ compgen -W '{names}' -- \"$1\"; "
        'compgen -f -X \'!*.py\' -- "$1"; compgen -d -- "$1"; }}'
    ),
    "zsh": "_jrnn_configs() {{ compadd -- {names}; _files -g '*.py'; }}",
}
"""Functions of shells that complete the configs of jrnn and Python files."""


def completion_command(
    args: list[str], commands: Mapping[str, Callable[[list[str]], None]]
) -> None:
    """`jrnn completion SHELL`: prints the script of completion for a shell.

    Args:
      args: the name of the shell.
      commands: the commands of jrnn; their flags are those in their help.
    """
    if args and args[0] in ("-h", "--help"):
        print(COMPLETION_HELP, end="")
        return
    if len(args) != 1:
        raise ValueError(
            f"completion: the argument must be one of {', '.join(SHELLS)}, got "
            f"{' '.join(args) or 'none'}; run for example: jrnn completion bash"
        )
    checks.one_of("completion", "the shell", args[0], SHELLS)
    names = " ".join(config.config_names())
    preamble = _CONFIGS.get(args[0], "").format(names=names)
    own = {"completion": lambda args: completion_command(args, commands)}
    print(shtab.complete(make_parser({**commands, **own}), args[0], preamble=preamble))


def make_parser(
    commands: Mapping[str, Callable[[list[str]], None]],
) -> argparse.ArgumentParser:
    """Returns a parser with the commands and their flags, from which shtab makes a script."""
    parser = argparse.ArgumentParser("jrnn")
    parser.add_argument("--version", action="store_true", help="show the version")
    subparsers = parser.add_subparsers()
    fields = {
        flag: not isinstance(value, bool)
        for name in config.config_names()
        for flag, value in field_flags(config.load(name)).items()
    }
    for name, command in commands.items():
        text = _help(command)
        # A command without help would not be completed.
        description = SENTENCE.search(text)
        subparser = subparsers.add_parser(
            name, help=description[0] if description else name, add_help=False
        )
        flags = dict.fromkeys(FLAG.findall(text), False) | {"--help": False}
        flags |= dict.fromkeys(FLAG_WITH_VALUE.findall(text), True)
        choices = {
            flag: [name for name in names.split(",") if name != "None"]
            for flag, names in FLAG_WITH_CHOICES.findall(text)
        }
        if name in ("train", "sweep"):
            flags |= fields
        for flag, has_value in sorted(flags.items()):
            if has_value:
                _set_completion(subparser.add_argument(flag, choices=choices.get(flag)), flag)
            else:
                subparser.add_argument(flag, action="store_true")
        for argument in POSITIONALS.get(name, ()):
            several = argument.endswith("s")
            action = subparser.add_argument(argument, nargs="*" if several else None)
            _set_completion(action, argument.removesuffix("s"))
    return parser


def _help(command: Callable[[list[str]], None]) -> str:
    """Returns what a command prints for `--help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command(["--help"])
    return printed.getvalue()


def _set_completion(action: argparse.Action, name: str) -> None:
    """Sets what the shell completes for an argument: folders, files, configs or fixed names."""
    if name == "run" or FOLDERS.fullmatch(name):
        complete = shtab.DIRECTORY
    elif name == "data" or FILES.fullmatch(name):
        complete = shtab.FILE
    elif name == "config":
        complete = {"bash": "_jrnn_configs", "zsh": "_jrnn_configs", "tcsh": "f"}
    else:
        if name in NAMES:
            action.choices = NAMES[name]
        return
    vars(action)["complete"] = complete
