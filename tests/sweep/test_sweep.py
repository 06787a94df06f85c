"""Sweeps: each trial equals a separate run of its experiment."""

import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jrnn
from jrnn import files
from jrnn.files import WriteError, replace_folder
from jrnn.sweep.ray_files import read_files, write_files
from jrnn.sweep.summary import save_figure
from jrnn.sweep.sweep import (
    BEST,
    SweepResult,
    TrialResult,
    _write_best,
    best_folder,
    load_tasks,
    sweep,
    trial_folder,
)
from jrnn.sweep.trials import group_trials, stack_scalars
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import TBPTT, Experiment, Interrupted, Network, Optimizer, restore, train
from jrnn.train.run.checkpoint import Checkpoint, Checkpointer, CheckpointError
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.trainer import Trainer
from jrnn.transforms import clip, zoneout
from tests.compilation import environment_with_devices
from tests.helpers import record_compilations
from tests.train.test_resume import kill_and_resume, read_result, start_jrnn, wait_for_success

ROOT = Path(__file__).parents[2]

SPLIT_BOUNDS = ((0, 120), (120, 160), (160, 200))


@dataclass(frozen=True)
class Signs(Task):
    """Whether the first input of a sequence is positive; at each step if `per_step`."""

    per_step: bool = False

    def load(self) -> Data:
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(200, 4, 2)).astype(np.float32)
        ys = (xs[:, :1, 0] > 0).astype(np.int32).repeat(4, axis=1)
        ys = ys if self.per_step else ys[:, 0]
        lengths = rng.integers(1, 5, 200).astype(np.int32)
        return Data(
            *[Split(xs[a:b], ys[a:b], lengths[a:b]) for a, b in SPLIT_BOUNDS],
            target="class_per_step" if self.per_step else "class",
            metric="accuracy",
            input_size=2,
            output_size=2,
            baseline=("constant prediction", 0.5),
        )


def make_experiment(cell=None, *, task=None, optimizer=None, **changes):
    network = Network(cell or jrnn.LSTM(5), dropout=changes.pop("dropout", 0.1))
    options = {"steps": 45, "batch_size": 8, "eval_every": 15, **changes}
    optimizer = optimizer or Optimizer(1e-2, "adamw", "cosine", weight_decay=0.1)
    return Experiment(task or Signs(), network, optimizer, **options)


