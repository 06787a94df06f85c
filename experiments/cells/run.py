"""Compares all cells at about the same number of parameters, on several tasks and seeds.

    python -m experiments.cells.run                         # several hours on two cores
    python -m experiments.cells.run --cells lstm gru --seeds 3 --tasks digits

For each cell and task, the peak learning rate is selected from `rates` with one seed, by the metric
on the validation split. Training with the other seeds gives the results on the test split. At the
end, the training steps of all cells are timed in interleaved rounds. Results that are already in
the JSON file are not computed again, so an interrupted study can be resumed. On Linux, each worker
process uses one core. The study writes `cells.json`, `cells.png` and `cells.md` to `--out`.
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
from experiments.cells.cell_configs import (
    CELL_CONFIGS,
    get_hidden_size,
    get_recurrence,
    match_parameter_count,
)
from jrnn import checks
from jrnn.bench import machine
from jrnn.bench.implementations import Implementation
from jrnn.bench.timing import time_interleaved
from jrnn.distributed import ProcessGroup
from jrnn.nn import RNN, Classifier, SequenceToSequence
from jrnn.signals import Signals
from jrnn.sweep.trials import stack_scalars
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks import Adding, Data, Digits, Split, Task, Tracking
from jrnn.train.config import Optimizer, RunOptions
from jrnn.train.data.sampler import shuffled_batches
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.progress import Progress
from jrnn.train.run.trainer import Trainer
from jrnn.train.step.loss import HIGHER_IS_BETTER, Objective
from jrnn.train.step.state import count_params, init_state
from jrnn.train.step.step import make_train_step

HERE = Path(__file__).parent
WARMUP = 0.05
"""Fraction of the training steps in which the learning rate increases."""


@dataclass(frozen=True)
class TaskConfig:
    """A task, the length of the training, and further tests.

    Attributes:
      task: the task.
      steps: number of training steps.
      more_tests: further tasks whose test splits are evaluated, by label.
    """

    task: Task
    steps: int
    more_tests: dict[str, Task]


TASK_CONFIGS = {
    "digits": TaskConfig(Digits(order="pixel"), 1200, {}),
    "adding": TaskConfig(Adding(length=200), 2000, {}),
    "parity": TaskConfig(
        Tracking(degree=2, length=32),
        1500,
        {"at 128": Tracking(degree=2, length=32, test_length=128)},
    ),
    "s3": TaskConfig(  # the symmetric group of degree 3
        Tracking(degree=3, length=32),
        2000,
        {"at 128": Tracking(degree=3, length=32, test_length=128)},
    ),
}


@dataclass(frozen=True)
class Study:
    """The options of the study.

    Args:
      cells: names in `cell_configs.CELL_CONFIGS`; all by default.
      tasks: names in `TASK_CONFIGS`; all except "s3" by default.
      seeds: number of seeds for the test results, 1 to `seeds`; seed 0 is for the selection of the
        learning rate.
      rates: peak learning rates to select from.
      parameters: approximate number of parameters of a network.
      batch_size: number of examples per training step.
      shorten: divisor of the numbers of training steps, for smoke tests.
      jobs: number of worker processes.
      out: folder for the JSON file, the figure and the table.
    """

    cells: tuple[str, ...] = tuple(CELL_CONFIGS)
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
            checks.one_of("Study", "cells", name, CELL_CONFIGS)
        for name in self.tasks:
            checks.one_of("Study", "tasks", name, TASK_CONFIGS)
        for name in ("seeds", "parameters", "batch_size", "shorten", "jobs"):
            checks.positive_int("Study", name, getattr(self, name))
        for rate in self.rates:
            checks.positive_number("Study", "each of rates", rate)
        if not self.rates:
            raise ValueError("Study: rates must have at least one learning rate, got none")

    def steps(self, task: str) -> int:
        """Returns the number of training steps on a task."""
        return max(1, TASK_CONFIGS[task].steps // self.shorten)


def main(args: list[str] | None = None) -> None:
    """Computes all missing results, and writes the JSON file, the figure and the table.

    Raises:
      SystemExit: an argument is invalid, or the saved results have other options or versions.
      RuntimeError: a cell has failed.
    """
    study = tyro.cli(Study, args=args)
    study.out.mkdir(parents=True, exist_ok=True)
    path = study.out / "cells.json"
    may_differ = ("cells", "tasks", "jobs", "out")  # when a study is resumed
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(study).items()
                    if k not in may_differ},
        "rows": [],
        "step_ms": {},
    }  # fmt: skip
    if path.is_file():
        result = resume(study, result, json.loads(path.read_text("utf-8")), path)
    done = {(row["cell"], row["task"]) for row in result["rows"]}
    todo = [
        (cell, task) for task in study.tasks for cell in study.cells if (cell, task) not in done
    ]
    for row in compute_rows(study, todo):
        result["rows"].append(row)
        save(result, path)
        print({k: v for k, v in row.items() if not isinstance(v, list)}, flush=True)
    times: dict[str, float] = result["step_ms"]
    if missing := [cell for cell in study.cells if cell not in times]:
        # All cells are timed again, since times of different runs are not comparable.
        result["step_ms"] = measure_step_times(study, list(times) + missing)
        result["machine"] = machine.describe()
        save(result, path)
    report.write(result, study.out)


def resume(study: Study, new: dict[str, Any], saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the saved results, after comparing their options with those of a new study.

    Raises:
      SystemExit: the options, versions or numbers of training steps are different.
    """
    for name in ("options", "versions"):
        if saved[name] != new[name]:
            raise SystemExit(
                f"{path}: {name} of the saved results must be {new[name]}, got {saved[name]}; set "
                "another --out"
            )
    for row in saved["rows"]:
        if row["steps"] != study.steps(row["task"]):
            raise SystemExit(
                f"{path}: the steps of {row['cell']} on {row['task']} must be "
                f"{study.steps(row['task'])}, got {row['steps']}; set another --out"
            )
        row.setdefault("cpu", saved["machine"]["cpu"])
    return saved


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the JSON file atomically."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    partial.replace(path)


