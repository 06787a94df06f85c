"""Times of cells on the device of JAX, against flax, cuDNN and PyTorch in the same process."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jrnn
from jrnn.bench import engines, peers, timing
from jrnn.bench.contenders import Case, Contender, Shape, Unavailable, compiled
from jrnn.bench.gpu_check.compiling import QUICK, Deadline, OutOfTime, build_all, once, reason
from jrnn.bench.gpu_check.plan import ENGINES, PEERS, TIMED_ENGINES, Plan
from jrnn.bench.group import ratios
from jrnn.bench.timing import Timing

GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
"""Compiler options for CUDA graphs of whole loops; XLA leaves loops out by itself."""

ROUNDS = 10
"""The most calls or, of short ones, turns of a contender."""

STATUS = "status of Newton"

LEAST_SECONDS = 10.0
"""With less left, nothing more is compiled."""

COMPILING = 0.6
"""The part of what is left that compiling may take."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """What is compiled at once, and then timed case by case.

    Args:
      cell: of jrnn.
      dtype: of parameters and inputs.
      shapes: of each case.
      directions: in which each shape is timed.
      peers: the libraries that take part.
      graphs: whether jrnn's programs run as CUDA graphs.
      status: whether to ask Newton how its solve went.
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
        """One line, printed when it begins."""
        kind = " as CUDA graphs" if self.graphs else ""
        return f"{self.cell} {self.dtype}{kind} {' '.join(shape.text for shape in self.shapes)}"

    def cases(self) -> list[Case]:
        """All of it, each to be timed by itself."""
        return [
            Case(self.cell, direction, shape, dtype=self.dtype)
            for shape in self.shapes
            for direction in self.directions
        ]


def batches(plan: Plan) -> Iterator[Batch]:
    """All that a run times, the most informative first."""
    first, *others = plan.dtypes
    with_peers = [cell for cell in plan.timed if cell in PEERS]

    def batch(cell: str, dtype: str = first) -> Batch:
        return Batch(cell, dtype, plan.shapes, plan.directions, PEERS.get(cell, ()))

    without = [cell for cell in plan.timed if cell not in PEERS]
    yield from map(batch, with_peers)
    yield replace(batch("paragru"), shapes=(plan.long,), status=True)
    yield from (batch(cell, dtype) for dtype in others for cell in with_peers)
    yield from map(batch, without)
    yield from (replace(batch(cell), peers=(), graphs=True) for cell in with_peers)
    yield from (batch(cell, dtype) for dtype in others for cell in without)


def measure(batch: Batch, seconds: float, deadline: Deadline) -> Iterator[Row]:
    """One group of results for each case.

    Args:
      batch: what to time.
      seconds: of timing for each case, but for the fewest calls.
      deadline: what is not done by then is left out, and says so.
    """
    if deadline.left() < LEAST_SECONDS:
        late = [_absent("all", OutOfTime("not compiled, as the time was over"))]
        yield from (_group(batch, case, [], late) for case in batch.cases())
        return
    for shape in batch.shapes:
        Case(batch.cell, "forward", shape).inputs()  # drawn once, not in each thread
    builds = {(case, name): build for case in batch.cases() for name, build in _builds(batch, case)}
    built = dict(build_all(builds, Deadline(COMPILING * deadline.left())))
    for case in batch.cases():
        # pop: the arrays of one case on the device must be freed before the next.
        found = {name: built.pop((case, name)) for at, name in builds if at == case}
        status = found.pop(STATUS, None)
        group = measure_case(batch, case, found, seconds, deadline)
        if status is not None:
            group["newton"] = {"error": reason(status)} if isinstance(status, Exception) else status
        yield group


def _builds(batch: Batch, case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """How to compile each contender of a case."""
    options = GRAPHS if batch.graphs else None
    suffix = " graphs" if batch.graphs else ""
    params = once(partial(_params, case))

    def build(engine: str, name: str) -> list[Contender]:
        model = engines.model(ENGINES[engine], case, name, params())
        return [compiled(model, case, "jrnn", options)]

    for engine in TIMED_ENGINES[batch.cell]:
        yield f"jrnn {engine}{suffix}", partial(build, engine, engine + suffix)
    for peer in batch.peers:
        yield peer, partial(peers.build, peer, case)
    if batch.status and case.direction == batch.directions[0]:
        yield STATUS, lambda: newton_status(case, params())


def _params(case: Case) -> Any:
    """Initial parameters, made on the CPU, where initializers compile faster than on a GPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        draw = lambda: engines.params_of(engines.cell_of(case), case)
        params = jax.jit(draw, compiler_options=QUICK)()
    return jax.device_put(params, jax.devices()[0])


def measure_case(
    batch: Batch,
    case: Case,
    built: dict[str, Any],
    seconds: float,
    deadline: Deadline,
) -> Row:
    """Calls each contender once, then times all in turn."""
    ready, absent, start = [], [], time.monotonic()
    for name, found in built.items():
        if isinstance(found, Exception):
            absent.append(_absent(name, found))
            continue
        for contender in found:
            try:
                if not deadline.left():
                    raise OutOfTime("not called, as the time was over")
                timing.check(contender, case)
                ready.append(contender)
            except Exception as error:
                absent.append(_absent(contender.name, error))
    try:
        if timing.FEWEST * (time.monotonic() - start) > deadline.left():
            raise OutOfTime("not timed, as the calls would take longer than what is left")
        timed = timing.in_turn(ready, ROUNDS, min(seconds, deadline.left()), settling=0)
    except Exception as error:  # on a second call, of an unknown contender
        absent += [_absent(contender.name, error) for contender in ready]
        ready, timed = [], {}
    rows = [_row(contender, timed[contender.name]) for contender in ready]
    return _group(batch, case, rows, absent)


def newton_status(case: Case, params: Any) -> Row:
    """Whether Newton converges, in how many iterations, and how far its outputs are from Scan's."""
    cell = engines.cell_of(case)

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


def _absent(name: str, error: Exception) -> dict[str, str]:
    text = str(error) if isinstance(error, Unavailable | OutOfTime) else reason(error)
    return {"name": name, "reason": text[:400], "kind": type(error).__name__}


def _row(contender: Contender, timed: Timing) -> Row:
    return {
        "name": contender.name,
        "family": contender.family,
        "median_seconds": timed.median,
        "min_seconds": timed.least,
        "calls": timed.calls,
        "compile_seconds": contender.compile_seconds,
        "memory_bytes": contender.memory_bytes,
    }


def _group(batch: Batch, case: Case, rows: list[Row], absent: list[dict[str, str]]) -> Row:
    described = asdict(case) | {"shape": case.shape._asdict(), "graphs": batch.graphs}
    del described["sweep"]
    return described | {"contenders": rows, "ratios": ratios(rows), "missing": absent}
