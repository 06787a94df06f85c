"""Time of a step of LSTM and GRU layers, against flax on the same machine in the same run.

    make bench
    python experiments/speed/bench.py --repeats 20

Every contender is compiled first; then all are called in turn, again and again, so that what else
the machine does hits them alike. Ratios are flax's median time over jrnn's: above 1, jrnn is
faster. The results go to build/bench.json with the versions and the machine.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import jrnn
from jrnn.nn import RNN

SHAPES = [(32, 128, 32, 64), (32, 256, 128, 256), (32, 64, 512, 512), (64, 784, 1, 128)]


@dataclass(frozen=True)
class Bench:
    """What to time.

    Args:
      repeats: timed calls of each contender.
      shapes: how many of the shapes, from the first.
    """

    repeats: int = 10
    shapes: int = len(SHAPES)


def contenders(inputs: int, hidden: int) -> dict[str, dict[str, nnx.Module]]:
    """For each cell, modules that take `[B, T, input]` and give `[B, T, hidden]`."""
    rngs = nnx.Rngs(0)
    return {
        "lstm": {
            "jrnn": RNN(jrnn.LSTM(hidden), inputs, rngs=rngs),
            "flax": nnx.RNN(nnx.LSTMCell(inputs, hidden, rngs=rngs)),
            "flax optimized": nnx.RNN(nnx.OptimizedLSTMCell(inputs, hidden, rngs=rngs)),
        },
        "gru": {
            "jrnn": RNN(jrnn.GRU(hidden), inputs, rngs=rngs),
            "flax": nnx.RNN(nnx.GRUCell(inputs, hidden, rngs=rngs)),
        },
    }


def compiled(module: nnx.Module, xs: jax.Array, backward: bool) -> Callable[[], object]:
    """A call with nothing left to compile: outputs, or loss and all gradients."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def outputs(params, xs):
        ys = nnx.merge(graphdef, params, rest, copy=True)(xs)
        return ys[1] if isinstance(ys, tuple) else ys

    def loss(params, xs):
        return jnp.mean(outputs(params, xs) ** 2)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)) if backward else outputs)
    run = run.lower(params, xs).compile()
    return lambda: jax.block_until_ready(run(params, xs))


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seen[1:]) for name, seen in times.items()}


def main(bench: Bench) -> None:
    """Times all, prints the table and writes the JSON."""
    table = Table("cell", "direction", "batch, time, input, hidden", "jrnn ms", "flax / jrnn")
    rows = []
    for batch, steps, inputs, hidden in SHAPES[: bench.shapes]:
        xs = jax.random.normal(jax.random.key(0), (batch, steps, inputs))
        for cell, modules in contenders(inputs, hidden).items():
            for backward in (False, True):
                calls = {name: compiled(module, xs, backward) for name, module in modules.items()}
                seconds = medians(calls, bench.repeats)
                own = seconds.pop("jrnn")
                ratios = {name: peer / own for name, peer in seconds.items()}
                direction = "forward + backward" if backward else "forward"
                shape = [batch, steps, inputs, hidden]
                shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
                table.add_row(cell, direction, str(shape), f"{1e3 * own:.1f}", shown)
                rows.append(
                    {
                        "cell": cell,
                        "direction": direction,
                        "shape": shape,
                        "jrnn_seconds": own,
                        "ratios": ratios,
                    }
                )
    Console().print(table)
    result = {
        "device": str(jax.devices()[0]),
        "machine": platform.machine(),
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "jrnn": jrnn.__version__},
        "repeats": bench.repeats,
        "rows": rows,
    }
    path = Path("build/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main(tyro.cli(Bench))
