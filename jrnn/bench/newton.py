"""Iterations and times of the engine `Newton`, compared with `Scan`: `jrnn bench newton`.

    jrnn bench newton
    jrnn bench newton --cells paragru gru --steps 16384 --damping 1.0

Each cell has its default initialization and normally distributed inputs, and is solved to a
relative residual of 1e-6. In the cases `*-times-3` the recurrent matrices are three times as large.
These cells amplify small differences, permanently or transiently, and Newton does not converge.
Their largest Lyapunov exponent, which is measured in the same run, is above zero or close to zero.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.markup import escape
from rich.table import Table

import jrnn
from jrnn import checks, files
from jrnn.analysis import lyapunov
from jrnn.bench import machine, report
from jrnn.bench.implementations import Implementation
from jrnn.bench.timing import time_interleaved
from jrnn.terminal import Console, parse_flags

TOLERANCE = 1e-6
"""The option `tol` of `Newton`."""
LYAPUNOV_STEPS = 1024
"""Maximum number of steps over which the Lyapunov exponent is averaged."""


@dataclass(frozen=True)
class Case:
    """A cell to solve.

    Args:
      cell: the cell.
      jacobian: the structure of the Jacobian that Newton uses.
      steps: sequence length.
      input_size: size of the inputs.
      gain: factor of the recurrent weights, relative to the default initialization.
    """

    cell: Any
    jacobian: Literal["diagonal", "block", "full"]
    steps: int
    input_size: int = 32
    gain: float = 1.0


CASES: dict[str, Case] = {
    "paragru": Case(jrnn.ParaGRU(256), "diagonal", 4096),
    "paralstm": Case(jrnn.ParaLSTM(256), "block", 4096),
    "indrnn": Case(jrnn.IndRNN(256, activation="tanh"), "diagonal", 4096),
    "gru": Case(jrnn.GRU(32), "full", 4096),
    "gru-diagonal": Case(jrnn.GRU(32), "diagonal", 4096),
    "lstm": Case(jrnn.LSTM(32), "full", 4096),
    "lstm-block": Case(jrnn.LSTM(32), "block", 4096),
    "elman": Case(jrnn.Elman(32), "full", 4096),
    "gru-times-3": Case(jrnn.GRU(32), "full", 512, gain=3.0),
    "lstm-times-3": Case(jrnn.LSTM(32), "full", 512, gain=3.0),
    "elman-times-3": Case(jrnn.Elman(32), "full", 512, gain=3.0),
}

COLUMNS = {
    "cell": "cell",
    "hidden": "hidden",
    "jacobian": "Jacobian",
    "steps": "steps",
    "exponent": "largest exponent",
    "converged": "converged",
    "iterations": "iterations",
    "error": "error",
    "newton_ms": "Newton ms",
    "scan_ms": "Scan ms",
}


@dataclass(frozen=True)
class Bench:
    """Counts the iterations of the engine Newton, and compares its time with that of Scan.

    Example: jrnn bench newton --cells gru lstm-block --steps 512

    Args:
      cells: names of cases, the first column of the table.
      steps: sequence length for all cases; None uses the default of each case.
      damping: initial damping; None for undamped Newton steps.
      max_steps: maximum number of iterations.
      repeats: maximum number of timing rounds.
      seconds: no timing round of a case starts after this time; the first 3 rounds ignore it.
      out: path of the JSON file.
    """

    cells: tuple[str, ...] = tuple(CASES)
    steps: int | None = None
    damping: float | None = None
    max_steps: int = 50
    repeats: int = 7
    seconds: float = 3.0
    out: Path = Path("build/newton.json")

    def __post_init__(self) -> None:
        for name in self.cells:
            checks.one_of("bench newton", "cell", name, CASES)
        if self.steps is not None:
            checks.positive_int("bench newton", "steps", self.steps)
        checks.positive_int("bench newton", "repeats", self.repeats)


def main(args: list[str]) -> None:
    """Solves all cases, prints the table and writes the JSON file."""
    bench = parse_flags(Bench, args, prog="jrnn bench newton")
    stdout = Console(width=max(Console().width, report.WIDTH))
    rows = []
    for name in bench.cells:
        rows.append(measure(name, bench))
        stdout.print(escape(", ".join(f"{key} {format_value(rows[-1], key)}" for key in COLUMNS)))
    result = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(bench) | {"out": bench.out.name},
        "tolerance": TOLERANCE,
        "rows": rows,
    }
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(bench.out, json.dumps(result, indent=2) + "\n")
    table = Table(box=None, header_style="bold")
    for column in COLUMNS.values():
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(format_value(row, key) for key in COLUMNS))
    stdout.print("", table, "", escape(f"written to {bench.out}"))


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """Solves and times one case; returns a row of the table."""
    case = CASES[name]
    steps = bench.steps or case.steps
    params = case.cell.init(jax.random.key(0), case.input_size)
    params = params._replace(w_hh=case.gain * params.w_hh)
    xs = jax.random.normal(jax.random.key(1), (steps, 1, case.input_size))
    engine = jrnn.Newton(case.jacobian, bench.damping, bench.max_steps, TOLERANCE, fallback="none")
    solve = jax.jit(lambda p, xs: jrnn.newton(case.cell, p, xs, engine=engine))
    scan = jax.jit(lambda p, xs: jrnn.unroll(case.cell, p, xs, engine="scan"))
    solution, (_, ys) = jax.block_until_ready((solve(params, xs), scan(params, xs)))
    bind: Callable[..., Any] = lambda f: lambda: jax.block_until_ready(f(params, xs))
    times = time_interleaved(
        [Implementation("newton", "jrnn", bind(solve)), Implementation("scan", "jrnn", bind(scan))],
        bench.repeats,
        bench.seconds,
    )
    exponents = lyapunov(case.cell, params, xs[:LYAPUNOV_STEPS], num_exponents=1)
    return {
        "cell": name,
        "hidden": case.cell.hidden_size,
        "jacobian": case.jacobian,
        "steps": steps,
        "exponent": float(exponents.largest_exponent[0]),
        "converged": bool(solution.status.converged.all()),
        "iterations": int(solution.status.iterations),
        "residuals": [float(r) for r in solution.status.residuals[:, 0]],
        "error": float(np.abs(np.asarray(solution.ys) - ys).max()),
        "newton_ms": 1e3 * times["newton"].median,
        "scan_ms": 1e3 * times["scan"].median,
    }


def format_value(row: dict[str, Any], key: str) -> str:
    """Formats the value of one column of a row."""
    value = row[key]
    if key == "converged":
        return "yes" if value else "no"
    if key == "error":
        return f"{value:.0e}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def markdown(result: dict[str, Any]) -> str:
    """Formats the rows as a Markdown table."""
    header = [tuple(COLUMNS.values()), ("---",) * len(COLUMNS)]
    rows = header + [tuple(format_value(row, key) for key in COLUMNS) for row in result["rows"]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
