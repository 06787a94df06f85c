"""Checks contenders, and times them in interleaved rounds."""

import gc
import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np

from jrnn.bench.contenders import Case, Contender, Unavailable

MIN_ROUNDS = 3
WARMUP_SECONDS = 0.01
TURN_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds of the calls of one contender, and their number."""

    median: float
    minimum: float
    calls: int


def check_results(contender: Contender, case: Case) -> None:
    """Calls a contender once, and checks shapes and finiteness: its weights differ from the others.

    Raises:
      Unavailable: the outputs, or the gradient of the inputs, have the wrong shape, or a result is
        not finite.
    """
    batch, steps, inputs, hidden = case.shape
    leaves = [_array(leaf) for leaf in jax.tree.leaves(contender.call())]
    time_and_batch = (steps, batch) if contender.time_major else (batch, steps)
    shape = (*time_and_batch, inputs if case.backward else hidden)
    if leaves[-1].shape != shape:
        raise Unavailable(f"returned the shape {leaves[-1].shape}, expected {shape}")
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise Unavailable("returned values that are not finite")


def _array(leaf: object) -> np.ndarray:
    if type(leaf).__module__.partition(".")[0] == "torch":
        leaf = leaf.float().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(leaf)


def time_interleaved(
    contenders: list[Contender], repeats: int, seconds: float, warmup: float = WARMUP_SECONDS
) -> dict[str, Timing]:
    """Times all contenders in each round, so that other load on the machine affects all equally.

    In a round, a contender is first called without timing for at least `warmup` seconds, until the
    threads of the previous one sleep and the caches hold its own data. Then its calls are timed for
    at least `TURN_SECONDS`. Both are at least one call.

    Args:
      contenders: contenders that have been called once.
      repeats: maximum number of rounds.
      seconds: time after which no round starts, except for the first `MIN_ROUNDS`.
      warmup: seconds of calls that are not timed; 0 for none.
    """
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(repeats):
            if done >= MIN_ROUNDS and time.perf_counter() > end:
                break
            for contender in contenders:
                if warmup:
                    _seconds(contender, warmup)
                times[contender.name] += _seconds(contender, TURN_SECONDS)
    finally:
        gc.enable()
    return {
        name: Timing(statistics.median(each), min(each), len(each)) for name, each in times.items()
    }


def _seconds(contender: Contender, until: float) -> list[float]:
    """The times of repeated calls, at least one, until `until` seconds have passed."""
    times: list[float] = []
    end = time.perf_counter() + until
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        contender.call()
        times.append(time.perf_counter() - start)
    return times
