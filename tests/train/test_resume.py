"""Runs that are stopped or killed and then resumed are exactly equal to uninterrupted runs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jrnn import config
from jrnn.distributed import ProcessGroup
from jrnn.train import (
    TBPTT,
    Checkpointer,
    CheckpointError,
    Interrupted,
    Optimizer,
    check_experiment,
    restore,
    train,
)
from jrnn.train.data import loader, sampler
from jrnn.train.run.metrics_logger import MetricsFile
from jrnn.train.run.trainer import Trainer
from tests.train.test_trainer import Sign, make_experiment

ROOT = Path(__file__).parents[2]


def newest_arrays(experiment, data, folder):
    """Returns the step and the arrays of the newest checkpoint; random keys as integers."""
    _, like = check_experiment(experiment, data)
    like = {"state": like.arrays(), "best": {"params": like.params, "rest": like.rest}}
    checkpoints = Checkpointer(folder / "checkpoints")
    checkpoint = checkpoints.read_newest(like)
    checkpoints.close()
    return checkpoint.step, jax.tree.map(key_data, checkpoint.arrays)


def key_data(array):
    is_key = jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if is_key else array


def assert_same_run(experiment, data, one, other):
    """Asserts that two complete runs have equal metrics files and equal newest checkpoints."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    steps, arrays = zip(
        newest_arrays(experiment, data, one), newest_arrays(experiment, data, other), strict=True
    )
    assert steps == (experiment.steps, experiment.steps)
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def signal_at(step, monkeypatch):
    """Sends SIGTERM to this process once, after the first dispatch that reaches step `step`."""
    train_steps = Trainer.train_steps

    def train_steps_then_signal(trainer):
        train_steps(trainer)
        if trainer.step >= step:
            monkeypatch.setattr(Trainer, "train_steps", train_steps)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_steps", train_steps_then_signal)


@pytest.mark.parametrize(
    "optimizer", [Optimizer(3e-2), Optimizer(3e-2, "adamw", "cosine", 0.1, 0.1)]
)
def test_resumed_run_equals_uninterrupted_run(optimizer, tmp_path, monkeypatch):
    experiment = replace(
        make_experiment(Sign("class_per_step"), steps=4001), optimizer=optimizer, eval_every=131
    )
    data = experiment.task.load()
    reference, resumed = tmp_path / "reference", tmp_path / "resumed"
    expected = train(experiment, data, reference)
    stops = []
    for number in range(3):
        signal_at(20 + 1500 * number, monkeypatch)
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step .* of 4001") as stop:
            train(experiment, data, resumed, resume=bool(stops))
        assert str(stop.value).endswith(f"resume with: jrnn train --resume {resumed} --trust")
        stops.append(max(checkpoint_steps(resumed / "checkpoints")))
    assert stops == sorted(set(stops)) and any(stop % 20 for stop in stops), stops
    actual = train(experiment, data, resumed, resume=True)
    assert (actual.step, actual.validation, actual.test) == (
        expected.step,
        expected.validation,
        expected.test,
    )
    assert_same_run(experiment, data, reference, resumed)


