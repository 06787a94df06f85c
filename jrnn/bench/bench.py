"""Times LSTM, GRU and Elman layers against other libraries on the same machine in the same run.

    jrnn bench
    jrnn bench --engines scan auto --cells gru --shapes 0 8x64x16x32 --sweep --figure

Every contender is compiled and checked first. Then rounds of calls are interleaved, so that other
load on the machine affects all contenders equally. Ratios are the peer's median time over jrnn's:
above 1, jrnn is faster. A library that is not installed, or has no such layer, is listed as
missing. The extras `bench` and `parity` of jrnn install all peers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.markup import escape

from jrnn import checks
from jrnn.bench import figure, group, machine, report
from jrnn.bench.cases import SHAPES, cases, read_shape
from jrnn.bench.engines import ResultMismatch
from jrnn.bench.peers import PEERS

stdout = Console(width=max(Console().width, report.WIDTH))


@dataclass(frozen=True)
class Bench:
    """Times layers of jrnn and of other libraries, interleaved, and compares them.

    Args:
      cells: lstm, gru or elman.
      directions: forward or forward+backward.
      shapes: batch x steps x input x hidden, as in 32x128x32x64, or an index of the default ones.
      engines: the engines of jrnn, as `jrnn ls engines` names them.
      peers: nnx, linen, haiku, equinox, keras, torch, onnxruntime or cudnn.
      repeats: maximum number of rounds of a group; a round times every contender.
      seconds: time after which no round of a group starts, except for the first 3.
      sweep: also measure growth curves over the steps and over the hidden size.
      out: the JSON file, written after each group.
      figure: draw the ratios and the growth curves next to the JSON file.
    """

    cells: tuple[str, ...] = ("lstm", "gru")
    directions: tuple[str, ...] = ("forward", "forward+backward")
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
    """Times all contenders, prints tables, and writes the JSON file and the figures.

    Raises:
      ValueError: an argument is invalid.
      FloatingPointError: the results of an engine differ from Scan; the files are written first.
    """
    bench = tyro.cli(Bench, args=args, prog="jrnn bench")
    result = run(bench)
    stdout.print(report.final_tables(result), highlight=False, soft_wrap=True)
    written = [bench.out, *(figure.save(result, bench.out) if bench.figure else ())]
    stdout.print(escape(f"written to {', '.join(map(str, written))}"), soft_wrap=True)
    mismatches = [each for each in result["missing"] if each["kind"] == ResultMismatch.__name__]
    if mismatches:
        raise FloatingPointError(f"bench: {mismatches[0]['name']} {mismatches[0]['reason']}")


def run(bench: Bench) -> dict[str, Any]:
    """Times all groups, and writes the JSON file after each."""
    todo = list(cases(bench.cells, bench.directions, map(read_shape, bench.shapes), bench.sweep))
    result = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(bench) | {"out": bench.out.name},
        "product_gflops": {},
        "groups": [],
    }
    with _no_compilation_cache():
        for case in todo:
            _measure_product(result["product_gflops"])
            done = group.measure(case, bench.engines, bench.peers, bench.repeats, bench.seconds)
            result["groups"].append(done)
            _save(result, bench.out)
            stdout.print(report.group_table(done), "", highlight=False, soft_wrap=True)
    return result


def _measure_product(best: dict[str, float]) -> None:
    """Updates the best rates; called before each group, because the load of the machine varies."""
    for name, rate in machine.product_rates().items():
        best[name] = max(rate, best.get(name, 0.0))


def _save(result: dict[str, Any], out: Path) -> None:
    rate = max(result["product_gflops"].values())
    for row in (row for done in result["groups"] for row in done["contenders"]):
        row["percent_of_product_rate"] = 100 * row["gflops"] / rate
    result["summary"] = report.summary(result["groups"])
    result["missing"] = report.missing(result["groups"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Disables JAX's persistent cache, since compile times would otherwise be cache reads."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
