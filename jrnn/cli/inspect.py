"""Read-only commands: `jrnn ls` and `jrnn validate`."""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jrnn import checks, config, structure
from jrnn.cell import Cell
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES
from jrnn.layers import REGISTRY as LAYERS
from jrnn.tasks import REGISTRY as TASKS
from jrnn.transforms import REGISTRY as TRANSFORMS

HIDDEN = 128

stdout = Console()


def ls_command(args: list[str]) -> None:
    """`jrnn ls cells|transforms|tasks|engines|configs`; `jrnn ls cells --markdown`."""
    if args == ["cells", "--markdown"]:
        print(cells_markdown())
        return
    kinds = {
        "cells": _cells,
        "transforms": _transforms,
        "tasks": _tasks,
        "engines": _engines,
        "configs": _configs,
    }
    if len(args) != 1 or args[0] in ("-h", "--help"):
        raise ValueError(f"ls: needs one of {', '.join(kinds)}, as in: jrnn ls cells")
    checks.one_of("ls", "the kind", args[0], kinds)
    stdout.print(kinds[args[0]]())


def validate_command(args: list[str]) -> None:
    """`jrnn validate CONFIG ...`: loads each config; exit code 2 if any of them fails."""
    if not args:
        raise ValueError("validate: needs one or more configs, as in: jrnn validate configs/*.py")
    failed = False
    for spec in args:
        try:
            experiment = config.load(spec)
        except (ValueError, TypeError, OSError, SystemExit) as error:
            failed = True
            message = "see above" if isinstance(error, SystemExit) else escape(str(error))
            stdout.print(f"[red]bad[/red]  {escape(spec)}: {message}", soft_wrap=True)
        else:
            cell = experiment.network.cell
            stdout.print(
                f"[green]good[/green] {escape(f'{spec}: {experiment.task}, {cell}')}",
                soft_wrap=True,
            )
    if failed:
        sys.exit(2)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """A table with one line per row; the last column is truncated on a narrow terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False, expand=True)
    for number, column in enumerate(columns[:-1]):
        width = max(len(cell) for cell in (column, *(row[number] for row in rows)))
        table.add_column(column, no_wrap=True, min_width=width)
    table.add_column(columns[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*row)
    return table


def _cells() -> Table:
    rows = [(name, kind, count, source) for name, kind, count, source, _ in cell_rows()]
    table = _table(("name", "recurrence", "parameters", "paper"), rows)
    table.caption = f"parameters with {HIDDEN} inputs and {HIDDEN} hidden units"
    table.caption_justify = "left"
    return table


def cell_rows() -> list[tuple[str, str, str, str, str]]:
    """Name, kind of recurrence, number of parameters, paper and first line of each cell."""
    rows = []
    for name, cls in CELLS.items():
        cell = config.make_cell(name, HIDDEN)
        kind = structure.recurrence_kind(cell, HIDDEN)
        rows.append((name, kind, f"{_count_params(cell):,}", first_reference(cls), first_line(cls)))
    return rows


def cells_markdown() -> str:
    """The table of cells in the README."""
    lines = [("name", "cell", "", "parameters", "recurrence", "paper")]
    lines.append(("---", "---", "---", "---:", "---", "---"))
    for name, kind, count, source, line in cell_rows():
        lines.append((f"`{name}`", f"`{CELLS[name].__name__}`", line, count, kind, source))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_reference(cls: type) -> str:
    """The first reference of a docstring, as "Elman, 1990" or "Cho et al., 2014"."""
    _, _, references = (inspect.getdoc(cls) or "").partition("References:")
    match = re.match(r"\s*(.*?),\s+(\d{4})", references, re.DOTALL)
    if match is None:
        return ""
    authors = re.split(r",\s+|\s+and\s+", match[1])
    names = " and ".join(authors) if len(authors) < 3 else f"{authors[0]} et al."
    return f"{' '.join(names.split())}, {match[2]}"


def _transforms() -> Table:
    rows = [(name, first_line(cls)) for name, cls in (TRANSFORMS | LAYERS).items()]
    return _table(("name", "transform"), rows)


def _count_params(cell: Cell) -> int:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), HIDDEN))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _tasks() -> Table:
    return _table(("name", "task"), [(name, first_line(cls)) for name, cls in TASKS.items()])


def _engines() -> Table:
    return _table(("name", "engine"), [(name, first_line(cls)) for name, cls in ENGINES.items()])


def _configs() -> Table:
    rows = [
        (f"configs/{path.relative_to(config.configs_folder())}", _module_docstring(path))
        for path in config.list_configs()
    ]
    return _table(("config", "what it trains"), rows)


def first_line(object: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(object) or "").partition("\n")[0]


def _module_docstring(path: Path) -> str:
    """The first line of the docstring of a Python file, which is not run."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
