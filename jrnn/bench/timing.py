"""Checks implementations, and times them in interleaved rounds."""

import gc
import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np

from jrnn.bench.implementations import Case, Implementation, Unavailable

MIN_ROUNDS = 3
"""Number of rounds that ignore the time limit."""
WARMUP_SECONDS = 0.01
"""Minimum time of the calls before those that are timed, in a round."""
TIMED_SECONDS = 0.02
"""Minimum time of the timed calls of one implementation in a round."""


@dataclass(frozen=True)
class Timing:
    """The median and minimum time of a call in seconds, and the number of timed calls."""

    median: float
    minimum: float
    calls: int


def check_results(implementation: Implementation, case: Case) -> None:
    """Calls an implementation once, and checks that its results are finite and have valid shapes.

    Values are not compared, because each library initializes its own weights.

    Raises:
      Unavailable: the outputs, or the gradient of the inputs, have the wrong shape, or a result is
        not finite.
    """
    batch, steps, inputs, hidden = case.shape
    leaves = [_to_numpy(leaf) for leaf in jax.tree.leaves(implementation.call())]
    time_and_batch = (steps, batch) if implementation.time_major else (batch, steps)
    shape = (*time_and_batch, inputs if case.has_backward else hidden)
    if leaves[-1].shape != shape:
        raise Unavailable(f"results must have shape {shape}, got {leaves[-1].shape}")
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise Unavailable("results are not finite")


def _to_numpy(leaf: object) -> np.ndarray:
    if type(leaf).__module__.partition(".")[0] == "torch":
        leaf = leaf.float().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(leaf)


def time_interleaved(
    implementations: list[Implementation],
    repeats: int,
    seconds: float,
    warmup: float = WARMUP_SECONDS,
) -> dict[str, Timing]:
    """Times all implementations in interleaved rounds, so that other load affects all equally.

    In each round, an implementation is first called without timing for `warmup` seconds, so that
    the threads of the previous one become idle and the CPU caches hold its own data. Then its calls
    are timed for `TIMED_SECONDS`. Each of the two periods includes at least one call.

    Args:
      implementations: the implementations, with different names; each must have been called once.
      repeats: maximum number of rounds, at least 1.
      seconds: no round starts after this time; the first `MIN_ROUNDS` rounds ignore it.
      warmup: minimum time of the calls without timing; with 0 there are none.

    Returns:
      The times by the name of the implementation.
    """
    seconds_by_name: dict[str, list[float]] = {
        implementation.name: [] for implementation in implementations
    }
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(repeats):
            if done >= MIN_ROUNDS and time.perf_counter() > end:
                break
            for implementation in implementations:
                if warmup:
                    _time_calls(implementation, warmup)
                seconds_by_name[implementation.name] += _time_calls(implementation, TIMED_SECONDS)
    finally:
        gc.enable()
    return {
        name: Timing(statistics.median(times), min(times), len(times))
        for name, times in seconds_by_name.items()
    }


def _time_calls(implementation: Implementation, seconds: float) -> list[float]:
    """Repeats the call for `seconds`, at least once; returns the time of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        implementation.call()
        times.append(time.perf_counter() - start)
    return times
