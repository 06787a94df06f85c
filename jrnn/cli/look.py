"""Commands that look and change nothing."""

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jrnn import checks, config
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES
from jrnn.tasks import REGISTRY as TASKS

HIDDEN = 128

stdout = Console()


def ls_command(args: list[str]) -> None:
    """`jrnn ls cells|tasks|engines|configs`."""
    kinds = {"cells": _cells, "tasks": _tasks, "engines": _engines, "configs": _configs}
    if len(args) != 1:
        raise ValueError(f"ls: name one of {', '.join(kinds)}, as in: jrnn ls cells")
    checks.one_of("ls", "the kind", args[0], kinds)
    stdout.print(kinds[args[0]]())


def validate_command(args: list[str]) -> None:
    """`jrnn validate CONFIG ...`: loads each config, and counts those that fail."""
    if not args:
        raise ValueError("validate: name one or more configs, as in: jrnn validate configs/*.py")
    bad = 0
    for spec in args:
        try:
            experiment = config.load(spec)
        except (ValueError, TypeError, OSError, SystemExit) as error:
            bad += 1
            said = "see above" if isinstance(error, SystemExit) else escape(str(error))
            stdout.print(f"[red]bad[/red]  {escape(spec)}: {said}", soft_wrap=True)
        else:
            cell = experiment.network.cell
            stdout.print(
                f"[green]good[/green] {escape(f'{spec}: {experiment.task}, {cell}')}",
                soft_wrap=True,
            )
    if bad:
        sys.exit(2)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def _cells() -> Table:
    table = _table("name", "recurrence", "parameters", "cell")
    table.caption = f"parameters with {HIDDEN} inputs and {HIDDEN} hidden units"
    for name, kind in CELLS.items():
        cell = kind(hidden_size=HIDDEN)  # pyright: ignore[reportCallIssue]
        table.add_row(name, cell.recurrence, f"{_count(cell):,}", first_line(kind))
    return table


def _count(cell: Cell) -> int:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), HIDDEN))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _tasks() -> Table:
    table = _table("name", "task")
    for name, kind in TASKS.items():
        table.add_row(name, first_line(kind))
    return table


def _engines() -> Table:
    table = _table("name", "engine")
    for name, kind in ENGINES.items():
        table.add_row(name, first_line(kind))
    return table


def _configs() -> Table:
    table = _table("config", "what it trains")
    for path in config.shipped():
        table.add_row(f"configs/{path.relative_to(config.folder())}", _docstring(path))
    return table


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _docstring(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
