"""The entry point of the command `jrnn`.

Errors are printed as one line, without a traceback; `main` documents the exit codes.

This module imports only the standard library at first, so that a signal during the import of JAX,
which takes a second, is handled too.
"""

import contextlib
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from jrnn import signals

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HELP = """\
usage: jrnn COMMAND [ARGUMENTS]

Trains and compares recurrent networks.

commands:
  jrnn train CONFIG[:NAME=VALUE,...] [--FLAG VALUE ...]   train a network
  jrnn train CONFIG --init-from RUN [--FLAG VALUE ...]    fine-tune the network of a run
  jrnn train --resume RUN [--steps N] [--mesh MESH]       resume an interrupted run
  jrnn sweep CONFIG --over NAME=VALUES ...                train many variants of a config
  jrnn sweep --resume SWEEP [--on ray]                    resume an interrupted sweep
  jrnn eval RUN [--data FILE]                             evaluate a run on a split or on a file
  jrnn predict RUN DATA --out FILE                        predict for the examples of a file
  jrnn sample RUN [--prompt TEXT]                         sample text from a language model
  jrnn report RUN|SWEEP [--out FILE]                      write a report as an HTML page
  jrnn compare RUN RUN ... [--out FILE]                   compare runs in a table and a page
  jrnn ls cells|transforms|tasks|engines|configs|runs     list the cells, transforms, ...
  jrnn validate CONFIG ...                                validate configs without training
  jrnn bench [newton|train] [--FLAG VALUE ...]            benchmark layers, Newton or training
  jrnn completion bash|zsh|tcsh                           print a script for completion by a shell

arguments:
  CONFIG   a config file, such as configs/digits.py; `jrnn ls configs` lists those of jrnn
  RUN      the folder of a run, which `jrnn train` prints
  SWEEP    the folder of a sweep, which `jrnn sweep` prints
  MESH     the devices to train on, such as data=8 or data=4,model=2

options:
  -h, --help   show this message; `jrnn COMMAND --help` shows the options of a command
  --version    show the version

  --trust      for commands with RUN or --resume: execute the code of the run; see SECURITY.md

environment variables:
  JRNN_DEBUG=1   show the traceback of an error

example:
  jrnn train configs/digits.py:cell=gru,hidden=64 --optimizer.learning-rate 1e-3
"""


def main(args: list[str] | None = None) -> None:
    """Runs a command.

    Args:
      args: the command and its arguments; None means `sys.argv[1:]`, and installs handlers by
        which SIGINT, SIGTERM and SIGHUP print one line and exit the process.

    Raises:
      SystemExit: there was an error. The exit code is 2 for invalid input, 1 if training failed,
        memory is exhausted, a file could not be written or jrnn has a bug, and 128 plus the number
        of the signal if the command was interrupted.
    """
    if args is None:
        signals.exit_on_signals()
        if not os.environ.get("JRNN_DEBUG"):
            # For example, orbax leaves coroutines that fail after a damaged checkpoint was read.
            sys.unraisablehook = lambda _: None
        args = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the encoding may lack characters
    try:
        try:
            _run(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        _exit_if_stdout_is_closed()
        _fail(_format_message(error), 2)
    except KeyboardInterrupt as error:
        received = getattr(error, "signal", signal.SIGINT)
        _fail(_format_message(error, "interrupted; saved checkpoints are intact"), 128 + received)
    except Exception as error:
        if os.environ.get("JRNN_DEBUG"):
            raise
        _fail(*_describe_error(error))


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return

    import logging

    import jrnn
    from jrnn import checks

    if args == ["--version"]:
        print(f"jrnn {jrnn.__version__}")
        return
    commands = _load_commands()
    name, *rest = args
    if name not in commands:
        hint = checks.suggestion(name, (*commands, "--help", "--version")) or "; see jrnn --help"
        raise ValueError(f"command must be one of {', '.join(commands)}, got {name!r}{hint}")
    # Orbax logs tracebacks of errors that it also raises.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    commands[name](rest)


def _load_commands() -> dict[str, Callable[[list[str]], None]]:
    from jrnn.cli import bench, completion, inference, inspect, report, sweep, train

    commands = {
        "train": train.train_command,
        "sweep": sweep.sweep_command,
        "eval": inference.eval_command,
        "predict": inference.predict_command,
        "sample": inference.sample_command,
        "report": report.report_command,
        "compare": report.compare_command,
        "ls": inspect.ls_command,
        "validate": inspect.validate_command,
        "bench": bench.bench_command,
    }
    return commands | {
        "completion": lambda args: completion.completion_command(args, commands),
    }


def _describe_error(error: Exception) -> tuple[str, int]:
    """Returns the message and the exit code for an error."""
    message = _format_message(error)
    no_memory = "RESOURCE_EXHAUSTED" in message or "Out of memory allocating" in message
    if isinstance(error, MemoryError) or no_memory:
        return (
            f"out of memory ({message.splitlines()[0] if message else 'no message'}); use a "
            "smaller batch or network, or use consecutive class and token ids from 0, since the "
            "largest id sets the size of the network",
            1,
        )
    if "Unable to initialize backend" in message and "JAX_PLATFORMS" in os.environ:
        platforms = os.environ["JAX_PLATFORMS"]
        return (
            f"JAX_PLATFORMS must name platforms of JAX that this machine has, such as cpu or cuda, "
            f"got {platforms!r}: {message}",
            2,
        )
    from jrnn.files import WriteError

    if isinstance(error, FloatingPointError | WriteError):
        return message, 1
    # Files have their names in a WriteError.
    if isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None:
        return f"standard output cannot be written: {error.strerror}; free disk space", 1
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and message:
        return message, 2
    return (
        f"internal error: {type(error).__name__}: {message}; this is a bug of jrnn: please report "
        "it with the traceback, which JRNN_DEBUG=1 shows",
        1,
    )


def _exit_if_stdout_is_closed() -> None:
    """Exits without a message, as other programs do, if the reader of the output has ended."""
    from jrnn.distributed.process_group import exit_process

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        # Python flushes the stream again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_process(128 + signal.SIGPIPE)


def _fail(message: str, code: int) -> NoReturn:
    """Prints an error message as one line of bounded length, and exits."""
    from rich.markup import escape

    from jrnn.distributed.process_group import exit_process
    from jrnn.messages import format_message
    from jrnn.terminal import Console

    text = escape(format_message(message))
    with contextlib.suppress(OSError):  # the terminal may be closed
        Console(stderr=True).print(
            f"[bold red]jrnn:[/bold red] {text}", highlight=False, soft_wrap=True
        )
    exit_process(code)


def _format_message(error: BaseException, default: str = "") -> str:
    """Returns the message of an error and its notes, such as the process that raised it.

    The note of JAX on the frames that it removes from tracebacks is omitted.
    """
    notes = [n for n in getattr(error, "__notes__", []) if "JAX_TRACEBACK_FILTERING" not in n]
    return " ".join([str(error) or default, *notes])