def compute_rows(study: Study, todo: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Yields the row of results of each pair of a cell and a task, as soon as it is finished.

    Raises:
      RuntimeError: some pairs have failed, after all others have been yielded.
    """
    # A process with the threads of JAX must not be forked. Each worker sets its core before JAX
    # starts its threads.
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for job in range(study.jobs):
        cores.put(job)
    with ProcessPoolExecutor(study.jobs, context, _set_core, (cores,)) as pool:
        futures = {pool.submit(compute_row, study, *key): key for key in todo}
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
        raise RuntimeError(f"some cells have failed; run the command again to retry them: {failed}")


def _set_core(cores: Any) -> None:
    """Restricts a worker process to the core whose index is next in the queue."""
    if sys.platform != "linux":
        return  # other systems cannot set the core, so the workers share all cores
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})


def compute_row(study: Study, name: str, task: str) -> dict[str, Any]:
    """Selects the learning rate of a cell on a task, trains all seeds, and returns the results."""
    task_config = TASK_CONFIGS[task]
    data = task_config.task.load()
    start = time.perf_counter()
    trainer = CellTrainer(study, name, data, study.steps(task))
    metrics = trainer.train([0] * len(study.rates), study.rates, [data.validation])
    trials = {rate: value for rate, (value,) in zip(study.rates, metrics, strict=True)}
    finite = {rate: value for rate, value in trials.items() if value is not None}
    better = max if HIGHER_IS_BETTER[data.metric] else min
    rate = better(finite, key=lambda r: finite[r]) if finite else study.rates[0]
    more_splits = {label: other.load().test for label, other in task_config.more_tests.items()}
    seeds = range(1, study.seeds + 1)
    metrics = trainer.train(seeds, [rate] * len(seeds), [data.test, *more_splits.values()])
    tests, *more = zip(*metrics, strict=True)
    return {
        "cell": name,
        "task": task,
        "options": CELL_CONFIGS[name].description,
        "hidden": get_hidden_size(trainer.cell),
        "parameters": trainer.parameters,
        "recurrence": get_recurrence(trainer.cell, data.input_size),
        "steps": trainer.options.steps,
        "baseline": data.baseline[1],
        "trials": {str(r): value for r, value in trials.items()},
        "rate": rate,
        "test": [*tests],
        "more": {label: [*each] for label, each in zip(more_splits, more, strict=True)},
        "seconds": time.perf_counter() - start,
        "cpu": machine.describe()["cpu"],
    }


def measure_step_times(study: Study, cells: list[str]) -> dict[str, float]:
    """Returns the median time of a training step on digits in milliseconds, by cell."""
    data = TASK_CONFIGS["digits"].task.load()
    ready = [
        Implementation(name, "jrnn", _make_timed_step(CellTrainer(study, name, data, 1000)))
        for name in cells
    ]
    return {
        name: 1e3 * t.median for name, t in time_interleaved(ready, repeats=9, seconds=120).items()
    }


def _make_timed_step(trainer: "CellTrainer") -> Callable[[], Any]:
    optimizer = trainer.optimizer.build(trainer.options.steps)
    graphdef, state = init_state(trainer.make_network(0), optimizer)
    train_step = make_train_step(graphdef, Objective.from_data(trainer.data), optimizer)
    batch = next(shuffled_batches(trainer.data.train, trainer.options.batch_size, 0))

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    step()
    return step


class CellTrainer:
    """Trains one cell on one task, with several seeds and learning rates in one compilation.

    It uses the trainer of `jrnn sweep`, but not the networks of an `Experiment`: here tokens are
    one-hot, and `GRUD` has masks and times as additional inputs. The last weights are evaluated,
    not the best ones.
    """

    def __init__(self, study: Study, name: str, data: Data, steps: int):
        config = CELL_CONFIGS[name]
        self.data, self.transform_inputs = data, config.transform_inputs
        self.cell = match_parameter_count(
            config, data.input_size, data.output_size, study.parameters
        )
        self.optimizer = Optimizer(1e-3, "adam", "cosine", warmup=WARMUP)
        self.options = RunOptions(steps=steps, eval_every=steps, batch_size=study.batch_size)
        self.parameters = count_params(self.make_network(0))

    def embedding(self, xs: jax.Array) -> Any:
        """Returns the inputs of the cell; tokens are one-hot."""
        return self.transform_inputs(
            jax.nn.one_hot(xs, self.data.input_size) if self.data.has_tokens else xs
        )

    def make_network(self, seed: int) -> Classifier | SequenceToSequence:
        """Makes a network of one recurrent layer and a linear output layer."""
        rngs = nnx.Rngs(seed)
        body = RNN(self.cell, self.data.input_size, rngs=rngs)
        head = SequenceToSequence if self.data.target.endswith("per_step") else Classifier
        return head(body, self.data.output_size, rngs=rngs, embedding=self.embedding)

    def train(
        self, seeds: Sequence[int], rates: Sequence[float], splits: list[Split]
    ) -> list[list[float | None]]:
        """Trains one network for each seed, with the learning rate at the same index.

        Returns:
          For each network its metric on each split; None if its loss was not finite, since the
          accuracy of such a network is meaningless.
        """
        optimizers = [replace(self.optimizer, learning_rate=rate) for rate in rates]
        plan = plan_task(self.data, self.options, None)
        devices = TrialDevices(tuple(jax.local_devices()[:1]))
        runs = VmappedRuns(
            [partial(self.make_network, seed) for seed in seeds],
            plan._replace(validation=None),
            self.optimizer,
            stack_scalars(optimizers),
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
                is_temporary=True,
            )
            with contextlib.closing(trainer):
                trainer.begin()
                trainer.fit(signals, Progress(self.options.steps, plan.metric, mode="none"))
                results = [trainer.evaluate(split) for split in splits]
        return [
            [None if index in trainer.stopped else finite_metric(each[index]) for each in results]
            for index in range(len(seeds))
        ]


def finite_metric(result: dict[str, float]) -> float | None:
    """Returns the metric of an evaluation; None if its loss is not finite."""
    return result["metric"] if math.isfinite(result["loss"]) else None


if __name__ == "__main__":
    main()
