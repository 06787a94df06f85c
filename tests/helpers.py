"""Random inputs, comparisons, and slow reference implementations for the tests."""

import contextlib
import itertools
import socket
from collections.abc import Iterable, Iterator
from functools import partial
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
def compiled() -> Iterator[list[str]]:
    """Records the compilations within the context, one entry each."""
    names: list[str] = []
    listener = lambda name, seconds, **_: names.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def cache_size(jitted: Any) -> int:
    """The number of compilations of a jitted function."""
    return jitted._cache_size()


class Scenario(NamedTuple):
    """Which optional arguments are passed to `unroll`."""

    lengths: bool = True
    resets: bool = True
    carry: bool = True
    reverse: bool = False


SCENARIOS = tuple(Scenario(*flags) for flags in itertools.product([False, True], repeat=4))
HALF_OF_SCENARIOS = tuple(
    scenario for scenario in SCENARIOS if sum(scenario) % 2 == 0
)  # any three of the four in all combinations


def mark_exhaustive(cases: Iterable[Any], *, always: Iterable[Any]) -> list[Any]:
    """Marks all values of a test parameter as exhaustive, except those in `always`."""
    as_tuple = lambda case: case if type(case) is tuple else (case,)
    values, unmarked = [as_tuple(case) for case in cases], [as_tuple(case) for case in always]
    assert all(case in values for case in unmarked), "an unknown case"
    mark = pytest.mark.exhaustive
    return [pytest.param(*case, marks=[] if case in unmarked else [mark]) for case in values]


class Batch(NamedTuple):
    """The arguments of a run except the parameters, and cotangents of its results."""

    xs: Any  # leaves [T, B, ...]
    carry: Any  # leaves [B, ...]
    lengths: Any  # [B]
    resets: Any  # [T, B]
    ct_carry: Any
    ct_ys: Any  # [T, B, output]
    mask: Any = None  # [T, B]


class Results(NamedTuple):
    """The results of a run, and the gradients of its arguments."""

    carry: Any
    ys: Any
    params_grad: Any
    xs_grad: Any
    carry_grad: Any


def random_params(cell: jrnn.Layer, seed: int, input_size: int, dtype: Any = np.float64) -> Any:
    """Random parameters, also for biases and peepholes, since zeros would hide errors."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, input_size), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(dtype), shapes)


def random_batch(
    cell: Cell, params: Any, seed: int, steps: int, batch: int, dtype: Any = np.float64
) -> Batch:
    """A random batch, with lengths from 0 to T and resets at a third of the steps."""
    rng = np.random.default_rng(seed)
    size = input_size_of(params)

    def one(params: Any) -> tuple[Any, Any]:
        carry = cell.init_carry(params, (batch,))
        return carry, cell.step(params, carry, cell.inputs(size, (batch,)))[1]

    carry, y = jax.eval_shape(one, params)
    like = lambda tree: jax.tree.map(lambda leaf: normal_like(rng, leaf, dtype), tree)
    lengths = rng.permutation(np.linspace(0, steps, batch).round()).astype(np.int32)
    return Batch(
        xs=like(jax.eval_shape(lambda: cell.inputs(size, (steps, batch)))),
        carry=like(carry),
        lengths=lengths,
        resets=rng.random((steps, batch)) < 0.3,
        ct_carry=differentiable_leaves(like(carry)),
        ct_ys=rng.normal(size=(steps, *y.shape)).astype(dtype),
    )


def input_size_of(params: Any) -> int:
    """The size of the last axis of inputs, from the first input weights of the parameters."""
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    return next(
        leaf.shape[-2] for path, leaf in named if jax.tree_util.keystr(path[-1:]) == ".w_ih"
    )


def differentiable_leaves(tree: Any) -> Any:
    """Replaces leaves without derivatives, such as a step counter, by None."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def cotangents(tree: Any, cts: Any) -> Any:
    """Cotangents as JAX requires them, with float0 zeros for leaves without derivatives."""
    zeros = lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0)
    return jax.tree.map(lambda leaf, ct: zeros(leaf) if ct is None else ct, tree, cts)


