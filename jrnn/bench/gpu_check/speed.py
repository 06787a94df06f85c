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
from jrnn.bench.contenders import Case, Contender, Shape, Unavailable, compile_model
from jrnn.bench.gpu_check.compiling import (
    FAST_COMPILE,
    Deadline,
    OutOfTime,
    build_all,
    once,
    reason,
)
from jrnn.bench.gpu_check.plan import ENGINES, PEERS, TIMED_ENGINES, Plan
from jrnn.bench.group import ratios
from jrnn.bench.timing import Timing

GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
"""Compiler options that include loops in CUDA graphs; XLA excludes them by default."""

MAX_ROUNDS = 10
"""Maximum number of rounds."""

STATUS = "status of Newton"

MIN_SECONDS = 10.0
"""Remaining seconds below which nothing is compiled."""

COMPILE_FRACTION = 0.6
"""The fraction of the remaining time for compilation."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Cases that are compiled in parallel, and then timed one by one.

    Args:
      cell: name of a cell.
      dtype: dtype of parameters and inputs.
      shapes: the shapes of the cases.
      directions: the directions in which each shape is timed.
      peers: the peer libraries.
      graphs: whether jrnn's programs run as CUDA graphs.
      status: whether to record the status of Newton.
    """

    cell: str
    dtype: str
    shapes: tuple[Shape, ...]
    directions: tuple[str, ...]
    peers: tuple[str, ...] = ()
    graphs: bool = False
    status: bool = False

    @property
    def title(self) -> str:
        """A title for progress messages."""
        kind = " as CUDA graphs" if self.graphs else ""
        return f"{self.cell} {self.dtype}{kind} {' '.join(shape.text for shape in self.shapes)}"

    def cases(self) -> list[Case]:
        """The cases: each direction at each shape."""
        return [
            Case(self.cell, direction, shape, dtype=self.dtype)
            for shape in self.shapes
            for direction in self.directions
        ]


def batches(plan: Plan) -> Iterator[Batch]:
    """Yields the batches of a run, the most informative first."""
    first, *others = plan.dtypes
    with_peers = [cell for cell in plan.timed if cell in PEERS]

    def batch(cell: str, dtype: str = first) -> Batch:
        return Batch(cell, dtype, plan.shapes, plan.directions, PEERS.get(cell, ()))

    without_peers = [cell for cell in plan.timed if cell not in PEERS]
    yield from map(batch, with_peers)
    yield replace(batch("paragru"), shapes=(plan.long,), status=True)
    yield from (batch(cell, dtype) for dtype in others for cell in with_peers)
    yield from map(batch, without_peers)
    yield from (replace(batch(cell), peers=(), graphs=True) for cell in with_peers)
    yield from (batch(cell, dtype) for dtype in others for cell in without_peers)


def measure(batch: Batch, seconds: float, deadline: Deadline) -> Iterator[Row]:
    """Yields one group of results for each case.

    Args:
      batch: the cases.
      seconds: timing duration of each case, except for the minimum number of rounds.
      deadline: when to stop; later contenders are skipped with a reason.
    """
    if deadline.remaining() < MIN_SECONDS:
        skipped = [_missing("all", OutOfTime("not compiled before the deadline"))]
        yield from (_group(batch, case, [], skipped) for case in batch.cases())
        return
    for shape in batch.shapes:
        Case(batch.cell, "forward", shape).inputs()  # fills the cache before threads use it
    builds = {(case, name): build for case in batch.cases() for name, build in _builds(batch, case)}
    built = dict(build_all(builds, Deadline(COMPILE_FRACTION * deadline.remaining())))
    for case in batch.cases():
        # pop: the device arrays of one case must be freed before the next.
        results = {name: built.pop((case, name)) for key, name in builds if key == case}
        status = results.pop(STATUS, None)
        group = measure_case(batch, case, results, seconds, deadline)
        if status is not None:
            group["newton"] = {"error": reason(status)} if isinstance(status, Exception) else status
        yield group


def _builds(batch: Batch, case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields names, and functions that compile the contenders of a case."""
    options = GRAPHS if batch.graphs else None
    suffix = " graphs" if batch.graphs else ""
    params = once(partial(_params, case))

    def build(engine: str, name: str) -> list[Contender]:
        model = engines.model(ENGINES[engine], case, name, params())
        return [compile_model(model, case, "jrnn", options)]

    for engine in TIMED_ENGINES[batch.cell]:
        yield f"jrnn {engine}{suffix}", partial(build, engine, engine + suffix)
    for peer in batch.peers:
        yield peer, partial(peers.build, peer, case)
    if batch.status and case.direction == batch.directions[0]:
        yield STATUS, lambda: newton_status(case, params())


def _params(case: Case) -> Any:
    """Initial parameters, drawn on the CPU, where initializers compile faster."""
    with jax.default_device(jax.devices("cpu")[0]):
        draw = lambda: engines.init_params(engines.make_cell(case), case)
        params = jax.jit(draw, compiler_options=FAST_COMPILE)()
    return jax.device_put(params, jax.devices()[0])


def measure_case(
    batch: Batch,
    case: Case,
    built: dict[str, Any],
    seconds: float,
    deadline: Deadline,
) -> Row:
    """Calls each contender once, then times all in interleaved rounds."""
    ready, missing, start = [], [], time.monotonic()
    for name, result in built.items():
        if isinstance(result, Exception):
            missing.append(_missing(name, result))
            continue
        for contender in result:
            try:
                if not deadline.remaining():
                    raise OutOfTime("not called before the deadline")
                timing.check_results(contender, case)
                ready.append(contender)
            except Exception as error:
                missing.append(_missing(contender.name, error))
    try:
        if timing.MIN_ROUNDS * (time.monotonic() - start) > deadline.remaining():
            raise OutOfTime("not timed: the calls would take longer than the remaining time")
        timings = timing.time_interleaved(
            ready, MAX_ROUNDS, min(seconds, deadline.remaining()), warmup=0
        )
    except Exception as error:  # an unknown contender failed after its first call
        missing += [_missing(contender.name, error) for contender in ready]
        ready, timings = [], {}
    rows = [_row(contender, timings[contender.name]) for contender in ready]
    return _group(batch, case, rows, missing)


def newton_status(case: Case, params: Any) -> Row:
    """Convergence and iterations of Newton, and its largest difference from Scan."""
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
    text = str(error) if isinstance(error, Unavailable | OutOfTime) else reason(error)
    return {"name": name, "reason": text[:400], "kind": type(error).__name__}


def _row(contender: Contender, times: Timing) -> Row:
    return {
        "name": contender.name,
        "family": contender.family,
        "median_seconds": times.median,
        "min_seconds": times.minimum,
        "calls": times.calls,
        "compile_seconds": contender.compile_seconds,
        "memory_bytes": contender.memory_bytes,
    }


def _group(batch: Batch, case: Case, rows: list[Row], missing: list[dict[str, str]]) -> Row:
    fields = asdict(case) | {"shape": case.shape._asdict(), "graphs": batch.graphs}
    del fields["sweep"]
    return fields | {"contenders": rows, "ratios": ratios(rows), "missing": missing}
