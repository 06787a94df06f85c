"""A group: all contenders of a case, checked, timed and returned as a row of the JSON file."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax

from jrnn.bench import engines, machine, peers, timing
from jrnn.bench.contenders import Case, Contender, Unavailable
from jrnn.bench.timing import Timing

Missing = list[dict[str, str]]


def measure(
    case: Case,
    engine_names: Sequence[str],
    peer_names: Sequence[str],
    repeats: int,
    seconds: float,
) -> dict[str, Any]:
    """Returns the results of a case, as in the JSON file.

    Args:
      case: the computation that is timed.
      engine_names: engines of jrnn.
      peer_names: keys of `peers.PEERS`.
      repeats: maximum number of rounds.
      seconds: time after which no round starts.
    """
    jax.clear_caches()  # a cell traced for an earlier case would compile faster
    contenders, missing = _prepare(case, engine_names, peer_names)
    before, start = machine.other_process_seconds(), time.perf_counter()
    timings = timing.time_interleaved(contenders, repeats, seconds)
    after, wall = machine.other_process_seconds(), time.perf_counter() - start
    rows = [row(case, contender, timings[contender.name]) for contender in contenders]
    return {
        "cell": case.cell,
        "direction": case.direction,
        "shape": case.shape._asdict(),
        "sweep": case.sweep,
        "flops": case.flops,
        "others_cores": None if before is None or after is None else (after - before) / wall,
        "contenders": rows,
        "ratios": ratios(rows),
        "missing": missing,
    }


def _prepare(
    case: Case, engine_names: Iterable[str], peer_names: Iterable[str]
) -> tuple[list[Contender], Missing]:
    """Builds and checks all contenders; returns them, and those that fail with the reason."""
    own, missing_engines = _try_builds(
        {f"jrnn {name}": partial(engines.build, name, case) for name in engine_names}
    )
    others, missing_peers = _try_builds(
        {name: partial(peers.build, name, case) for name in peer_names}
    )
    expected = engines.reference(case) if own else None

    def check(contender: Contender) -> list[Contender]:
        timing.check_results(contender, case)
        if contender.family == "jrnn":
            engines.check_against_scan(contender, expected)
        return [contender]

    ready, failed = _try_builds({each.name: partial(check, each) for each in [*own, *others]})
    return ready, missing_engines + missing_peers + failed


def _try_builds(
    builds: dict[str, Callable[[], list[Contender]]],
) -> tuple[list[Contender], Missing]:
    """Returns what was built, and the names of those that failed with the reasons."""
    built: list[Contender] = []
    missing: Missing = []
    for name, build in builds.items():
        try:
            built += build()
        except Unavailable as error:
            missing.append({"name": name, "reason": str(error), "kind": type(error).__name__})
    return built, missing


def row(case: Case, contender: Contender, times: Timing) -> dict[str, Any]:
    """The results of one contender."""
    return {
        "name": contender.name,
        "family": contender.family,
        "time_major": contender.time_major,
        "median_seconds": times.median,
        "min_seconds": times.minimum,
        "calls": times.calls,
        "gflops": 1e-9 * case.flops / times.median,
        "compile_seconds": contender.compile_seconds,
        "memory_bytes": contender.memory_bytes,
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each engine, the median of every peer over its own: above 1, jrnn is faster."""
    own = [row for row in rows if row["family"] == "jrnn"]
    others = [row for row in rows if row["family"] != "jrnn"]
    return {
        engine["name"]: {
            peer["name"]: peer["median_seconds"] / engine["median_seconds"] for peer in others
        }
        for engine in own
    }