def normal_like(rng: np.random.Generator, leaf: Any, dtype: Any) -> np.ndarray:
    """Normal random values like the leaf, in both parts if it is complex; small ints for ints."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return rng.integers(0, 5, leaf.shape).astype(leaf.dtype)
    drawn = rng.normal(size=leaf.shape)
    if is_complex(leaf):
        drawn = drawn + 1j * rng.normal(size=leaf.shape)
    return drawn.astype(complex_dtype(dtype) if is_complex(leaf) else dtype)


def is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def complex_dtype(dtype: Any) -> np.dtype:
    """The complex dtype of a real dtype: complex128 for float64, else complex64."""
    return np.dtype(np.complex128 if jnp.dtype(dtype) == np.float64 else np.complex64)


def as_dtype(tree: Any, dtype: Any) -> Any:
    """Casts floating leaves to NumPy arrays of `dtype`, complex leaves to its complex dtype."""

    def cast(leaf: Any) -> Any:
        kind = np.asarray(leaf)
        if not jnp.issubdtype(kind.dtype, jnp.inexact):
            return leaf
        return np.asarray(leaf, complex_dtype(dtype) if is_complex(kind) else dtype)

    return jax.tree.map(cast, tree)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Compares two pytrees leaf by leaf, relative to the largest value of each leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    named, wanted = jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)
    for (path, g), w in zip(named, wanted, strict=True):
        g, w = np.asarray(g), np.asarray(w)
        assert is_complex(g) == is_complex(w), jax.tree_util.keystr(path)
        g, w = (np.asarray(a, np.complex128 if is_complex(w) else np.float64) for a in (g, w))
        scale = max(1.0, np.nanmax(np.abs(w), initial=0.0))
        np.testing.assert_allclose(
            g, w, rtol=tolerance, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def call(
    cell: Cell, engine: Engine, scenario: Scenario, params: Any, batch: Batch
) -> tuple[Any, Any]:
    """Calls `unroll` with the optional arguments of the scenario."""
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
    """The values of `unroll` for each scenario, in one compilation."""
    return [call(cell, engine, scenario, params, batch) for scenario in scenarios]


def _differentiate_all(
    cell: Cell, engine: Engine, scenarios: tuple[Scenario, ...], params: Any, batch: Batch
) -> list[Results]:
    """The values and gradients of `unroll` for each scenario, in one compilation."""

    def one(scenario: Scenario) -> Results:
        run = lambda p, xs, c: call(cell, engine, scenario, p, batch._replace(xs=xs, carry=c))
        (carry, ys), vjp = jax.vjp(run, params, batch.xs, batch.carry)
        return Results(
            carry, ys, *differentiable_leaves(vjp((cotangents(carry, batch.ct_carry), batch.ct_ys)))
        )

    return [one(scenario) for scenario in scenarios]


differentiate_all = jax.jit(_differentiate_all, static_argnames=("cell", "engine", "scenarios"))


def differentiate(
    cell: Cell, engine: Engine, params: Any, batch: Batch, reverse: bool = False
) -> Results:
    """The values and gradients of `unroll` with all optional arguments."""
    return differentiate_all(cell, engine, (Scenario(reverse=reverse),), params, batch)[0]


def select_sequence(tree: Any, b: int) -> Any:
    """Selects sequence b from leaves `[B, ...]`."""
    return jax.tree.map(lambda leaf: leaf[b], tree)


def shape_of(batch: Batch) -> tuple[int, int]:
    """The number of steps and of sequences of a batch."""
    return jax.tree.leaves(batch.xs)[0].shape[:2]


def input_at(xs: Any, t: int, b: int) -> Any:
    """The input of sequence b at step t."""
    return jax.tree.map(lambda leaf: leaf[t, b], xs)


def scan_order(scenario: Scenario, batch: Batch, b: int) -> list[int]:
    """The valid steps of sequence b, in scan order."""
    steps, _ = shape_of(batch)
    valid = range(min(steps, batch.lengths[b]) if scenario.lengths else steps)
    valid = [t for t in valid if batch.mask is None or batch.mask[t, b]]
    return list(reversed(valid)) if scenario.reverse else list(valid)


def oracle(row: Row, scenario: Scenario, params: Any, batch: Batch) -> tuple[Any, np.ndarray]:
    """Reference results: each sequence separately, step by step, by the NumPy step of the paper."""
    steps, rows = shape_of(batch)
    ys, carries = np.zeros_like(batch.ct_ys, np.float64), []
    for b in range(rows):
        start = row.init_carry(params)
        carry = select_sequence(batch.carry, b) if scenario.carry else start
        for t in scan_order(scenario, batch, b):
            if scenario.resets and batch.resets[t, b]:
                carry = start
            carry, ys[t, b] = row.step(params, carry, input_at(batch.xs, t, b))
        carries.append(carry)
    if not carries:
        return batch.carry, ys
    return jax.tree.map(lambda *leaves: np.stack(leaves), *carries), ys


def oracle_loss(row: Row, scenario: Scenario, params: Any, batch: Batch) -> float:
    """The inner product of the results of the oracle with the cotangents of the batch."""
    return inner(oracle(row, scenario, params, batch), (batch.ct_carry, batch.ct_ys))


def inner(tree: Any, other: Any) -> Any:
    """The inner product of two trees, without conjugation; the real part, as in `jax.vjp`."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, structure.flatten_up_to(other), strict=True)
    return sum((a * b).sum().real for a, b in pairs if b is not None)


