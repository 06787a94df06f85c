"""Random inputs, comparisons, and reference implementations, which loop over steps."""

import contextlib
import itertools
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import Cell, Engine
from tests.table import Row


@contextlib.contextmanager
def record_compilations() -> Iterator[list[str]]:
    """Yields a list that receives one entry for each compilation within the context."""
    events: list[str] = []
    listener = lambda event, seconds, **_: (
        events.append(event) if "backend_compile" in event else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def cache_size(jitted: Any) -> int:
    """Returns how often a jitted function has been compiled."""
    return jitted._cache_size()


class Scenario(NamedTuple):
    """Which optional arguments are passed to `unroll`, and its scan direction."""

    lengths: bool = True
    resets: bool = True
    carry: bool = True
    reverse: bool = False


SCENARIOS = tuple(Scenario(*flags) for flags in itertools.product([False, True], repeat=4))
# Half of the scenarios. They include every combination of values of any three fields.
HALF_OF_SCENARIOS = tuple(scenario for scenario in SCENARIOS if sum(scenario) % 2 == 0)


def mark_exhaustive(cases: Iterable[Any], *, always: Iterable[Any]) -> list[Any]:
    """Returns all cases of a parametrized test, marked as exhaustive except those in `always`.

    Args:
      cases: the parameters of each case; a tuple if there are several.
      always: the cases that also run by default.
    """
    as_tuple = lambda case: case if type(case) is tuple else (case,)
    values, unmarked = [as_tuple(case) for case in cases], [as_tuple(case) for case in always]
    assert all(case in values for case in unmarked), "always must contain only values of cases"
    mark = pytest.mark.exhaustive
    return [pytest.param(*case, marks=[] if case in unmarked else [mark]) for case in values]


class Batch(NamedTuple):
    """The arguments of `unroll` except the parameters, and cotangents of its results."""

    xs: Any  # leaves [T, B, ...]
    carry: Any  # leaves [B, ...]
    lengths: Any  # [B]
    resets: Any  # [T, B]
    ct_carry: Any  # leaves [B, ...]
    ct_ys: Any  # [T, B, ...]
    mask: Any = None  # [T, B]


class Results(NamedTuple):
    """The results of `unroll`, and the gradients with respect to its arguments."""

    carry: Any
    ys: Any
    params_grad: Any
    xs_grad: Any
    carry_grad: Any


def random_params(cell: jrnn.Layer, seed: int, input_size: int, dtype: Any = np.float64) -> Any:
    """Returns random parameters; biases and peepholes are random too, because zeros hide errors."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(dtype), shapes)


def random_batch(
    cell: Cell, params: Any, seed: int, steps: int, batch: int, dtype: Any = np.float64
) -> Batch:
    """Returns a random batch of float arrays in `dtype`.

    The lengths are evenly spaced from 0 to T, in random order; each step has a reset with
    probability 0.3.
    """
    rng = np.random.default_rng(seed)
    size = input_size_of(params)

    def run_step(params: Any) -> tuple[Any, Any]:
        carry = cell.init_carry(params, (batch,))
        return carry, cell.step(params, carry, cell.inputs(size, (batch,)))[1]

    carry, y = jax.eval_shape(run_step, params)
    sample_like = lambda tree: jax.tree.map(lambda leaf: normal_like(rng, leaf, dtype), tree)
    lengths = rng.permutation(np.linspace(0, steps, batch).round()).astype(np.int32)
    return Batch(
        xs=sample_like(jax.eval_shape(lambda: cell.inputs(size, (steps, batch)))),
        carry=sample_like(carry),
        lengths=lengths,
        resets=rng.random((steps, batch)) < 0.3,
        ct_carry=differentiable_leaves(sample_like(carry)),
        ct_ys=rng.normal(size=(steps, *y.shape)).astype(dtype),
    )


def input_size_of(params: Any) -> int:
    """Returns the input size, from the shape of the first input weights `w_ih`."""
    leaves_with_path, _ = jax.tree_util.tree_flatten_with_path(params)
    return next(
        leaf.shape[-2]
        for path, leaf in leaves_with_path
        if jax.tree_util.keystr(path[-1:]) == ".w_ih"
    )


def differentiable_leaves(tree: Any) -> Any:
    """Replaces leaves without derivatives, such as a step counter, by None."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def add_float0_cotangents(tree: Any, cts: Any) -> Any:
    """Replaces None in `cts` by float0 zeros, which JAX requires for leaves without derivatives."""
    zeros = lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0)
    return jax.tree.map(lambda leaf, ct: zeros(leaf) if ct is None else ct, tree, cts)


