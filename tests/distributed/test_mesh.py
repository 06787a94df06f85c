"""Training on a mesh gives the same losses as on one device."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

import jrnn
from jrnn.distributed import Mesh, ProcessGroup
from jrnn.sweep.sweep import sweep
from jrnn.train import TBPTT, Experiment, Interrupted, Network, Optimizer, restore, train
from jrnn.train.run.data_plan import plan_task
from jrnn.train.run.single import SingleNetwork
from jrnn.train.run.trainer import Trainer
from tests.compilation import environment_with_devices
from tests.sweep.test_sweep import Signs, assert_same_metrics, read_metrics
from tests.train.test_truncated import Sums

DEVICES = 8


def make_experiment(**changes):
    network = Network(jrnn.LSTM(8), num_layers=2, dropout=0.3)
    options = {"steps": 60, "batch_size": 16, "eval_every": 20, **changes}
    return Experiment(Signs(), network, Optimizer(1e-2, "adamw", weight_decay=0.1), **options)


WITH_TBPTT = replace(
    make_experiment(batch_size=8, tbptt=TBPTT(4, 6)),
    task=Sums(lengths=True, resets=True),
    network=Network(jrnn.GRU(8)),
)
CASES = {
    "data": (make_experiment(), "data=8"),
    "model": (make_experiment(), "data=4,model=2"),
    "accumulate": (make_experiment(accumulate=2), "data=4"),
    "tbptt": (WITH_TBPTT, "data=4,model=2"),
}
# One mesh per start of the resumed run; None is no mesh.
RESUMED_MESHES = ("data=8", "data=2,model=4", None)


def train_on_many_devices(folder):
    """Trains all cases on meshes, and one run that is interrupted and resumed on other meshes.

    Also asserts that the axis `model` shards the recurrent weights.
    """
    assert len(jax.devices()) == DEVICES
    for name, (e, mesh) in CASES.items():
        data, devices = e.task.load(), Mesh.parse(mesh)
        network = e.network.build(data, e.seed)
        optimizer = e.optimizer.build(e.steps)
        plan = plan_task(data, e, e.tbptt)
        trainable = SingleNetwork(network, plan, optimizer, e, devices, ProcessGroup())
        w_hh = trainable.init_state().params["body"]["rnns"][0]["weights"]["w_hh"]
        shard_size = w_hh[...].sharding.shard_shape(w_hh[...].shape)[-1]
        assert shard_size == w_hh[...].shape[-1] // devices.model
        train(replace(e, mesh=mesh), e.task.load(), folder / name)
    train_steps, e = Trainer.train_steps, make_experiment()

    def train_steps_then_interrupt(trainer):
        train_steps(trainer)
        if trainer.step >= interrupt_step:
            os.kill(os.getpid(), signal.SIGINT)

    setattr(Trainer, "train_steps", train_steps_then_interrupt)  # noqa: B010
    for interrupt_step, mesh in zip((1, 30), RESUMED_MESHES, strict=False):
        with pytest.raises(Interrupted):
            train(
                replace(e, mesh=mesh), e.task.load(), folder / "resumed", resume=interrupt_step > 1
            )
    Trainer.train_steps = train_steps
    train(replace(e, mesh=RESUMED_MESHES[-1]), e.task.load(), folder / "resumed", resume=True)


SCRIPT = """
import sys
from pathlib import Path
from tests.distributed.test_mesh import train_on_many_devices
train_on_many_devices(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def mesh_runs(tmp_path_factory):
    """The folder with a run for each case, and the run `resumed`."""
    folder = tmp_path_factory.mktemp("mesh_runs")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    subprocess.run(command, env=environment_with_devices(DEVICES), check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", [*CASES, "resumed"])
def test_training_on_a_mesh_gives_the_same_losses_as_on_one_device(name, mesh_runs, tmp_path):
    e = CASES[name][0] if name in CASES else make_experiment()
    expected = train(e, e.task.load(), tmp_path)
    assert_same_metrics(mesh_runs / name, tmp_path)
    for actual, line in zip(read_metrics(mesh_runs / name), read_metrics(tmp_path), strict=True):
        assert actual["loss"] == pytest.approx(line["loss"], rel=1e-6, abs=0)
    # `restore` uses one device, whatever the mesh of the experiment.
    e = replace(e, mesh=f"data={DEVICES}") if name == "resumed" else replace(e, mesh=CASES[name][1])
    restored = restore(e, e.task.load(), mesh_runs / name)
    assert restored.step == expected.step
    assert restored.test == pytest.approx(expected.test, rel=1e-5)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("8", "must be of the form data=8"),
        ("data=x", "must be of the form data=8"),
        ("data=0", "data must be a positive int"),
        ("dato=8", "did you mean 'data'"),
        ("data=2,data=2", "data must occur once"),
    ],
)
def test_invalid_mesh_text_raises(mesh, message):
    with pytest.raises(ValueError, match=message):
        make_experiment(mesh=mesh)


def test_mesh_that_does_not_match_the_devices_or_batch_raises(tmp_path, monkeypatch):
    data = Signs().load()
    with pytest.raises(ValueError, match="needs 4096 devices, got 1"):
        train(make_experiment(mesh="data=4096"), data, tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: [None] * DEVICES)
    with pytest.raises(ValueError, match="got 3 devices and a size of 16"):
        train(make_experiment(mesh="data=3"), data, tmp_path)
    with pytest.raises(ValueError, match="got 8 devices and a size of 4"):
        train(make_experiment(mesh="data=8", accumulate=4), data, tmp_path)
    with pytest.raises(ValueError, match="remove mesh"):
        sweep([make_experiment(mesh="data=8")], tmp_path)
    assert list(tmp_path.iterdir()) == []
