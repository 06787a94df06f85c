"""Process groups of processes on one machine."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

import jrnn.distributed
from jrnn.distributed import Launcher, ProcessGroup, init_process_group, process_group
from tests.helpers import free_port

PROGRAM = """
import os, signal, sys, time
import jax
from jax.experimental.multihost_utils import sync_global_devices
from jrnn.distributed import Launcher, init_process_group, process_group
from jrnn.distributed.process_group import exit_process

port, count, index = map(int, sys.argv[1:4])
event, start_timeout = sys.argv[4], float(sys.argv[5])
process_group.HEARTBEAT_TIMEOUT = 6  # faster than the default
if event == "another version":
    process_group.version = lambda name: str(index)
try:
    with init_process_group(Launcher("127.0.0.1", port, count, index), start_timeout) as group:
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
        if event == f"slow end {index}":
            set_closing = group._closing.set
            group._closing.set = lambda: (time.sleep(4), set_closing())
        if "end" not in event:
            sync_global_devices("not reached by all processes")
        print("done", flush=True)
except (ValueError, RuntimeError, OSError) as error:
    notes = getattr(error, "__notes__", [])
    print(type(error).__name__, error, *notes, file=sys.stderr, flush=True)
    exit_process(2)
"""


def run(event, count=2, timeout=60, *, port=None, indices=None, counts=None, start_timeout=60):
    """Runs `PROGRAM` in each process.

    Args:
      event: what happens, and the index of the process if it is only one; see `PROGRAM`.
      count: number of processes.
      timeout: seconds to wait for each process.
      port: the port of the coordinator; a free one by default.
      indices: the processes that are started; all by default.
      counts: the number of processes that each process is told; `count` by default.
      start_timeout: seconds that processes wait for one another.

    Returns:
      The exit codes in the order of `indices`, the standard errors by process index, and the
      duration in seconds. A process that `event` stops is killed; its standard error is omitted.
    """
    port, begin = port or free_port(), time.monotonic()
    indices, counts = indices or range(count), counts or [count] * count
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                *map(str, (port, counts[index], index, event, start_timeout)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in indices
    ]
    stopped = int(event[-1]) if event.startswith("stop") else None
    errors = {}
    for index, process in zip(indices, processes, strict=True):
        if index != stopped:
            errors[index] = process.communicate(timeout=timeout)[1]
    if stopped is not None:
        processes[stopped].kill()
        processes[stopped].communicate()
    return [process.returncode for process in processes], errors, time.monotonic() - begin


def lost_process_message(index, peer, count=2):
    return (
        f"jrnn: process {peer} of {count} has exited or is unreachable, so process {index} exits "
        "too. Saved checkpoints are intact; start all processes again with: the command"
    )


def test_collectives_agree_and_processes_exit_with_0():
    codes, errors, _ = run("end", 3)
    assert codes == [0, 0, 0], errors


@pytest.mark.parametrize("index", [0, 1])
def test_process_that_ends_slowly_does_not_report_a_loss(index):
    codes, errors, _ = run(f"slow end {index}")
    assert codes == [0, 0] and "exited" not in "".join(errors.values()), errors


def test_other_processes_exit_after_a_process_is_killed():
    codes, errors, _ = run("kill 1", 3)
    assert codes == [1, -signal.SIGKILL, 1]
    assert (
        lost_process_message(0, 1, 3) in errors[0] and lost_process_message(2, 1, 3) in errors[2]
    ), errors


def test_other_processes_exit_after_the_first_process_is_killed():
    codes, errors, seconds = run("kill 0")
    assert codes == [-signal.SIGKILL, 1], errors
    assert lost_process_message(1, 0) in errors[1], errors
    assert seconds < 30


def test_other_processes_exit_after_a_process_sends_no_heartbeat():
    codes, errors, seconds = run("stop 1")
    assert codes[0] == 1 and lost_process_message(0, 1) in errors[0], errors
    assert seconds < 45  # HEARTBEAT_TIMEOUT is 6; most of the rest is the start of the processes


@pytest.mark.parametrize("index", [0, 1])
def test_error_in_one_process_is_reported_by_that_process_only(index):
    codes, errors, _ = run(f"error {index}")
    other = 1 - index
    assert codes[index] == 2 and codes[other] == 1, errors
    assert f"ValueError my own error (process {index} of 2)" in errors[index]
    assert lost_process_message(other, index) in errors[other] and "Error" not in errors[other]


@pytest.mark.parametrize(("event", "code"), [("unhandled 0", 1), ("exit 0", 3), ("unhandled 1", 1)])
def test_process_that_exits_does_not_wait_for_other_processes(event, code):
    codes, errors, seconds = run(event)
    index = int(event[-1])
    assert codes[index] == code and codes[1 - index] == 1 and seconds < 40, errors
    assert lost_process_message(1 - index, index) in errors[1 - index], errors
    assert ("KeyError" in errors[index]) == ("unhandled" in event)


def test_error_in_all_processes_is_reported_by_all():
    codes, errors, _ = run("error")
    assert codes == [2, 2], errors
    assert all("my own error" in text and "has exited" not in text for text in errors.values())


def test_mismatched_collectives_raise():
    codes, errors, _ = run("mismatch")
    assert codes[0] == 2
    assert re.search("got 'other' in process 0 and 'one' in process 1", errors[0])


@pytest.mark.parametrize("launcher", [None, Launcher("127.0.0.1", 9, 1, 0)])
def test_single_process_is_a_group(launcher):
    with init_process_group(launcher) as group:
        assert group.is_first and group.count == 1
        assert group.all_gather("number", 3) == [3] and group.all_max("numbers", 2, 5) == [2, 5]
        assert group.broadcast("text", "x") == "x"
    assert ProcessGroup().resume_command == ""


def test_public_names_are_those_for_users():
    names = {name for name, value in vars(jrnn.distributed).items() if callable(value)}
    assert names == {"Launcher", "Mesh", "ProcessGroup", "init_process_group"}
    assert {name for name in vars(ProcessGroup()) | vars(ProcessGroup) if name[0] != "_"} == {
        *("index", "count", "resume_command"),
        *("is_first", "all_gather", "broadcast", "all_max"),
    }


def group_of_two(client):
    """Returns process 0 of a group of two processes, with another client of the service."""
    group = ProcessGroup()
    group.count, group._client = 2, client
    return group


class OverwrittenStore:
    """The key-value store of process 0; another process overwrites every value with "theirs"."""

    def key_value_set(self, key, value, allow_overwrite=False):
        pass

    def blocking_key_value_get(self, key, timeout):
        return json.dumps(["folder", "theirs"])

    def key_value_delete(self, key):
        pass


def test_first_process_uses_its_own_value():
    group = group_of_two(OverwrittenStore())
    assert group.broadcast("folder", "own") == "own"
    assert group.all_gather("folder", "own") == ["own", "theirs"]
    assert group.all_gather("folder", ("own", 1)) == [["own", 1], "theirs"]


class FailingClient:
    """A client whose queries of live processes have the given results; None raises."""

    def __init__(self, results):
        self.results = results

    def get_live_nodes(self, indices):
        result = self.results.pop(0)
        if result is None:
            raise jax.errors.JaxRuntimeError("INTERNAL: a failure")
        return result

    def key_value_set(self, key, value, allow_overwrite=False):
        pass

    def key_value_dir_get(self, key):
        return []


@pytest.mark.parametrize(
    ("results", "closing", "reason"),
    [
        ([None, None, {0: 1}], False, "process 1 of 2 has exited or is unreachable, so process 0"),
        (
            [None, None, {0: 1, 1: 1}, None, None, {0: 1}],
            False,
            "process 1 of 2 has exited or is unreachable, so process 0",
        ),
        (
            [None] * 3,
            False,
            "process 0 of 2 cannot query the coordination service of JAX, so it exits: INTERNAL: a",
        ),
        ([None], True, ""),
    ],
)
def test_monitor_repeats_queries_that_fail(results, closing, reason, monkeypatch, capsys):
    class Exit(Exception):
        pass

    def exit_with(code):
        raise Exit(code)

    monkeypatch.setattr(process_group, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(process_group, "FAILURE_TIMEOUT", 0.01)
    group = group_of_two(FailingClient(results))
    monkeypatch.setattr(group, "_exit", exit_with)
    monkeypatch.setattr(process_group.os, "_exit", exit_with)
    if closing:
        group._closing.set()
    with contextlib.nullcontext() if closing else pytest.raises(Exit, match="1"):
        group._watch()
    assert results == [] and reason in (error := capsys.readouterr().err)
    assert closing == (error == "")


def log_lines(text):
    """Returns the lines of a standard error, except for those of the library Gloo."""
    return [line for line in text.splitlines() if "Gloo" not in line]


def test_missing_process_ends_the_other_processes_with_one_line():
    codes, errors, seconds = run("end", 3, indices=(0, 2), start_timeout=3)
    assert codes == [2, 2] and seconds < 40, errors
    for index in (0, 2):
        assert re.fullmatch(
            f"jrnn: processes: process {index} of 3 could not join the others at 127.0.0.1:.* in "
            "3 s; start the missing processes with the same --coordinator-address, each with its "
            "own --process-id",
            "\n".join(log_lines(errors[index])),
        )


def test_processes_with_the_same_index_end_with_one_line():
    codes, errors, _ = run("end", 3, indices=(0, 1, 1), start_timeout=3)
    assert codes == [2, 2, 2] and all(len(log_lines(text)) == 1 for text in errors.values()), errors


def test_processes_of_another_number_or_version_raise():
    codes, errors, _ = run("end", counts=(2, 3))
    message = "number of processes must be the same in all processes, got 2 in process 0 and 3 in"
    assert codes == [2, 2] and all(message in text for text in errors.values()), errors
    codes, errors, _ = run("another version")
    message = "version of jrnn must be the same in all processes, got 0 in process 0 and 1 in"
    assert codes == [2, 2] and all(message in text for text in errors.values()), errors


def test_messages_of_other_programs_are_ignored():
    """The messages reach the coordination service of JAX, the only server of a group."""
    port, stop = free_port(), threading.Event()
    texts = [b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b'{"process": 1e999}\n', b""]
    texts += [b"[" * 100_000, b"\0" * 10**6, b"a" * 3 * 10**7]

    def connect(connections):
        address = "127.0.0.1", port
        for text in texts:
            with contextlib.suppress(OSError):
                connection = connections.enter_context(socket.create_connection(address, timeout=1))
                connection.sendall(text)

    def repeat():
        with contextlib.ExitStack() as half_open:
            slow = None
            while not stop.wait(0.05):
                with contextlib.ExitStack() as connections:
                    connect(connections)
                with contextlib.suppress(OSError):
                    if slow is None:  # then one byte at a time, and never a whole line
                        connect(half_open)
                        slow = socket.create_connection(("127.0.0.1", port), timeout=1)
                        half_open.enter_context(slow)
                    slow.sendall(b"{")

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        codes, errors, _ = run("end", port=port)
    finally:
        stop.set()
        thread.join()
    assert codes == [0, 0], errors


def test_group_listens_only_at_the_named_address():
    """If the port is in use at this address, the message names both."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        codes, errors, _ = run("end", port=port, start_timeout=3)
    assert codes == [2, 2], errors
    assert f"processes: process 0 cannot listen at 127.0.0.1, port {port}: Addr" in errors[0]
    # A server at another address of this machine does not use the port of 127.0.0.1.
    with socket.create_server(("127.0.0.2", port)):
        codes, errors, _ = run("end", port=port)
    assert codes == [0, 0], errors
