"""Chooses the command, and turns what a user can mend into one line and exit code 2."""

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
[bold]jrnn[/bold] trains and compares recurrent networks.

  jrnn train CONFIG\\[:name=value,...] \\[--flag value ...]   train; --help lists the flags
  jrnn train --resume RUN \\[--mesh AXES]                 go on with a run that was stopped
  jrnn train ... --coordinator HOST:PORT --processes N --process I
                                                         one of N processes that train together
  jrnn sweep CONFIG --over NAME=VALUES ...                many runs at once; --help says more
  jrnn eval RUN                                          evaluate the best checkpoint of a run
  jrnn sample RUN \\[--prompt TEXT]                        print text drawn from a run on text
  jrnn ls cells|transforms|tasks|engines|configs         what there is
  jrnn validate CONFIG ...                               check configs without training
  jrnn bench \\[newton|train] \\[--flag value ...]           time layers, Newton or training

  jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3

With JRNN_DEBUG=1 in the environment an error shows its traceback.
"""

stderr = Console(stderr=True)


def main(args: list[str] | None = None) -> None:
    """Runs the command line; exit code 2 for bad input, 1 for a run that failed."""
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no failure
    if args == ["--version"]:
        print(f"jrnn {jrnn.__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        Console().print(HELP, highlight=False, soft_wrap=True)
        return
    commands = _commands()
    name, *rest = args
    if name not in commands:
        near = checks.suggestion(name, commands)
        _fail(f"no command {name!r}{near or '; there are ' + ', '.join(commands)}", 2)
    # Orbax logs the traceback of what it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        commands[name](rest)
    except FloatingPointError as error:
        _fail(_said(error), 1)
    except KeyboardInterrupt as error:
        number = getattr(error, "signal", signal.SIGINT)
        _fail(_said(error, "interrupted; what was saved is whole"), 128 + number)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if os.environ.get("JRNN_DEBUG") or not _lacks_memory(error):
            raise
        _fail(
            f"there is not enough memory ({str(error).splitlines()[0] if str(error) else 'none'}); "
            "make the batch or the network smaller, or number classes and tokens without gaps",
            1,
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JRNN_DEBUG"):
            raise
        _fail(_said(error), 2)


def _commands() -> dict[str, Callable[[list[str]], None]]:
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


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _fail(message: str, code: int) -> NoReturn:
    stderr.print(f"[bold red]jrnn:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    distributed.exit_process(code)


def _said(error: BaseException, otherwise: str = "") -> str:
    """What an error says, and in which process it was if there are several."""
    return " ".join([str(error) or otherwise, *getattr(error, "__notes__", [])])
