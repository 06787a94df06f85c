"""Many programs compiled at once, on all cores, until the time is over."""

import functools
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import TypeVar

from jrnn.bench import machine

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)
Built = TypeVar("Built")


QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options for what runs on the CPU only once: it compiles in half the time."""


class Deadline:
    """A point in time.

    Args:
      seconds: from now until it.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.end - time.monotonic())


class OutOfTime(Exception):
    """The time was over before this was compiled, or before it was run."""


def build_all(
    builds: dict[Key, Callable[[], Built]], deadline: Deadline
) -> Iterator[tuple[Key, Built | Exception]]:
    """Runs all in threads, and yields what each returns or raises, in their order.

    JAX traces in one thread at a time and compiles in all of them. What is not ready at the
    deadline is an `OutOfTime`; its thread cannot be stopped, and goes on in the background.
    """
    pool = ThreadPoolExecutor(machine.cores())
    futures = {key: pool.submit(build) for key, build in builds.items()}
    try:
        for key, future in futures.items():
            try:
                result = future.result(timeout=deadline.left())
            except NotInTime:
                result = OutOfTime("not compiled before the time was over")
            except Exception as error:  # whatever fails is a row of the results
                result = error
            yield key, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Makes something when it is first asked for, in whichever thread that is."""
    cached, lock = functools.cache(make), threading.Lock()

    def get() -> T:
        with lock:
            return cached()

    return get


def reason(error: BaseException) -> str:
    """An error as one line of the results."""
    text = re.sub(" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:400]}"
