"""Runs that are stopped, or killed, and go on: bit for bit what they would have been."""

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
from tests.train.test_trainer import Sign, experiment

ROOT = Path(__file__).parents[2]


def last(e, data, folder):
    """All arrays of the newest checkpoint, keys as their data."""
    _, like = check_experiment(e, data)
    like = {"state": like._asdict(), "best": {"params": like.params, "rest": like.rest}}
    checkpoints = Checkpointer(folder / "checkpoints")
    found = checkpoints.newest(like)
    checkpoints.close()
    return found.step, jax.tree.map(plain, found.arrays)


def plain(array):
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if is_key else array


def assert_same_run(e, data, one, other):
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    steps, arrays = zip(last(e, data, one), last(e, data, other), strict=True)
    assert steps == (e.steps, e.steps)
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def signal_at(step, monkeypatch):
    """Sends SIGTERM to this process when a run has come to a step."""
    train_steps = Trainer.train_steps

    def stopping(run):
        train_steps(run)
        if run.step >= step:
            monkeypatch.setattr(Trainer, "train_steps", train_steps)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_steps", stopping)


@pytest.mark.parametrize(
    "optimizer", [Optimizer(3e-2), Optimizer(3e-2, "adamw", "cosine", 0.1, 0.1)]
)
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not(optimizer, tmp_path, monkeypatch):
    e = replace(experiment(Sign("class_per_step"), steps=4001), optimizer=optimizer, eval_every=131)
    data = e.task.load()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    want = train(e, data, whole)
    stops = []
    for number in range(3):
        signal_at(20 + 1500 * number, monkeypatch)
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step .* of 4001") as stop:
            train(e, data, parts, resume=bool(stops))
        assert str(stop.value).endswith(f"resume with: jrnn train --resume {parts}")
        stops.append(max(steps_of(parts / "checkpoints")))
    assert stops == sorted(set(stops)) and any(stop % 20 for stop in stops), stops
    got = train(e, data, parts, resume=True)
    assert (got.step, got.validation, got.test) == (want.step, want.validation, want.test)
    assert_same_run(e, data, whole, parts)


