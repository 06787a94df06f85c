"""Every cell at one number of parameters, on three tasks and more, over several seeds.

    python -m experiments.cells.run                         # several hours on two cores
    python -m experiments.cells.run --cells lstm gru --seeds 3 --tasks digits

For each cell and task the highest learning rate of the schedule is chosen out of `rates` by one
seed and the validation split; other seeds then give the result on the test split. Last comes the
time of a training step, cell by cell in turn. What is done already is read from the JSON and not
done again, so that a study may be stopped and gone on with; each worker has one core. It writes
`cells.json`, `cells.png` and `cells.md` into `--out`.
"""

import contextlib
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx

from experiments.cells import report
from experiments.cells.contenders import CONTENDERS, hidden_units, of_size, recurrence_of
from jrnn import checks
from jrnn.bench import machine
from jrnn.bench.contenders import Contender as Timed
from jrnn.bench.timing import in_turn
from jrnn.distributed import ProcessGroup
from jrnn.nn import RNN, Classifier, SequenceToSequence
from jrnn.sweep.trials import scalars_of
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks import Adding, Data, Digits, Split, Task, Tracking
from jrnn.train.config import Optimizer, RunOptions
from jrnn.train.data.sampler import shuffled_batches
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.progress import Progress
from jrnn.train.run.signals import Signals
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import HIGHER_IS_BETTER, Objective
from jrnn.train.step.state import count_params, init_state
from jrnn.train.step.step import make_train_step

HERE = Path(__file__).parent
WARMUP = 0.05


@dataclass(frozen=True)
class Assignment:
    """What is trained on, for how long, and what else is tested."""

    task: Task
    steps: int
    tests: dict[str, Task]


ASSIGNMENTS = {
    "digits": Assignment(Digits(order="pixel"), 1200, {}),
    "adding": Assignment(Adding(length=200), 2000, {}),
    "parity": Assignment(
        Tracking(degree=2, length=32),
        1500,
        {"at 128": Tracking(degree=2, length=32, test_length=128)},
    ),
    "s3": Assignment(
        Tracking(degree=3, length=32),
        2000,
        {"at 128": Tracking(degree=3, length=32, test_length=128)},
    ),
}


@dataclass(frozen=True)
class Study:
    """What is run.

    Args:
      cells: names in `contenders.CONTENDERS`; all by default.
      tasks: names in `ASSIGNMENTS`; by default all but S3.
      seeds: runs of which the result is made; seed 0 is that which chose the rate.
      rates: highest learning rates to choose from.
      parameters: of a network, about.
      batch_size: examples a step.
      shorten: divides the number of training steps, to see that all of it runs.
      jobs: workers.
      out: folder for JSON, figure and table.
    """

    cells: tuple[str, ...] = tuple(CONTENDERS)
    tasks: tuple[str, ...] = ("digits", "adding", "parity")
    seeds: int = 5
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    parameters: int = 4500
    batch_size: int = 32
    shorten: int = 1
    jobs: int = 2
    out: Path = HERE / "results"

    def __post_init__(self) -> None:
        for name in self.cells:
            checks.one_of("Study", "cells", name, CONTENDERS)
        for name in self.tasks:
            checks.one_of("Study", "tasks", name, ASSIGNMENTS)
        for name in ("seeds", "parameters", "batch_size", "shorten", "jobs"):
            checks.positive_int("Study", name, getattr(self, name))
        for rate in self.rates:
            checks.positive_number("Study", "each of rates", rate)
        if not self.rates:
            raise ValueError("Study: rates must hold at least one learning rate")

    def steps(self, task: str) -> int:
        """Training steps on a task."""
        return max(1, ASSIGNMENTS[task].steps // self.shorten)


def main(args: list[str] | None = None) -> None:
    """Runs what is not done yet, prints as it goes, writes JSON, figure and table."""
    study = tyro.cli(Study, args=args)
    study.out.mkdir(parents=True, exist_ok=True)
    path = study.out / "cells.json"
    scope = ("cells", "tasks", "jobs", "out")
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(study).items()
                    if k not in scope},
        "rows": [],
        "step_ms": {},
    }  # fmt: skip
    if path.is_file():
        result = resumed(study, result, json.loads(path.read_text("utf-8")), path)
    done = {(row["cell"], row["task"]) for row in result["rows"]}
    todo = [
        (cell, task) for task in study.tasks for cell in study.cells if (cell, task) not in done
    ]
    for row in rows(study, todo):
        result["rows"].append(row)
        save(result, path)
        print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
    times: dict[str, float] = result["step_ms"]
    if missing := [cell for cell in study.cells if cell not in times]:
        # All of them again: times of one run alone can be compared.
        result["step_ms"] = step_times(study, list(times) + missing)
        result["machine"] = machine.describe()
        save(result, path)
    report.write(result, study.out)


