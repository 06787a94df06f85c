"""Values and gradients of cells on the device of JAX, against `scan` in float64 on the CPU."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from jrnn.bench.contenders import Shape
from jrnn.bench.gpu_check.compiling import QUICK, Deadline, OutOfTime, build_all, once, reason

ENGINES = ("scan", "fused", "associative", "newton")
ALL_CELLS = ("scan", "fused")
"""Engines that must take every cell; the others may refuse one with a TypeError or ValueError."""

TOLERANCE = 3e-5
"""Of float32 with products in full precision, relative to the largest number of each array."""

NEWTON_TOLERANCE = 1e-4
"""Newton stops at residuals of 8e-6, which grow to differences of the states."""


class Problem(NamedTuple):
    """Arguments of `unroll`, and cotangents for its results; NumPy arrays in float32."""

    params: Any
    xs: Any
    carry: Any
    lengths: np.ndarray
    resets: np.ndarray
    cotangents: tuple[Any, Any]


class Results(NamedTuple):
    """What `unroll` returns, and the gradients by its arguments; None for leaves of integers."""

    carry: Any
    ys: Any
    params_grad: Any
    xs_grad: Any
    carry_grad: Any


DEFAULT_PRECISION = "scan, default precision"
"""A row of the LSTM that says what is lost without full precision; it is not held to anything."""

Reference = Callable[[jrnn.Layer, Problem], Results]


def make_problem(cell: jrnn.Layer, shape: Shape) -> Problem:
    """Random parameters, biases included, inputs, carry, lengths and resets, made on the CPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        return _make_problem(cell, shape)