def read_metrics(folder):
    """Returns the lines of the metrics file of a run, as dictionaries."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_metrics(one, other, abs=1e-6):
    """Asserts that the metrics of two runs are equal.

    The tolerance is a relative error of 1e-5 or the absolute error `abs`, whichever is larger; None
    is the default of `pytest.approx`.
    """
    for actual, expected in zip(read_metrics(one), read_metrics(other), strict=True):
        assert actual.pop("split") == expected.pop("split")
        assert actual == pytest.approx(expected, rel=1e-5, abs=abs)


def assert_equals_separate_run(e, trial, folder, separate):
    """Trains a separate run in the folder `separate`, and asserts that the trial equals it."""
    assert_same_run(train(e, e.task.load(), separate), trial, folder, separate)


def assert_same_run(trained, trial, folder, separate):
    """Asserts that a trial has the same metrics and result as a run that is already trained.

    Args:
      trained: the result of the run.
      trial: the result of the trial.
      folder: the folder of the trial.
      separate: the folder of the run.
    """
    assert_same_metrics(folder, separate)
    assert trial.step == trained.step
    assert trial.validation == pytest.approx(trained.validation, rel=1e-5)
    assert trial.test == pytest.approx(trained.test, rel=1e-5)


# Experiments that differ only in scalars, so that they train in one group.
VARIED = [
    make_experiment(),
    make_experiment(seed=1),
    make_experiment(jrnn.LSTM(5, forget_bias=-1.0), dropout=0.5),
    make_experiment(optimizer=Optimizer(1e-1, "adamw", "cosine", weight_decay=0.0, clip_norm=0.1)),
    make_experiment(patience=1, seed=3),
]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """The folder and the result of a separate run of each experiment in `VARIED`."""
    folder = tmp_path_factory.mktemp("separate")
    run_folders = [folder / str(number) for number in range(len(VARIED))]
    return [
        (run_folder, train(e, e.task.load(), run_folder))
        for e, run_folder in zip(VARIED, run_folders, strict=True)
    ]


@pytest.mark.parametrize("width", [None, 2, 5])
def test_each_trial_equals_its_separate_run(width, separate, tmp_path):
    assert group_trials(VARIED, load_tasks(VARIED)) == [[0, 1, 2, 3, 4]]
    result = sweep(VARIED, tmp_path / "sweep", width=width)
    for number, (run_folder, trained) in enumerate(separate):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_same_run(trained, result.trials[number], folder, run_folder)
    losses = [trial.validation["loss"] for trial in result.trials]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("algorithm", ["sgd", "rmsprop"])
def test_trials_with_different_momentum_and_learning_rate_equal_separate_runs(algorithm, tmp_path):
    optims = [
        Optimizer(rate, algorithm, "linear", warmup=0.2, momentum=momentum, clip_norm=None)
        for rate, momentum in ((1e-1, 0.5), (1e-2, 0.9))
    ]
    trials = [make_experiment(jrnn.GRU(4), optimizer=o, dropout=0.0) for o in optims]
    assert group_trials(trials, load_tasks(trials)) == [[0, 1]]
    result = sweep(trials, tmp_path / "sweep")
    for number, e in enumerate(trials):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_equals_separate_run(e, result.trials[number], folder, tmp_path / str(number))


def test_trials_with_average_smoothing_and_frozen_parameters_equal_separate_runs(tmp_path):
    options = {"freeze": ("body.*.w_hh",), "class_weights": "balanced", "steps": 30}
    trials = [
        make_experiment(ema_decay=decay, label_smoothing=smoothing, **options)
        for decay, smoothing in ((0.5, 0.1), (0.9, 0.4))
    ]
    result = sweep(trials, tmp_path / "sweep")
    assert result.groups == [[0, 1]]
    for number, e in enumerate(trials):
        folder = trial_folder(tmp_path / "sweep", number)
        separate = tmp_path / f"separate{number}"
        assert_equals_separate_run(e, result.trials[number], folder, separate)
    assert result.trials[0].test["loss"] != result.trials[1].test["loss"]
    best = trials[result.best]
    restored = restore(best, best.task.load(), tmp_path / "sweep" / BEST)
    assert restored.test == pytest.approx(result.trials[result.best].test, rel=1e-5)


def test_trials_with_tbptt_equal_separate_runs(tmp_path):
    changes = {"task": Signs(per_step=True), "tbptt": TBPTT(k1=2, k2=3)}
    trials = [make_experiment(jrnn.GRU(4), seed=seed, **changes) for seed in range(3)]
    result = sweep(trials, tmp_path / "sweep", width=2)
    assert len(result.groups) == 1
    for number, e in enumerate(trials):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_equals_separate_run(e, result.trials[number], folder, tmp_path / str(number))


@pytest.mark.parametrize(
    ("one", "other", "same_group"),
    [
        ({"cell": jrnn.LSTM(5)}, {"cell": jrnn.LSTM(5, t_max=9)}, True),
        ({"cell": jrnn.Elman(5)}, {"cell": jrnn.Elman(5, identity=1.0)}, True),
        ({"cell": jrnn.LSTM(5)}, {"cell": jrnn.LSTM(6)}, False),
        ({"cell": jrnn.LSTM(5)}, {"cell": jrnn.LSTM(5, peepholes=True)}, False),
        (
            {"cell": clip(jrnn.GRU(4), gradient=1.0)},
            {"cell": clip(jrnn.GRU(4), gradient=2.0)},
            False,
        ),
        ({"cell": zoneout(jrnn.GRU(4), h=0.1)}, {"cell": zoneout(jrnn.GRU(4), h=0.2)}, False),
        (
            {"cell": jrnn.Clockwork(4, periods=(1, 2))},
            {"cell": jrnn.Clockwork(4, periods=(1, 3))},
            False,
        ),
        ({"dropout": 0.0}, {"dropout": 0.1}, False),
        ({"batch_size": 8}, {"batch_size": 9}, False),
        ({"steps": 45}, {"steps": 46}, False),
        ({"ema_decay": None}, {"ema_decay": 0.9}, False),
        ({"ema_decay": 0.5}, {"ema_decay": 0.9}, True),
        ({"label_smoothing": 0.0}, {"label_smoothing": 0.1}, False),
        ({"label_smoothing": 0.2}, {"label_smoothing": 0.1}, True),
        ({"freeze": ()}, {"freeze": ("body",)}, False),
        ({"optimizer": Optimizer(1e-2)}, {"optimizer": Optimizer(1e-2, clip_norm=None)}, False),
        ({"optimizer": Optimizer(1e-2)}, {"optimizer": Optimizer(1e-3, clip_norm=5.0)}, True),
    ],
)
def test_trials_that_share_a_compilation_are_in_one_group(one, other, same_group):
    trials = [make_experiment(**one), make_experiment(**other)]
    expected = [[0, 1]] if same_group else [[0], [1]]
    assert group_trials(trials, load_tasks(trials)) == expected


def test_results_are_in_the_order_of_the_trials(tmp_path):
    cells = [jrnn.GRU(3), jrnn.GRU(4), jrnn.GRU(3)]
    trials = [make_experiment(cell, seed=number) for number, cell in enumerate(cells)]
    result = sweep(trials, tmp_path / "sweep")
    assert result.groups == [[0, 2], [1]]
    assert_equals_separate_run(
        trials[1], result.trials[1], trial_folder(tmp_path / "sweep", 1), tmp_path / "1"
    )


def test_diverging_trial_does_not_affect_others(tmp_path):
    sgd = lambda rate: make_experiment(
        optimizer=Optimizer(rate, "sgd", clip_norm=None), dropout=0.0
    )
    stable = [sgd(1e-2), sgd(3e-2)]
    separate = sweep(stable, tmp_path / "separate")
    result = sweep([stable[0], sgd(1e38), stable[1]], tmp_path / "diverging", width=3)
    assert result.groups == [[0, 1, 2]]
    assert "at step" in result.trials[1].stopped and result.best != 1
    for number, index in enumerate((0, 2)):
        assert result.trials[index].stopped == ""
        assert result.trials[index].test == pytest.approx(separate.trials[number].test, rel=1e-5)
    diverging = read_metrics(trial_folder(tmp_path / "diverging", 1))
    assert all(np.isfinite(line["loss"]) for line in diverging)


def test_a_trial_that_has_stopped_takes_no_steps():
    trials = [make_experiment(seed=seed) for seed in range(3)]
    data, first = trials[0].task.load(), trials[0]
    runs = VmappedRuns(
        [partial(e.network.build, data, e.seed) for e in trials],
        plan_task(data, first, None),
        first.optimizer,
        stack_scalars([e.optimizer for e in trials]),
        first,
        [e.seed for e in trials],
        TrialDevices((jax.devices()[0],), 2),
    )
    state, metrics = runs.train_steps(runs.init_state(), 0, 5, [True, False, True])
    assert state.step.tolist() == [5, 0, 5]
    assert [float(each.loss.sum()) > 0 for each in runs.split_metrics(metrics, 5)] == [1, 0, 1]


def test_patience_stops_only_its_trial(tmp_path):
    trials = [
        make_experiment(optimizer=Optimizer(rate), patience=1, dropout=0.0, eval_every=5, seed=4)
        for rate in (1e-9, 3e-2)
    ]
    result = sweep(trials, tmp_path / "sweep")
    assert result.trials[0].stopped == "patience exhausted at step 10"
    assert read_metrics(trial_folder(tmp_path / "sweep", 1))[-1]["step"] > 10


def test_best_trial_is_saved_as_a_run(tmp_path):
    result = sweep(VARIED, tmp_path / "sweep")
    best = result.best
    metrics = [trial.validation["metric"] for trial in result.trials]
    assert best == int(np.argmax(metrics))
    e = VARIED[best]
    restored = restore(e, e.task.load(), tmp_path / "sweep" / BEST)
    assert restored.step == result.trials[best].step
    assert restored.test == pytest.approx(result.trials[best].test, rel=1e-5)
    expected = read_metrics(trial_folder(tmp_path / "sweep", best))
    assert read_metrics(tmp_path / "sweep" / BEST) == expected
    resumed = train(e, e.task.load(), tmp_path / "sweep" / BEST, resume=True)
    assert resumed.test == pytest.approx(restored.test, rel=1e-6)


def test_best_trial_that_stopped_early_does_not_train_when_it_is_resumed(tmp_path):
    e = make_experiment(optimizer=Optimizer(1e-9), patience=1, dropout=0.0, eval_every=5, seed=4)
    (trial,) = sweep([e], tmp_path).trials
    assert trial.stopped == "patience exhausted at step 10"
    before = read_files(tmp_path / BEST)
    resumed = train(e, e.task.load(), tmp_path / BEST, resume=True)
    assert resumed.test == pytest.approx(trial.test, rel=1e-6)
    after = read_files(tmp_path / BEST)
    assert {**after, ".lock": b""} == {**before, ".lock": b""}


def test_best_trials_are_kept_as_runs(tmp_path):
    result = sweep(VARIED, tmp_path / "sweep", keep=3)
    metrics = [trial.validation["metric"] for trial in result.trials]
    assert result.kept == sorted(range(5), key=lambda k: -metrics[k])[:3]
    for rank, index in enumerate(result.kept):
        e, folder = VARIED[index], best_folder(tmp_path / "sweep", rank)
        restored = restore(e, e.task.load(), folder)
        assert restored.step == result.trials[index].step
        assert restored.test == pytest.approx(result.trials[index].test, rel=1e-5)
        assert read_metrics(folder) == read_metrics(trial_folder(tmp_path / "sweep", index))
    names = lambda: sorted(path.name for path in (tmp_path / "sweep").glob("best*"))
    assert names() == ["best", "best-2", "best-3"]
    assert sweep(VARIED, tmp_path / "sweep", resume=True, keep=2).kept == result.kept[:2]
    assert names() == ["best", "best-2"]


def test_best_trials_are_kept_across_groups(tmp_path, monkeypatch):
    """At most `keep` checkpoints are stored in memory."""
    trials = [make_experiment(jrnn.GRU(size), seed=seed) for size in (2, 3, 4) for seed in (0, 1)]
    made, alive = [], []

    def trial_checkpoint(trainer, index):
        checkpoint = make_checkpoint(trainer, index)
        made.append(weakref.ref(checkpoint.arrays["best"]["params"]))
        alive.append(sum(reference() is not None for reference in made))
        return checkpoint

    make_checkpoint = Trainer.trial_checkpoint
    monkeypatch.setattr(Trainer, "trial_checkpoint", trial_checkpoint)
    result = sweep(trials, tmp_path / "sweep", keep=2)
    metrics = [trial.validation["metric"] for trial in result.trials]
    assert len(result.groups) == 3 and max(alive) <= 2 < len(made)
    assert result.kept == sorted(range(6), key=lambda k: -metrics[k])[:2]
    for rank, index in enumerate(result.kept):
        folder = best_folder(tmp_path / "sweep", rank)
        assert read_metrics(folder) == read_metrics(trial_folder(tmp_path / "sweep", index))


def read_metrics_bytes(folder, count):
    """Returns the contents of the metrics files of the first `count` trials of a sweep."""
    return [(trial_folder(folder, k) / "metrics.jsonl").read_bytes() for k in range(count)]


def test_best_run_is_kept_until_the_new_one_is_complete(tmp_path, monkeypatch):
    write_files(tmp_path, {f"{BEST}/metrics.jsonl": b"old", "trials/000/metrics.jsonl": b"new"})

    def fail(*_):
        raise CheckpointError("disk is full")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="disk is full"):
        patch.setattr(Checkpointer, "save", fail)
        _write_best(Checkpoint(1, {}, {}), trial_folder(tmp_path, 0), tmp_path / BEST)
    assert read_files(tmp_path / BEST) == {"metrics.jsonl": b"old"}
    _write_best(Checkpoint(1, {}, {}), trial_folder(tmp_path, 0), tmp_path / BEST)
    assert (tmp_path / BEST / "metrics.jsonl").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, "trials"]


def test_folder_is_replaced_by_renaming(tmp_path, monkeypatch):
    """The previous folder is removed after the rename, or stays if the rename fails."""
    old, new = {"a": b"old", "b": b"old"}, {"a": b"new"}
    write_files(tmp_path / "target", old)
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", tmp_path / "target")
    assert read_files(tmp_path / "target") == old
    removed = []

    def record(folder, **_):
        removed.append((read_files(folder), read_files(tmp_path / "target")))

    write_files(tmp_path / "source", new)
    monkeypatch.setattr(files.shutil, "rmtree", record)
    replace_folder(tmp_path / "source", tmp_path / "target")
    assert removed == [(old, new)]


def test_figure_that_cannot_be_written_raises_write_error(tmp_path):
    metrics = {"loss": 0.7, "metric": 0.5}
    result = SweepResult([TrialResult(15, metrics, metrics, "")], 0, [[0]], 1.0)
    trial_folder(tmp_path, 0).mkdir(parents=True)
    line = {"step": 15, "split": "validation", **metrics}
    (trial_folder(tmp_path, 0) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    arguments = [{"seed": "0"}], result, Signs().load(), tmp_path
    assert save_figure(*arguments).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "figure.png").unlink()
    (tmp_path / "figure.png").mkdir()
    with pytest.raises(WriteError, match=r"figure\.png cannot be written"):
        save_figure(*arguments)


def test_resumed_sweep_equals_uninterrupted_sweep(tmp_path, monkeypatch):
    cells = [jrnn.GRU(3), jrnn.GRU(4), jrnn.GRU(3)]
    trials = [make_experiment(cell, seed=k, steps=200) for k, cell in enumerate(cells)]
    reference = sweep(trials, tmp_path / "reference")
    train_steps, calls = Trainer.train_steps, []

    def train_steps_or_interrupt(trainer):
        calls.append(trainer)
        if len(calls) % 9 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        train_steps(trainer)

    monkeypatch.setattr(Trainer, "train_steps", train_steps_or_interrupt)
    interruptions = 0
    while True:
        try:
            resumed = sweep(trials, tmp_path / "resumed", resume=interruptions > 0)
            break
        except Interrupted as error:
            assert "jrnn sweep --resume" in str(error)
            interruptions += 1
    assert interruptions >= 3
    expected = read_metrics_bytes(tmp_path / "reference", 3)
    assert read_metrics_bytes(tmp_path / "resumed", 3) == expected
    assert resumed.trials == reference.trials and resumed.best == reference.best


def count_compilations(trials, folder):
    """Returns the number of programs that a sweep compiles."""
    jax.clear_caches()
    with record_compilations() as programs:
        sweep(trials, folder)
    return len(programs)


def test_number_of_trials_does_not_change_compilations(tmp_path):
    few = count_compilations([make_experiment(seed=seed) for seed in range(2)], tmp_path / "few")
    many = count_compilations([make_experiment(seed=seed) for seed in range(8)], tmp_path / "many")
    assert few == many > 0


FOUR_DEVICES_SCRIPT = """
import sys
from pathlib import Path
import jax
from tests.sweep.test_sweep import sweep_six_trials
assert len(jax.devices()) == 4
sweep_six_trials(Path(sys.argv[1]))
"""


def sweep_six_trials(folder):
    """Trains a sweep of six trials."""
    sweep([make_experiment(seed=seed) for seed in range(6)], folder)


def test_sweep_on_four_devices_equals_sweep_on_one(tmp_path):
    environment = environment_with_devices(4)
    command = [sys.executable, "-c", FOUR_DEVICES_SCRIPT, str(tmp_path / "four")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    sweep_six_trials(tmp_path / "one")
    for number in range(6):
        assert_same_metrics(*(trial_folder(tmp_path / name, number) for name in ("four", "one")))


def test_devices_that_share_threads_do_not_deadlock(tmp_path):
    """Regression test for kernels of two devices that wait for the same threads of the runtime."""
    environment = environment_with_devices(2)
    options = [
        "--over",
        "seed=0:8",
        "--width",
        "4",
        "--steps",
        "600",
        "--run-dir",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "jrnn", "sweep", "configs/digits.py:order=row,hidden=32"]
    subprocess.run([*command, *options], env=environment, cwd=ROOT, check=True, timeout=200)


def test_invalid_sweep_raises(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one trial, got none"):
        sweep([], tmp_path)
    with pytest.raises(ValueError, match="trial 1: train: batch_size must be at most"):
        sweep([make_experiment(), make_experiment(batch_size=1000)], tmp_path)
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", 10)
    with pytest.raises(ValueError, match="are too large"):
        sweep([make_experiment()], tmp_path)


@pytest.mark.exhaustive
def test_killed_and_resumed_sweep_equals_uninterrupted_sweep(tmp_path):
    """The sweep is killed twenty times, at random times and while checkpoints are written."""
    command = ["sweep", "configs/digits.py:order=row", "--over", "hidden=16,24", "seed=0:2"]
    command += ["--steps", "20000", "--eval-every", "500"]
    reference, resumed, cache = tmp_path / "reference", tmp_path / "resumed", tmp_path / "cache"
    wait_for_success(start_jrnn(*command, "--run-dir", str(reference), cache=cache))
    (process,) = kill_and_resume(
        lambda *args: [start_jrnn(*args, cache=cache)],
        [*command, "--save-every", "0.02", "--run-dir", str(resumed)],
        ["sweep", "--resume", str(resumed)],
        resumed,
        num_kills=20,
    )
    wait_for_success(process)
    assert read_metrics_bytes(resumed, 4) == read_metrics_bytes(reference, 4)
    assert read_result(resumed / BEST) == read_result(reference / BEST)