def resumed(study: Study, new: dict[str, Any], saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """What was saved, if it was made as the rest will be."""
    for name in ("options", "versions"):
        if saved[name] != new[name]:
            raise SystemExit(
                f"{path} holds a study with other {name}, {saved[name]} and not {new[name]}; give "
                "another --out"
            )
    for row in saved["rows"]:
        if row["steps"] != study.steps(row["task"]):
            raise SystemExit(
                f"{path} holds {row['steps']} steps of {row['cell']} on {row['task']}, and not "
                f"{study.steps(row['task'])}; give another --out"
            )
        row.setdefault("cpu", saved["machine"]["cpu"])
    return saved


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the JSON, whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    partial.replace(path)


def rows(study: Study, todo: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """One for each cell and task, as they are done."""
    # Not forked, since JAX has threads; and each worker takes a core before it starts any.
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for job in range(study.jobs):
        cores.put(job)
    with ProcessPoolExecutor(study.jobs, context, _take_core, (cores,)) as pool:
        futures = {pool.submit(row, study, *which): which for which in todo}
        failed = {}
        try:
            for future in as_completed(futures):
                if future.exception() is None:
                    yield future.result()
                else:
                    failed[futures[future]] = future.exception()
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise RuntimeError(f"these failed, and can be gone on with: {failed}")


def _take_core(cores: Any) -> None:
    if sys.platform != "linux":
        return  # others have no such call; their workers share all cores
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})


def row(study: Study, name: str, task: str) -> dict[str, Any]:
    """Chooses a rate for a cell on a task, and trains it with every seed."""
    assignment = ASSIGNMENTS[task]
    data = assignment.task.load()
    begin = time.perf_counter()
    contender = Trained(study, name, data, study.steps(task))
    reached = contender.train([0] * len(study.rates), study.rates, [data.validation])
    trials = {rate: value for rate, (value,) in zip(study.rates, reached, strict=True)}
    finite = {rate: value for rate, value in trials.items() if value is not None}
    better = max if HIGHER_IS_BETTER[data.metric] else min
    rate = better(finite, key=lambda r: finite[r]) if finite else study.rates[0]
    others = {label: other.load().test for label, other in assignment.tests.items()}
    seeds = range(1, study.seeds + 1)
    reached = contender.train(seeds, [rate] * len(seeds), [data.test, *others.values()])
    tests, *more = zip(*reached, strict=True)
    return {
        "cell": name,
        "task": task,
        "options": CONTENDERS[name].options,
        "hidden": hidden_units(contender.cell),
        "parameters": contender.parameters,
        "recurrence": recurrence_of(contender.cell, data.input_size),
        "steps": contender.options.steps,
        "baseline": data.baseline[1],
        "trials": {str(r): value for r, value in trials.items()},
        "rate": rate,
        "test": [*tests],
        "more": {label: [*each] for label, each in zip(others, more, strict=True)},
        "seconds": time.perf_counter() - begin,
        "cpu": machine.describe()["cpu"],
    }


