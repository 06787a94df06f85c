"""`unroll` against slow references: equations in NumPy, loops, and finite differences."""

from functools import partial
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays

import jrnn
from jrnn import Engine
from tests.cells.toys import LearnedInitialCarry
from tests.compilation import OPTIMIZED
from tests.helpers import (
    HALF_OF_SCENARIOS,
    SCENARIOS,
    Batch,
    Scenario,
    as_dtype,
    assert_close,
    assert_equals_loop,
    central_differences,
    differentiate_all,
    loop_grads,
    oracle,
    random_batch,
    random_params,
    unroll_all,
)
from tests.table import CELLS, KINDS, Row

# A carry, lengths and resets, in both directions.
FULL_SCENARIOS = (Scenario(), Scenario(reverse=True))


def make_example(row: Row) -> tuple[jrnn.Cell, object, Batch]:
    """Returns a cell with 3 hidden units and 2 inputs, its parameters, and a batch."""
    cell = row.make(3)
    params = random_params(cell, 1, input_size=2)
    return cell, params, random_batch(cell, params, 2, steps=5, batch=3)


def test_values_and_gradients_equal_a_loop_in_float64(kind: Row, engine: Engine, x64: None) -> None:
    cell, params, batch = make_example(kind)
    results = differentiate_all(cell, engine, HALF_OF_SCENARIOS, params, batch)
    for scenario, got in zip(HALF_OF_SCENARIOS, results, strict=True):
        assert_equals_loop(kind, cell, scenario, got, params, batch, 1e-10)
        if scenario in (HALF_OF_SCENARIOS[0], HALF_OF_SCENARIOS[-1]):
            assert_close(tuple(got[2:]), central_differences(kind, scenario, params, batch), 1e-8)


@pytest.mark.parametrize("name", [name for name in CELLS if name not in KINDS])
def test_values_equal_the_oracle_and_gradients_finite_differences(
    name: str, engine: Engine, x64: None
) -> None:
    # One scan direction for each engine; the exhaustive suite has all scenarios.
    row, scenario = CELLS[name], Scenario(reverse=isinstance(engine, jrnn.Fused))
    cell, params, batch = make_example(row)
    (got,) = differentiate_all(cell, engine, (scenario,), params, batch)
    assert_close((got.carry, got.ys), oracle(row, scenario, params, batch), 1e-10)
    assert_close(tuple(got[2:]), central_differences(row, scenario, params, batch), 1e-8)


@pytest.mark.exhaustive
def test_every_cell_equals_a_loop_in_every_scenario(row: Row, engine: Engine, x64: None) -> None:
    cell, params, batch = make_example(row)
    results = differentiate_all(cell, engine, SCENARIOS, params, batch)
    for scenario, got in zip(SCENARIOS, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-10)
        if scenario in FULL_SCENARIOS:
            assert_close(tuple(got[2:]), central_differences(row, scenario, params, batch), 1e-8)


@pytest.mark.exhaustive
def test_values_equal_the_oracle_in_float32(kind: Row, engine: Engine) -> None:
    cell, params, batch = as_dtype(make_example(kind), np.float32)
    wide = as_dtype((params, batch), np.float64)
    for scenario, got in zip(
        SCENARIOS, unroll_all(cell, engine, SCENARIOS, params, batch), strict=True
    ):
        assert jax.tree.leaves(got)[0].real.dtype == np.float32
        assert_close(got, oracle(kind, scenario, *wide), 1e-5)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=OPTIMIZED)
def run_optimized(cell: jrnn.Cell, engine: Engine, params: Any, batch: Batch) -> Any:
    """Returns values, and values with gradients, with the default optimizations of XLA.

    There is one entry for each of `FULL_SCENARIOS`.
    """
    args = cell, engine, FULL_SCENARIOS, params, batch
    return unroll_all(*args), differentiate_all(*args)


