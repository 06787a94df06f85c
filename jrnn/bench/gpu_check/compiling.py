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
      seconds: the time from now.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.end - time.monotonic())


class OutOfTime(Exception):
    """The deadline passed before a program was compiled or run."""


def build_all(
    builds: dict[Key, Callable[[], Built]], deadline: Deadline
) -> Iterator[tuple[Key, Built | Exception]]:
    """Runs all functions in threads, and yields the result or exception of each, in order.

    JAX traces in one thread at a time but compiles in parallel. A function that has not returned at
    the deadline yields `OutOfTime`; its thread cannot be stopped, and continues in the background.
    """
    pool = ThreadPoolExecutor(machine.cores())
    futures = {key: pool.submit(build) for key, build in builds.items()}
    try:
        for key, future in futures.items():
            try:
                result = future.result(timeout=deadline.remaining())
            except FutureTimeout:
                result = OutOfTime("not compiled before the deadline")
            except Exception as error:  # a failure is a row of the results
                result = error
            yield key, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Wraps a function to be called once, by the first thread that needs its result."""
    cached, lock = functools.cache(make), threading.Lock()

    def get() -> T:
        with lock:
            return cached()

    return get


def reason(error: BaseException) -> str:
    """Formats an error as one line."""
    text = re.sub(" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:400]}"
