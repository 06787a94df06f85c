"""One group: all contenders of one case, checked, timed in turn, and written down."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax

from jrnn.bench import engines, machine, peers, timing
from jrnn.bench.contenders import Case, Contender, Unavailable
from jrnn.bench.timing import Timing

Absent = list[dict[str, str]]


def measure(
    case: Case,
    engine_names: Sequence[str],
    peer_names: Sequence[str],
    repeats: int,
    seconds: float,
) -> dict[str, Any]:
    """The results of a case, as they go into the JSON.

    Args:
      case: what is timed.
      engine_names: engines of jrnn.
      peer_names: keys of `peers.PEERS`.
      repeats: the most rounds.
      seconds: after which no round starts.
    """
    jax.clear_caches()  # or a cell traced for an earlier case would compile faster in this one
    contenders, absent = _line_up(case, engine_names, peer_names)
    before, start = machine.foreign_seconds(), time.perf_counter()
    timings = timing.in_turn(contenders, repeats, seconds)
    after, wall = machine.foreign_seconds(), time.perf_counter() - start
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
        "missing": absent,
    }


def _line_up(
    case: Case, engine_names: Iterable[str], peer_names: Iterable[str]
) -> tuple[list[Contender], Absent]:
    """Who takes part after a first call, and who does not, with the reason."""
    own, no_engine = _tried(
        {f"jrnn {name}": partial(engines.build, name, case) for name in engine_names}
    )
    others, no_peer = _tried({name: partial(peers.build, name, case) for name in peer_names})
    expected = engines.truth(case) if own else None

    def check(contender: Contender) -> list[Contender]:
        timing.check(contender, case)
        if contender.family == "jrnn":
            engines.check(contender, expected)
        return [contender]

    ready, no_good = _tried({each.name: partial(check, each) for each in [*own, *others]})
    return ready, no_engine + no_peer + no_good


def _tried(builds: dict[str, Callable[[], list[Contender]]]) -> tuple[list[Contender], Absent]:
    """What was built, and the names of those that could not be, with the reasons."""
    built: list[Contender] = []
    absent: Absent = []
    for name, build in builds.items():
        try:
            built += build()
        except Unavailable as error:
            absent.append({"name": name, "reason": str(error), "kind": type(error).__name__})
    return built, absent


def row(case: Case, contender: Contender, timed: Timing) -> dict[str, Any]:
    """The results of one contender."""
    return {
        "name": contender.name,
        "family": contender.family,
        "time_major": contender.time_major,
        "median_seconds": timed.median,
        "min_seconds": timed.least,
        "calls": timed.calls,
        "gflops": 1e-9 * case.flops / timed.median,
        "compile_seconds": contender.compile_seconds,
        "memory_bytes": contender.memory_bytes,
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each engine, every peer's median over the engine's: above 1, jrnn is faster."""
    own = [row for row in rows if row["family"] == "jrnn"]
    others = [row for row in rows if row["family"] != "jrnn"]
    return {
        engine["name"]: {
            peer["name"]: peer["median_seconds"] / engine["median_seconds"] for peer in others
        }
        for engine in own
    }
