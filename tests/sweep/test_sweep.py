"""Sweeps: each member goes as its run by itself would, whatever becomes of the others."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jrnn
from jrnn.sweep.sweep import BEST, sweep, trial_folder
from jrnn.sweep.trials import group_trials, scalars_of
from jrnn.sweep.vmapped_runs import TrialDevices, VmappedRuns
from jrnn.tasks.task import Data, Split, Task
from jrnn.train import TBPTT, Experiment, Interrupted, Network, Optimizer, restore, train
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.trainer import Trainer
from jrnn.transforms import clip, zoneout
from tests.compilation import environment_with_devices
from tests.helpers import compiled

ROOT = Path(__file__).parents[2]

CUTS = ((0, 120), (120, 160), (160, 200))


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
            *[Split(xs[a:b], ys[a:b], lengths[a:b]) for a, b in CUTS],
            target="class_per_step" if self.per_step else "class",
            metric="accuracy",
            input_size=2,
            output_size=2,
            baseline=("guess", 0.5),
        )


def experiment(cell=None, *, task=None, optimizer=None, **changes):
    network = Network(cell or jrnn.LSTM(5), dropout=changes.pop("dropout", 0.1))
    options = {"steps": 45, "batch_size": 8, "eval_every": 15, **changes}
    optimizer = optimizer or Optimizer(1e-2, "adamw", "cosine", weight_decay=0.1)
    return Experiment(task or Signs(), network, optimizer, **options)


def loaded(experiments):
    return {e.task: e.task.load() for e in experiments}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_lines(one, other, abs=1e-6):
    """Lines of metrics, equal to 1e-5."""
    for got, want in zip(lines(one), lines(other), strict=True):
        assert got.pop("split") == want.pop("split")
        assert got == pytest.approx(want, rel=1e-5, abs=abs)


def assert_as_alone(e, outcome, folder, alone):
    """A member against its run by itself: every line of metrics, and what it ended with."""
    assert_same_run(train(e, e.task.load(), alone), outcome, folder, alone)


def assert_same_run(trained, outcome, folder, alone):
    assert_same_lines(folder, alone)
    assert outcome.step == trained.step
    assert outcome.validation == pytest.approx(trained.validation, rel=1e-5)
    assert outcome.test == pytest.approx(trained.test, rel=1e-5)


VARIED = [
    experiment(),
    experiment(seed=1),
    experiment(jrnn.LSTM(5, forget_bias=-1.0), dropout=0.5),
    experiment(optimizer=Optimizer(1e-1, "adamw", "cosine", weight_decay=0.0, clip_norm=0.1)),
    experiment(patience=1, seed=3),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of each of these as a run by itself, and what it ended with."""
    folder = tmp_path_factory.mktemp("alone")
    places = [folder / str(number) for number in range(len(VARIED))]
    return [
        (place, train(e, e.task.load(), place)) for e, place in zip(VARIED, places, strict=True)
    ]


@pytest.mark.parametrize("width", [None, 2, 5])
def test_each_member_is_as_its_run_by_itself(width, alone, tmp_path):
    assert group_trials(VARIED, loaded(VARIED)) == [[0, 1, 2, 3, 4]]
    swept = sweep(VARIED, tmp_path / "sweep", width=width)
    for number, (place, trained) in enumerate(alone):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_same_run(trained, swept.trials[number], folder, place)
    losses = [outcome.validation["loss"] for outcome in swept.trials]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("algorithm", ["sgd", "rmsprop"])
def test_momentum_and_schedules_may_differ_in_numbers(algorithm, tmp_path):
    optims = [
        Optimizer(rate, algorithm, "linear", warmup=0.2, momentum=momentum, clip_norm=None)
        for rate, momentum in ((1e-1, 0.5), (1e-2, 0.9))
    ]
    members = [experiment(jrnn.GRU(4), optimizer=o, dropout=0.0) for o in optims]
    assert group_trials(members, loaded(members)) == [[0, 1]]
    swept = sweep(members, tmp_path / "sweep")
    for number, e in enumerate(members):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_as_alone(e, swept.trials[number], folder, tmp_path / str(number))


def test_windows_of_streams_are_swept(tmp_path):
    changes = {"task": Signs(per_step=True), "tbptt": TBPTT(k1=2, k2=3)}
    members = [experiment(jrnn.GRU(4), seed=seed, **changes) for seed in range(3)]
    swept = sweep(members, tmp_path / "sweep", width=2)
    assert len(swept.groups) == 1
    for number, e in enumerate(members):
        folder = trial_folder(tmp_path / "sweep", number)
        assert_as_alone(e, swept.trials[number], folder, tmp_path / str(number))


@pytest.mark.parametrize(
    ("one", "other", "together"),
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
        ({"optimizer": Optimizer(1e-2)}, {"optimizer": Optimizer(1e-2, clip_norm=None)}, False),
        ({"optimizer": Optimizer(1e-2)}, {"optimizer": Optimizer(1e-3, clip_norm=5.0)}, True),
    ],
)
def test_what_is_trained_together(one, other, together):
    members = [experiment(**one), experiment(**other)]
    expected = [[0, 1]] if together else [[0], [1]]
    assert group_trials(members, loaded(members)) == expected


def test_groups_keep_the_order_of_the_members(tmp_path):
    cells = [jrnn.GRU(3), jrnn.GRU(4), jrnn.GRU(3)]
    members = [experiment(cell, seed=number) for number, cell in enumerate(cells)]
    swept = sweep(members, tmp_path / "sweep")
    assert swept.groups == [[0, 2], [1]]
    assert_as_alone(
        members[1], swept.trials[1], trial_folder(tmp_path / "sweep", 1), tmp_path / "1"
    )


