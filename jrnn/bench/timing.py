"""Checks a group of contenders, and times them in turn."""

import gc
import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np

from jrnn.bench.contenders import Case, Contender, Unavailable

FEWEST = 3
SETTLING = 0.01
TURN = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over its calls."""

    median: float
    least: float
    calls: int


def check(contender: Contender, case: Case) -> None:
    """Calls a contender once; its weights are its own, so shapes and finiteness must do.

    Raises:
      Unavailable: the outputs, or the inputs' gradient, have the wrong shape or are not finite.
    """
    batch, steps, inputs, hidden = case.shape
    leaves = [_array(leaf) for leaf in jax.tree.leaves(contender.call())]
    time_and_batch = (steps, batch) if contender.time_major else (batch, steps)
    shape = (*time_and_batch, inputs if case.backward else hidden)
    if leaves[-1].shape != shape:
        raise Unavailable(f"gave the shape {leaves[-1].shape}, not {shape}")
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise Unavailable("gave values that are not finite")


def _array(leaf: object) -> np.ndarray:
    if type(leaf).__module__.partition(".")[0] == "torch":
        leaf = leaf.float().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(leaf)


def in_turn(
    contenders: list[Contender], repeats: int, seconds: float, settling: float = SETTLING
) -> dict[str, Timing]:
    """Times all, one after another, again and again, so that what disturbs one disturbs all.

    A turn of a contender is calls that are not timed, for `settling` seconds and at least one,
    until the threads of the contender before sleep and the caches and pages are its own; then
    calls that are timed, for `TURN` seconds and at least one.

    Args:
      contenders: each has been called once already.
      repeats: the most rounds.
      seconds: no round starts after that, but that there are `FEWEST` in any case.
      settling: seconds of calls that are not timed; 0 for none.
    """
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(repeats):
            if done >= FEWEST and time.perf_counter() > end:
                break
            for contender in contenders:
                if settling:
                    _seconds(contender, settling)
                times[contender.name] += _seconds(contender, TURN)
    finally:
        gc.enable()
    return {
        name: Timing(statistics.median(seen), min(seen), len(seen)) for name, seen in times.items()
    }


def _seconds(contender: Contender, until: float) -> list[float]:
    """Of one call after another, for at least one, and until so many seconds have passed."""
    seen: list[float] = []
    end = time.perf_counter() + until
    while not seen or time.perf_counter() < end:
        start = time.perf_counter()
        contender.call()
        seen.append(time.perf_counter() - start)
    return seen
