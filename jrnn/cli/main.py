"""The entry point of the command `jrnn`.

Errors that a user can cause are printed as one line, without a traceback; the exit code is 2.
"""

import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from rich.console import Console
from rich.markup import escape

import jrnn
from jrnn import checks, distributed

HELP = """\
usage: jrnn COMMAND [ARGUMENTS]

Trains and compares recurrent networks.

commands:
  jrnn train CONFIG[:NAME=VALUE,...] [--FLAG VALUE ...]   train a network
  jrnn train --resume RUN [--mesh MESH]                   resume an interrupted run
  jrnn sweep CONFIG --over NAME=VALUES ...                train many variants of a config
  jrnn sweep --resume SWEEP [--on ray]                    resume an interrupted sweep
  jrnn eval RUN                                           evaluate a run on its test split
  jrnn sample RUN [--prompt TEXT]                         sample text from a language model
  jrnn ls cells|transforms|tasks|engines|configs          list the cells, transforms, ...
  jrnn validate CONFIG ...                                validate configs without training
  jrnn bench [newton|train] [--FLAG VALUE ...]            benchmark layers, Newton or training

arguments:
  CONFIG   a config file, such as configs/digits.py; `jrnn ls configs` lists those of jrnn
  RUN      the folder of a run, which `jrnn train` prints
  SWEEP    the folder of a sweep, which `jrnn sweep` prints

options:
  -h, --help   show this message; `jrnn COMMAND --help` shows the options of a command
  --version    show the version

environment variables:
  JRNN_DEBUG=1   show the traceback of an error

example:
  jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
"""

stderr = Console(stderr=True)


def main(args: list[str] | None = None) -> None:
    """Runs a command.

    Args:
      args: the command and its arguments; None means those of this process.

    Raises:
      SystemExit: the exit code is 2 for invalid input, 1 if training failed or memory is exhausted,
        and 128 plus the number of the signal if the command was interrupted.
    """
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the encoding may lack characters
    if args == ["--version"]:
        print(f"jrnn {jrnn.__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    commands = _load_commands()
    name, *rest = args
    if name not in commands:
        hint = checks.suggestion(name, commands) or "; see jrnn --help"
        _fail(f"command must be one of {', '.join(commands)}, got {name!r}{hint}", 2)
    # Orbax logs tracebacks of errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        commands[name](rest)
    except FloatingPointError as error:
        _fail(_format_message(error), 1)
    except KeyboardInterrupt as error:
        received = getattr(error, "signal", signal.SIGINT)
        _fail(_format_message(error, "interrupted; saved checkpoints are intact"), 128 + received)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if os.environ.get("JRNN_DEBUG") or not _is_out_of_memory(error):
            raise
        _fail(
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'no message'}); use a "
            "smaller batch or network, or number the classes and tokens without gaps",
            1,
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JRNN_DEBUG"):
            raise
        _fail(_format_message(error), 2)


def _load_commands() -> dict[str, Callable[[list[str]], None]]:
    from jrnn.cli import bench, inspect, runs, sweep

    return {
        "train": runs.train_command,
        "sweep": sweep.sweep_command,
        "eval": runs.eval_command,
        "sample": runs.sample_command,
        "ls": inspect.ls_command,
        "validate": inspect.validate_command,
        "bench": bench.bench_command,
    }


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _fail(message: str, code: int) -> NoReturn:
    """Prints an error message, and exits."""
    stderr.print(f"[bold red]jrnn:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    distributed.exit_process(code)


def _format_message(error: BaseException, default: str = "") -> str:
    """Returns the message of an error and its notes, such as the process that raised it."""
    return " ".join([str(error) or default, *getattr(error, "__notes__", [])])
