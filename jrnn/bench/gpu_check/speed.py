"""Times cells on the default device against flax, cuDNN and PyTorch in the same process."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jrnn
from jrnn.bench import engines, peers, timing
from jrnn.bench.gpu_check.compilation import (
    FAST_COMPILE,
    Deadline,
    DeadlineExceeded,
    build_all,
    call_once,
    format_error,
)
from jrnn.bench.gpu_check.plan import ENGINES_BY_CELL, PEERS_BY_CELL, TIMED_ENGINES, Plan
from jrnn.bench.group import ratios
from jrnn.bench.implementations import Case, Implementation, Shape, Unavailable, compile_model
from jrnn.bench.timing import Timing

CUDA_GRAPH_OPTIONS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
"""Compiler options that include loops in CUDA graphs; XLA excludes them by default."""

MAX_ROUNDS = 10
"""Maximum number of rounds for each case."""

NEWTON_STATUS = "Newton status"
"""The key of the convergence status of Newton, in dicts of implementations by name."""

MIN_SECONDS = 10.0
"""No suite is compiled if fewer seconds remain."""

COMPILE_FRACTION = 0.6
"""The fraction of the remaining time for the compilation of a suite."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """Cases of one cell and dtype, which are compiled in parallel and then timed one by one.

    Args:
      cell: name of a cell.
      dtype: dtype of parameters and inputs.
      shapes: the shapes of the cases.
      modes: the modes in which each shape is timed.
      peers: the peer libraries, keys of `peers.PEERS`.
      cuda_graphs: whether the programs of jrnn run as CUDA graphs.
      solves_newton: whether to add the convergence status of Newton to the results of each shape.
    """

    cell: str
    dtype: str
    shapes: tuple[Shape, ...]
    modes: tuple[str, ...]
    peers: tuple[str, ...] = ()
    cuda_graphs: bool = False
    solves_newton: bool = False

    @property
    def title(self) -> str:
        """A title for progress messages."""
        suffix = " as CUDA graphs" if self.cuda_graphs else ""
        return f"{self.cell} {self.dtype}{suffix} {' '.join(shape.text for shape in self.shapes)}"

    def cases(self) -> list[Case]:
        """Returns all combinations of shapes and modes."""
        return [
            Case(self.cell, mode, shape, dtype=self.dtype)
            for shape in self.shapes
            for mode in self.modes
        ]


def suites(plan: Plan) -> Iterator[Suite]:
    """Yields the suites of a run, in order of priority."""
    first_dtype, *other_dtypes = plan.dtypes
    with_peers = [cell for cell in plan.timed_cells if cell in PEERS_BY_CELL]
    without_peers = [cell for cell in plan.timed_cells if cell not in PEERS_BY_CELL]

    def suite(cell: str, dtype: str = first_dtype) -> Suite:
        return Suite(cell, dtype, plan.shapes, plan.modes, PEERS_BY_CELL.get(cell, ()))

    yield from map(suite, with_peers)
    yield replace(suite("paragru"), shapes=(plan.newton_shape,), solves_newton=True)
    yield from (suite(cell, dtype) for dtype in other_dtypes for cell in with_peers)
    yield from map(suite, without_peers)
    yield from (replace(suite(cell), peers=(), cuda_graphs=True) for cell in with_peers)
    yield from (suite(cell, dtype) for dtype in other_dtypes for cell in without_peers)


def measure(suite: Suite, seconds: float, deadline: Deadline) -> Iterator[Row]:
    """Yields one group of results for each case.

    Args:
      suite: the cases.
      seconds: no round of a case starts after this time; the first `timing.MIN_ROUNDS` ignore it.
      deadline: when to stop; the remaining implementations are listed as missing.
    """
    if deadline.remaining() < MIN_SECONDS:
        skipped = [
            _missing("all implementations", DeadlineExceeded("not compiled before the deadline"))
        ]
        yield from (_group(suite, case, [], skipped) for case in suite.cases())
        return
    for shape in suite.shapes:
        Case(suite.cell, "forward", shape).inputs()  # fills the cache before threads read it
    builds = {
        (case, name): build for case in suite.cases() for name, build in _make_builds(suite, case)
    }
    built = dict(build_all(builds, Deadline(COMPILE_FRACTION * deadline.remaining())))
    for case in suite.cases():
        # Popping frees the device arrays of each case before the next one.
        results = {name: built.pop((case, name)) for key, name in builds if key == case}
        status = results.pop(NEWTON_STATUS, None)
        group = measure_case(suite, case, results, seconds, deadline)
        if status is not None:
            group["newton"] = (
                {"error": format_error(status)} if isinstance(status, Exception) else status
            )
        yield group


def _make_builds(suite: Suite, case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields names, and functions that compile the implementations or solve the case by Newton."""
    options = CUDA_GRAPH_OPTIONS if suite.cuda_graphs else None
    suffix = " (CUDA graphs)" if suite.cuda_graphs else ""
    params = call_once(partial(_init_params, case))

    def build(engine: str, name: str) -> list[Implementation]:
        model = engines.make_model(TIMED_ENGINES[engine], case, name, params())
        return [compile_model(model, case, "jrnn", options)]

    for engine in ENGINES_BY_CELL[suite.cell]:
        yield f"jrnn {engine}{suffix}", partial(build, engine, engine + suffix)
    for peer in suite.peers:
        yield peer, partial(peers.build, peer, case)
    if suite.solves_newton and case.mode == suite.modes[0]:
        yield NEWTON_STATUS, lambda: newton_status(case, params())