def central_differences(
    row: Row, scenario: Scenario, params: Any, batch: Batch, eps: float = 1e-5
) -> Any:
    """The gradient of `oracle_loss` by params, xs and carry, element by element.

    For complex elements it is dL/dRe - i dL/dIm, the convention of JAX.
    """
    leaves, structure = jax.tree.flatten((params, batch.xs, batch.carry))

    def loss(n: int, index: tuple[int, ...], step: complex) -> float:
        perturbed = [leaf.copy() if n == k else leaf for k, leaf in enumerate(leaves)]
        perturbed[n][index] += step
        p, xs, carry = jax.tree.unflatten(structure, perturbed)
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
    return differentiable_leaves(jax.tree.unflatten(structure, grads))


@partial(jax.jit, static_argnames="cell")
def step_vjp(cell: Cell, params: Any, carry: Any, x: Any, ct_y: Any, ct_carry: Any) -> Any:
    """One step of one sequence, and the cotangents of params, carry and x."""
    after, vjp = jax.vjp(cell.step, params, carry, x)
    return after, differentiable_leaves(vjp((cotangents(carry, ct_carry), ct_y)))


@partial(jax.jit, static_argnames="cell")
def start_vjp(cell: Cell, params: Any, cotangent: Any) -> tuple[Any, Any]:
    """The initial carry of one sequence, and the gradient of the parameters through it."""
    start, vjp = jax.vjp(lambda p: cell.init_carry(p, ()), params)
    return start, vjp(cotangents(start, cotangent))[0]


def loop_grads(cell: Cell, scenario: Scenario, params: Any, batch: Batch) -> Any:
    """Reference gradients by params, xs and carry, sequence by sequence."""
    rows = range(shape_of(batch)[1])
    if not rows:
        return jax.tree.map(np.zeros_like, (params, batch.xs, differentiable_leaves(batch.carry)))
    grads = [sequence_grads(cell, scenario, params, batch, b) for b in rows]
    params_grad, xs_grad, carry_grad = zip(*grads, strict=True)
    return (
        jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *params_grad),
        jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *xs_grad),
        jax.tree.map(lambda *leaves: np.stack(leaves), *carry_grad),
    )


def sequence_grads(cell: Cell, scenario: Scenario, params: Any, batch: Batch, b: int) -> Any:
    """Backpropagation through time step by step, for sequence b."""
    zeros, add = partial(jax.tree.map, np.zeros_like), partial(jax.tree.map, np.add)
    first_carry, ct_carry = select_sequence((batch.carry, batch.ct_carry), b)
    start, _ = start_vjp(cell, params, ct_carry)
    xs = jax.tree.map(lambda leaf: leaf[:, b], batch.xs)
    params_grad, ct_start, xs_grad = zeros((params, ct_carry, xs))
    steps = scan_order(scenario, batch, b)
    reset_steps = [t for t in steps if scenario.resets and batch.resets[t, b]]

    carry, prev_carries = first_carry if scenario.carry else start, {}
    for t in steps:
        prev_carries[t] = start if t in reset_steps else carry
        args = cell, params, prev_carries[t], input_at(batch.xs, t, b), batch.ct_ys[t, b], ct_carry
        (carry, _), _ = step_vjp(*args)

    for t in reversed(steps):
        args = cell, params, prev_carries[t], input_at(batch.xs, t, b), batch.ct_ys[t, b], ct_carry
        _, (step_grad, ct_carry, x_grad) = step_vjp(*args)
        for leaf, x_leaf in zip(*map(jax.tree.leaves, (xs_grad, x_grad)), strict=True):
            leaf[t] = x_leaf
        params_grad = add(params_grad, step_grad)
        if t in reset_steps:
            ct_start, ct_carry = add(ct_start, ct_carry), zeros(ct_carry)
    if not scenario.carry:
        ct_start, ct_carry = add(ct_start, ct_carry), zeros(ct_carry)
    return add(params_grad, start_vjp(cell, params, ct_start)[1]), xs_grad, ct_carry


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
