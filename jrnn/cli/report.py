"""The commands `jrnn report` and `jrnn compare`, which write HTML pages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from jrnn import checks, files, run_folder
from jrnn.cli.inference import Trust
from jrnn.report.compare_page import make_comparison, make_rows, rank_entries, read_entries
from jrnn.report.page import format_number
from jrnn.report.run_page import make_run_report
from jrnn.report.settings import Setting
from jrnn.report.sweep_folder import is_sweep, read_sweep
from jrnn.run_folder import SplitName
from jrnn.terminal import Console, parse_flags
from jrnn.train import restore
from jrnn.train.run.summary import FIGURE_FORMATS, make_title, save_figure

stdout = Console()

MAX_TERMINAL_ROWS = 20
"""Maximum number of runs of a comparison on the terminal."""


@dataclass(frozen=True)
class ReportOptions:
    """Writes a report of a run or of a sweep: one HTML page that makes no requests.

    Example: jrnn report runs/mine

    Args:
      folder: the folder of a run or of a sweep.
      out: the file to write; by default report.html in the folder.
      split: the split of the training data whose examples are shown.
      examples: number of examples with the highest losses that are shown.
      figure: a file .png, .pdf or .svg, to which a figure for a paper is written in addition.
      trust: execute the code of the run, such as its config.py, if its config names a class that is
        not in jrnn, and accept symbolic links in its folder.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SWEEP")]
    out: str | None = None
    split: SplitName = "test"
    examples: int = 8
    figure: str | None = None
    trust: Trust = False


@dataclass(frozen=True)
class CompareOptions:
    """Compares runs: prints their differing settings and results, and writes an HTML page.

    Example: jrnn compare runs/one runs/two --out comparison.html

    Args:
      runs: the folders of two or more runs.
      out: the file to write.
      trust: execute the code of the runs, such as their config.py, if a config names a class that
        is not in jrnn, and accept symbolic links in their folders.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: str = "comparison.html"
    trust: Trust = False


def report_command(args: list[str]) -> None:
    """`jrnn report RUN|SWEEP [--out FILE]`: writes a report as an HTML page."""
    options: ReportOptions = parse_flags(ReportOptions, args, prog="jrnn report")
    checks.int_between("report", "examples", options.examples, 0, 1000)
    folder = Path(options.folder)
    if not is_sweep(folder):
        run_folder.check_is_run(folder)
    out = _check_out("report", folder / "report.html" if options.out is None else Path(options.out))
    figure = _check_figure(options, folder)
    if is_sweep(folder):
        entries, spec = read_sweep(folder, trust=options.trust)
        lead = f"Sweep {folder}, {len(entries)} trials"
        html = make_comparison("Sweep", lead, entries, spec)
    else:
        run = run_folder.load(folder, trust=options.trust)
        html = make_run_report(run, split=options.split, num_examples=options.examples)
        if figure is not None:
            data = run.load_data()
            result = restore(run.config, data, run.folder)
            title = make_title(run.config, result)
            save_figure(data, result, run.folder, title=title, path=figure)
            stdout.print(escape(f"figure: {figure}"), soft_wrap=True)
    files.write_text(out, html)
    stdout.print(escape(f"report: {out}"), soft_wrap=True)


def compare_command(args: list[str]) -> None:
    """`jrnn compare RUN RUN ... [--out FILE]`: compares runs in a table and on an HTML page."""
    options: CompareOptions = parse_flags(CompareOptions, args, prog="jrnn compare")
    out = _check_out("compare", Path(options.out))
    runs = [run_folder.load(folder, trust=options.trust) for folder in options.runs]
    entries = read_entries(runs)
    spec = runs[0].data.spec
    lead = f"{len(runs)} runs"
    if len({run.data.fingerprint for run in runs}) > 1:
        lead += " with different data, so that their metrics may not be comparable"
    html = make_comparison("Comparison of runs", lead, entries, spec)
    stdout.print(_make_table(lead, *make_rows(rank_entries(entries, spec), spec)))
    files.write_text(out, html)
    stdout.print(escape(f"report: {out}"), soft_wrap=True)


def _make_table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """Makes a table with a line for each run, or with a column for each run if they are few."""
    cells = [[escape(column) for column in columns]]
    cells += [[_format_cell(cell) for cell in row] for row in rows[:MAX_TERMINAL_ROWS]]
    if len(cells) < len(columns):
        cells = [list(column) for column in zip(*cells, strict=True)]
    table = Table(title=title, title_justify="left")
    for name in cells[0]:
        table.add_column(name, overflow="fold")
    for row in cells[1:]:
        table.add_row(*row)
    return table


def _check_figure(options: ReportOptions, folder: Path) -> Path | None:
    """Returns the path of the figure, or None; raises ValueError unless it can be one."""
    if options.figure is None:
        return None
    path = Path(options.figure)
    checks.one_of("report", "suffix of --figure", path.suffix, FIGURE_FORMATS)
    if is_sweep(folder):
        raise ValueError(f"report: --figure must be omitted for a sweep, got {path}")
    return checks.writable_file("report", "--figure", path)


def _check_out(owner: str, path: Path) -> Path:
    """Returns the path of the page; raises ValueError unless it can be one."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{owner}: --out must be a file with the suffix .html, got {path}")
    return checks.writable_file(owner, "--out", path)


def _format_cell(cell: Setting) -> str:
    if cell is None:
        return "-"
    return escape(cell if isinstance(cell, str) else format_number(cell))
