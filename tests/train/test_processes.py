"""Training of one network on several processes, each with its own rows of every batch."""

import json
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import pytest

from jrnn.cli import main
from jrnn.distributed import Launcher, init_process_group
from jrnn.sweep.sweep import sweep
from jrnn.train import train
from jrnn.train.data.loader import PrefetchedBatches
from tests.distributed.test_mesh import CASES
from tests.helpers import free_port, mark_exhaustive
from tests.sweep.test_sweep import read_metrics
from tests.train.test_resume import (
    checkpoint_steps,
    kill_and_resume,
    read_result,
    start_jrnn,
    wait_for_success,
    wait_until,
)

ROOT = Path(__file__).parents[2]
STEPS = 2000
CONFIG = "configs/digits.py:order=row,hidden=32"
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def start_processes(count, *args, cache):
    """Starts the command `jrnn` in each of `count` processes."""
    flags = ["--coordinator-address", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
    return [
        start_jrnn(*args, *flags, "--process-id", str(index), cache=cache) for index in range(count)
    ]


def wait_for_exit(processes, timeout=120):
    """Waits for processes to exit, and returns their exit codes and outputs."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def single_run(tmp_path_factory, cache):
    """The folder of a run on a single process."""
    folder = tmp_path_factory.mktemp("single_run") / "run"
    wait_for_success(
        start_jrnn("train", CONFIG, "--steps", str(STEPS), "--run-dir", str(folder), cache=cache)
    )
    return folder


def assert_same_losses(folder, single_run, steps, tolerance):
    """Asserts that the losses of two runs up to a step agree to a relative tolerance."""
    actual, expected = (
        [line for line in read_metrics(path) if line["step"] <= steps]
        for path in (folder, single_run)
    )
    assert [(line["step"], line["split"]) for line in actual] == [
        (line["step"], line["split"]) for line in expected
    ]
    for one, other in zip(actual, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance, abs=0)


def test_run_resumes_with_other_numbers_of_processes(single_run, tmp_path, cache):
    """A run of two processes, one of which is killed, is resumed by four, and then by one."""
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    options = ["--steps", str(STEPS), "--save-every", "0.5", "--run-dir", str(folder)]
    two = start_processes(2, "train", CONFIG, *options, cache=cache)
    wait_until(lambda: max(checkpoint_steps(checkpoints), default=0) > 0, two[0])
    two[1].kill()
    killed_at = time.monotonic()
    codes, outputs = wait_for_exit(two)
    assert codes == [1, -signal.SIGKILL] and time.monotonic() - killed_at < 30, outputs
    assert "process 1 of 2 has exited or is unreachable" in outputs[0]
    assert f"again with: jrnn train --resume {folder}" in outputs[0]

    before = max(checkpoint_steps(checkpoints))
    assert 0 < before < STEPS
    resume = ["train", "--resume", str(folder)]
    four = start_processes(4, *resume, "--mesh", "data=2,model=2", cache=cache)
    wait_until(lambda: max(checkpoint_steps(checkpoints)) > before, four[0])
    four[2].send_signal(signal.SIGTERM)
    codes, outputs = wait_for_exit(four)
    assert codes == [128 + signal.SIGTERM] * 4, outputs
    assert all("stopped by SIGTERM at step" in text for text in outputs)
    assert before < max(checkpoint_steps(checkpoints)) < STEPS

    assert "run folder" in wait_for_success(start_jrnn(*resume, cache=cache))
    assert_same_losses(folder, single_run, 100, 1e-6)
    # Rounding differences grow during training.
    assert_same_losses(folder, single_run, STEPS, 1e-3)
    results = [json.loads((path / "result.json").read_text()) for path in (folder, single_run)]
    assert results[0]["test"] == pytest.approx(results[1]["test"], abs=0.02)


@pytest.mark.exhaustive
def test_killed_and_resumed_run_of_two_processes_equals_uninterrupted_run(tmp_path, cache):
    """One of the two processes, chosen at random, is killed twenty times; the other one exits."""
    command = ["train", CONFIG, "--steps", "8000", "--eval-every", "500"]
    reference, resumed = tmp_path / "reference", tmp_path / "resumed"
    start = lambda *args: start_processes(2, *args, cache=cache)
    codes, outputs = wait_for_exit(start(*command, "--run-dir", str(reference)), timeout=600)
    assert codes == [0, 0], outputs
    processes = kill_and_resume(
        start,
        [*command, "--save-every", "0.02", "--run-dir", str(resumed)],
        ["train", "--resume", str(resumed)],
        resumed,
        num_kills=20,
    )
    assert max(checkpoint_steps(resumed / "checkpoints")) < 8000
    codes, outputs = wait_for_exit(processes, timeout=600)
    assert codes == [0, 0], outputs
    assert read_result(reference) == read_result(resumed)
    assert read_metrics(reference) == read_metrics(resumed)


@pytest.mark.exhaustive
def test_four_processes_match_one_and_only_the_first_prints_results(single_run, tmp_path, cache):
    folder = tmp_path / "run"
    options = ["--steps", "100", "--run-dir", str(folder)]
    codes, outputs = wait_for_exit(start_processes(4, "train", CONFIG, *options, cache=cache))
    assert codes == [0] * 4, outputs
    assert "accuracy" in outputs[0] and not any("accuracy" in text for text in outputs[1:])
    shorter = tmp_path / "one"
    options[-1] = str(shorter)
    wait_for_success(start_jrnn("train", CONFIG, *options, cache=cache))
    assert_same_losses(folder, shorter, 100, 1e-6)
    files = lambda path: sorted(p.name for p in path.iterdir())
    assert files(folder) == files(shorter)


@pytest.mark.parametrize("name", mark_exhaustive(["data", "tbptt"], always=["data"]))
def test_each_process_reads_only_its_rows(name, two_process_folder, tmp_path):
    """The losses also equal those of one process, with dropout or with truncated BPTT."""
    experiment = CASES[name][0]
    first, second = (
        json.loads((two_process_folder / f"{name}-{i}.json").read_text()) for i in range(2)
    )
    for step in map(str, range(experiment.steps)):
        assert len(first[step]) == len(second[step]) == experiment.batch_size // 2
        assert len({*first[step], *second[step]}) == experiment.batch_size
    train(experiment, experiment.task.load(), tmp_path / "single_run")
    assert_same_losses(two_process_folder / name, tmp_path / "single_run", experiment.steps, 1e-6)


@pytest.fixture(scope="module")
def two_process_folder(tmp_path_factory):
    """A folder with two runs of two processes, and checksums of the rows each process reads."""
    folder, port = tmp_path_factory.mktemp("pair"), str(free_port())
    script = "from tests.train.test_processes import train_and_record_rows; train_and_record_rows()"
    command = [sys.executable, "-c", script, str(folder), port]
    processes = [subprocess.Popen([*command, str(i)], cwd=ROOT, **PIPES) for i in range(2)]
    codes, outputs = wait_for_exit(processes)
    assert codes == [0, 0], outputs
    return folder


def train_and_record_rows():
    """Trains as one of two processes, and writes checksums of the rows that it reads.

    The arguments of the command line are a folder, a port and the index of the process.
    """
    folder, port, index = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    get_item, checksums = PrefetchedBatches.__getitem__, {}

    def recording(batches, step):
        rows = get_item(batches, step)
        checksums[step] = [zlib.crc32(row.tobytes()) for row in rows.xs]
        return rows

    setattr(PrefetchedBatches, "__getitem__", recording)  # noqa: B010
    with init_process_group(Launcher("127.0.0.1", port, 2, index), 60) as group:
        for name in ("data", "tbptt"):
            experiment = CASES[name][0]
            checksums.clear()
            train(experiment, experiment.task.load(), folder / name, group=group)
            (folder / f"{name}-{index}.json").write_text(json.dumps(checksums))


def test_different_or_invalid_options_raise_and_create_no_folder(tmp_path, cache):
    """The two processes have different configs, or both have an invalid option."""
    port = free_port()
    flags = ["--coordinator-address", f"127.0.0.1:{port}", "--num-processes", "2"]
    for first_flags, second_flags, message in (
        (
            ["--seed", "1"],
            ["--seed", "2"],
            "the config must be the same in all processes, got another one in process 1 than in",
        ),
        (["--mesh", "data=4"], ["--mesh", "data=4"], "needs 4 devices, got 2 in 2 processes"),
        (["--batch-size", "3"], ["--batch-size", "3"], "got 2 devices and a size of 3"),
    ):
        command = ["train", CONFIG, "--run-dir", str(tmp_path / "run"), *flags, "--process-id"]
        processes = [
            start_jrnn(*command, "0", *first_flags, cache=cache),
            start_jrnn(*command, "1", *second_flags, cache=cache),
        ]
        codes, outputs = wait_for_exit(processes)
        assert codes == [2, 2] and all(message in text for text in outputs), outputs
        assert all(f"(process {index} of 2)" in text for index, text in enumerate(outputs))
        assert not (tmp_path / "run").exists()


def test_mixing_new_and_resumed_processes_raises(tmp_path, cache):
    flags = [
        "--coordinator-address",
        f"127.0.0.1:{free_port()}",
        "--num-processes",
        "2",
        "--process-id",
    ]
    begin = ["train", CONFIG, "--run-dir", str(tmp_path / "run"), *flags, "0"]
    resume = ["train", "--resume", str(tmp_path / "run"), *flags, "1"]
    codes, outputs = wait_for_exit(
        [start_jrnn(*begin, cache=cache), start_jrnn(*resume, cache=cache)]
    )
    assert codes == [2, 2], outputs
    assert all("same arguments, got --resume and a new run" in text for text in outputs)
    assert not (tmp_path / "run").exists()


def test_several_processes_without_group_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    experiment = CASES["data"][0]
    with pytest.raises(
        ValueError, match="2 processes and 1 in the group; pass the group of jrnn.dist"
    ):
        train(experiment, experiment.task.load(), tmp_path)
    with pytest.raises(ValueError, match="number of processes must be 1, got 2"):
        sweep([experiment], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sweep_on_several_processes_raises(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "99")
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", CONFIG, "--over", "seed=0:2"])
    assert "sweep: number of processes must be 1" in capsys.readouterr().err
