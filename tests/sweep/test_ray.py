"""Sweeps on a Ray cluster of several nodes, all of which are on this machine."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import jrnn
from jrnn.cli.main import main
from jrnn.sweep import ray_worker
from jrnn.sweep.ray_cluster import RayCluster
from jrnn.sweep.ray_files import list_steps, read_files, write_checkpoint, write_metrics
from jrnn.sweep.ray_worker import (
    GroupSpec,
    GroupWorker,
    SavedGroup,
    make_portable,
    read_settings,
    read_versions,
)
from jrnn.sweep.sweep import BEST, group_folder, sweep, trial_folder
from jrnn.train import Experiment, Interrupted, Network, Optimizer, restore
from jrnn.train.run.checkpoint import CheckpointError
from jrnn.train.run.trainer import Trainer
from tests.sweep.test_sweep import Signs, read_metrics_bytes


def on_ray(function):
    """Marks a test that uses a cluster as exhaustive, because its start takes half a minute."""
    return pytest.mark.exhaustive(pytest.mark.filterwarnings("ignore")(function))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster: a head node without CPUs, and two nodes with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(head_node_args=NODE | {"num_cpus": 0}, initialize_head=True)
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


def ray_cluster(cluster):
    return RayCluster(cluster.address)


def trials(steps, sizes=(3, 4), **changes):
    """Returns two trials for each hidden size; each size is a group."""
    return [
        Experiment(
            Signs(),
            Network(jrnn.GRU(size), dropout=0.1),
            Optimizer(1e-2),
            seed=seed,
            **{"steps": steps, "batch_size": 8, "eval_every": steps // 3, **changes},
        )
        for seed in (0, 1)
        for size in sizes
    ]


def assert_same_sweep(actual, expected, actual_folder, expected_folder):
    """Asserts that results, metrics of trials and metrics of best runs are equal bit for bit."""
    assert actual._replace(seconds=0) == expected._replace(seconds=0)
    count = len(expected.trials)
    assert read_metrics_bytes(actual_folder, count) == read_metrics_bytes(expected_folder, count)
    metrics = [f / BEST / "metrics.jsonl" for f in (actual_folder, expected_folder)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


@on_ray
def test_sweep_on_two_nodes_equals_sweep_in_one_process(cluster, tmp_path):
    experiments = trials(45, sizes=(2, 3, 4, 5))  # more groups than nodes
    expected = sweep(experiments, tmp_path / "local")
    with ray_cluster(cluster) as ray:
        actual = sweep(experiments, tmp_path / "ray", train_trials=ray.train)
        assert_same_sweep(actual, expected, tmp_path / "ray", tmp_path / "local")
        with pytest.raises(FileExistsError, match="has the checkpoints of a sweep already"):
            sweep(experiments, tmp_path / "ray", train_trials=ray.train)
    best = experiments[actual.best]
    restored = restore(best, best.task.load(), tmp_path / "ray" / BEST)
    assert restored.test == pytest.approx(expected.trials[expected.best].test, rel=1e-5)
    # All files of the sweep have been copied back, so that it can be read without the cluster.
    resumed = sweep(experiments, tmp_path / "ray", resume=True)
    assert resumed._replace(seconds=0) == expected._replace(seconds=0)


CONFIG = """
from dataclasses import dataclass
import jrnn, novel_helper
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network

@dataclass(frozen=True)
class Novel(jrnn.Elman):
    def update(self, params, carry, z, u):
        return novel_helper.activation(z + u)

def get_config(hidden: int = 3) -> Experiment:
    return Experiment(Adding(9, 90, 60), Network(Novel(hidden)), steps=40, batch_size=8)
"""
HELPER = """
import jax.numpy as jnp

def activation(x):
    return jnp.sin(x)
