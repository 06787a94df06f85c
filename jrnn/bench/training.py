"""Times training, checkpoints, streaming and sweeps: `jrnn bench train`.

    jrnn bench train
    jrnn bench train --networks digits-row --seconds 20

Four loops train each network in interleaved rounds:

- the trainer of jrnn;
- the compiled training steps of jrnn without logging or checkpoints, as an upper bound;
- a handwritten loop over the network of jrnn;
- a handwritten loop over the same network made of flax's layers.

A handwritten loop calls a jitted training step for each batch, which NumPy gathers, and fetches the
losses every 20 steps. The time of `jrnn sweep` is compared with that of one `jrnn train` per trial.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.table import Table

import jrnn
from jrnn import checks, config, files
from jrnn.bench import machine, report
from jrnn.distributed import Mesh, ProcessGroup
from jrnn.nn import RNN
from jrnn.tasks.task import Data
from jrnn.terminal import Console, parse_flags
from jrnn.train import Experiment
from jrnn.train.data.loader import DataLoader
from jrnn.train.data.sampler import EpochSampler, shuffled_batches
from jrnn.train.fit import make_trainer
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.dispatch import MAX_STEPS
from jrnn.train.run.metrics_logger import LOG_EVERY
from jrnn.train.run.single import SingleNetwork
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import Objective, SequenceLoss
from jrnn.train.step.state import init_state
from jrnn.train.step.step import TrainStep, make_train_step

NETWORKS = {
    "digits-row": "configs/digits.py:order=row,hidden=32",
    "digits-pixel": "configs/digits.py",
}
"""The configs of the networks, in the format of `jrnn train CONFIG`, by name."""

COLUMNS = {
    "network": "network",
    "steps_per_second": "jrnn, training steps/s",
    "vs_handwritten": "jrnn / handwritten loop",
    "vs_flax": "jrnn / flax and optax",
    "vs_compiled": "jrnn / compiled steps alone",
    "save_ms": "save, ms",
    "save_fraction": "save / 30 s",
    "resume_ms": "resume, ms",
}
"""The columns of the table: keys of a row, and their headers."""

SAVE_EVERY = 30.0
"""Default interval of checkpoints in seconds."""

SWEEP_CONFIG, NUM_TRIALS = "configs/digits.py:order=row,hidden=32", 16
STREAM_HIDDEN = (32, 128, 512)


@dataclass(frozen=True)
class Bench:
    """Times training against handwritten loops, and checkpoints, streaming and sweeps.

    Example: jrnn bench train --networks digits-row --seconds 20

    Args:
      networks: networks to train, digits-row or digits-pixel.
      rounds: number of interleaved rounds, after one that is not counted.
      seconds: approximate time of each loop in a round.
      sweeps: number of times that a sweep and a single run are timed.
      out: path of the JSON file.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    rounds: int = 7
    seconds: float = 1.0
    sweeps: int = 3
    out: Path = Path("build/training.json")

    def __post_init__(self) -> None:
        for name in self.networks:
            checks.one_of("bench train", "network", name, NETWORKS)
        checks.positive_int("bench train", "rounds", self.rounds)
        checks.positive_int("bench train", "sweeps", self.sweeps)
        checks.positive_number("bench train", "seconds", self.seconds)


def main(args: list[str]) -> None:
    """Runs all measurements, prints the table and writes the JSON file."""
    bench = parse_flags(Bench, args, prog="jrnn bench train")
    stdout = Console(width=max(Console().width, report.WIDTH))
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(bench) | {"out": bench.out.name},
        "rows": [measure(name, bench) for name in bench.networks],
        "stream_us": {str(hidden): stream_microseconds(hidden) for hidden in STREAM_HIDDEN},
        "sweep": sweep_seconds(bench.sweeps),
    }
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(bench.out, json.dumps(result, indent=2) + "\n")
    table = Table(box=None, header_style="bold")
    for column in COLUMNS.values():
        table.add_column(column, no_wrap=True)
    for row in result["rows"]:
        table.add_row(*(format_value(row, key) for key in COLUMNS))
    lines = stream_line(result), sweep_line(result), f"written to {bench.out}"
    stdout.print("", table, "", *lines, sep="\n", markup=False, soft_wrap=True)


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """Times the loops of one network, and saving and resuming; returns a row of the results."""
    experiment = config.load(NETWORKS[name], ["--eval-every", str(10**9), "--steps", str(10**9)])
    data = experiment.task.load()
    folder = Path(tempfile.mkdtemp())
    try:
        trainer = open_trainer(experiment, data, folder)
        trainer.begin()
        loops = {
            "jrnn": lambda end: run_jrnn_loop(trainer, end),
            "compiled": make_compiled_loop(experiment, data),
            "handwritten": make_handwritten_loop(experiment, data),
            "flax": make_flax_loop(experiment, data),
        }
        rates = measure_rates(loops, bench)
        save = save_seconds(trainer, rates["jrnn"], bench)
        trainer.close()
        resumes = [resume_seconds(experiment, data, folder) for _ in range(3)]
    finally:
        shutil.rmtree(folder)
    return {
        "network": name,
        "spec": NETWORKS[name],
        "steps_per_second": rates["jrnn"],
        "vs_handwritten": rates["jrnn"] / rates["handwritten"],
        "vs_flax": rates["jrnn"] / rates["flax"],
        "vs_compiled": rates["jrnn"] / rates["compiled"],
        "save_ms": 1e3 * save,
        "save_fraction": save / SAVE_EVERY,
        "resume_ms": 1e3 * statistics.median(resumes),
    }


