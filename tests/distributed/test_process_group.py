"""Process groups of processes on one machine."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from jrnn.distributed import Launcher, ProcessGroup, init_process_group, process_group
from tests.helpers import free_port

PROGRAM = """
import os, signal, sys, time
import jax
from jax.experimental.multihost_utils import sync_global_devices
from jrnn.distributed import Launcher, init_process_group, exit_process

port, count, index, event = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    with init_process_group(Launcher("127.0.0.1", port, count, index), 60) as group:
        group.resume_command = "the command"
        assert jax.process_count() == count
        assert group.all_max("numbers", index, -index) == [count - 1, 0]
        assert group.all_gather("dicts", {"a": index}) == [{"a": k} for k in range(count)]
        assert group.broadcast("number", float("nan") if index else 0.1) == 0.1
        sync_global_devices("start")
        if event == f"kill {index}":
            os.kill(os.getpid(), signal.SIGKILL)
        if event == f"stop {index}":
            os.kill(os.getpid(), signal.SIGSTOP)
        if event in (f"error {index}", "error"):
            raise ValueError("my own error")
        if event == f"unhandled {index}":
            raise KeyError("an error that is not handled")
        if event == f"exit {index}":
            sys.exit(3)
        if event == "mismatch":
            group.all_gather("one" if index else "other", 1)
        if event != "end":
            sync_global_devices("not reached by all processes")
        print("done", flush=True)
except (ValueError, RuntimeError) as error:
    print(type(error).__name__, error, *error.__notes__, file=sys.stderr, flush=True)
    exit_process(2)
"""


def run(event, count=2, timeout=60):
    """Runs `PROGRAM` in each process; returns exit codes, standard errors and seconds."""
    port, begin = free_port(), time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(count), str(index), event],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    stopped = int(event[-1]) if event.startswith("stop") else None
    errors = {}
    for index, process in enumerate(processes):
        if index != stopped:
            errors[index] = process.communicate(timeout=timeout)[1]
    if stopped is not None:
        processes[stopped].kill()
        processes[stopped].communicate()
    return [process.returncode for process in processes], errors, time.monotonic() - begin


def loss_message(index, peer, count=2):
    return (
        f"jrnn: process {peer} of {count} has exited or is unreachable, so process {index} exits "
        "too. Saved checkpoints are intact; start all processes again with: the command"
    )


def test_collectives_agree_and_processes_exit_with_0():
    codes, errors, _ = run("end", 3)
    assert codes == [0, 0, 0], errors


def test_others_exit_after_a_process_is_killed():
    codes, errors, _ = run("kill 1", 3)
    assert codes == [1, -signal.SIGKILL, 1]
    assert loss_message(0, 1, 3) in errors[0] and loss_message(2, 1, 3) in errors[2], errors


def test_others_exit_after_the_first_process_is_killed():
    codes, errors, seconds = run("kill 0")
    # JAX may detect the loss of its coordinator first.
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, 2), errors
    assert loss_message(1, 0) in errors[1] or "another task died" in errors[1], errors
    assert seconds < 30


def test_others_exit_after_a_process_sends_no_heartbeat():
    codes, errors, seconds = run("stop 1")
    assert codes[0] == 1 and loss_message(0, 1) in errors[0], errors
    assert seconds < 45  # HEARTBEAT_TIMEOUT, and the time to start the processes


@pytest.mark.parametrize("index", [0, 1])
def test_error_in_one_process_is_reported_by_that_process_only(index):
    codes, errors, _ = run(f"error {index}")
    other = 1 - index
    assert codes[index] == 2 and codes[other] == 1, errors
    assert f"ValueError my own error (process {index} of 2)" in errors[index]
    assert loss_message(other, index) in errors[other] and "Error" not in errors[other]


@pytest.mark.parametrize(("event", "code"), [("unhandled 0", 1), ("exit 0", 3), ("unhandled 1", 1)])
def test_process_that_exits_does_not_wait_for_the_others(event, code):
    codes, errors, seconds = run(event)
    index = int(event[-1])
    assert codes[index] == code and codes[1 - index] == 1 and seconds < 40, errors
    assert loss_message(1 - index, index) in errors[1 - index], errors
    assert ("KeyError" in errors[index]) == ("unhandled" in event)


def test_error_in_all_processes_is_reported_by_all():
    codes, errors, _ = run("error")
    assert codes == [2, 2], errors
    assert all("my own error" in text and "has exited" not in text for text in errors.values())


def test_mismatched_collectives_raise():
    codes, errors, _ = run("mismatch")
    assert codes[0] == 2
    assert re.search("got 'other' in process 0 and 'one' in process 1", errors[0])


def test_single_process_is_a_group():
    with init_process_group(None) as group:
        assert group.is_first and group.count == 1
        assert group.all_gather("number", 3) == [3] and group.all_max("numbers", 2, 5) == [2, 5]
        assert group.broadcast("text", "x") == "x"
    assert ProcessGroup().resume_command == ""


def connect(launchers, timeout=10.0):
    """Connects one thread per launcher; returns the process group or error message of each."""
    results = [None] * len(launchers)

    def connect_one(index):
        try:
            results[index] = process_group._connect(launchers[index], timeout)
        except (OSError, ValueError) as error:
            results[index] = str(error)

    threads = [threading.Thread(target=connect_one, args=(k,)) for k in range(len(launchers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_missing_processes_raise_in_all_others():
    port = free_port()
    results = connect([Launcher("127.0.0.1", port, 4, index) for index in (0, 2)], timeout=1.5)
    assert results == ["processes: 2 of 4 processes did not connect in time: 1, 3"] * 2
    with pytest.raises(TimeoutError, match=f"process 1 cannot reach process 0 at 127.0.0.1:{port}"):
        process_group._connect(Launcher("127.0.0.1", port, 2, 1), 0.3)


def test_processes_of_another_run_or_version_raise(monkeypatch):
    port = free_port()
    results = connect([Launcher("127.0.0.1", port, 2, 0), Launcher("127.0.0.1", port, 3, 1)])
    message = (
        "processes: the number of processes must be the same in all processes, got 2 in process 0 "
        "and 3 in process 1"
    )
    assert results == [message] * 2
    results = connect([Launcher("127.0.0.1", port, 3, index) for index in (0, 1, 1)])
    assert results[0] == "processes: process-id must be unique, got 1 in two processes"
    versions = iter(["1", "1", "1", "2"])
    monkeypatch.setattr(process_group, "version", lambda name: next(versions))
    results = connect([Launcher("127.0.0.1", port, 2, index) for index in (0, 1)])
    assert re.match("processes: the version of jrnn|processes: the version of jax", results[0])


def test_connections_of_other_programs_are_ignored():
    port = free_port()

    def connect_other_programs():
        for text in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b"{}\n",
            b'{"process": "x"}\n',
            b'{"process": null}\n',
            b"",
        ):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                        connection.sendall(text)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(100)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
                except OSError:
                    break

    launchers = [Launcher("127.0.0.1", port, 2, index) for index in (0, 1)]
    first = [None]
    thread = threading.Thread(target=lambda: first.__setitem__(0, connect(launchers[:1])[0]))
    thread.start()
    connect_other_programs()
    (second,) = connect(launchers[1:])
    thread.join()
    assert isinstance(first[0], ProcessGroup) and isinstance(second, ProcessGroup), (first, second)
    for group in (first[0], second):
        group._closed.set()
    for group in (first[0], second):
        group._connections[0].close()


def test_port_in_use_raises():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"process 0 cannot listen on port {port}"):
            process_group._connect(Launcher("127.0.0.1", port, 2, 0), 1)
