"""The coordination service of `jax.distributed`: how a process connects to it, and its aborts."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from jrnn.distributed.launcher import Launcher


def find_client() -> Any:
    """Returns the client of the coordination service, which has no public interface in JAX."""
    # A change of this private module of JAX must only affect runs with several processes.
    from jax._src.distributed import global_state

    return global_state.client


def connect(launcher: Launcher, timeout: float, heartbeat_timeout: int) -> None:
    """Calls `jax.distributed.initialize`; hides the log of its C++ code, a stack trace.

    If this process cannot join the others, it prints a message and exits with code 2.

    Args:
      launcher: settings of this process.
      timeout: seconds to wait for the other processes.
      heartbeat_timeout: seconds without a heartbeat after which a process is considered lost.

    Raises:
      OSError: process 0 cannot listen on its port.
    """
    address = f"[{launcher.host}]" if ":" in launcher.host else launcher.host
    address = f"{address}:{launcher.port}"
    if launcher.process_id == 0:
        _check_port(launcher.host, launcher.port)
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
    jax.config.update("jax_enable_recoverability", True)  # else a loss aborts all other processes
    with tempfile.TemporaryFile() as log, _redirected_stderr(log.fileno()) as stderr:

        def report() -> NoReturn:
            message = (
                f"jrnn: processes: process {launcher.process_id} of {launcher.num_processes} could "
                f"not join the others at {address} in {timeout:.0f} s; start the missing processes "
                "with the same --coordinator-address, each with its own --process-id\n"
            )
            os.write(stderr, message.encode())
            os._exit(2)

        on_abort(report)
        jax.distributed.initialize(
            address,
            launcher.num_processes,
            launcher.process_id,
            launcher.local_device_id,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, round(timeout)),
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=address,
        )


def _check_port(host: str, port: int) -> None:
    """Raises OSError if process 0 cannot listen; JAX would end with a segmentation fault."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except OSError as error:
        raise OSError(
            f"processes: process 0 cannot listen at {host}, port {port}: {error.strerror}; set an "
            "address of its machine and a free port in --coordinator-address"
        ) from error


@contextlib.contextmanager
def _redirected_stderr(target: int) -> Iterator[int]:
    """Redirects what this process writes to stderr; yields a descriptor of the original."""
    sys.stderr.flush()
    original = os.dup(2)
    os.dup2(target, 2)
    try:
        yield original
    finally:
        os.dup2(original, 2)
        os.close(original)


_abort_handlers: list[Any] = []  # keeps the callback alive, which C code calls


def on_abort(report: Callable[[], None] | None) -> None:
    """Calls a function that exits when C++ code aborts this process; None aborts as usual.

    JAX aborts a process that cannot join the others or that has lost process 0 (openxla/xla#38624),
    and its callback `missed_heartbeat_callback` fails in C++ (std::bad_cast). A handler of
    `signal.signal` would never run, since the aborting thread does not return to Python.
    """
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = handler_type(lambda _: report()) if report else handler_type(int(signal.SIG_DFL))
    _abort_handlers[:] = [handler]
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
