"""Compiles many programs in parallel, until a deadline."""

import functools
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from jrnn.bench import machine

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)
Built = TypeVar("Built")


FAST_COMPILE = {"xla_backend_optimization_level": 0}
"""Compiler options for programs that run once on the CPU; they halve the compile time."""


class Deadline:
    """A point in time.

    Args:
      seconds: time from now until the deadline.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Returns the seconds until the deadline; 0 after it."""
        return max(0.0, self.end - time.monotonic())


class DeadlineExceeded(Exception):
    """The deadline passed before a program was compiled, called or timed."""


def build_all(
    builds: dict[Key, Callable[[], Built]], deadline: Deadline
) -> Iterator[tuple[Key, Built | Exception]]:
    """Runs all functions in threads; yields the key and the result or exception of each, in order.

    JAX traces in one thread at a time but compiles in parallel. If a function has not returned at
    the deadline, `DeadlineExceeded` is yielded. A thread that runs it cannot be stopped, and
    continues in the background.
    """
    pool = ThreadPoolExecutor(machine.cores())
    futures = {key: pool.submit(build) for key, build in builds.items()}
    try:
        for key, future in futures.items():
            try:
                result = future.result(timeout=deadline.remaining())
            except FutureTimeout:
                result = DeadlineExceeded("not compiled before the deadline")
            except Exception as error:  # a failure is recorded as a row of the results
                result = error
            yield key, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def call_once(make: Callable[[], T]) -> Callable[[], T]:
    """Returns a function that returns the result of `make`, for use by several threads.

    `make` is called once, on first use; it is called again only if it raises an exception.
    """
    cached, lock = functools.cache(make), threading.Lock()

    def get() -> T:
        with lock:
            return cached()

    return get


def format_error(error: BaseException) -> str:
    """Formats an error as one line, shortened and without memory addresses."""
    text = re.sub(" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:400]}"
