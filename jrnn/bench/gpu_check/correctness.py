"""Compares values and gradients on the default device with `scan` in float64 on the CPU."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from jrnn.bench.gpu_check.compilation import (
    FAST_COMPILE,
    Deadline,
    DeadlineExceeded,
    build_all,
    call_once,
    format_error,
)
from jrnn.bench.implementations import Shape

CHECKED_ENGINES = ("scan", "fused", "associative", "newton")
"""The engines that are checked on every layer."""
UNIVERSAL_ENGINES = ("scan", "fused")
"""Engines that support every cell; the others may raise a TypeError or ValueError."""

TOLERANCE = 3e-5
"""Maximum error as in `max_relative_error`, in float32 with full precision of matrix products."""

NEWTON_TOLERANCE = 1e-4
"""As `TOLERANCE`, for Newton, which stops at residuals of 8e-6 and so has larger errors."""


class Problem(NamedTuple):
    """The arguments of `unroll`, and cotangents of its results, as NumPy arrays.

    Floating arrays are float32 or complex64.
    """

    params: Any
    xs: Any
    carry: Any
    lengths: np.ndarray
    resets: np.ndarray
    cotangents: tuple[Any, Any]


class Results(NamedTuple):
    """The results of `unroll`, and the gradients of its arguments, with None for integer leaves."""

    carry: Any
    ys: Any
    params_grad: Any
    xs_grad: Any
    carry_grad: Any


DEFAULT_PRECISION = "scan, default precision"
"""The name of an additional row of the LSTM, in the default precision of matrix products.

A mismatch in this row is not a failure.
"""

Reference = Callable[[jrnn.Layer, Problem], Results]


def make_problem(cell: jrnn.Layer, shape: Shape) -> Problem:
    """Samples parameters with non-zero biases, inputs, carry, lengths and resets, on the CPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        return _make_problem(cell, shape)


