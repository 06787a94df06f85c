"""Sweeps on a Ray cluster of several nodes, all of which are on this machine."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest

import jrnn
from jrnn.cli.main import main
from jrnn.files import WriteError
from jrnn.sweep import RayCluster, ray_cluster, ray_worker
from jrnn.sweep.ray_files import (
    STAGED_CHECKPOINT,
    commit_checkpoint,
    read_files,
    stage_checkpoint,
    worker_folder,
    write_files,
    write_metrics,
)
from jrnn.sweep.ray_worker import (
    GroupSpec,
    GroupWorker,
    SavedGroup,
    Update,
    make_portable,
    read_settings,
    read_versions,
)
from jrnn.sweep.sweep import (
    BEST,
    Trials,
    best_folder,
    group_folder,
    sweep,
    trial_folder,
)
from jrnn.train import Experiment, Interrupted, Network, Optimizer, restore
from jrnn.train.run.checkpoint import CheckpointError, list_steps
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


def connect(cluster):
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
    for rank in range(len(expected.kept)):
        folders = [best_folder(folder, rank) for folder in (actual_folder, expected_folder)]
        actual_bytes, expected_bytes = ((f / "metrics.jsonl").read_bytes() for f in folders)
        assert actual_bytes == expected_bytes
    assert not [*actual_folder.rglob("best*.part")]


@on_ray
def test_sweep_on_two_nodes_equals_sweep_in_one_process(cluster, tmp_path):
    experiments = trials(45, sizes=(2, 3, 4, 5))  # more groups than nodes
    expected = sweep(experiments, tmp_path / "local", keep=2)
    with connect(cluster) as ray:
        actual = sweep(experiments, tmp_path / "ray", keep=2, train_trials=ray.train)
        assert_same_sweep(actual, expected, tmp_path / "ray", tmp_path / "local")
        with pytest.raises(FileExistsError, match="has the checkpoints of a sweep already"):
            sweep(experiments, tmp_path / "ray", train_trials=ray.train)
    best = experiments[actual.best]
    restored = restore(best, best.task.load(), tmp_path / "ray" / BEST)
    assert restored.test == pytest.approx(expected.trials[expected.best].test, rel=1e-5)
    # All files of the sweep have been copied back, so that it can be read without the cluster.
    resumed = sweep(experiments, tmp_path / "ray", resume=True, keep=2)
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
    with connect(cluster) as ray:
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
    with connect(cluster) as ray:
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
    with connect(cluster):
        assert signal.getsignal(signal.SIGTERM) is before


def make_worker(experiments, saved, **changes):
    """Returns a worker, in this process, that trains a group from what is saved of it."""
    spec = GroupSpec(pickle.dumps(experiments), None, 2, read_versions(), read_settings())
    return GroupWorker(spec._replace(**changes), experiments[0].task.load(), saved)


def write_update(folder, update):
    """Writes the metrics and the checkpoint of an update of a worker to the folder of a sweep."""
    for index, (offset, content) in update.metrics.items():
        write_metrics(trial_folder(folder, index), offset, content)
    if update.checkpoint is not None:
        write_checkpoint(group_folder(folder, 0), *update.checkpoint)


def write_checkpoint(folder, step, files):
    """Writes a checkpoint without metrics to the folder of a group."""
    stage_checkpoint(folder, files)
    commit_checkpoint(folder, step)


def read_saved(folder, count):
    """Returns the checkpoints and metrics of the first group of a sweep, with `count` trials."""
    checkpoints = group_folder(folder, 0) / "checkpoints"
    files = {step: read_files(checkpoints / str(step)) for step in list_steps(checkpoints)}
    return SavedGroup(files, read_metrics_bytes(folder, count))


def test_worker_continues_from_the_updates_of_another_worker(tmp_path, monkeypatch):
    experiments = trials(300, save_every=0.2, eval_every=10)[::2]
    expected = sweep(experiments, tmp_path / "local", keep=2)
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
    for run_files, name in zip(update.best, ("best", "best-2"), strict=True):
        path = tmp_path / "local" / name / "metrics.jsonl"
        assert run_files["metrics.jsonl"] == path.read_bytes()


# Contents of a group that was saved at steps 10 and 20.
SAVED = SavedGroup({10: {"a/b": b"10"}, 20: {"a/b": b"20"}}, [b"line 1\n", b"line 2\n"])
OTHER_VERSIONS = {"versions": read_versions() | {"jax": "0.0.1"}}


def poll_until_done(worker):
    """Returns the last update of a worker whose other updates have no files."""
    while not (update := worker.poll()).done:
        assert update.checkpoint is None and not update.metrics
    return update


def test_worker_with_another_version_ends_with_an_error():
    worker = make_worker(trials(45)[:1], SavedGroup({}, [b""]), **OTHER_VERSIONS)
    update = poll_until_done(worker)
    assert type(update.error) is ValueError and update.result is None
    assert re.search(r"got .*jax \d.* on a worker and .*jax 0\.0\.1.* here", str(update.error))
    assert update.checkpoint is None and update.metrics == {}


@pytest.mark.parametrize(
    "changes", [OTHER_VERSIONS, {"pickled_experiments": b"a class that is not installed"}]
)
def test_worker_that_fails_early_keeps_what_is_saved(changes, tmp_path):
    for index, content in enumerate(SAVED.metrics):
        write_metrics(trial_folder(tmp_path, index), 0, content)
    for step, files in SAVED.checkpoints.items():
        write_checkpoint(group_folder(tmp_path, 0), step, files)
    update = poll_until_done(make_worker(trials(45)[::2], SAVED, **changes))
    write_update(tmp_path, update)
    assert update.error is not None
    assert read_saved(tmp_path, 2) == SAVED


def test_worker_with_a_full_disk_sends_no_files(monkeypatch):
    def fail_at_step_20(folder, files):
        write_files(folder, files)
        if folder.name == "20":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray_worker, "write_files", fail_at_step_20)
    update = poll_until_done(make_worker(trials(45)[::2], SAVED))
    assert "No space left" in str(update.error)
    assert update.checkpoint is None and update.metrics == {}


def test_worker_sends_no_files_before_it_has_written_all_that_are_saved(monkeypatch):
    can_continue = threading.Event()

    def pause_at_step_20(folder, files):
        if folder.name == "20":
            can_continue.wait(30)
        write_files(folder, files)

    monkeypatch.setattr(ray_worker, "write_files", pause_at_step_20)
    monkeypatch.setattr(ray_worker, "POLL_SECONDS", 0.1)
    worker = make_worker(trials(45)[::2], SAVED, **OTHER_VERSIONS)
    update = worker.poll()
    can_continue.set()
    assert update.checkpoint is None and not update.metrics and not update.done
    assert poll_until_done(worker).checkpoint is None


def test_worker_does_not_send_a_checkpoint_that_is_being_removed(monkeypatch):
    """Two newer checkpoints are saved, and files of the oldest one removed, while it is read."""
    worker = make_worker(trials(45)[:1], SavedGroup({}, [b""]), **OTHER_VERSIONS)
    checkpoints = group_folder(worker._folder, 0) / "checkpoints"

    def read_during_removal(folder):
        write_files(checkpoints, {"20/a": b"", "30/a": b""})
        return read_files(folder)

    worker._done.wait()
    write_files(checkpoints, {"10/a": b""})
    monkeypatch.setattr(ray_worker, "read_files", read_during_removal)
    update = worker.poll()
    assert update.checkpoint is None and not update.metrics


def test_files_of_a_folder_that_does_not_exist_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing must be a folder"):
        read_files(tmp_path / "missing")


KILLED_WORKER = """
import os
from jrnn.sweep.ray_files import worker_folder
with worker_folder() as folder:
    (folder / "groups").mkdir()
    os.kill(os.getpid(), 9)
