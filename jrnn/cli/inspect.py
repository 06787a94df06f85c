"""The commands `jrnn ls` and `jrnn validate`."""

import ast
import contextlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import jax
from rich.markup import escape
from rich.table import Table

from jrnn import checks, config, files, run_data, run_folder, structure
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES
from jrnn.layers import REGISTRY as LAYERS
from jrnn.messages import format_message
from jrnn.tasks import REGISTRY as TASKS
from jrnn.terminal import Console
from jrnn.train.run.checkpoint import list_steps
from jrnn.train.run.progress import METRIC_NAMES
from jrnn.train.run.summary import check_summary
from jrnn.transforms import REGISTRY as TRANSFORMS

HIDDEN_SIZE = 128
"""Input size and hidden size of the cells whose parameters are counted."""

LS_HELP = """\
usage: jrnn ls cells|transforms|tasks|engines|configs
       jrnn ls runs [FOLDER]

Lists the names of what is available, with one-line descriptions, or for cells with the kind of
recurrence, the number of parameters and the paper. The transforms include the layers `stack` and
`bidirectional`.

`jrnn ls runs` lists the runs in FOLDER, by default `runs`, with their task, cell, newest step and
results; "-" means that the run has not ended, or that its config cannot be read.

example:
  jrnn ls cells
"""
VALIDATE_HELP = """\
usage: jrnn validate CONFIG[:NAME=VALUE,...] ...

Loads each config, without loading its data or training. The exit code is 2 if one is invalid.

example:
  jrnn validate configs/digits.py:cell=gru configs/text.py
"""

stdout = Console()


def ls_command(args: list[str]) -> None:
    """`jrnn ls cells|transforms|tasks|engines|configs|runs`."""
    if "-h" in args or "--help" in args:
        print(LS_HELP, end="")
        return
    if args and args[0] == "runs" and len(args) < 3:
        stdout.print(runs_table(Path(args[1] if len(args) == 2 else "runs")))
        return
    if len(args) != 1:
        got = " ".join(args) or "none"
        raise ValueError(
            f"ls: the argument must be one of {', '.join((*TABLES, 'runs'))}, got {got}; run for "
            "example: jrnn ls cells"
        )
    checks.one_of("ls", "the argument", args[0], (*TABLES, "runs"))
    stdout.print(TABLES[args[0]]())


def validate_command(args: list[str]) -> None:
    """`jrnn validate CONFIG ...`: loads each config; exits with code 2 if one is invalid.

    Raises:
      SystemExit: a config is invalid; the exit code is 2.
      ValueError: there is no config.
    """
    if args and args[0] in ("-h", "--help"):
        print(VALIDATE_HELP, end="")
        return
    if not args:
        raise ValueError(
            "validate: there must be at least one config, got none; run for example: "
            "jrnn validate configs/*.py"
        )
    has_failed = False
    for spec in args:
        try:
            experiment = config.load(spec)
        except (ValueError, TypeError, OSError) as error:
            has_failed = True
            text = escape(format_message(f"{spec}: {error}"))
            stdout.print(f"[red]invalid[/red] {text}", soft_wrap=True)
        else:
            cell = experiment.network.cell
            stdout.print(
                f"[green]valid[/green]   {escape(f'{spec}: {experiment.task}, {cell}')}",
                soft_wrap=True,
            )
    if has_failed:
        sys.exit(2)