def test_values_and_gradients_equal_a_loop_in_float32(kind: Row, engine: Engine) -> None:
    cell, params, batch = as_dtype(make_example(kind), np.float32)
    values, results = run_optimized(cell, engine, params, batch)
    with jax.enable_x64(True):
        wide = as_dtype((params, batch), np.float64)
        truths = [loop_grads(cell, scenario, *wide) for scenario in FULL_SCENARIOS]
    for scenario, value, got, truth in zip(FULL_SCENARIOS, values, results, truths, strict=True):
        assert jax.tree.leaves(value)[0].real.dtype == np.float32
        assert_close(value, oracle(kind, scenario, *wide), 1e-5)
        assert_close((got.carry, got.ys), oracle(kind, scenario, *wide), 1e-5)
        assert_close(tuple(got[2:]), truth, 1e-5)


class Shape(NamedTuple):
    """Sizes, arguments and engine of a run: all that requires another compilation."""

    steps: int
    batch: int
    input_size: int
    hidden_size: int
    scenario: Scenario
    variant: int  # selects a variant of the engine


def shapes(row: Row) -> list[Shape]:
    """Returns two random shapes for a cell. Another mask does not need another compilation."""
    rng = np.random.default_rng(list(CELLS.values()).index(row))
    return [
        Shape(
            *(int(n) for n in rng.integers([0, 0, 1, 1], [18, 5, 6, 8])),
            scenario=SCENARIOS[rng.integers(len(SCENARIOS))],
            variant=int(rng.integers(100)),
        )
        for _ in range(2)
    ]


@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_random_shapes_and_masks_equal_a_loop(
    kind: Row, engines: tuple[Engine, ...], data: st.DataObject
) -> None:
    drawn = data.draw(st.sampled_from(shapes(kind)))
    cell = kind.make(drawn.hidden_size)
    params = random_params(cell, 3, drawn.input_size)
    batch = random_batch(cell, params, 4, drawn.steps, drawn.batch)
    # Lengths are clipped to T.
    lengths = arrays(np.int32, drawn.batch, elements=st.integers(0, drawn.steps + 1))
    resets = arrays(np.bool_, (drawn.steps, drawn.batch))
    batch = batch._replace(lengths=data.draw(lengths), resets=data.draw(resets))
    engine = engines[drawn.variant % len(engines)]
    with jax.enable_x64(True):
        (got,) = differentiate_all(cell, engine, (drawn.scenario,), params, batch)
        assert_close((got.carry, got.ys), oracle(kind, drawn.scenario, params, batch), 1e-10)
        assert_close(tuple(got[2:]), loop_grads(cell, drawn.scenario, params, batch), 1e-10)


def test_zero_steps_return_the_initial_carry(kind: Row, engine: Engine, x64: None) -> None:
    cell = kind.make(3)
    params = random_params(cell, 1, input_size=2)
    batch = random_batch(cell, params, 2, steps=0, batch=2)
    got = differentiate_all(cell, engine, FULL_SCENARIOS, params, batch)
    zeros = jax.tree.map(np.zeros_like, params)
    for results in got:
        assert results.ys.shape == batch.ct_ys.shape
        assert_close(results.carry, batch.carry, 0)
        assert_close((results.params_grad, results.carry_grad), (zeros, batch.ct_carry), 0)


def test_gradients_of_a_learned_initial_carry_equal_a_loop(engine: Engine, x64: None) -> None:
    # The learned carry is the default of the initial carry, and replaces the carry at every reset.
    step = lambda params, h, x: (np.tanh(params.w_ih.T @ x + params.w_hh.T @ h),) * 2
    row = Row(LearnedInitialCarry, step, init_carry=lambda params: params.h0)
    cell, params, batch = make_example(row)
    results = differentiate_all(cell, engine, HALF_OF_SCENARIOS, params, batch)
    for scenario, got in zip(HALF_OF_SCENARIOS, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-10)
        assert_close(tuple(got[2:]), central_differences(row, scenario, params, batch), 1e-8)