def test_resume_of_finished_run_returns_its_result(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    group = ProcessGroup()
    group.resume_command = "the command of the caller"
    first = train(experiment, data, tmp_path, group=group)
    assert group.resume_command == "the command of the caller"
    lines = (tmp_path / "metrics.jsonl").read_text()
    resumed = train(experiment, data, tmp_path, resume=True)
    assert resumed[1:] == first[1:]
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_resume_without_checkpoint_starts_a_run(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text("incomplete")
    train(experiment, data, tmp_path / "a", resume=True)
    train(experiment, data, tmp_path / "b")
    assert_same_run(experiment, data, tmp_path / "a", tmp_path / "b")


def test_resume_skips_damaged_checkpoint(tmp_path, caplog):
    experiment = make_experiment(steps=60, save_every=1e-9)
    data = experiment.task.load()
    train(experiment, data, tmp_path / "reference")
    train(experiment, data, tmp_path / "damaged")
    for path in (tmp_path / "damaged/checkpoints/60/record").iterdir():
        path.write_text("{}")
    caplog.clear()
    train(experiment, data, tmp_path / "damaged", resume=True)
    assert "checkpoint of step 60 is damaged" in caplog.text
    assert (tmp_path / "damaged/damaged/60").is_dir()
    assert_same_run(experiment, data, tmp_path / "reference", tmp_path / "damaged")


def test_resume_with_a_truncated_metrics_file_raises(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has 3 bytes, and had \d+ when the run was saved"):
        train(experiment, data, tmp_path, resume=True)


def test_metrics_without_checkpoints_raise(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    lines = (tmp_path / "metrics.jsonl").read_text()
    for resume in (False, True):
        with pytest.raises(ValueError, match="metrics.jsonl but no checkpoint"):
            train(experiment, data, tmp_path, resume=resume)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_checkpoint_of_first_format_raises(tmp_path):
    """Checkpoints of format 1 have no `record`."""
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    for step in (0, 30):
        shutil.rmtree(tmp_path / f"checkpoints/{step}/record")
    with pytest.raises(CheckpointError, match="of another network or version of jrnn"):
        restore(experiment, data, tmp_path)


def test_run_of_another_version_raises(tmp_path, monkeypatch):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    monkeypatch.setattr("jrnn.train.run.record.FORMAT", 3)
    for read_run in (
        lambda: train(experiment, data, tmp_path, resume=True),
        lambda: restore(experiment, data, tmp_path),
    ):
        with pytest.raises(CheckpointError, match="have format 2, and this version reads format 3"):
            read_run()


@pytest.mark.parametrize("tbptt", [None, TBPTT(2)])
def test_streamed_run_matches_run_on_device(tbptt, tmp_path, monkeypatch):
    experiment = replace(make_experiment(Sign("class_per_step"), steps=60), tbptt=tbptt)
    data = experiment.task.load()
    expected = train(experiment, data, tmp_path / "reference")
    monkeypatch.setattr(sampler, "DEVICE_BYTES", 0)
    monkeypatch.setattr(loader, "STREAMED_BYTES", 2000)
    actual = train(experiment, data, tmp_path / "streamed")
    assert actual.test == pytest.approx(expected.test, rel=1e-4)
    reference, streamed = (
        MetricsFile(tmp_path / name / "metrics.jsonl") for name in ("reference", "streamed")
    )
    np.testing.assert_allclose(
        reference.read("train", "loss")[1], streamed.read("train", "loss")[1], rtol=1e-4
    )


def test_patience_ends_run_and_resume_does_not_continue(tmp_path):
    experiment = make_experiment(steps=4000, eval_every=20, patience=3)
    data = experiment.task.load()
    first = train(experiment, data, tmp_path)
    steps, metrics = MetricsFile(tmp_path / "metrics.jsonl").read("validation", "metric")
    assert steps[-1] == first.step + 60 < 4000
    assert max(metrics) == metrics[steps.index(first.step)]
    assert train(experiment, data, tmp_path, resume=True)[1:] == first[1:]


def test_resume_with_another_network_raises(tmp_path):
    experiment = make_experiment(steps=30)
    data = experiment.task.load()
    train(experiment, data, tmp_path)
    other = replace(experiment, network=replace(experiment.network, num_layers=2))
    with pytest.raises(CheckpointError, match="has a run of another network"):
        train(other, data, tmp_path, resume=True)
    assert newest_arrays(experiment, data, tmp_path)[0] == 30  # the run is unchanged


def test_second_run_on_one_folder_raises(tmp_path):
    experiment = make_experiment(steps=200_000)
    data = experiment.task.load()
    errors = []

    def resume_in_thread():
        try:
            while not (tmp_path / "checkpoints/0").is_dir():
                time.sleep(0.02)
            train(experiment, data, tmp_path, resume=True)
        except Exception as error:
            errors.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=resume_in_thread)
    thread.start()
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        train(experiment, data, tmp_path)
    thread.join()
    assert isinstance(errors[0], BlockingIOError)
    assert "another process trains in" in str(errors[0])


def start_jrnn(*args, cache):
    """Starts the command `jrnn`, with a compilation cache in the folder `cache`."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jrnn", *args],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_success(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def checkpoint_steps(checkpoints):
    """Returns the steps of the checkpoints in a folder, which need not exist."""
    return (
        [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()]
        if checkpoints.is_dir()
        else []
    )


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)


def kill_and_resume(start, command, resume_command, folder, num_kills):
    """Kills a process with SIGKILL at random times; every second time when a save has begun.

    Args:
      start: function that starts the processes of a command.
      command: the command that starts the run.
      resume_command: the command that resumes the run.
      folder: the folder of the run or of the sweep.
      num_kills: number of times that a process is killed. Each time, the run is resumed.

    Returns:
      The processes of the last resumed run.
    """
    rng = random.Random(0)
    folders = lambda: [folder / "checkpoints", *folder.glob("groups/*/checkpoints")]
    saved_steps = lambda: sum(max(checkpoint_steps(path), default=0) for path in folders())
    unfinished_saves = lambda: [each for path in folders() for each in path.glob("*tmp*")]
    num_during_save = 0
    for kill in range(num_kills):
        processes = start(*command)
        before = saved_steps()
        wait_until(lambda before=before: saved_steps() > before, processes[0])
        time.sleep(0.1 * rng.random())
        if kill % 2:
            wait_until(unfinished_saves, processes[0])
        rng.choice(processes).kill()
        for process in processes:
            process.communicate(timeout=60)
        num_during_save += bool(unfinished_saves())
        command = resume_command
    assert num_during_save >= num_kills // 4
    return start(*command)


@pytest.mark.parametrize(
    ("num_kills", "steps"),
    [(3, 18_000), pytest.param(20, 120_000, marks=pytest.mark.exhaustive)],
)
def test_killed_and_resumed_run_equals_uninterrupted_run(num_kills, steps, tmp_path):
    options = ["--steps", str(steps), "--eval-every", "500"]
    command = ["train", "configs/digits.py:order=row,hidden=32", *options]
    reference, resumed, cache = tmp_path / "reference", tmp_path / "resumed", tmp_path / "cache"
    wait_for_success(start_jrnn(*command, "--run-dir", str(reference), cache=cache))
    (process,) = kill_and_resume(
        lambda *args: [start_jrnn(*args, cache=cache)],
        [*command, "--save-every", "0.02", "--run-dir", str(resumed)],
        ["train", "--resume", str(resumed)],
        resumed,
        num_kills,
    )
    assert max(checkpoint_steps(resumed / "checkpoints")) < steps
    wait_for_success(process)
    assert read_result(reference) == read_result(resumed)
    experiment = config.read(reference / "config.json")
    assert_same_run(experiment, experiment.task.load(), reference, resumed)


def read_result(folder):
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    return result
