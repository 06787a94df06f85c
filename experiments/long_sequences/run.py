"""Engines that are parallel over time: their cost by sequence length, and Newton in training.

    python -m experiments.long_sequences.run                # about 15 minutes on two cores
    python -m experiments.long_sequences.run --max-steps 4096 --training-steps 20

The study has two parts. "Growth" measures time and memory of `Scan` and of a parallel engine, with
gradients, from 1024 to 65536 steps, for linear cells up to 2^20. "Training" measures the number of
Newton iterations and the largest Lyapunov exponent during training on the adding problem. The study
writes a JSON file and a figure to `--out`, by default `experiments/long_sequences/results`.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jrnn
from jrnn.analysis import lyapunov
from jrnn.bench import machine
from jrnn.bench.implementations import Implementation
from jrnn.bench.timing import time_interleaved
from jrnn.plotting import new_figure
from jrnn.tasks import Adding

HERE = Path(__file__).parent
TOLERANCE = 1e-6
"""The option `tol` of `Newton`."""
INPUT_SIZE = 32
"""Size of the inputs in the first part."""


@dataclass(frozen=True)
class GrowthCase:
    """A cell, its parallel engine, and the maximum sequence length."""

    cell: Any
    engine: jrnn.Engine
    max_steps: int


GROWTH_CASES = {
    "minGRU": GrowthCase(jrnn.MinGRU(64), jrnn.Associative(), 2**20),
    "LRU": GrowthCase(jrnn.LRU(64), jrnn.Associative(), 2**20),
    "ParaGRU": GrowthCase(jrnn.ParaGRU(64), jrnn.Newton(tol=TOLERANCE), 2**16),
    "ParaLSTM": GrowthCase(jrnn.ParaLSTM(64), jrnn.Newton(tol=TOLERANCE), 2**16),
    "GRU": GrowthCase(jrnn.GRU(16), jrnn.Newton("full", tol=TOLERANCE), 2**16),
}

TRAINING_CASES = {
    "ParaGRU": (lambda length: jrnn.ParaGRU(32, t_max=length), "diagonal"),
    "GRU": (lambda length: jrnn.GRU(16, t_max=length), "full"),
}
"""Functions from the sequence length to the cell, and the Jacobians of Newton, by name."""


@dataclass(frozen=True)
class Study:
    """The options of the study.

    Args:
      max_steps: maximum sequence length of the growth curves.
      repeats: number of timing rounds; results are medians.
      training_steps: number of training steps of each cell.
      length: length of the training sequences.
      out: folder for the JSON file and the figure.
    """

    max_steps: int = 2**20
    repeats: int = 3
    training_steps: int = 600
    length: int = 200
    out: Path = HERE / "results"


def main(args: list[str] | None = None) -> None:
    """Runs the study, and writes the JSON file and the figure."""
    study = tyro.cli(Study, args=args)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(study) | {"out": study.out.name},
        "tolerance": TOLERANCE,
        "growth": [],
        "training": [],
    }
    study.out.mkdir(parents=True, exist_ok=True)
    path = study.out / "long_sequences.json"
    for kind, rows in (("training", training(study)), ("growth", growth(study))):
        for row in rows:
            result[kind].append(row)
            path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
    draw(result).savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
    print(f"results: {path} and {path.with_suffix('.png').name}")


def growth(study: Study) -> Iterator[dict[str, Any]]:
    """Yields a row of results for each cell and sequence length, with batch size 1."""
    for name, case in GROWTH_CASES.items():
        steps = 1024
        while steps <= min(case.max_steps, study.max_steps):
            yield {"cell": name, "hidden": case.cell.hidden_size, "steps": steps} | measure_growth(
                case, steps, study.repeats
            )
            steps *= 4


def measure_growth(case: GrowthCase, steps: int, repeats: int) -> dict[str, Any]:
    """Returns median times, memory estimates of XLA, and the relative error of the parallel engine.

    All of them are for the loss and its gradients, at one sequence length.
    """
    params = case.cell.init(jax.random.key(0), INPUT_SIZE)
    xs = jax.random.normal(jax.random.key(1), (steps, 1, INPUT_SIZE))

    def compile_loss(engine: jrnn.Engine | str) -> Any:
        loss = lambda p, xs: jnp.square(jrnn.unroll(case.cell, p, xs, engine=engine)[1]).mean()
        return jax.jit(jax.value_and_grad(loss)).lower(params, xs).compile()

    calls = {"parallel": compile_loss(case.engine), "scan": compile_loss("scan")}
    results = {name: jax.block_until_ready(call(params, xs)) for name, call in calls.items()}
    ready = [
        Implementation(name, "jrnn", lambda call=call: jax.block_until_ready(call(params, xs)))
        for name, call in calls.items()
    ]
    times = time_interleaved(ready, repeats, seconds=math.inf)
    row: dict[str, Any] = {f"{name}_ms": 1e3 * t.median for name, t in times.items()}
    for name, call in calls.items():
        row[f"{name}_mib"] = call.memory_analysis().temp_size_in_bytes / 2**20
    max_abs = lambda leaf: float(np.abs(np.asarray(leaf)).max())
    pairs = zip(*map(jax.tree.leaves, (results["parallel"], results["scan"])), strict=True)
    row["error"] = max(max_abs(a - b) / max(max_abs(b), 1e-30) for a, b in pairs)
    if isinstance(case.engine, jrnn.Newton):
        status = jrnn.newton(case.cell, params, xs, engine=case.engine).status
        row |= {"iterations": int(status.iterations), "converged": bool(status.converged.all())}
    return row


def training(study: Study) -> Iterator[dict[str, Any]]:
    """Yields a row for each cell: losses, Newton iterations and Lyapunov exponents in training."""
    data = Adding(study.length, 8000, 1000).load()
    for name, (make, kind) in TRAINING_CASES.items():
        yield {"cell": name, "length": study.length} | train(
            make(study.length), jrnn.Newton(kind, tol=TOLERANCE), data, study.training_steps
        )


def train(cell: jrnn.Cell, engine: jrnn.Newton, data: Any, steps: int) -> dict[str, Any]:
    """Trains a cell with a linear layer on its last output; returns the values of a row."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    key = jax.random.key(0)
    params = cell.init(key, data.input_size)
    width = cell.output_shape(params, data.input_size).shape[-1]
    weights = (params, jax.random.normal(key, (width,)) / width**0.5)
    state = optimizer.init(weights)

    def loss(weights: Any, xs: jax.Array, targets: jax.Array) -> Any:
        params, readout = weights
        solution = jrnn.newton(cell, params, xs, engine=engine)
        return jnp.square(solution.ys[-1] @ readout - targets).mean(), solution.status

    @jax.jit
    def step(weights: Any, state: Any, xs: jax.Array, targets: jax.Array) -> Any:
        (value, status), grads = jax.value_and_grad(loss, has_aux=True)(weights, xs, targets)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(weights, updates), state, value, status

    rng = np.random.default_rng(0)
    row: dict[str, Any] = {"losses": [], "iterations": [], "exponent_steps": [], "exponents": []}
    converged, start = True, time.perf_counter()
    for number in range(steps):
        rows = rng.choice(len(data.train.xs), 32, replace=False)
        xs = jnp.moveaxis(jnp.asarray(data.train.xs[rows]), 0, 1)
        if number % max(1, steps // 20) == 0:
            exponents = lyapunov(cell, weights[0], xs[:, :4], num_exponents=1)
            row["exponent_steps"].append(number)
            row["exponents"].append(float(exponents.largest_exponent.mean()))
        targets = jnp.asarray(data.train.ys[rows]).reshape(-1)
        weights, state, value, status = step(weights, state, xs, targets)
        row["losses"].append(float(value))
        row["iterations"].append(int(status.iterations))
        converged &= bool(status.converged.all())
    row["seconds"] = time.perf_counter() - start
    row["converged"] = converged
    xs = jnp.moveaxis(jnp.asarray(data.test.xs), 0, 1)
    value, _ = jax.jit(loss)(weights, xs, jnp.asarray(data.test.ys).reshape(-1))
    return row | {"test_mse": float(value), "max_iterations": max(row["iterations"])}


def draw(result: dict[str, Any]) -> Any:
    """Draws time and memory over the sequence length, and iterations and loss in training."""
    figure = new_figure(14, 8)
    (times, memory), (counts, losses) = figure.subplots(2, 2)
    for number, name in enumerate(dict.fromkeys(row["cell"] for row in result["growth"])):
        rows = [row for row in result["growth"] if row["cell"] == name]
        steps = [row["steps"] for row in rows]
        for axes, unit in ((times, "ms"), (memory, "mib")):
            for engine, style in (("parallel", "-o"), ("scan", "--")):
                parallel = type(GROWTH_CASES[name].engine).__name__
                label = f"{name}, {'Scan' if engine == 'scan' else parallel}"
                values = [row[f"{engine}_{unit}"] for row in rows]
                axes.loglog(steps, values, style, color=f"C{number}", label=label, markersize=4)
    times.set(xlabel="steps", ylabel="time of forward and backward, ms")
    memory.set(xlabel="steps", ylabel="temporary memory, MiB")
    times.legend(fontsize=8)
    for row in result["training"]:
        counts.plot(row["iterations"], label=row["cell"], linewidth=1)
        losses.semilogy(row["losses"], label=row["cell"], linewidth=1)
    counts.set(
        xlabel="training step", ylabel=f"iterations to a residual of {result['tolerance']:g}"
    )
    counts.set_ylim(0)
    losses.set(xlabel="training step", ylabel="loss (adding problem)")
    for axes in (counts, losses):
        axes.legend()
    return figure


if __name__ == "__main__":
    main()
