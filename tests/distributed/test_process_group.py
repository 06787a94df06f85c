"""Processes that meet, agree, and end together: real ones, on the loopback device."""

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

port, count, index, how = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    with init_process_group(Launcher("127.0.0.1", port, count, index), 60) as group:
        group.resume_command = "the same"
        assert jax.process_count() == count
        assert group.all_max("this", index, -index) == [count - 1, 0]
        assert group.all_gather("that", {"a": index}) == [{"a": k} for k in range(count)]
        assert group.broadcast("this too", float("nan") if index else 0.1) == 0.1
        sync_global_devices("all are here")
        if how == f"kill {index}":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == f"stop {index}":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how in (f"error {index}", "error"):
            raise ValueError("my own error")
        if how == f"fault {index}":
            raise KeyError("of no kind that is handled")
        if how == f"exit {index}":
            sys.exit(3)
        if how == "step":
            group.all_gather("one" if index else "other", 1)
        if how != "end":
            sync_global_devices("none comes")
        print("over", flush=True)
except (ValueError, RuntimeError) as error:
    print(type(error).__name__, error, *error.__notes__, file=sys.stderr, flush=True)
    exit_process(2)
"""


def run(how, count=2, wait=60):
    """Exit codes and what was said on standard error, and the seconds that it took."""
    port, begin = free_port(), time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(count), str(index), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    stopped = int(how[-1]) if how.startswith("stop") else None
    said = {}
    for index, process in enumerate(processes):
        if index != stopped:
            said[index] = process.communicate(timeout=wait)[1]
    if stopped is not None:
        processes[stopped].kill()
        processes[stopped].communicate()
    return [process.returncode for process in processes], said, time.monotonic() - begin


def lost(index, peer, count=2):
    return (
        f"jrnn: process {peer} of {count} has ended or cannot be reached, and so process {index} "
        "ends too. What was saved is whole; start all of them again with: the same"
    )


def test_processes_agree_and_end():
    codes, said, _ = run("end", 3)
    assert codes == [0, 0, 0], said


def test_a_process_that_dies_ends_the_others():
    codes, said, _ = run("kill 1", 3)
    assert codes == [1, -signal.SIGKILL, 1]
    assert lost(0, 1, 3) in said[0] and lost(2, 1, 3) in said[2], said


def test_the_first_process_that_dies_ends_the_others():
    codes, said, seconds = run("kill 0")
    # JAX, which has lost its coordinator, may be first to see it.
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, 2), said
    assert lost(1, 0) in said[1] or "another task died" in said[1], said
    assert seconds < 30


def test_a_process_that_is_silent_ends_the_others():
    codes, said, seconds = run("stop 1")
    assert codes[0] == 1 and lost(0, 1) in said[0], said
    assert seconds < 45  # 20 of silence, and the start


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_in_one_is_said_by_that_one(index):
    codes, said, _ = run(f"error {index}")
    other = 1 - index
    assert codes[index] == 2 and codes[other] == 1, said
    assert f"ValueError my own error (process {index} of 2)" in said[index]
    assert lost(other, index) in said[other] and "Error" not in said[other]


@pytest.mark.parametrize(("how", "code"), [("fault 0", 1), ("exit 0", 3), ("fault 1", 1)])
def test_whoever_ends_by_itself_does_not_wait_for_the_others(how, code):
    codes, said, seconds = run(how)
    index = int(how[-1])
    assert codes[index] == code and codes[1 - index] == 1 and seconds < 40, said
    assert lost(1 - index, index) in said[1 - index], said
    assert ("KeyError" in said[index]) == ("fault" in how)


def test_an_error_in_all_is_said_by_all():
    codes, said, _ = run("error")
    assert codes == [2, 2], said
    assert all("my own error" in text and "has ended" not in text for text in said.values())


def test_processes_that_do_not_do_the_same_say_so():
    codes, said, _ = run("step")
    assert codes[0] == 2 and re.search("process 0 exchanges 'other', and process 1 'one'", said[0])


def test_one_process_is_a_group():
    with init_process_group(None) as group:
        assert group.is_first and group.count == 1
        assert group.all_gather("this", 3) == [3] and group.all_max("that", 2, 5) == [2, 5]
        assert group.broadcast("all", "x") == "x"
    assert ProcessGroup().resume_command == ""


def meet(clusters, patience=10.0):
    """What each of some processes, here threads, is told as they meet."""
    said = [None] * len(clusters)

    def one(place):
        try:
            said[place] = process_group._gathered(clusters[place], patience)
        except (OSError, ValueError) as error:
            said[place] = str(error)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(clusters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_who_does_not_come_is_named():
    port = free_port()
    said = meet([Launcher("127.0.0.1", port, 4, index) for index in (0, 2)], patience=1.5)
    assert said == ["processes: of 4 processes [1, 3] did not come in time"] + [
        "processes: of 4 processes [1, 3] did not come"
    ]
    with pytest.raises(TimeoutError, match=f"process 1 cannot reach process 0 at 127.0.0.1:{port}"):
        process_group._gathered(Launcher("127.0.0.1", port, 2, 1), 0.3)


def test_who_does_not_belong_is_refused(monkeypatch):
    port = free_port()
    said = meet([Launcher("127.0.0.1", port, 2, 0), Launcher("127.0.0.1", port, 3, 1)])
    assert said == ["processes: the number of processes is 2 in process 0, and 3 in process 1"] * 2
    said = meet([Launcher("127.0.0.1", port, 3, index) for index in (0, 1, 1)])
    assert said[0] == "processes: two processes are number 1"
    versions = iter(["1", "1", "1", "2"])
    monkeypatch.setattr(process_group, "version", lambda name: next(versions))
    said = meet([Launcher("127.0.0.1", port, 2, index) for index in (0, 1)])
    assert re.match("processes: the version of jrnn|processes: the version of jax", said[0])


def test_what_is_none_of_them_disturbs_nobody():
    port = free_port()

    def stranger():
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

    clusters = [Launcher("127.0.0.1", port, 2, index) for index in (0, 1)]
    first = [None]
    thread = threading.Thread(target=lambda: first.__setitem__(0, meet(clusters[:1])[0]))
    thread.start()
    stranger()
    (second,) = meet(clusters[1:])
    thread.join()
    assert isinstance(first[0], ProcessGroup) and isinstance(second, ProcessGroup), (first, second)
    for group in (first[0], second):
        group._closed.set()
    for group in (first[0], second):
        group._links[0].close()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"process 0 cannot listen on port {port}"):
            process_group._gathered(Launcher("127.0.0.1", port, 2, 0), 1)