def step_times(study: Study, cells: list[str]) -> dict[str, float]:
    """Milliseconds of a training step on digits, by cell: medians of steps in turn."""
    data = ASSIGNMENTS["digits"].task.load()
    ready = [Timed(name, "jrnn", _one_step(Trained(study, name, data, 1000))) for name in cells]
    return {name: 1e3 * t.median for name, t in in_turn(ready, repeats=9, seconds=120).items()}


def _one_step(contender: "Trained") -> Callable[[], Any]:
    optimizer = contender.optimizer.build(contender.options.steps)
    graphdef, state = init_state(contender.network(0), optimizer)
    train_step = make_train_step(graphdef, Objective.of(contender.data), optimizer)
    batch = next(shuffled_batches(contender.data.train, contender.options.batch_size, 0))

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    step()
    return step


class Trained:
    """One cell on one task, trained with several seeds and rates in one compilation.

    `jrnn sweep` would train the networks of an `Experiment`, which embed tokens and give a cell
    only its inputs; here tokens are one-hot and some cells also get times or masks. So this uses
    the trainer of `jrnn sweep` on networks of its own. The last weights count, not the best ones.
    """

    def __init__(self, study: Study, name: str, data: Data, steps: int):
        contender = CONTENDERS[name]
        self.data, self.inputs = data, contender.inputs
        self.cell = of_size(contender, data.input_size, data.output_size, study.parameters)
        self.optimizer = Optimizer(1e-3, "adam", "cosine", warmup=WARMUP)
        self.options = RunOptions(steps=steps, eval_every=steps, batch_size=study.batch_size)
        self.parameters = count_params(self.network(0))

    def embedding(self, xs: jax.Array) -> Any:
        """One-hot tokens, and whatever else the cell needs."""
        return self.inputs(jax.nn.one_hot(xs, self.data.input_size) if self.data.tokens else xs)

    def network(self, seed: int) -> Classifier | SequenceToSequence:
        """One layer and a linear readout."""
        rngs = nnx.Rngs(seed)
        body = RNN(self.cell, self.data.input_size, rngs=rngs)
        head = SequenceToSequence if self.data.target.endswith("per_step") else Classifier
        return head(body, self.data.output_size, rngs=rngs, embedding=self.embedding)

    def train(
        self, seeds: Sequence[int], rates: Sequence[float], splits: list[Split]
    ) -> list[list[float | None]]:
        """Trains a network for each pair of a seed and a rate.

        Returns:
          For each network its metric on each of the splits; None if its loss was not finite, since
          the accuracy of such a network looks like that of a guess.
        """
        optimizers = [replace(self.optimizer, learning_rate=rate) for rate in rates]
        plan = plan_task(self.data, self.options, None)
        devices = TrialDevices(tuple(jax.local_devices()[:1]))
        runs = VmappedRuns(
            [partial(self.network, seed) for seed in seeds],
            plan._replace(validation=None),
            self.optimizer,
            scalars_of(optimizers),
            self.options,
            seeds,
            devices,
        )
        with tempfile.TemporaryDirectory() as folder, Signals() as signals:
            trainer = Trainer(
                runs,
                self.options,
                plan.higher_is_better,
                Path(folder),
                ProcessGroup(),
                descriptions=[""] * len(seeds),
                metrics_folders=[Path(folder) / str(index) for index in range(len(seeds))],
                patience=[None] * len(seeds),
                stop_all_if_non_finite=False,
            )
            with contextlib.closing(trainer):
                trainer.begin()
                trainer.fit(signals, Progress(self.options.steps, plan.metric, enabled=False))
                found = [trainer.evaluate(split) for split in splits]
        return [
            [None if index in trainer.stopped else finite_metric(each[index]) for each in found]
            for index in range(len(seeds))
        ]


def finite_metric(found: dict[str, float]) -> float | None:
    """The metric; None if the loss is not finite."""
    return found["metric"] if math.isfinite(found["loss"]) else None


if __name__ == "__main__":
    main()
