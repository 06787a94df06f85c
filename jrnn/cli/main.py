"""Runs a command; errors of the user become one line of text and exit code 2."""

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
  jrnn train --resume RUN \\[--mesh AXES]                 resume a run that was stopped
  jrnn train ... --coordinator HOST:PORT --processes N --process I
                                                         one of N processes that train together
  jrnn sweep CONFIG --over NAME=VALUES ...                train many runs at once; see --help
  jrnn eval RUN                                          evaluate the best checkpoint of a run
  jrnn sample RUN \\[--prompt TEXT]                        print text sampled from a run on text
  jrnn ls cells|transforms|tasks|engines|configs         list what is available
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
            stream.reconfigure(errors="replace")  # a terminal may lack characters
    if args == ["--version"]:
        print(f"jrnn {jrnn.__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        Console().print(HELP, highlight=False, soft_wrap=True)
        return
    commands = _commands()
    name, *rest = args
    if name not in commands:
        hint = checks.suggestion(name, commands) or f"; the commands are {', '.join(commands)}"
        _fail(f"unknown command {name!r}{hint}", 2)
    # Orbax also logs the tracebacks of errors that it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        commands[name](rest)
    except FloatingPointError as error:
        _fail(_message(error), 1)
    except KeyboardInterrupt as error:
        received = getattr(error, "signal", signal.SIGINT)
        _fail(_message(error, "interrupted; saved checkpoints are intact"), 128 + received)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if os.environ.get("JRNN_DEBUG") or not _is_out_of_memory(error):
            raise
        _fail(
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'no message'}); use a "
            "smaller batch or network, or number classes and tokens without gaps",
            1,
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JRNN_DEBUG"):
            raise
        _fail(_message(error), 2)


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


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _fail(message: str, code: int) -> NoReturn:
    stderr.print(f"[bold red]jrnn:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    distributed.exit_process(code)


def _message(error: BaseException, default: str = "") -> str:
    """The message of an error with its notes, such as the process that raised it."""
    return " ".join([str(error) or default, *getattr(error, "__notes__", [])])