def _make_problem(cell: jrnn.Layer, shape: Shape) -> Problem:
    batch, steps, inputs, _ = shape
    rng = np.random.default_rng(0)
    perturb = partial(jax.tree.map, lambda leaf: _add_noise(rng, np.asarray(leaf), 0.1))
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    sample_like = partial(jax.tree.map, lambda leaf: _add_noise(rng, zeros(leaf), 1.0))
    init = jax.jit(lambda: cell.init(jax.random.key(0), inputs), compiler_options=FAST_COMPILE)
    params = perturb(init())
    xs = sample_like(jax.eval_shape(lambda: cell.inputs(inputs, (steps, batch))))
    carry = jax.jit(lambda: cell.init_carry(params, (batch,)), compiler_options=FAST_COMPILE)()
    results = jax.eval_shape(partial(jrnn.unroll, cell, engine="scan"), params, xs, carry)
    return Problem(
        params,
        xs,
        perturb(carry),
        lengths=np.linspace(steps, steps // 2, batch).round().astype(np.int32),
        resets=rng.random((steps, batch)) < 0.1,
        cotangents=sample_like(results),
    )


def _add_noise(rng: np.random.Generator, leaf: np.ndarray, scale: float) -> np.ndarray:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    noise = rng.normal(size=leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        noise = noise + 1j * rng.normal(size=leaf.shape)
    return (leaf + scale * noise).astype(leaf.dtype)


def differentiate(cell: jrnn.Layer, engine: str, problem: Problem) -> Results:
    """Runs an engine, and differentiates the inner product of results and cotangents."""

    def inner_product(params: Any, xs: Any, carry: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        options = {"lengths": problem.lengths, "resets": problem.resets, "engine": engine}
        results = jrnn.unroll(cell, params, xs, carry, **options)
        pairs = zip(jax.tree.leaves(results), jax.tree.leaves(problem.cotangents), strict=True)
        return jnp.asarray(sum(jnp.sum(a * b).real for a, b in pairs)), results

    grad = jax.grad(inner_product, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    grads, (carry, ys) = grad(problem.params, problem.xs, problem.carry)
    return Results(carry, ys, *jax.tree.map(_float0_to_none, grads))


def _float0_to_none(leaf: jax.Array) -> jax.Array | None:
    return None if leaf.dtype == jax.dtypes.float0 else leaf


def reference(cell: jrnn.Layer, problem: Problem) -> Results:
    """Computes the expected values and gradients, by `scan` in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        run = jax.jit(partial(differentiate, cell, "scan"), compiler_options=FAST_COMPILE)
        return jax.tree.map(np.asarray, run(jax.tree.map(_as_float64, problem)))


def _as_float64(leaf: np.ndarray) -> np.ndarray:
    dtypes = {"f": np.float64, "c": np.complex128}
    return leaf.astype(dtypes.get(leaf.dtype.kind, leaf.dtype))


class NotApplicable(Exception):
    """The engine does not support the cell; the message is the error of the engine."""


def compile_engine(
    cell: jrnn.Layer, engine: str, problem: Problem, precision: str | None = "highest"
) -> Callable[[], Results]:
    """Compiles an engine for a cell; returns a function that runs it on the problem.

    Args:
      cell: the cell or layer.
      engine: the name of an engine.
      problem: the arguments of `unroll`.
      precision: precision of matrix products; None selects JAX's default, which may be TF32.

    Raises:
      NotApplicable: the engine does not support the cell.
    """
    options = FAST_COMPILE if jax.default_backend() == "cpu" else None
    with jax.default_matmul_precision(precision):  # pyright: ignore[reportArgumentType]
        run = jax.jit(partial(differentiate, cell, engine), compiler_options=options)
        try:
            traced = run.trace(problem)
        except (TypeError, ValueError) as error:
            if engine in UNIVERSAL_ENGINES:
                raise
            raise NotApplicable(str(error)) from error
        program = traced.lower().compile()

    def call() -> Results:
        results = jax.block_until_ready(program(problem))
        jax.effects_barrier()  # errors of Newton are raised by a Python callback
        return results

    return call


def max_relative_error(got: Any, expected: Any) -> float:
    """Returns the largest error in a pytree of arrays; NaN if one is NaN.

    The error of an element is relative to the largest absolute value of its array, or to 1e-3 times
    that of all arrays if this is larger.
    """
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True))
    scales = [np.abs(b).max(initial=0.0) for _, b in pairs]
    # For an array that is zero everywhere.
    min_scale = 1e-3 * max(scales, default=0.0) or 1.0
    errors = [
        np.abs(np.asarray(a).astype(np.asarray(b).dtype) - b).max(initial=0.0)
        / max(scale, min_scale)
        for (a, b), scale in zip(pairs, scales, strict=True)
    ]
    return float(np.max(errors, initial=0.0))


def compare(got: Results, expected: Results, tolerance: float) -> dict[str, Any]:
    """Compares all fields; returns the status, the error of each field, and the reason."""
    fields = zip(got._fields, got, expected, strict=True)
    errors = {name: max_relative_error(*pair) for name, *pair in fields}
    passed = all(error <= tolerance for error in errors.values())
    # JSON has no NaN.
    finite = {name: error if np.isfinite(error) else None for name, error in errors.items()}
    text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return {
        "status": "passed" if passed else "mismatch",
        "errors": finite,
        "tolerance": tolerance,
        "reason": None if passed else f"differs from float64 by {text}, above {tolerance:.0e}",
    }


def check_layers(
    makers: Mapping[str, Callable[[int], jrnn.Layer]],
    shape: Shape,
    deadline: Deadline,
    reference_fn: Reference = reference,
) -> Iterator[dict[str, Any]]:
    """Yields one row of results for each layer and engine.

    Args:
      makers: functions from a hidden size to a layer, by name.
      shape: the sizes.
      deadline: when to stop; the remaining rows have the status "skipped".
      reference_fn: computes the expected values and gradients.
    """
    builds: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, make in makers.items():
        builds |= _make_builds(name, make, shape, reference_fn)
    expected: Any = None
    for (name, engine), built in build_all(builds, deadline):
        if engine == "reference":
            expected = built
        else:
            tolerance = NEWTON_TOLERANCE if engine == "newton" else TOLERANCE
            row = {"cell": name, "engine": engine} | _row(built, expected, tolerance)
            if engine == DEFAULT_PRECISION and row["status"] == "mismatch":
                row["status"] = "not checked"
            yield row


def _make_builds(
    name: str, make: Callable[[int], jrnn.Layer], shape: Shape, reference_fn: Reference
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Returns functions that compute the reference and compile the engines, by layer and engine."""

    @call_once
    def problem() -> tuple[jrnn.Layer, Problem]:
        cell = make(shape.hidden)
        return cell, make_problem(cell, shape)

    def compile_one(engine: str, precision: str | None = "highest") -> Callable[[], Results]:
        cell, arguments = problem()
        return compile_engine(cell, engine, arguments, precision)

    builds: dict[str, Callable[[], Any]] = {"reference": lambda: reference_fn(*problem())}
    builds |= {engine: partial(compile_one, engine) for engine in CHECKED_ENGINES}
    if name == "lstm":
        builds[DEFAULT_PRECISION] = partial(compile_one, "scan", None)
    return {(name, engine): build for engine, build in builds.items()}


def _row(
    built: Callable[[], Results] | Exception, expected: Results | Exception, tolerance: float
) -> dict[str, Any]:
    for outcome in (built, expected):
        match outcome:
            case NotApplicable():
                return {"status": "not applicable", "reason": str(outcome)[:400]}
            case DeadlineExceeded():
                return {"status": "skipped", "reason": str(outcome)}
            case Exception():
                return {"status": "error", "reason": format_error(outcome)}
    try:
        return compare(jax.tree.map(np.asarray, built()), expected, tolerance)  # pyright: ignore
    except Exception as error:
        return {"status": "error", "reason": format_error(error)}
