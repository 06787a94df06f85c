"""Forward mode, second derivatives and vmap of `unroll`, against finite differences and loops."""

from typing import Any

import jax
import numpy as np

from jrnn import Cell, Engine, Scan
from tests.helpers import (
    Batch,
    Scenario,
    assert_close,
    differentiate_all,
    inner_product,
    loop_grads,
    normal_like,
    oracle,
    random_batch,
    random_params,
    unroll_scenario,
)
from tests.table import Row

EPS = 1e-5
SCAN = Scan()  # supports derivatives of any order and mode
Point = tuple[Any, Any, Any]  # params, xs, carry


def make_example(cell: Cell, seed: int = 1) -> tuple[Batch, Point, Point]:
    """Returns a batch, the point at which `unroll` is differentiated, and a direction."""
    params = random_params(cell, seed, 2)
    batch = random_batch(cell, params, seed + 1, steps=5, batch=3)
    point = (params, batch.xs, batch.carry)
    rng = np.random.default_rng(seed + 2)
    return batch, point, jax.tree.map(lambda leaf: normal_like(rng, leaf, np.float64), point)


def replace_point(batch: Batch, point: Point) -> tuple[Any, Batch]:
    """Returns the parameters of a point, and the batch with its inputs and its carry."""
    params, xs, carry = point
    return params, batch._replace(xs=xs, carry=carry)


def central_difference(function: Any, point: Point, direction: Point) -> Any:
    """Returns the central difference of a function along the direction."""
    ahead, behind = (
        function(jax.tree.map(lambda p, v, e=step: p + e * v, point, direction))
        for step in (EPS, -EPS)
    )
    return jax.tree.map(lambda a, b: (a - b) / (2 * EPS), ahead, behind)


def test_forward_mode_equals_finite_differences(kind: Row, reverse: bool, x64: None) -> None:
    cell, scenario = kind.make(3), Scenario(reverse=reverse)
    batch, point, direction = make_example(cell)
    run = lambda *point: unroll_scenario(cell, SCAN, scenario, *replace_point(batch, point))
    jvp = jax.jit(lambda p, v: jax.jvp(run, p, v))
    expected = central_difference(
        lambda p: oracle(kind, scenario, *replace_point(batch, p)), point, direction
    )
    assert_close(jvp(point, direction)[1], expected, 1e-8)


def test_second_derivatives_equal_finite_differences(kind: Row, x64: None) -> None:
    cell, scenario = kind.make(3), Scenario()
    batch, point, direction = make_example(cell)
    loss = lambda p: inner_product(
        unroll_scenario(cell, SCAN, scenario, *replace_point(batch, p)),
        (batch.ct_carry, batch.ct_ys),
    )
    hessian_product = lambda p, v: jax.grad(lambda p: inner_product(jax.grad(loss)(p), v))(p)
    expected = central_difference(
        lambda p: loop_grads(cell, scenario, *replace_point(batch, p)), point, direction
    )
    assert_close(jax.jit(hessian_product)(point, direction), expected, 1e-7)


def test_vmap_equals_a_loop(kind: Row, engine: Engine, x64: None) -> None:
    cell, scenario = kind.make(3), Scenario()
    cases = [
        replace_point(batch, point)
        for batch, point, _ in (make_example(cell, seed) for seed in (1, 2, 3))
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    run = lambda params, batch: differentiate_all(cell, engine, (scenario,), params, batch)[0]
    mapped = jax.jit(jax.vmap(run))(*stacked)
    for n, (params, batch) in enumerate(cases):
        got = jax.tree.map(lambda leaf, n=n: leaf[n], mapped)
        assert_close((got.carry, got.ys), oracle(kind, scenario, params, batch), 1e-10)
        assert_close(tuple(got[2:]), loop_grads(cell, scenario, params, batch), 1e-10)