def test_a_finished_run_is_read_back_by_resume(tmp_path):
    e = experiment(steps=30)
    data = e.task.load()
    first = train(e, data, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = train(e, data, tmp_path, resume=True)
    assert again[1:] == first[1:]
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_resume_of_what_never_began_begins(tmp_path):
    e = experiment(steps=30)
    data = e.task.load()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text("half a li")
    train(e, data, tmp_path / "a", resume=True)
    train(e, data, tmp_path / "b")
    assert_same_run(e, data, tmp_path / "a", tmp_path / "b")


def test_a_damaged_checkpoint_is_put_aside_and_the_run_goes_on_from_the_one_before(
    tmp_path, caplog
):
    e = experiment(steps=60, save_every=1e-9)
    data = e.task.load()
    train(e, data, tmp_path / "whole")
    train(e, data, tmp_path / "damaged")
    for path in (tmp_path / "damaged/checkpoints/60/record").iterdir():
        path.write_text("{}")
    caplog.clear()
    train(e, data, tmp_path / "damaged", resume=True)
    assert "checkpoint of step 60 is damaged" in caplog.text
    assert (tmp_path / "damaged/damaged/60").is_dir()
    assert_same_run(e, data, tmp_path / "whole", tmp_path / "damaged")


def test_missing_lines_of_metrics_are_said(tmp_path):
    e = experiment(steps=30)
    data = e.task.load()
    train(e, data, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has 3 bytes, and had \d+ when the run was saved"):
        train(e, data, tmp_path, resume=True)


def test_metrics_without_checkpoints_are_not_thrown_away(tmp_path):
    e = experiment(steps=30)
    data = e.task.load()
    train(e, data, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    lines = (tmp_path / "metrics.jsonl").read_text()
    for resume in (False, True):
        with pytest.raises(ValueError, match="metrics.jsonl but no checkpoint"):
            train(e, data, tmp_path, resume=resume)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_a_checkpoint_of_the_first_form_is_refused(tmp_path):
    """It held `state` and `metrics`."""
    e = experiment(steps=30)
    data = e.task.load()
    train(e, data, tmp_path)
    for step in (0, 30):
        shutil.rmtree(tmp_path / f"checkpoints/{step}/record")
    with pytest.raises(CheckpointError, match="of another network or version of jrnn"):
        restore(e, data, tmp_path)


@pytest.mark.parametrize("tbptt", [None, TBPTT(2)])
def test_data_that_do_not_fit_the_device_give_the_same_run(tbptt, tmp_path, monkeypatch):
    e = replace(experiment(Sign("class_per_step"), steps=60), tbptt=tbptt)
    data = e.task.load()
    want = train(e, data, tmp_path / "whole")
    monkeypatch.setattr(sampler, "DEVICE_BYTES", 0)
    monkeypatch.setattr(loader, "STREAMED_BYTES", 2000)
    got = train(e, data, tmp_path / "sent")
    assert got.test == pytest.approx(want.test, rel=1e-4)
    whole, sent = (MetricsFile(tmp_path / name / "metrics.jsonl") for name in ("whole", "sent"))
    np.testing.assert_allclose(
        whole.read("train", "loss")[1], sent.read("train", "loss")[1], rtol=1e-4
    )


def test_patience_ends_a_run_and_resume_leaves_it_ended(tmp_path):
    e = experiment(steps=4000, eval_every=20, patience=3)
    data = e.task.load()
    first = train(e, data, tmp_path)
    steps, losses = MetricsFile(tmp_path / "metrics.jsonl").read("validation", "metric")
    assert steps[-1] == first.step + 60 < 4000
    assert max(losses) == losses[steps.index(first.step)]
    assert train(e, data, tmp_path, resume=True)[1:] == first[1:]


def test_another_network_is_refused(tmp_path):
    e = experiment(steps=30)
    data = e.task.load()
    train(e, data, tmp_path)
    other = replace(e, network=replace(e.network, num_layers=2))
    with pytest.raises(CheckpointError, match=r"steps \[0, 30\] are damaged|other"):
        train(other, data, tmp_path, resume=True)
    assert_same_run(e, data, tmp_path, tmp_path)


def test_two_runs_on_one_folder_are_refused(tmp_path):
    e = experiment(steps=200_000)
    data = e.task.load()
    raised = []

    def second():
        try:
            while not (tmp_path / "checkpoints/0").is_dir():
                time.sleep(0.02)
            train(e, data, tmp_path, resume=True)
        except Exception as error:
            raised.append(error)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        train(e, data, tmp_path)
    thread.join()
    assert isinstance(raised[0], BlockingIOError)
    assert "another process trains in" in str(raised[0])


def jrnn(*args, cache):
    """The command, with what it compiled before."""
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


def finished(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def steps_of(checkpoints):
    return (
        [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()]
        if checkpoints.is_dir()
        else []
    )


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("kills", "total"),
    [(3, 18_000), pytest.param(20, 120_000, marks=pytest.mark.exhaustive)],
)
def test_kills_at_random_moments_change_nothing(kills, total, tmp_path):
    """`kill -9` at any time, in half of the cases while a checkpoint is being written."""
    draw = random.Random(0)
    options = ["--steps", str(total), "--eval-every", "500"]
    start = ["train", "configs/digits.py:order=row,hidden=32", *options]
    whole, parts, cache = tmp_path / "whole", tmp_path / "parts", tmp_path / "cache"
    finished(jrnn(*start, "--run-dir", str(whole), cache=cache))
    checkpoints = parts / "checkpoints"
    while_saving = 0
    command = [*start, "--save-every", "0.02", "--run-dir", str(parts)]
    for kill in range(kills):
        process = jrnn(*command, cache=cache)
        before = max(steps_of(checkpoints), default=-1)
        wait_until(lambda b=before: max(steps_of(checkpoints), default=-1) > max(b, 0), process)
        time.sleep(0.1 * draw.random())
        if kill % 2:
            wait_until(lambda: list(checkpoints.glob("*tmp*")), process)
        process.kill()
        process.communicate()
        while_saving += bool(list(checkpoints.glob("*tmp*")))
        command = ["train", "--resume", str(parts)]
    assert while_saving >= kills // 4
    assert max(steps_of(checkpoints)) < total
    finished(jrnn(*command, cache=cache))
    results = [json.loads((run / "result.json").read_text()) for run in (whole, parts)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    e = config.read(whole / "config.json")
    assert_same_run(e, e.task.load(), whole, parts)