def runs_table(folder: Path) -> Table:
    """Returns the table of the runs in a folder; the config of a stranger is only data.

    Raises:
      FileNotFoundError: the folder does not exist, or has no runs.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"ls: {checks.describe(str(folder))} must be a folder of runs, got "
            f"{'a file' if folder.exists() else 'no such folder'}; run for example: jrnn ls runs "
            "runs"
        )
    runs = sorted(path.parent for path in folder.glob(f"*/{run_folder.CONFIG_FILE}"))
    if not runs:
        raise FileNotFoundError(
            f"ls: {checks.describe(str(folder))} must have runs, got none; jrnn train writes them"
        )
    return _make_runs_table([_run_row(run) for run in runs])


def _run_row(run: Path) -> tuple[str, ...]:
    """Returns the columns of a run as text."""
    row = dict.fromkeys(("task", "cell", "step", "steps", "metric", "validation", "test"), "-")
    with contextlib.suppress(OSError, ValueError):
        experiment = config.read(run / run_folder.CONFIG_FILE)
        row["task"] = type(experiment.task).__name__
        row["cell"] = type(experiment.network.cell).__name__
        row["steps"] = str(experiment.steps)
    with contextlib.suppress(OSError, ValueError):
        result = files.read_json(run / run_folder.RESULT_FILE, run_data.MAX_BYTES)
        check_summary(run, result)
        row["metric"] = METRIC_NAMES[result["metric"]]
        row |= {name: f"{result[name]:.4f}" for name in ("validation", "test")}
    with contextlib.suppress(OSError):
        row["step"] = str(max(list_steps(run / "checkpoints"), default="-"))
    results = (row[name] for name in ("metric", "validation", "test"))
    values = (run, row["task"], row["cell"], f"{row['step']}/{row['steps']}", *results)
    return tuple(escape(checks.shorten(value)) for value in values)


def _make_runs_table(rows: list[tuple[str, ...]]) -> Table:
    """Makes the table of runs; a narrow terminal folds their paths, and shows all results."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for column in ("task", "cell", "step", "metric", "validation", "test"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _make_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Makes a table with one line per row; a narrow terminal truncates the last column."""
    table = Table(box=None, header_style="bold", pad_edge=False, expand=stdout.is_terminal)
    for index, column in enumerate(columns[:-1]):
        width = max(len(text) for text in (column, *(row[index] for row in rows)))
        table.add_column(column, no_wrap=True, min_width=width)
    table.add_column(columns[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*row)
    return table


def _make_cells_table() -> Table:
    rows = [row[:-1] for row in make_cell_rows()]
    table = _make_table(("name", "recurrence", "parameters", "paper"), rows)
    table.caption = f"parameters: for {HIDDEN_SIZE} inputs and {HIDDEN_SIZE} hidden units"
    table.caption_justify = "left"
    return table


def make_cell_rows() -> list[tuple[str, str, str, str, str]]:
    """Returns name, recurrence, number of parameters, paper and description of each cell."""
    rows = []
    for name, cls in CELLS.items():
        cell = config.make_cell(name, HIDDEN_SIZE)
        recurrence = structure.recurrence_kind(cell, HIDDEN_SIZE)
        count = f"{_count_params(cell):,}"
        rows.append((name, recurrence, count, first_reference(cls), first_line(cls)))
    return rows


def first_reference(cls: type) -> str:
    """Returns the first reference in a docstring, as "Elman, 1990" or "Cho et al., 2014"."""
    _, _, references = (inspect.getdoc(cls) or "").partition("References:")
    match = re.match(r"\s*(.*?),\s+(\d{4})", references, re.DOTALL)
    if match is None:
        return ""
    authors = re.split(r",\s+|\s+and\s+", match[1])
    names = " and ".join(authors) if len(authors) < 3 else f"{authors[0]} et al."
    return f"{' '.join(names.split())}, {match[2]}"


def _make_transforms_table() -> Table:
    rows = [(name, first_line(cls)) for name, cls in (TRANSFORMS | LAYERS).items()]
    return _make_table(("name", "description"), rows)


def _count_params(cell: Cell) -> int:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), HIDDEN_SIZE))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _make_tasks_table() -> Table:
    rows = [(name, first_line(cls)) for name, cls in TASKS.items()]
    return _make_table(("name", "description"), rows)


def _make_engines_table() -> Table:
    rows = [(name, first_line(cls)) for name, cls in ENGINES.items()]
    return _make_table(("name", "description"), rows)


def _make_configs_table() -> Table:
    paths = config.list_configs()
    rows = [*zip(config.config_names(), map(_read_first_line, paths), strict=True)]
    return _make_table(("config", "description"), rows)


def first_line(object: Any) -> str:
    """Returns the first line of a docstring."""
    return (inspect.getdoc(object) or "").partition("\n")[0]


def _read_first_line(path: Path) -> str:
    """Returns the first line of the docstring of a Python file, without importing the file."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


TABLES = {
    "cells": _make_cells_table,
    "transforms": _make_transforms_table,
    "tasks": _make_tasks_table,
    "engines": _make_engines_table,
    "configs": _make_configs_table,
}
"""The functions that make the tables of `jrnn ls`, by the name of the table."""
