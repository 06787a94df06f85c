"""Sweeps on a Ray cluster of several nodes, all of which are on this machine."""

import os
import re
import signal
import threading
import time

import pytest

import jrnn
from jrnn.sweep.sweep import BEST, group_folder, sweep
from jrnn.train import Experiment, Interrupted, Network, Optimizer, restore
from tests.sweep.test_sweep import Signs, read_metrics

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and two nodes with one CPU, so that each trains one group at a time."""
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
    from jrnn.sweep.ray_cluster import RayCluster

    return RayCluster(cluster.address)


def trials(steps, **changes):
    """Returns four trials in two groups."""
    return [
        Experiment(
            Signs(),
            Network(jrnn.GRU(size), dropout=0.1),
            Optimizer(1e-2),
            seed=seed,
            **{"steps": steps, "batch_size": 8, "eval_every": steps // 3, **changes},
        )
        for seed in (0, 1)
        for size in (3, 4)
    ]


def assert_same_sweep(actual, expected, actual_folder, expected_folder):
    """Asserts that the results, metrics and best runs are equal bit for bit."""
    assert actual._replace(seconds=0) == expected._replace(seconds=0)
    count = len(expected.trials)
    assert read_metrics(actual_folder, count) == read_metrics(expected_folder, count)
    metrics = [f / BEST / "metrics.jsonl" for f in (actual_folder, expected_folder)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_sweep_on_two_nodes_equals_sweep_in_one_process(cluster, tmp_path):
    expected = sweep(trials(45), tmp_path / "local")
    with ray_cluster(cluster) as ray:
        actual = sweep(trials(45), tmp_path / "ray", train_trials=ray.train)
        assert_same_sweep(actual, expected, tmp_path / "ray", tmp_path / "local")
        with pytest.raises(FileExistsError, match="has the checkpoints of a sweep already"):
            sweep(trials(45), tmp_path / "ray", train_trials=ray.train)
    best = trials(45)[actual.best]
    restored = restore(best, best.task.load(), tmp_path / "ray" / BEST)
    assert restored.test == pytest.approx(expected.trials[expected.best].test, rel=1e-5)
    # All of the sweep has come back, so that it can be read without the cluster.
    resumed = sweep(trials(45), tmp_path / "ray", resume=True)
    assert resumed._replace(seconds=0) == expected._replace(seconds=0)


def wait_for_checkpoints(folder):
    """Waits until both groups have a checkpoint after step 0."""
    saved = lambda n: [*(group_folder(folder, n) / "checkpoints").glob("[1-9]*")]
    while not all(saved(number) for number in range(2)):
        time.sleep(0.1)


def test_groups_of_a_lost_node_start_again_elsewhere(cluster, tmp_path, caplog):
    options = {"steps": 12000, "save_every": 0.5}
    expected = sweep(trials(**options), tmp_path / "local")
    node = cluster.add_node(**NODE)
    others = [n for n in cluster.worker_nodes if n is not node]
    folder = tmp_path / "ray"

    def remove_nodes():
        wait_for_checkpoints(folder)
        cluster.remove_node(others[0], allow_graceful=False)

    remover = threading.Thread(target=remove_nodes, daemon=True)
    with ray_cluster(cluster) as ray:
        remover.start()
        actual = sweep(trials(**options), folder, train_trials=ray.train)
    remover.join()
    assert re.search(r"was lost; the group starts again from step [1-9]", caplog.text), caplog.text
    assert_same_sweep(actual, expected, folder, tmp_path / "local")


@pytest.mark.parametrize("resume_on_ray", [True, False])
def test_interrupted_sweep_resumes(resume_on_ray, cluster, tmp_path):
    options = {"steps": 6000, "save_every": 0.5}
    expected = sweep(trials(**options), tmp_path / "local")
    folder = tmp_path / "ray"

    def interrupt():
        wait_for_checkpoints(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    with ray_cluster(cluster) as ray:
        thread.start()
        with pytest.raises(Interrupted, match="stopped by SIGTERM after 0 of 2 groups, and saved"):
            sweep(trials(**options), folder, train_trials=ray.train)
        train = ray.train if resume_on_ray else None
        resumed = sweep(trials(**options), folder, resume=True, train_trials=train)
    assert_same_sweep(resumed, expected, folder, tmp_path / "local")
