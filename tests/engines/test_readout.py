"""Readouts computed in the loop over time, and for all steps after the loop."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import Fused, Scan
from jrnn.engines.precision import bind, infer_precision
from jrnn.engines.readout import IN_LOOP_MIN_BATCH, split_readout
from jrnn.masking import step_shapes
from tests.helpers import (
    Scenario,
    assert_close,
    assert_equals_loop,
    differentiate_all,
    random_batch,
    random_params,
)
from tests.table import CELLS

# Cells whose readout multiplies by parameters.
WITH_PRODUCTS = ("lru", "s5", "lstm-projected", "projection-gru")
SCENARIOS = (Scenario(lengths=True, resets=True, carry=True), Scenario(reverse=True, lengths=True))


@pytest.mark.parametrize(
    "batch", [IN_LOOP_MIN_BATCH - 1, IN_LOOP_MIN_BATCH + 1], ids=["after-loop", "in-loop"]
)
@pytest.mark.parametrize("name", WITH_PRODUCTS)
def test_values_and_gradients_equal_a_loop(name: str, batch: int, x64: None) -> None:
    row = CELLS[name]
    cell = row.make(3)
    params = random_params(cell, 1, input_size=2)
    given = random_batch(cell, params, 2, steps=4, batch=batch)
    for engine in (Scan(), Fused(chunk=3), Fused(chunk=2, remat=True)):
        results = differentiate_all(cell, engine, SCENARIOS, params, given)
        for scenario, got in zip(SCENARIOS, results, strict=True):
            assert_equals_loop(row, cell, scenario, got, params, given, 1e-10)


@pytest.mark.parametrize(
    ("name", "batch", "deferred"),
    [
        *((name, IN_LOOP_MIN_BATCH - 1, True) for name in WITH_PRODUCTS),
        *((name, IN_LOOP_MIN_BATCH, False) for name in WITH_PRODUCTS),
        ("mlstm", 1, False),  # its readout has a product, but not by parameters
        ("lstm", 1, False),
        ("zoneout-lstm", 1, False),
    ],
)
def test_products_are_deferred_for_small_batches(name: str, batch: int, deferred: bool) -> None:
    cell = CELLS[name].make(4)
    params = cell.init(jax.random.key(0), 2)
    xs = cell.inputs(2, (5, batch))
    bound = bind(cell, params, infer_precision(params, xs))
    carry = cell.init_carry(params, (batch,))
    readout = split_readout(bound, carry, step_shapes(xs))
    z = bound.project(jax.tree.map(lambda leaf: leaf[0], xs))
    out = jax.eval_shape(readout.in_loop, bound, carry, z)
    y = jax.eval_shape(bound.readout, carry, z)
    assert (jax.tree.structure(out) != jax.tree.structure(y)) is deferred


def test_loop_returns_only_the_leaves_that_readout_reads() -> None:
    cell = CELLS["projection-gru"].make(4)
    params = cell.init(jax.random.key(0), 2)
    xs: Any = np.ones((5, 1, 2), np.float32)
    bound = bind(cell, params, infer_precision(params, xs))
    readout = split_readout(bound, cell.init_carry(params, (1,)), step_shapes(xs))
    z = bound.project(xs[0])
    out = jax.eval_shape(readout.in_loop, bound, cell.init_carry(params, (1,)), z)
    assert [leaf.shape for leaf in jax.tree.leaves(out)] == [(1, 4)]


@dataclass(frozen=True)
class UnitNorm(jrnn.Elman):
    """A normalized output times a matrix, which has no derivative at zero."""

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return (carry / jnp.linalg.norm(carry, axis=-1, keepdims=True)) @ params.w_hh


@pytest.mark.parametrize("engine", ["scan", "fused", "native", "newton"])
@pytest.mark.parametrize("batch", [IN_LOOP_MIN_BATCH - 2, IN_LOOP_MIN_BATCH + 1])
def test_gradients_ignore_padding_if_readout_is_singular_at_zero(engine: str, batch: int) -> None:
    cell = UnitNorm(3)
    params = random_params(cell, 1, 2, np.float32)
    xs = random_batch(cell, params, 2, 4, batch, np.float32).xs
    lengths = np.array([4, 2, 1, 3, 2][:batch])

    def loss(params: Any, xs: Any, engine: str) -> Any:
        return (jrnn.unroll(cell, params, xs, lengths=lengths, engine=engine)[1] ** 3).sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    separate = [
        jax.grad(loss_of_one, argnums=(0, 1))(params, xs[:n, b], cell)
        for b, n in enumerate(lengths)
    ]
    want = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *(g for g, _ in separate))
    got, by_xs = grads(params, xs, engine)
    assert_close(got, want, 1e-5)
    for b, n in enumerate(lengths):
        assert_close(by_xs[:n, b], separate[b][1], 1e-5)
        assert not by_xs[n:, b].any()


def loss_of_one(params: Any, xs: Any, cell: jrnn.Cell) -> Any:
    """Returns the loss of one sequence without padding, step by step."""
    carry, total = cell.init_carry(params, ()), 0.0
    for x in xs:
        carry, y = cell.step(params, carry, x)
        total += (y**3).sum()
    return total