def _init_params(case: Case) -> Any:
    """Returns initial parameters, computed on the CPU, where initializers compile faster."""
    with jax.default_device(jax.devices("cpu")[0]):
        init = lambda: engines.init_params(engines.make_cell(case), case)
        params = jax.jit(init, compiler_options=FAST_COMPILE)()
    return jax.device_put(params, jax.devices()[0])


def measure_case(
    suite: Suite,
    case: Case,
    built: dict[str, Any],
    seconds: float,
    deadline: Deadline,
) -> Row:
    """Calls each implementation of a case once, then times all of them in interleaved rounds.

    Args:
      suite: the suite of the case.
      case: the case.
      built: by name, a list of implementations, or the exception raised by the compilation.
      seconds: no round starts after this time; the first `timing.MIN_ROUNDS` ignore it.
      deadline: when to stop; the remaining implementations are listed as missing.
    """
    ready, missing, start = [], [], time.monotonic()
    for name, result in built.items():
        if isinstance(result, Exception):
            missing.append(_missing(name, result))
            continue
        for implementation in result:
            try:
                if not deadline.remaining():
                    raise DeadlineExceeded("not called before the deadline")
                timing.check_results(implementation, case)
                ready.append(implementation)
            except Exception as error:
                missing.append(_missing(implementation.name, error))
    try:
        if timing.MIN_ROUNDS * (time.monotonic() - start) > deadline.remaining():
            raise DeadlineExceeded("not timed: the calls would not end before the deadline")
        timings = timing.time_interleaved(
            ready, MAX_ROUNDS, min(seconds, deadline.remaining()), warmup=0
        )
    except Exception as error:  # an implementation failed after its first call; it is unknown which
        missing += [_missing(implementation.name, error) for implementation in ready]
        ready, timings = [], {}
    rows = [_row(implementation, timings[implementation.name]) for implementation in ready]
    return _group(suite, case, rows, missing)


def newton_status(case: Case, params: Any) -> Row:
    """Returns whether Newton converges, its iterations, and its largest difference from Scan."""
    cell = engines.make_cell(case)

    @jax.jit
    def solve(params: Any, xs: jax.Array) -> tuple[jrnn.NewtonStatus, jax.Array]:
        solution = jrnn.newton(cell, params, xs)
        _, ys = jrnn.unroll(cell, params, xs, engine="scan")
        return solution.status, jnp.abs(solution.ys - ys).max()

    status, error = solve(params, jnp.asarray(case.inputs()))
    return {
        "converged": bool(status.converged.all()),
        "iterations": int(status.iterations),
        "largest_difference_from_scan": float(error),
    }


def _missing(name: str, error: Exception) -> dict[str, str]:
    text = str(error) if isinstance(error, Unavailable | DeadlineExceeded) else format_error(error)
    return {"name": name, "reason": text[:400], "kind": type(error).__name__}


def _row(implementation: Implementation, times: Timing) -> Row:
    return {
        "name": implementation.name,
        "family": implementation.family,
        "median_seconds": times.median,
        "min_seconds": times.minimum,
        "calls": times.calls,
        "compile_seconds": implementation.compile_seconds,
        "memory_bytes": implementation.memory_bytes,
    }


def _group(suite: Suite, case: Case, rows: list[Row], missing: list[dict[str, str]]) -> Row:
    fields = asdict(case) | {"shape": case.shape._asdict(), "cuda_graphs": suite.cuda_graphs}
    del fields["sweep"]
    return fields | {"implementations": rows, "ratios": ratios(rows), "missing": missing}
