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
    if len(args) != 1 or args[0] in ("-h", "--help"):
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


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """One line a row; the last column is cut short where the terminal is narrow."""
    table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
    for number, column in enumerate(columns[:-1]):
        width = max(len(cell) for cell in (column, *(row[number] for row in rows)))
        table.add_column(column, no_wrap=True, min_width=width)
    table.add_column(columns[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*row)
    return table


def _cells() -> Table:
    rows = []
    for name, kind in CELLS.items():
        cell = config.make_cell(name, HIDDEN)
        rows.append((name, cell.recurrence, f"{_count(cell):,}", first_line(kind)))
    table = _table(("name", "recurrence", "parameters", "cell"), rows)
    table.caption = f"parameters with {HIDDEN} inputs and {HIDDEN} hidden units"
    table.caption_justify = "left"
    return table


def _count(cell: Cell) -> int:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), HIDDEN))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _tasks() -> Table:
    return _table(("name", "task"), [(name, first_line(kind)) for name, kind in TASKS.items()])


def _engines() -> Table:
    return _table(("name", "engine"), [(name, first_line(kind)) for name, kind in ENGINES.items()])


def _configs() -> Table:
    rows = [
        (f"configs/{path.relative_to(config.folder())}", _docstring(path))
        for path in config.shipped()
    ]
    return _table(("config", "what it trains"), rows)


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _docstring(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