Loop = Callable[[float], int]
"""Trains until `time.perf_counter()` reaches the argument; returns the number of training steps."""


def measure_rates(loops: dict[str, Loop], bench: Bench) -> dict[str, float]:
    """Measures the median training steps per second of each loop, without the first round."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(bench.rounds + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            steps = loop(start + bench.seconds)
            rates[name].append(steps / (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}


def open_trainer(experiment: Experiment, data: Data, folder: Path) -> Trainer:
    """Makes the trainer that `jrnn train` uses for an experiment, with the run folder `folder`."""
    network = experiment.network.build(data, experiment.seed)
    optimizer = experiment.optimizer.build(experiment.steps)
    plan, group = plan_task(data, experiment, experiment.tbptt), ProcessGroup()
    trainable = SingleNetwork(network, plan, optimizer, experiment, Mesh(), group)
    description = experiment.network.description()
    return make_trainer(trainable, experiment, plan, folder, group, description)


def run_jrnn_loop(trainer: Trainer, end: float) -> int:
    """Trains as `jrnn train` does, with logged metrics; returns the number of training steps."""
    first_step = trainer.step
    while time.perf_counter() < end:
        trainer.train_steps()
    trainer.finish_steps()
    return trainer.step - first_step


def make_compiled_loop(experiment: Experiment, data: Data) -> Loop:
    """Makes a loop that only calls compiled training steps of jrnn, again and again on one plan."""
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, 0), optimizer)
    sampler = EpochSampler(len(data.train.xs), experiment.batch_size, 0)
    loader = DataLoader(data.train, sampler, MAX_STEPS)
    step = TrainStep(graphdef, SequenceLoss(Objective.from_data(data)), optimizer)
    train_steps = jax.jit(step.make_loop(loader.get_batch), donate_argnums=0)
    examples, plans = loader.next(0, loader.max_steps)
    plans = jax.device_put(plans)

    def loop(end: float) -> int:
        nonlocal state
        steps, count = 0, LOG_EVERY  # so that a short round does not last `max_steps` steps
        while time.perf_counter() < end:
            state, metrics = train_steps(state, examples, plans, count)
            jax.block_until_ready(metrics)
            steps, count = steps + count, loader.max_steps
        return steps

    return loop


def make_handwritten_loop(experiment: Experiment, data: Data) -> Loop:
    """Makes a loop of jitted training steps over the network of jrnn."""
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, 0), optimizer)
    step = make_train_step(graphdef, Objective.from_data(data), optimizer)
    batches = shuffled_batches(data.train, experiment.batch_size, 0)

    def next_step() -> jax.Array:
        nonlocal state
        state, metrics = step(state, next(batches))
        return metrics.loss

    return make_loop(next_step)


class FlaxNetwork(nnx.Module):
    """The network of a config, made of flax's layers."""

    def __init__(self, hidden: int, data: Data, dropout: float, rngs: nnx.Rngs):
        """Creates an LSTM, dropout and a linear layer."""
        cell = nnx.OptimizedLSTMCell(data.input_size, hidden, rngs=rngs)
        self.rnn = nnx.RNN(cell, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(hidden, data.output_size, rngs=rngs)

    def __call__(self, xs: jax.Array) -> jax.Array:
        """Returns logits computed from the last output of the LSTM."""
        ys: Any = self.rnn(xs)
        return self.head(self.dropout(ys[:, -1]))


def make_flax_loop(experiment: Experiment, data: Data) -> Loop:
    """Makes a loop of jitted training steps over a network of flax's layers, with `nnx.jit`."""
    network: Any = experiment.network
    model = FlaxNetwork(network.cell.hidden_size, data, network.dropout, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, experiment.optimizer.build(experiment.steps), wrt=nnx.Param)

    @nnx.jit
    def step(model: FlaxNetwork, optimizer: nnx.Optimizer, xs: Any, ys: Any) -> jax.Array:
        def loss_fn(model: FlaxNetwork) -> jax.Array:
            logits = model(xs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, ys).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    cached_step = nnx.cached_partial(step, model, optimizer)
    batches = shuffled_batches(data.train, experiment.batch_size, 0)

    def next_step() -> jax.Array:
        batch = next(batches)
        return cached_step(batch.xs, batch.ys)

    return make_loop(next_step)


def make_loop(next_step: Callable[[], jax.Array]) -> Loop:
    """Makes a loop over `next_step`, which fetches the losses every `LOG_EVERY` steps."""

    def loop(end: float) -> int:
        steps = 0
        while time.perf_counter() < end:
            losses = [next_step() for _ in range(LOG_EVERY)]
            jax.device_get(losses)
            steps += LOG_EVERY
        return steps

    return loop


def save_seconds(trainer: Trainer, rate: float, bench: Bench) -> float:
    """Measures the median time that saving one checkpoint adds to training."""
    steps = max(1, int(rate * bench.seconds))
    overheads = []
    for _ in range(bench.rounds):
        times = []
        for saves in (False, True):
            start, last_step = time.perf_counter(), trainer.step + steps
            if saves:
                trainer.save()
            while trainer.step < last_step:
                trainer.train_steps()
            trainer.finish_steps()
            trainer.wait()
            count = trainer.step - last_step + steps
            times.append((time.perf_counter() - start) / count * steps)
        overheads.append(times[1] - times[0])
    return statistics.median(overheads)


def resume_seconds(experiment: Experiment, data: Data, folder: Path) -> float:
    """Measures the time to create a trainer and restore a checkpoint, without training steps."""
    start = time.perf_counter()
    trainer = open_trainer(experiment, data, folder)
    trainer.resume()
    seconds = time.perf_counter() - start
    trainer.close()
    return seconds


def stream_microseconds(hidden: int) -> float:
    """Measures the median time of a step of `jrnn.stream`, for an LSTM with batch size 1."""
    stream = jrnn.stream(RNN(jrnn.LSTM(hidden), 32, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32)), jnp.float32)
    seconds = []
    for _ in range(3000):
        start = time.perf_counter()
        stream.step(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 1e6 * statistics.median(seconds[100:])


def sweep_seconds(repeats: int) -> dict[str, float]:
    """Measures the median times of `jrnn sweep`, and of `jrnn train` with the same config."""

    def run_seconds(*args: str) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "jrnn", *args, "--run-dir", str(folder / "run")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        shutil.rmtree(folder / "run")
        return seconds

    folder = Path(tempfile.mkdtemp())
    try:
        over = ["seed=0:4", "optimizer.learning_rate=1e-3:1e-2:log4"]
        sweeps = [run_seconds("sweep", SWEEP_CONFIG, "--over", *over) for _ in range(repeats)]
        runs = [run_seconds("train", SWEEP_CONFIG, "--seed", str(seed)) for seed in range(repeats)]
    finally:
        shutil.rmtree(folder)
    return {"sweep_s": statistics.median(sweeps), "run_s": statistics.median(runs)}


def format_value(row: dict[str, Any], key: str) -> str:
    """Formats the value of one column of a row."""
    value = row[key]
    if key in ("vs_compiled", "save_fraction"):
        return f"{100 * value:.1f} %"
    if key in ("vs_handwritten", "vs_flax"):
        return f"{value:.2f}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def markdown(result: dict[str, Any]) -> str:
    """Formats the rows as a Markdown table."""
    header = [tuple(COLUMNS.values()), ("---",) + ("---:",) * (len(COLUMNS) - 1)]
    rows = header + [tuple(format_value(row, key) for key in COLUMNS) for row in result["rows"]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def stream_line(result: dict[str, Any]) -> str:
    """Formats the latencies of `jrnn.stream` as a sentence."""
    values = [f"{value:.0f} us at {hidden}" for hidden, value in result["stream_us"].items()]
    latencies = ", ".join(values)
    return (
        f"Latency of one time step of `jrnn.stream` with an LSTM and batch size 1, by hidden size: "
        f"{latencies}."
    )


def sweep_line(result: dict[str, Any]) -> str:
    """Formats the times of a sweep and of a single run as a sentence."""
    sweep, run = result["sweep"]["sweep_s"], result["sweep"]["run_s"]
    fraction = sweep / (NUM_TRIALS * run)
    return (
        f"`jrnn sweep` with {NUM_TRIALS} trials of digits-row takes {sweep:.1f} s, and `jrnn "
        f"train` with the same config takes {run:.1f} s: the sweep takes {fraction:.2f} of the "
        f"time of {NUM_TRIALS} separate runs."
    )