"""


@on_ray
def test_config_that_defines_classes_gives_the_same_sweep_on_ray(
    cluster, tmp_path, monkeypatch, capsys
):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "novel.py").write_text(CONFIG)
    (tmp_path / "config" / "novel_helper.py").write_text(HELPER)
    train = RayCluster.train

    def train_without_files(*args):
        # The workers must not need the files, which other machines do not have.
        (tmp_path / "config").rename(tmp_path / "moved")
        try:
            return train(*args)
        finally:
            (tmp_path / "moved").rename(tmp_path / "config")

    monkeypatch.setattr(RayCluster, "train", train_without_files)
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = ["--over", "seed=0:2", "hidden=3,4", "--run-dir"]
    command = ["sweep", str(tmp_path / "config" / "novel.py"), *options]
    main([*command, str(tmp_path / "local")])
    tables = [capsys.readouterr().out.partition("figure:")[0]]
    main([*command, str(tmp_path / "ray"), "--on", "ray", "--ray-address", cluster.address])
    tables.append(capsys.readouterr().out.partition("figure:")[0])
    local, ray = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("local", "ray"))
    assert local | {"seconds": 0} == ray | {"seconds": 0}
    rows = [[line for line in table.splitlines() if line.startswith("│")] for table in tables]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert read_metrics_bytes(tmp_path / "local", 4) == read_metrics_bytes(tmp_path / "ray", 4)


@on_ray
def test_group_that_fits_on_no_node_raises(cluster, tmp_path):
    message = "must have 2 CPUs and 0 GPUs for a group, got nodes with 0 CPUs and 0 GPUs, 1 CPUs"
    with RayCluster(cluster.address, cpus=2) as ray, pytest.raises(ValueError, match=message):
        sweep(trials(45), tmp_path / "ray", train_trials=ray.train)


def wait_for_checkpoints(folder):
    """Waits until both groups have a checkpoint after step 0."""
    saved = lambda n: [*(group_folder(folder, n) / "checkpoints").glob("[1-9]*")]
    while not all(saved(number) for number in range(2)):
        time.sleep(0.1)


@on_ray
def test_groups_of_a_lost_node_start_again_on_another_node(cluster, tmp_path, caplog):
    options = {"steps": 24000, "save_every": 0.5}
    expected = sweep(trials(**options), tmp_path / "local")
    folder = tmp_path / "ray"

    def remove_node():
        """Kills one of two nodes, each of which trains a group."""
        wait_for_checkpoints(folder)
        cluster.remove_node([*cluster.worker_nodes][0], allow_graceful=False)

    remover = threading.Thread(target=remove_node, daemon=True)
    with ray_cluster(cluster) as ray:
        remover.start()
        actual = sweep(trials(**options), folder, train_trials=ray.train)
    remover.join()
    cluster.add_node(**NODE)  # for the next test
    assert re.search(r"was lost; the group starts again from step [1-9]", caplog.text), caplog.text
    assert_same_sweep(actual, expected, folder, tmp_path / "local")


@on_ray
@pytest.mark.parametrize("resume_on_ray", [True, False])
def test_interrupted_sweep_resumes_on_ray_or_locally(resume_on_ray, cluster, tmp_path):
    options = {"steps": 60000, "save_every": 0.5}
    expected = sweep(trials(**options), tmp_path / "local")
    folder = tmp_path / "ray"

    def interrupt():
        wait_for_checkpoints(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    with ray_cluster(cluster) as ray:
        thread.start()
        with pytest.raises(Interrupted, match="stopped by SIGTERM after [01] of 2 groups"):
            sweep(trials(**options), folder, train_trials=ray.train)
        train = ray.train if resume_on_ray else None
        resumed = sweep(trials(**options), folder, resume=True, train_trials=train)
    assert_same_sweep(resumed, expected, folder, tmp_path / "local")


@on_ray
def test_killed_sweep_resumes(cluster, tmp_path):
    """SIGKILL ends the process of the command while two nodes train; the command resumes."""
    command = [
        "sweep",
        "configs/adding.py:hidden=4,length=20",
        "--over",
        "seed=0,1",
        "cell=gru,lstm",
    ]
    command += ["--steps", "6000", "--save-every", "0.5"]
    ray = ["--on", "ray", "--ray-address", cluster.address]
    main([*command, "--run-dir", str(tmp_path / "local")])
    folder = tmp_path / "ray"
    process = subprocess.Popen([sys.executable, "-m", "jrnn", *command, "--run-dir", folder, *ray])
    wait_for_checkpoints(folder)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    steps = [max(list_steps(group_folder(folder, n) / "checkpoints")) for n in range(2)]
    assert all(0 < step < 6000 for step in steps)
    main(["sweep", "--resume", str(folder), *ray])
    local, resumed = (
        json.loads((f / "result.json").read_text()) for f in (tmp_path / "local", folder)
    )
    assert local | {"seconds": 0} == resumed | {"seconds": 0}
    assert read_metrics_bytes(tmp_path / "local", 4) == read_metrics_bytes(folder, 4)


@on_ray
def test_signal_handlers_are_those_from_before(cluster):
    before = signal.getsignal(signal.SIGTERM)
    with ray_cluster(cluster):
        assert signal.getsignal(signal.SIGTERM) is before


def make_worker(experiments, saved, **changes):
    """Returns a worker, in this process, that trains a group from what is saved of it."""
    spec = GroupSpec(pickle.dumps(experiments), None, read_versions(), read_settings())
    return GroupWorker(spec._replace(**changes), experiments[0].task.load(), saved)


def write_update(folder, update):
    """Writes the metrics and the checkpoint of an update of a worker to the folder of a sweep."""
    for index, (offset, content) in enumerate(update.metrics):
        write_metrics(trial_folder(folder, index), offset, content)
    if update.checkpoint is not None:
        write_checkpoint(group_folder(folder, 0), *update.checkpoint)


def read_saved(folder, count):
    """Returns the checkpoints and metrics of the first group of a sweep, with `count` trials."""
    checkpoints = group_folder(folder, 0) / "checkpoints"
    files = {step: read_files(checkpoints / str(step)) for step in list_steps(checkpoints)}
    return SavedGroup(files, read_metrics_bytes(folder, count))


def test_worker_continues_from_the_updates_of_another_worker(tmp_path, monkeypatch):
    experiments = trials(300, save_every=0.2, eval_every=10)[::2]
    expected = sweep(experiments, tmp_path / "local")
    folder = tmp_path / "ray"
    train_steps = Trainer.train_steps
    monkeypatch.setattr(ray_worker, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(Trainer, "train_steps", lambda t: (time.sleep(0.1), train_steps(t)))
    worker = make_worker(experiments, SavedGroup({}, [b"", b""]))
    while (update := worker.poll()).step == 0:
        write_update(folder, update)
    worker.stop(signal.SIGTERM)
    while not update.done:
        write_update(folder, update)
        update = worker.poll()
    write_update(folder, update)
    saved = read_saved(folder, 2)
    assert update.result is None and update.error is None
    assert 0 < max(saved.checkpoints) < 300 and len(saved.checkpoints) <= 2
    monkeypatch.setattr(Trainer, "train_steps", train_steps)
    # Lines after the newest checkpoint, which are from a lost worker, are replaced.
    worker = make_worker(experiments, saved._replace(metrics=[m + b"{}\n" for m in saved.metrics]))
    while not (update := worker.poll()).done:
        write_update(folder, update)
    write_update(folder, update)
    assert update.error is None
    assert update.result._replace(seconds=0) == expected._replace(seconds=0)
    assert read_metrics_bytes(folder, 2) == read_metrics_bytes(tmp_path / "local", 2)
    assert update.best["metrics.jsonl"] == (tmp_path / "local/best/metrics.jsonl").read_bytes()


def test_worker_with_another_version_ends_with_an_error():
    versions = read_versions() | {"jax": "0.0.1"}
    worker = make_worker(trials(45)[:1], SavedGroup({}, [b""]), versions=versions)
    while not (update := worker.poll()).done:
        pass
    assert type(update.error) is ValueError and update.result is None
    assert re.search(r"got .*jax \d.* on a worker and .*jax 0\.0\.1.* here", str(update.error))


def test_errors_of_a_worker_can_be_pickled():
    errors = [
        Interrupted("a", signal.SIGINT),
        CheckpointError("b"),
        OSError(28, "full"),
        KeyError(1),
    ]
    portable = [pickle.loads(pickle.dumps(make_portable(error))) for error in errors]
    assert [type(e) for e in portable] == [RuntimeError, OSError, OSError, RuntimeError]
    assert str(portable[1]) == "b" and str(portable[2]) == "[Errno 28] full"


def test_newest_checkpoint_replaces_old_and_damaged_ones(tmp_path):
    """A worker that sends step 3 after step 9 could not read the checkpoint of step 9."""
    for step in (1, 2, 9, 3):
        write_checkpoint(tmp_path, step, {"a/b": b"content"})
    assert list_steps(tmp_path / "checkpoints") == [2, 3]
    assert read_files(tmp_path / "checkpoints/3") == {"a/b": b"content"}
    assert not (tmp_path / "checkpoint.part").exists()
