"""Times LSTM, GRU and Elman layers against other libraries on the same machine in the same run.

    jrnn bench
    jrnn bench --engines scan auto --cells gru --shapes 0 8x64x16x32 --sweep --figure

Every implementation is compiled and checked first. Then the calls of all implementations are timed
in interleaved rounds, so that other load on the machine affects all of them equally. A ratio is the
median time of another library divided by that of jrnn: above 1, jrnn is faster. A library that is
not installed, fails, or has no layer for a cell is listed as missing. The extras `bench` and
`parity` of jrnn install all libraries except cuDNN, which the extra `gpu` installs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from rich.markup import escape

from jrnn import checks, files
from jrnn.bench import figure, group, machine, report
from jrnn.bench.cases import SHAPES, cases, parse_shape
from jrnn.bench.engines import ResultMismatch
from jrnn.bench.peers import PEERS
from jrnn.terminal import Console, parse_flags

stdout = Console(width=max(Console().width, report.WIDTH))


@dataclass(frozen=True)
class Bench:
    """Times layers of jrnn and of other libraries in interleaved rounds.

    Example: jrnn bench --cells gru --shapes 8x64x16x32 --peers torch

    The implementations of one case (a cell, a mode and a shape) form a group. `jrnn bench newton`
    and `jrnn bench train` are further benchmarks, with their own flags.

    Args:
      cells: lstm, gru or elman.
      modes: forward, or forward+backward, which also computes gradients.
      shapes: batch x time x input x hidden, as in 32x128x32x64, or indices of the default shapes.
      engines: engines of jrnn, by their names in `jrnn ls engines`.
      peers: other libraries: nnx, linen, haiku, equinox, keras, torch, onnxruntime or cudnn.
      repeats: maximum number of rounds for each group; a round times every implementation.
      seconds: no round of a group starts after this time; the first 3 rounds ignore it.
      sweep: also time shapes with increasing numbers of steps, and with increasing hidden sizes.
      out: path of the JSON file, written after each group.
      figure: save figures of the ratios and the sweeps next to the JSON file.
    """

    cells: tuple[str, ...] = ("lstm", "gru")
    modes: tuple[str, ...] = ("forward", "forward+backward")
    shapes: tuple[str, ...] = tuple(shape.text for shape in SHAPES)
    engines: tuple[str, ...] = ("auto",)
    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 30
    seconds: float = 15.0
    sweep: bool = False
    out: Path = Path("build/bench.json")
    figure: bool = False

    def __post_init__(self) -> None:
        for peer in self.peers:
            checks.one_of("bench", "peer", peer, PEERS)
        checks.positive_int("bench", "repeats", self.repeats)


def main(args: list[str]) -> None:
    """Times all implementations, prints tables, and writes the JSON file and the figures.

    Raises:
      ValueError: an argument is invalid.
      FloatingPointError: the results of an engine differ from those of Scan. The files are written
        first.
    """
    bench = parse_flags(Bench, args, prog="jrnn bench")
    result = run(bench)
    stdout.print(report.final_tables(result), highlight=False, soft_wrap=True)
    written = [bench.out, *(figure.save(result, bench.out) if bench.figure else ())]
    stdout.print(escape(f"written to {', '.join(map(str, written))}"), soft_wrap=True)
    mismatches = [each for each in result["missing"] if each["kind"] == ResultMismatch.__name__]
    if mismatches:
        raise FloatingPointError(f"bench: {mismatches[0]['name']} {mismatches[0]['reason']}")


def run(bench: Bench) -> dict[str, Any]:
    """Times all groups, and writes the JSON file after each; returns the contents of the file.

    Raises:
      ValueError: a cell, mode or shape is invalid.
    """
    pending = list(cases(bench.cells, bench.modes, map(parse_shape, bench.shapes), bench.sweep))
    result = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(bench) | {"out": bench.out.name},
        "matmul_gflops": {},
        "groups": [],
    }
    with _no_compilation_cache():
        for case in pending:
            _update_matmul_gflops(result["matmul_gflops"])
            results = group.measure(case, bench.engines, bench.peers, bench.repeats, bench.seconds)
            result["groups"].append(results)
            _save(result, bench.out)
            stdout.print(report.group_table(results), "", highlight=False, soft_wrap=True)
    return result


def _update_matmul_gflops(best: dict[str, float]) -> None:
    """Measures again, and keeps the maximum for each library; the load of the machine varies."""
    for name, gflops in machine.matmul_gflops().items():
        best[name] = max(gflops, best.get(name, 0.0))


def _save(result: dict[str, Any], out: Path) -> None:
    """Adds the values that depend on all groups so far, and writes the JSON file."""
    best = max(result["matmul_gflops"].values())
    for row in (row for entry in result["groups"] for row in entry["implementations"]):
        row["percent_of_matmul"] = 100 * row["gflops"] / best
    result["summary"] = report.summary(result["groups"])
    result["missing"] = report.missing(result["groups"])
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, json.dumps(result, indent=2) + "\n")


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Disables JAX's persistent compilation cache, which would make compile times meaningless."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