"""


def test_worker_removes_only_folders_of_killed_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / ".lock").touch()
    (tmp_path / "jrnn-sweep-link").symlink_to("target")
    (tmp_path / "jrnn-sweep-new").mkdir()  # its worker is just creating the lock
    with worker_folder() as running:
        others = {*tmp_path.iterdir()}
        assert running in others
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        killed = subprocess.run([sys.executable, "-c", KILLED_WORKER], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        (folder,) = {*tmp_path.iterdir()} - others
        assert (folder / "groups").is_dir()
        with worker_folder() as new:
            assert {*tmp_path.iterdir()} == others | {new}
        assert {*tmp_path.iterdir()} == others
    assert not running.exists()


def make_groups(experiments, folder, monkeypatch):
    """Returns the groups of a sweep that has one group, without a cluster."""
    ray = SimpleNamespace(put=lambda value: value)
    monkeypatch.setattr(ray_cluster, "_import_ray", lambda: ray)
    task = experiments[0].task
    indices = [[*range(len(experiments))]]
    return ray_cluster._Groups(Trials(experiments, {task: task.load()}, indices, None), folder, {})


def fail(*_):
    raise OSError(28, "No space left on device")


FIRST_UPDATE = Update(
    15, (15, {"a": b"15"}), {0: (0, b"{}\n"), 1: (0, b"{}\n")}, False, None, {}, None
)


def test_metrics_are_not_written_if_the_checkpoint_cannot_be(tmp_path, monkeypatch):
    groups = make_groups(trials(45)[::2], tmp_path, monkeypatch)
    monkeypatch.setattr(ray_cluster, "stage_checkpoint", fail)
    with pytest.raises(WriteError, match="group 0 could not be written"):
        groups._write_update(groups._groups[0], FIRST_UPDATE)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_sweep_resumes_after_its_first_checkpoint_was_not_renamed(tmp_path, monkeypatch):
    experiments = trials(45)[::2]
    expected = sweep(experiments, tmp_path / "local")
    folder = tmp_path / "ray"
    groups = make_groups(experiments, folder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "commit_checkpoint", fail)
        with pytest.raises(WriteError, match="group 0 could not be written"):
            groups._write_update(groups._groups[0], FIRST_UPDATE)
    assert read_metrics_bytes(folder, 2) == [b"{}\n"] * 2
    resumed = sweep(experiments, folder, resume=True)
    assert_same_sweep(resumed, expected, folder, tmp_path / "local")
    assert not (group_folder(folder, 0) / STAGED_CHECKPOINT).exists()


def test_metrics_of_a_group_whose_checkpoints_were_removed_are_kept(tmp_path):
    write_metrics(trial_folder(tmp_path, 0), 0, b"{}\n")
    with pytest.raises(ValueError, match="has a metrics.jsonl but no checkpoint"):
        sweep(trials(45)[:1], tmp_path, resume=True)
    assert read_metrics_bytes(tmp_path, 1) == [b"{}\n"]


def test_ray_is_imported_on_connection_only():
    code = (
        "import sys; from jrnn.sweep import RayCluster; RayCluster(); print('ray' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert process.stdout.decode().strip() == "False"


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
    write_files(tmp_path / "checkpoints", {"2.old/a": b"of a process that was killed"})
    for step in (1, 2, 9, 3):
        write_checkpoint(tmp_path, step, {"a/b": b"content"})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert read_files(tmp_path / "checkpoints/3") == {"a/b": b"content"}
    assert not (tmp_path / "checkpoint.part").exists()
