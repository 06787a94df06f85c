"""A signal at any moment ends the command with one line, and exit code 128 + signal number."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jrnn.cli import main
from jrnn.signals import STOP_SIGNALS, Interrupted, Signals, preserve_handlers
from tests.helpers import mark_exhaustive

CONFIG = """
from jrnn.config import make_cell
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network

def get_config():
    return Experiment(
        task=Adding(length=8, train_size=64, eval_size=8),
        network=Network(make_cell("gru", 4), engine="scan"),
        steps=1_000_000,
        batch_size=8,
        save_every=0.5,
    )
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def config_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CONFIG)


def start(*prefix: str) -> subprocess.Popen[str]:
    """Starts a long training; `prefix` is a command that runs it, such as `nohup`."""
    args = ["train", "mine.py", "--run-dir", "run"]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "jrnn", *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def wait_for_handler(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Waits until the process handles the signal; before this, Python is still starting."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
        if caught and int(caught[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.001)
    raise TimeoutError(f"the command has installed no handler of signal {number} in 60 s")


# Signals, and delays in seconds after the handlers are installed. Depending on the machine, the
# signal arrives during the import of JAX, the compilation or the training.
MOMENTS = [
    (number, round(random.Random(index).uniform(0, 8), 2))
    for index, number in enumerate(STOP_SIGNALS * 12)
]


@pytest.mark.parametrize(
    ("number", "delay"),
    mark_exhaustive(
        [(signal.SIGINT, 0.0), (signal.SIGHUP, 0.3), *MOMENTS],
        always=[(signal.SIGINT, 0.0), (signal.SIGHUP, 0.3)],
    ),
)
def test_signal_ends_the_command_with_one_line(number, delay):
    process = start()
    wait_for_handler(process)
    time.sleep(delay)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, error
    is_progress = re.compile(r"step \d+/\d+  ")
    lines = [line for line in error.splitlines() if line.strip() and not is_progress.match(line)]
    assert len(lines) == 1 and f"stopped by {signal.Signals(number).name}" in lines[0], error
    if match := re.search(r"at step (\d+) of .* resume with: jrnn train --resume run", error):
        steps = [int(p.name) for p in Path("run/checkpoints").iterdir() if p.name.isdigit()]
        assert int(match[1]) in steps


def test_ignored_hangup_does_not_stop_a_run():
    process = start("nohup")
    wait_for_handler(process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert "stopped by SIGTERM" in process.communicate(timeout=60)[1]


def test_signal_in_a_callback_of_the_garbage_collector_is_not_lost():
    """JAX registers such a callback. Python discards exceptions in it; the handler raises none."""
    code = """
import gc, os, signal, sys
from jrnn.signals import exit_on_signals
exit_on_signals()
import jax
def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(callback)
gc.collect()
print("goes on")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 130 and run.stdout == ""
    assert run.stderr == "jrnn: stopped by SIGINT; saved checkpoints are intact\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_after_the_last_step_is_not_lost(number):
    received = []
    old = signal.signal(number, lambda number, frame: received.append(number))
    try:
        with Signals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received == number and not received
        assert received == [number]
        with pytest.raises(Interrupted), Signals():
            os.kill(os.getpid(), number)
            raise Interrupted("saved", number)
        assert received == [number]  # not sent again: the caller has received the exception
    finally:
        signal.signal(number, old)


def test_second_interrupt_raises_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), Signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored_after_an_exception():
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ConnectionError), preserve_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise ConnectionError
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_command_in_this_process_installs_no_handlers(capsys):
    old = [signal.getsignal(number) for number in STOP_SIGNALS]
    main(["ls", "tasks"])
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == old