def normal_like(rng: np.random.Generator, leaf: Any, dtype: Any) -> np.ndarray:
    """Samples normal numbers in the shape of the leaf, complex if it is complex.

    If it is an integer leaf, samples integers from 0 to 4 in its own dtype.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return rng.integers(0, 5, leaf.shape).astype(leaf.dtype)
    values = rng.normal(size=leaf.shape)
    if is_complex(leaf):
        values = values + 1j * rng.normal(size=leaf.shape)
    return values.astype(complex_dtype(dtype) if is_complex(leaf) else dtype)


def is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def complex_dtype(dtype: Any) -> np.dtype:
    """Returns the complex dtype for a real dtype: complex128 for float64, otherwise complex64."""
    return np.dtype(np.complex128 if jnp.dtype(dtype) == np.float64 else np.complex64)


def as_dtype(tree: Any, dtype: Any) -> Any:
    """Casts real leaves to NumPy arrays of `dtype`, and complex ones to `complex_dtype(dtype)`.

    Leaves that are not floating-point, such as integers, do not change.
    """

    def cast(leaf: Any) -> Any:
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return leaf
        return np.asarray(leaf, complex_dtype(dtype) if is_complex(array) else dtype)

    return jax.tree.map(cast, tree)


def cast_batch(batch: Batch, xs_dtype: Any, ys_dtype: Any, carry_dtype: Any) -> Batch:
    """Casts the inputs, the cotangents of outputs, and the carries of a batch."""
    return batch._replace(
        xs=batch.xs.astype(xs_dtype),
        carry=as_dtype(batch.carry, carry_dtype),
        ct_ys=batch.ct_ys.astype(ys_dtype),
        ct_carry=as_dtype(batch.ct_carry, carry_dtype),
    )


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    """Asserts that two pytrees have the same structure and nearly equal leaves.

    The tolerance of a leaf is relative to its largest expected absolute value if that is above 1,
    and absolute otherwise.
    """
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        assert is_complex(a) == is_complex(b), jax.tree_util.keystr(path)
        a, b = (np.asarray(leaf, np.complex128 if is_complex(b) else np.float64) for leaf in (a, b))
        scale = max(1.0, np.nanmax(np.abs(b), initial=0.0))
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def unroll_scenario(
    cell: Cell, engine: Engine, scenario: Scenario, params: Any, batch: Batch
) -> tuple[Any, Any]:
    """Calls `unroll` with the optional arguments of the scenario, and the mask of the batch."""
    return jrnn.unroll(
        cell,
        params,
        batch.xs,
        batch.carry if scenario.carry else None,
        lengths=batch.lengths if scenario.lengths else None,
        mask=batch.mask,
        resets=batch.resets if scenario.resets else None,
        reverse=scenario.reverse,
        engine=engine,
    )


@partial(jax.jit, static_argnames=("cell", "engine", "scenarios"))
def unroll_all(
    cell: Cell, engine: Engine, scenarios: tuple[Scenario, ...], params: Any, batch: Batch
) -> list[tuple[Any, Any]]:
    """Returns the results of `unroll` for each scenario, with one compilation."""
    return [unroll_scenario(cell, engine, scenario, params, batch) for scenario in scenarios]


def _differentiate_all(
    cell: Cell, engine: Engine, scenarios: tuple[Scenario, ...], params: Any, batch: Batch
) -> list[Results]:
    """Returns the results and gradients of `unroll` for each scenario, with one compilation."""

    def differentiate_scenario(scenario: Scenario) -> Results:
        run = lambda p, xs, c: unroll_scenario(
            cell, engine, scenario, p, batch._replace(xs=xs, carry=c)
        )
        (carry, ys), vjp = jax.vjp(run, params, batch.xs, batch.carry)
        return Results(
            carry,
            ys,
            *differentiable_leaves(
                vjp((add_float0_cotangents(carry, batch.ct_carry), batch.ct_ys))
            ),
        )

    return [differentiate_scenario(scenario) for scenario in scenarios]


differentiate_all = jax.jit(_differentiate_all, static_argnames=("cell", "engine", "scenarios"))


def differentiate(
    cell: Cell, engine: Engine, params: Any, batch: Batch, reverse: bool = False
) -> Results:
    """Returns results and gradients of `unroll` with a carry, lengths, resets and any mask."""
    return differentiate_all(cell, engine, (Scenario(reverse=reverse),), params, batch)[0]


def select_sequence(tree: Any, b: int) -> Any:
    """Selects sequence b from leaves `[B, ...]`."""
    return jax.tree.map(lambda leaf: leaf[b], tree)


def shape_of(batch: Batch) -> tuple[int, int]:
    """Returns T and B of a batch."""
    return jax.tree.leaves(batch.xs)[0].shape[:2]


def input_at(xs: Any, t: int, b: int) -> Any:
    """Returns the input of sequence b at step t."""
    return jax.tree.map(lambda leaf: leaf[t, b], xs)


def scan_order(scenario: Scenario, batch: Batch, b: int) -> list[int]:
    """Returns the valid steps of sequence b, in scan order."""
    steps, _ = shape_of(batch)
    valid = range(min(steps, batch.lengths[b]) if scenario.lengths else steps)
    valid = [t for t in valid if batch.mask is None or batch.mask[t, b]]
    return list(reversed(valid)) if scenario.reverse else list(valid)


def oracle(row: Row, scenario: Scenario, params: Any, batch: Batch) -> tuple[Any, np.ndarray]:
    """Returns the final carry and outputs of a loop over sequences, by the NumPy step of `row`."""
    _, batch_size = shape_of(batch)
    ys, carries = np.zeros_like(batch.ct_ys, np.float64), []
    for b in range(batch_size):
        initial_carry = row.init_carry(params)
        carry = select_sequence(batch.carry, b) if scenario.carry else initial_carry
        for t in scan_order(scenario, batch, b):
            if scenario.resets and batch.resets[t, b]:
                carry = initial_carry
            carry, ys[t, b] = row.step(params, carry, input_at(batch.xs, t, b))
        carries.append(carry)
    if not carries:
        return batch.carry, ys
    return jax.tree.map(lambda *leaves: np.stack(leaves), *carries), ys


def oracle_loss(row: Row, scenario: Scenario, params: Any, batch: Batch) -> float:
    """Returns the inner product of the results of the oracle with the cotangents of the batch."""
    return inner_product(oracle(row, scenario, params, batch), (batch.ct_carry, batch.ct_ys))


def inner_product(tree: Any, other: Any) -> Any:
    """Returns the real part of the sum of the products of all elements of two trees.

    No factor is conjugated, as for values and cotangents in `jax.vjp`. Leaves for which `other`
    has None are omitted.
    """
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, treedef.flatten_up_to(other), strict=True)
    return sum((a * b).sum().real for a, b in pairs if b is not None)


def central_differences(
    row: Row, scenario: Scenario, params: Any, batch: Batch, eps: float = 1e-5
) -> Any:
    """Returns the gradient of `oracle_loss` with respect to params, xs and carry.

    For complex elements it is dL/dRe - i dL/dIm, as in JAX.
    """
    leaves, treedef = jax.tree.flatten((params, batch.xs, batch.carry))

    def loss(n: int, index: tuple[int, ...], step: complex) -> float:
        perturbed = [leaf.copy() if n == k else leaf for k, leaf in enumerate(leaves)]
        perturbed[n][index] += step
        p, xs, carry = jax.tree.unflatten(treedef, perturbed)
        return oracle_loss(row, scenario, p, batch._replace(xs=xs, carry=carry))

    slope = lambda n, index, step: (loss(n, index, step) - loss(n, index, -step)) / (2 * eps)
    grads = [np.zeros_like(leaf) for leaf in leaves]
    for n, leaf in enumerate(leaves):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        for index in np.ndindex(leaf.shape):
            grads[n][index] = slope(n, index, eps)
            if is_complex(leaf):
                grads[n][index] -= 1j * slope(n, index, 1j * eps)
    return differentiable_leaves(jax.tree.unflatten(treedef, grads))


@partial(jax.jit, static_argnames="cell")
def step_vjp(cell: Cell, params: Any, carry: Any, x: Any, ct_y: Any, ct_carry: Any) -> Any:
    """Returns `(carry, y)` of a step of one sequence, and the gradients of params, carry and x."""
    results, vjp = jax.vjp(cell.step, params, carry, x)
    return results, differentiable_leaves(vjp((add_float0_cotangents(carry, ct_carry), ct_y)))


@partial(jax.jit, static_argnames="cell")
def init_carry_vjp(cell: Cell, params: Any, cotangent: Any) -> tuple[Any, Any]:
    """Returns the initial carry of one sequence, and the gradient of the parameters through it."""
    carry, vjp = jax.vjp(lambda p: cell.init_carry(p, ()), params)
    return carry, vjp(add_float0_cotangents(carry, cotangent))[0]


def loop_grads(cell: Cell, scenario: Scenario, params: Any, batch: Batch) -> Any:
    """Computes reference gradients of params, xs and carry, in a loop over sequences and steps."""
    _, batch_size = shape_of(batch)
    if batch_size == 0:
        return jax.tree.map(np.zeros_like, (params, batch.xs, differentiable_leaves(batch.carry)))
    grads = [sequence_grads(cell, scenario, params, batch, b) for b in range(batch_size)]
    params_grad, xs_grad, carry_grad = zip(*grads, strict=True)
    return (
        jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *params_grad),
        jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *xs_grad),
        jax.tree.map(lambda *leaves: np.stack(leaves), *carry_grad),
    )


def assert_equals_loop(
    row: Row,
    cell: jrnn.Layer,
    scenario: Scenario,
    got: Results,
    params: Any,
    batch: Batch,
    rtol: float,
) -> None:
    """Asserts that results and gradients equal those of a loop over sequences and steps.

    The results are compared with the NumPy oracle of the row; the gradients with those of
    `cell.step`, which must compute the same function.
    """
    assert_close((got.carry, got.ys), oracle(row, scenario, params, batch), rtol)
    assert_close(tuple(got[2:]), loop_grads(cell, scenario, params, batch), rtol)


def sequence_grads(cell: Cell, scenario: Scenario, params: Any, batch: Batch, b: int) -> Any:
    """Computes the gradients of params, xs and carry that come from sequence b.

    This is backpropagation through time in a Python loop.
    """
    zeros, add = partial(jax.tree.map, np.zeros_like), partial(jax.tree.map, np.add)
    batch_carry, ct_carry = select_sequence((batch.carry, batch.ct_carry), b)
    initial_carry, _ = init_carry_vjp(cell, params, ct_carry)
    xs = jax.tree.map(lambda leaf: leaf[:, b], batch.xs)
    params_grad, ct_initial, xs_grad = zeros((params, ct_carry, xs))
    steps = scan_order(scenario, batch, b)
    reset_steps = [t for t in steps if scenario.resets and batch.resets[t, b]]

    carry, prev_carries = batch_carry if scenario.carry else initial_carry, {}
    for t in steps:
        prev_carries[t] = initial_carry if t in reset_steps else carry
        args = cell, params, prev_carries[t], input_at(batch.xs, t, b), batch.ct_ys[t, b], ct_carry
        (carry, _), _ = step_vjp(*args)

    for t in reversed(steps):
        args = cell, params, prev_carries[t], input_at(batch.xs, t, b), batch.ct_ys[t, b], ct_carry
        _, (step_grad, ct_carry, x_grad) = step_vjp(*args)
        for leaf, x_leaf in zip(*map(jax.tree.leaves, (xs_grad, x_grad)), strict=True):
            leaf[t] = x_leaf
        params_grad = add(params_grad, step_grad)
        if t in reset_steps:
            ct_initial, ct_carry = add(ct_initial, ct_carry), zeros(ct_carry)
    if not scenario.carry:
        ct_initial, ct_carry = add(ct_initial, ct_carry), zeros(ct_carry)
    return add(params_grad, init_carry_vjp(cell, params, ct_initial)[1]), xs_grad, ct_carry


def free_port() -> int:
    """Returns a free TCP port of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def public_names(module: ModuleType) -> dict[str, Any]:
    """Returns the values of all names in `__all__`, some of which may be imported on first use."""
    return {name: getattr(module, name) for name in module.__all__}