def test_a_member_that_diverges_disturbs_no_other(tmp_path):
    sgd = lambda rate: experiment(optimizer=Optimizer(rate, "sgd", clip_norm=None), dropout=0.0)
    good = [sgd(1e-2), sgd(3e-2)]
    alone = sweep(good, tmp_path / "alone")
    swept = sweep([good[0], sgd(1e38), good[1]], tmp_path / "with", width=3)
    assert swept.groups == [[0, 1, 2]]
    assert "at step" in swept.trials[1].stopped and swept.best != 1
    for number, place in enumerate((0, 2)):
        assert swept.trials[place].stopped == ""
        assert swept.trials[place].test == pytest.approx(alone.trials[number].test, rel=1e-5)
    assert all(np.isfinite(line["loss"]) for line in lines(trial_folder(tmp_path / "with", 1)))


def test_a_trial_that_has_stopped_takes_no_steps():
    trials = [experiment(seed=seed) for seed in range(3)]
    data, first = trials[0].task.load(), trials[0]
    runs = VmappedRuns(
        [partial(e.network.build, data, e.seed) for e in trials],
        plan_task(data, first, None),
        first.optimizer,
        scalars_of([e.optimizer for e in trials]),
        first,
        [e.seed for e in trials],
        TrialDevices((jax.devices()[0],), 2),
    )
    state, metrics = runs.train_steps(runs.init_state(), 0, 5, [True, False, True])
    assert state.step.tolist() == [5, 0, 5]
    assert [float(each.loss.sum()) > 0 for each in runs.split_metrics(metrics, 5)] == [1, 0, 1]


def test_patience_ends_one_member_alone(tmp_path):
    members = [
        experiment(optimizer=Optimizer(rate), patience=1, dropout=0.0, eval_every=5, seed=4)
        for rate in (1e-9, 3e-2)
    ]
    swept = sweep(members, tmp_path / "sweep")
    assert swept.trials[0].stopped == "patience exhausted at step 10"
    assert lines(trial_folder(tmp_path / "sweep", 1))[-1]["step"] > 10


def test_the_best_member_is_a_run(tmp_path):
    swept = sweep(VARIED, tmp_path / "sweep")
    best = swept.best
    metrics = [outcome.validation["metric"] for outcome in swept.trials]
    assert best == int(np.argmax(metrics))
    e = VARIED[best]
    again = restore(e, e.task.load(), tmp_path / "sweep" / BEST)
    assert again.step == swept.trials[best].step
    assert again.test == pytest.approx(swept.trials[best].test, rel=1e-5)
    assert lines(tmp_path / "sweep" / BEST) == lines(trial_folder(tmp_path / "sweep", best))
    longer = train(e, e.task.load(), tmp_path / "sweep" / BEST, resume=True)
    assert longer.test == pytest.approx(again.test, rel=1e-6)


def everything(folder, count):
    return [(trial_folder(folder, k) / "metrics.jsonl").read_bytes() for k in range(count)]


def test_a_sweep_that_was_stopped_goes_on_exactly(tmp_path, monkeypatch):
    cells = [jrnn.GRU(3), jrnn.GRU(4), jrnn.GRU(3)]
    members = [experiment(cell, seed=k, steps=200) for k, cell in enumerate(cells)]
    whole = sweep(members, tmp_path / "whole")
    train_steps, calls = Trainer.train_steps, []

    def stopping(trainer):
        calls.append(trainer)
        if len(calls) % 9 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        train_steps(trainer)

    monkeypatch.setattr(Trainer, "train_steps", stopping)
    stops = 0
    while True:
        try:
            again = sweep(members, tmp_path / "parts", resume=stops > 0)
            break
        except Interrupted as error:
            assert "jrnn sweep --resume" in str(error)
            stops += 1
    assert stops >= 3
    assert everything(tmp_path / "parts", 3) == everything(tmp_path / "whole", 3)
    assert again.trials == whole.trials and again.best == whole.best


def compilations(members, folder):
    """Programs that a sweep compiles, beside those that draw the networks."""
    jax.clear_caches()
    with compiled() as found:
        sweep(members, folder)
    return len(found)


def test_more_members_compile_nothing_more(tmp_path):
    few = compilations([experiment(seed=seed) for seed in range(2)], tmp_path / "few")
    many = compilations([experiment(seed=seed) for seed in range(8)], tmp_path / "many")
    assert few == many > 0


SPREAD = """
import sys
from pathlib import Path
import jax
from tests.sweep.test_sweep import spread
assert len(jax.devices()) == 4
spread(Path(sys.argv[1]))
"""


def spread(folder):
    sweep([experiment(seed=seed) for seed in range(6)], folder)


def test_members_are_spread_over_devices(tmp_path):
    environment = environment_with_devices(4)
    command = [sys.executable, "-c", SPREAD, str(tmp_path / "four")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    spread(tmp_path / "one")
    for number in range(6):
        assert_same_lines(*(trial_folder(tmp_path / name, number) for name in ("four", "one")))


def test_devices_that_share_threads_do_not_wait_for_each_other(tmp_path):
    """Both run kernels in threads of the runtime, which then has none to help them: once a hang."""
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


def test_what_cannot_be_swept_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one trial"):
        sweep([], tmp_path)
    with pytest.raises(ValueError, match="trial 1: train: batch_size must be at most"):
        sweep([experiment(), experiment(batch_size=1000)], tmp_path)
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", 10)
    with pytest.raises(ValueError, match="too large for that"):
        sweep([experiment()], tmp_path)