def _make_problem(cell: jrnn.Layer, shape: Shape) -> Problem:
    batch, steps, inputs, _ = shape
    rng = np.random.default_rng(0)
    noisy = partial(jax.tree.map, lambda leaf: _add_noise(rng, np.asarray(leaf), 0.1))
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    normal = partial(jax.tree.map, lambda leaf: _add_noise(rng, zeros(leaf), 1.0))
    draw = jax.jit(lambda: cell.init(jax.random.key(0), inputs), compiler_options=QUICK)
    params = noisy(draw())
    xs = normal(jax.eval_shape(lambda: cell.inputs(inputs, (steps, batch))))
    carry = jax.jit(lambda: cell.init_carry(params, (batch,)), compiler_options=QUICK)()
    results = jax.eval_shape(partial(jrnn.unroll, cell, engine="scan"), params, xs, carry)
    return Problem(
        params,
        xs,
        noisy(carry),
        lengths=np.linspace(steps, steps // 2, batch).round().astype(np.int32),
        resets=rng.random((steps, batch)) < 0.1,
        cotangents=normal(results),
    )


def _add_noise(rng: np.random.Generator, leaf: np.ndarray, scale: float) -> np.ndarray:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    noise = rng.normal(size=leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        noise = noise + 1j * rng.normal(size=leaf.shape)
    return (leaf + scale * noise).astype(leaf.dtype)


def differentiate(cell: jrnn.Layer, engine: str, problem: Problem) -> Results:
    """Values and gradients of an engine."""

    def inner(params: Any, xs: Any, carry: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        given = {"lengths": problem.lengths, "resets": problem.resets, "engine": engine}
        results = jrnn.unroll(cell, params, xs, carry, **given)
        pairs = zip(jax.tree.leaves(results), jax.tree.leaves(problem.cotangents), strict=True)
        return jnp.asarray(sum(jnp.sum(a * b).real for a, b in pairs)), results

    gradients = jax.grad(inner, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    found, (carry, ys) = gradients(problem.params, problem.xs, problem.carry)
    return Results(carry, ys, *jax.tree.map(_without_float0, found))


def _without_float0(leaf: jax.Array) -> jax.Array | None:
    return None if leaf.dtype == jax.dtypes.float0 else leaf


def reference(cell: jrnn.Layer, problem: Problem) -> Results:
    """The same by `scan` in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        run = jax.jit(partial(differentiate, cell, "scan"), compiler_options=QUICK)
        return jax.tree.map(np.asarray, run(jax.tree.map(_as_float64, problem)))


def _as_float64(leaf: np.ndarray) -> np.ndarray:
    wide = {"f": np.float64, "c": np.complex128}
    return leaf.astype(wide.get(leaf.dtype.kind, leaf.dtype))


class NotApplicable(Exception):
    """The engine does not take the cell; the message is its own."""


def compiled(
    cell: jrnn.Layer, engine: str, problem: Problem, precision: str | None = "highest"
) -> Callable[[], Results]:
    """An engine that is ready to run.

    Args:
      cell: the cell.
      engine: a name that `unroll` takes.
      problem: its arguments.
      precision: of products; None is that of JAX by default, which on a GPU may be TF32.

    Raises:
      NotApplicable: it does not take the cell.
    """
    options = QUICK if jax.default_backend() == "cpu" else None
    with jax.default_matmul_precision(precision):  # pyright: ignore[reportArgumentType]
        run = jax.jit(partial(differentiate, cell, engine), compiler_options=options)
        try:
            traced = run.trace(problem)
        except (TypeError, ValueError) as error:
            if engine in ALL_CELLS:
                raise
            raise NotApplicable(str(error)) from error
        program = traced.lower().compile()

    def call() -> Results:
        results = jax.block_until_ready(program(problem))
        jax.effects_barrier()  # Newton raises in a call back to Python
        return results

    return call


def difference(got: Any, want: Any) -> float:
    """The largest, relative to the largest number of each array; NaN where one is not finite."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    sizes = [np.abs(w).max(initial=0.0) for _, w in pairs]
    # An array of gradients that should be zero has no scale of its own.
    least = 1e-3 * max(sizes, default=0.0) or 1.0
    errors = [
        np.abs(np.asarray(g).astype(np.asarray(w).dtype) - w).max(initial=0.0) / max(size, least)
        for (g, w), size in zip(pairs, sizes, strict=True)
    ]
    return float(np.max(errors, initial=0.0))


def compare(got: Results, want: Results, tolerance: float) -> dict[str, Any]:
    """The differences of each part of the results, and whether all are within the tolerance."""
    parts = {name: difference(*pair) for name, *pair in zip(got._fields, got, want, strict=True)}
    agrees = all(error <= tolerance for error in parts.values())
    finite = {name: error if np.isfinite(error) else None for name, error in parts.items()}
    text = ", ".join(f"{name} {error:.1e}" for name, error in parts.items())
    return {
        "status": "agrees" if agrees else "differs",
        "differences": finite,
        "tolerance": tolerance,
        "reason": None if agrees else f"differs from float64 by {text}, above {tolerance:.0e}",
    }


def check(
    makers: Mapping[str, Callable[[int], jrnn.Layer]],
    shape: Shape,
    deadline: Deadline,
    truth: Reference = reference,
) -> Iterator[dict[str, Any]]:
    """One row for each cell and engine.

    Args:
      makers: the cells by name, from a hidden size.
      shape: the sizes.
      deadline: when to stop; what is not done by then says so.
      truth: what the engines are compared with.
    """
    builds: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, make in makers.items():
        builds |= _builds(name, make, shape, truth)
    wanted: Any = None
    for (name, engine), built in build_all(builds, deadline):
        if engine == "reference":
            wanted = built
        else:
            tolerance = NEWTON_TOLERANCE if engine == "newton" else TOLERANCE
            row = {"cell": name, "engine": engine} | _row(built, wanted, tolerance)
            if engine == DEFAULT_PRECISION and row["status"] == "differs":
                row["status"] = "noted"
            yield row


def _builds(
    name: str, make: Callable[[int], jrnn.Layer], shape: Shape, truth: Reference
) -> dict[tuple[str, str], Callable[[], Any]]:
    @once
    def problem() -> tuple[jrnn.Layer, Problem]:
        cell = make(shape.hidden)
        return cell, make_problem(cell, shape)

    def compile_one(engine: str, precision: str | None = "highest") -> Callable[[], Results]:
        cell, arguments = problem()
        return compiled(cell, engine, arguments, precision)

    found: dict[str, Callable[[], Any]] = {"reference": lambda: truth(*problem())}
    found |= {engine: partial(compile_one, engine) for engine in ENGINES}
    if name == "lstm":
        found[DEFAULT_PRECISION] = partial(compile_one, "scan", None)
    return {(name, engine): build for engine, build in found.items()}


def _row(
    built: Callable[[], Results] | Exception, wanted: Results | Exception, tolerance: float
) -> dict[str, Any]:
    for outcome in (built, wanted):
        match outcome:
            case NotApplicable():
                return {"status": "not applicable", "reason": str(outcome)[:400]}
            case OutOfTime():
                return {"status": "skipped", "reason": str(outcome)}
            case Exception():
                return {"status": "error", "reason": reason(outcome)}
    try:
        return compare(jax.tree.map(np.asarray, built()), wanted, tolerance)  # pyright: ignore
    except Exception as error:
        return {"status": "error", "reason": reason(error)}
