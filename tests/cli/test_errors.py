"""Invalid or too large inputs, internal errors and full disks end a command with one line."""

import io
import json
import re
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jrnn import config, files
from jrnn.cli import main
from jrnn.memory import format_bytes, host_bytes
from jrnn.train.run.trainer import Trainer

DIGITS = "configs/digits.py:order=row"
ADDING = ["configs/adding.py", "--task.length", "6", "--task.train-size", "64"]
ADDING += ["--task.eval-size", "8", "--network.cell.hidden-size", "4", "--eval-every", "10"]


@pytest.fixture(autouse=True)
def run_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_and_fail(args, capsys, code=2):
    """Runs a command that must fail, and returns its message, which must be one line."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    error = capsys.readouterr().err
    assert exit_info.value.code == code, error
    assert error.startswith("jrnn: ") and error.count("\n") == 1 and len(error) < 1200
    return error


TOO_LARGE = {
    "network": (["train", f"{DIGITS},hidden=2000000"], "the network (LSTM of 320 TB in training)"),
    "batch": (
        ["train", *ADDING, "--network.cell.hidden-size", "100000000", "--network.engine", "scan"],
        "must fit in the",
    ),
    "examples": (
        ["train", "configs/adding.py", "--task.length", "100000000"],
        "Adding: 24000 examples of 100000000 steps must fit in the",
    ),
    "trials": (
        ["sweep", DIGITS, "--over", "seed=0:9000", "--network.cell.hidden-size", "1000"],
        "9000 trials of the network must fit in the",
    ),
    "trial": (
        ["sweep", DIGITS, "--over", "network.cell.hidden_size=4,9000000"],
        "sweep: trial 1: train: the network",
    ),
    "steps": (
        ["train", DIGITS, "--steps", "100000000000000000000"],
        "steps must be an int from 1 to 2147483647",
    ),
    "seed": (
        ["train", DIGITS, "--seed", "9223372036854775808"],
        "seed must be an int from 0 to 9223372036854775807",
    ),
    "layers": (
        ["train", DIGITS, "--network.num-layers", "100000"],
        "num_layers must be an int from 1 to 256",
    ),
    "range": (["sweep", DIGITS, "--over", "seed=0:100000000"], "at most 10000 trials"),
    "long range": (["sweep", DIGITS, "--over", f"seed=0:{10**30}"], "at most 10000 trials"),
    "spaced range": (
        ["sweep", DIGITS, "--over", "optimizer.learning_rate=1e-4:1:log99999999999999999999"],
        "at most 10000 trials",
    ),
    "grid": (
        ["sweep", DIGITS, "--over", "seed=0:200", "optimizer.learning_rate=1e-4:1:log200"],
        "got 40000 for --over",
    ),
    "random": (["sweep", DIGITS, "--over", "seed=0:2", "--random", "100000000"], "from 1 to 10000"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_large_input_is_refused_before_a_folder_is_created(name, capsys, tmp_path):
    args, message = TOO_LARGE[name]
    start = time.process_time()
    assert message in run_and_fail(args, capsys)
    assert time.process_time() - start < 20
    assert list(tmp_path.iterdir()) == []


def test_batch_that_does_not_fit_is_refused(monkeypatch, capsys):
    limit = 10**6
    monkeypatch.setattr("jrnn.memory.host_bytes", lambda: limit)
    args = ["train", *ADDING, "--task.length", "100", "--batch-size", "64"]
    assert "network (LSTM of" in run_and_fail([*args, "--network.cell.hidden-size", "256"], capsys)
    message = run_and_fail([*args, "--network.cell.hidden-size", "64"], capsys)
    # 64 sequences of 100 steps with 2 inputs and 64 outputs.
    assert f"a batch of 64 x 100 steps must fit in the {format_bytes(limit)}" in message
    assert f"got at least {format_bytes(64 * 100 * (2 + 64) * 4)}" in message
    monkeypatch.undo()
    assert host_bytes() > 10**8


def test_limit_applies_to_a_file_whose_size_is_reported_as_0():
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("/proc does not exist")
    with pytest.raises(ValueError, match="must have at most 9 bytes, got at least 10"):
        files.read_bytes(path, 9)


CONFIGS = {
    "task is a string": (
        'return Experiment("digits", Network(make_cell("gru", 4)))',
        "task must be a Task, got 'digits'",
    ),
    "cell is a string": (
        'return Experiment(Adding(), Network("gru"))',
        "cell must be a Layer, got 'gru'",
    ),
    "tbptt is an int": (
        'return Experiment(Adding(), Network(make_cell("gru", 4)), tbptt=3)',
        "tbptt must be a TBPTT, got 3",
    ),
    "get_config exits": ("import sys; sys.exit(0)", "get_config: SystemExit: 0"),
    "get_config raises": ("return {}[3]", "get_config: KeyError: 3"),
    "long message": ("raise RuntimeError('x' * 100_000)", "get_config: RuntimeError: xxx"),
}
IMPORTS = """
from jrnn.config import make_cell
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network
"""


@pytest.mark.parametrize("name", CONFIGS)
def test_config_with_an_error_is_refused(name, capsys, tmp_path):
    body, message = CONFIGS[name]
    Path("mine.py").write_text(f"{IMPORTS}\ndef get_config():\n    {body}\n")
    assert message in run_and_fail(["train", "mine.py"], capsys)
    assert not (tmp_path / "runs").exists()


def test_config_that_exits_at_import_is_refused(capsys):
    Path("mine.py").write_text("import sys\nsys.exit(0)\n")
    assert "mine.py, line 2: SystemExit: 0" in run_and_fail(["train", "mine.py"], capsys)


def header_with(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADERS = [
    header_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,"),
    header_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 'a')}"),
    header_with(b"{'descr': 'zzz', 'fortran_order': False, 'shape': (3,)}"),
    header_with(b"(" * 200),
    header_with(b"\x00\xff'"),
    header_with(b"3"),
    b"\x93NUMPY\x09\x00",
    b"",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_npz_with_a_broken_header_is_refused(header, capsys):
    with zipfile.ZipFile("mine.npz", "w") as archive:
        archive.writestr("xs.npy", header)
        ys = io.BytesIO()
        np.save(ys, np.zeros(8, np.int32))
        archive.writestr("ys.npy", ys.getvalue())
    spec = "configs/arrays.py:path=mine.npz,kind=classification"
    assert "Arrays: " in run_and_fail(["train", spec], capsys)


def test_unknown_platform_is_refused():
    run = subprocess.run(
        [sys.executable, "-m", "jrnn", "train", "configs/digits.py"],
        env={"JAX_PLATFORMS": "foo"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("jrnn: JAX_PLATFORMS must name platforms")


def test_message_omits_the_note_of_jax_on_tracebacks(capsys):
    error = run_and_fail(["train", "configs/text.py", "--network.bidirectional"], capsys)
    assert "needs a causal network" in error and "JAX_TRACEBACK_FILTERING" not in error


def test_unexpected_error_is_reported_as_a_bug(monkeypatch, capsys):
    def raise_error(*args):
        raise KeyError("x" * 100_000)

    monkeypatch.setattr(config, "list_configs", raise_error)
    message = run_and_fail(["ls", "configs"], capsys, code=1)
    assert "internal error: KeyError: 'xxx" in message and "JRNN_DEBUG=1 shows" in message
    monkeypatch.setenv("JRNN_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["ls", "configs"])


@pytest.mark.parametrize(
    "text", ["RESOURCE_EXHAUSTED: 1 GB", "INTERNAL: Out of memory allocating 9"]
)
def test_exhausted_memory_is_not_reported_as_a_bug(text, monkeypatch, capsys):
    def raise_error(*args):
        raise RuntimeError(text)

    monkeypatch.setattr(config, "list_configs", raise_error)
    message = run_and_fail(["ls", "configs"], capsys, code=1)
    assert message.startswith(f"jrnn: out of memory ({text}); use a smaller batch or network")


@pytest.fixture
def limit_file_size():
    """A function that limits the size of files in bytes, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_full_disk_names_the_file_and_how_to_resume(limit_file_size, monkeypatch, capsys):
    train_steps, steps = Trainer.train_steps, 60

    def fill_disk(trainer):
        train_steps(trainer)
        if trainer.step >= 30:
            trainer.wait()  # so that the file that cannot be written is metrics.jsonl
            limit_file_size(Path("run/metrics.jsonl").stat().st_size + 10)

    args = ["train", *ADDING, "--steps", str(steps), "--run-dir", "run", "--save-every", "1e-9"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_steps", fill_disk)
        message = run_and_fail(args, capsys, code=1)
    limit_file_size(resource.RLIM_INFINITY)
    assert "run/metrics.jsonl cannot be written: File too large" in message
    match = re.search(r"newest checkpoint is of step (\d+); resume with: (.*)\n", message)
    assert match and 20 <= int(match[1]) < steps and match[2] == "jrnn train --resume run"
    main(["train", "--resume", "run"])
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    evaluations = [json.loads(line) for line in lines if "validation" in line]
    assert [line["step"] for line in evaluations] == list(range(10, steps + 1, 10))


@pytest.mark.parametrize(
    ("size", "file"),
    [(5, "data.json"), (1100, "config.py"), (2000, "checkpoints"), (15_000, "figure.png")],
)
def test_file_that_cannot_be_written_exits_with_code_1(size, file, limit_file_size, capsys):
    limit_file_size(size)
    message = run_and_fail(["train", *ADDING, "--steps", "10", "--run-dir", "run"], capsys, code=1)
    limit_file_size(resource.RLIM_INFINITY)
    assert re.search(rf"run/{file} ?(cannot be written)?: File too large", message), message
    assert not list(Path("run").glob("*.part"))
    if file in ("checkpoints", "figure.png"):
        assert message.rstrip().endswith("jrnn train --resume run")
        main(["train", "--resume", "run"])
        assert Path("run/figure.png").exists()
