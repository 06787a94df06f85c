"""A group: the implementations of one case, which are checked and timed together."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax

from jrnn.bench import engines, machine, peers, timing
from jrnn.bench.implementations import Case, Implementation, Unavailable
from jrnn.bench.timing import Timing

Missing = list[dict[str, str]]
"""Missing implementations: the name, the reason, and the class of the error (`kind`) of each."""


def measure(
    case: Case,
    engine_names: Sequence[str],
    peer_names: Sequence[str],
    repeats: int,
    seconds: float,
) -> dict[str, Any]:
    """Times all implementations of a case; returns an entry of `groups` in the JSON file.

    `other_process_cores` is the mean number of cores that other processes use during the timing;
    None if it is not available.

    Args:
      case: the computation to time.
      engine_names: names of engines of jrnn.
      peer_names: other libraries, keys of `peers.PEERS`.
      repeats: maximum number of rounds.
      seconds: no round starts after this time; the first `timing.MIN_ROUNDS` ignore it.
    """
    jax.clear_caches()  # otherwise, a cell that an earlier case traced would compile faster
    implementations, missing = _prepare(case, engine_names, peer_names)
    before, start = machine.other_process_seconds(), time.perf_counter()
    timings = timing.time_interleaved(implementations, repeats, seconds)
    after, wall = machine.other_process_seconds(), time.perf_counter() - start
    rows = [
        row(case, implementation, timings[implementation.name])
        for implementation in implementations
    ]
    return {
        "cell": case.cell,
        "mode": case.mode,
        "shape": case.shape._asdict(),
        "sweep": case.sweep,
        "flops": case.flops,
        "other_process_cores": None if before is None or after is None else (after - before) / wall,
        "implementations": rows,
        "ratios": ratios(rows),
        "missing": missing,
    }


def _prepare(
    case: Case, engine_names: Iterable[str], peer_names: Iterable[str]
) -> tuple[list[Implementation], Missing]:
    """Builds and checks all implementations; returns those that pass, and the others as missing."""
    engine_implementations, missing_engines = _try_builds(
        {f"jrnn {name}": partial(engines.build, name, case) for name in engine_names}
    )
    peer_implementations, missing_peers = _try_builds(
        {name: partial(peers.build, name, case) for name in peer_names}
    )
    expected = engines.reference(case) if engine_implementations else None

    def check(implementation: Implementation) -> list[Implementation]:
        try:
            timing.check_results(implementation, case)
        except Unavailable:
            raise
        except Exception as error:  # such as too little memory; it must not stop the benchmark
            raise Unavailable(f"failed: {type(error).__name__}: {error}") from error
        if implementation.family == "jrnn":
            engines.check_against_scan(implementation, expected)
        return [implementation]

    built = [*engine_implementations, *peer_implementations]
    ready, failed = _try_builds({each.name: partial(check, each) for each in built})
    return ready, missing_engines + missing_peers + failed


def _try_builds(
    builds: dict[str, Callable[[], list[Implementation]]],
) -> tuple[list[Implementation], Missing]:
    """Calls all functions; returns their results, and an entry for each that raises Unavailable."""
    built: list[Implementation] = []
    missing: Missing = []
    for name, build in builds.items():
        try:
            built += build()
        except Unavailable as error:
            missing.append({"name": name, "reason": str(error), "kind": type(error).__name__})
    return built, missing


def row(case: Case, implementation: Implementation, times: Timing) -> dict[str, Any]:
    """Returns an entry of `implementations` in the JSON file."""
    return {
        "name": implementation.name,
        "family": implementation.family,
        "time_major": implementation.time_major,
        "median_seconds": times.median,
        "min_seconds": times.minimum,
        "calls": times.calls,
        "gflops": 1e-9 * case.flops / times.median,
        "compile_seconds": implementation.compile_seconds,
        "memory_bytes": implementation.memory_bytes,
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns, for each engine, the median time of every peer divided by that of the engine."""
    engine_rows = [row for row in rows if row["family"] == "jrnn"]
    peer_rows = [row for row in rows if row["family"] != "jrnn"]
    return {
        engine["name"]: {
            peer["name"]: peer["median_seconds"] / engine["median_seconds"] for peer in peer_rows
        }
        for engine in engine_rows
    }
