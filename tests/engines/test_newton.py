"""`Newton` against NumPy references, loops and `Scan`: values, gradients, other derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LSTM,
    IndRNN,
    Newton,
    ParaGRU,
    ParaLSTM,
    Scan,
)
from tests.cells.toys import LearnedInitialCarry, Noisy
from tests.engines import test_derivatives
from tests.engines.newton_helpers import NEWTON, make_example, solve
from tests.engines.test_derivatives import central_difference, replace_point
from tests.helpers import (
    SCENARIOS,
    Scenario,
    as_dtype,
    assert_close,
    assert_equals_loop,
    differentiate_all,
    inner_product,
    loop_grads,
    mark_exhaustive,
    oracle,
    random_batch,
    random_params,
    unroll_scenario,
)
from tests.table import CELLS, Row

FEW_SCENARIOS = SCENARIOS[::5]
VARIANTS = {
    "full": Newton(jacobian="full"),
    "block": Newton(jacobian="block"),
    "diagonal": Newton(jacobian="diagonal"),
    "damped": Newton(damping=1.0),
    "damped-block": Newton(jacobian="block", damping=0.1),
    "init-carry": Newton(init="carry"),
    "fallback-scan": Newton(fallback="scan"),
}
# The cells that the tests run with more scenarios, or also without the exhaustive tests.
DEFAULT_CELLS = ("lstm", "gru-reset-before", "paralstm", "lru", "gru", "elman-relu")
# Each variant on one cell, and on three cells in the exhaustive suite.
CELLS_AND_VARIANTS = mark_exhaustive(
    [(DEFAULT_CELLS[(n + 2 * k) % 6], name) for n, name in enumerate(VARIANTS) for k in range(3)],
    always=[(DEFAULT_CELLS[n % 6], name) for n, name in enumerate(VARIANTS)],
)


@pytest.mark.parametrize("name", mark_exhaustive(CELLS, always=DEFAULT_CELLS))
def test_values_and_gradients_equal_a_loop_in_float64(name: str, x64: None) -> None:
    row = CELLS[name]
    cell, params, batch = make_example(row)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(batch.carry)):
        pytest.skip("Newton raises for integers in the carry")
    scenarios = FEW_SCENARIOS if name in DEFAULT_CELLS else FEW_SCENARIOS[-1:]
    results = differentiate_all(cell, NEWTON, scenarios, params, batch)
    for scenario, got in zip(scenarios, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-9)


@pytest.mark.parametrize(
    "name", mark_exhaustive((*DEFAULT_CELLS, "paragru", "indrnn"), always=("lstm", "lru", "indrnn"))
)
def test_values_and_gradients_equal_a_loop_in_float32(name: str) -> None:
    row, scenario = CELLS[name], Scenario(reverse=True)
    cell, params, batch = make_example(row, np.float32)
    (got,) = differentiate_all(cell, NEWTON, (scenario,), params, batch)
    assert got.ys.dtype == np.float32
    with jax.enable_x64(True):
        wide = as_dtype((params, batch), np.float64)
        want, expected = oracle(row, scenario, *wide), loop_grads(cell, scenario, *wide)
    assert_close((got.carry, got.ys), want, 1e-4)
    assert_close(tuple(got[2:]), expected, 1e-4)


@pytest.mark.parametrize(("name", "variant"), CELLS_AND_VARIANTS)
def test_every_variant_equals_a_loop(name: str, variant: str, x64: None) -> None:
    # The solution and its gradient are exact even if the Jacobian is approximate.
    row, scenario = CELLS[name], Scenario(reverse=variant in ("block", "damped"))
    cell, params, batch = make_example(row)
    (got,) = differentiate_all(cell, VARIANTS[variant], (scenario,), params, batch)
    assert_equals_loop(row, cell, scenario, got, params, batch, 1e-9)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", ["lstm", "paragru", "lru"])
def test_zero_or_one_step_equals_a_loop(name: str, steps: int, x64: None) -> None:
    row = CELLS[name]
    cell, params, batch = make_example(row, steps=steps)
    scenarios = (Scenario(), Scenario(reverse=True))
    results = differentiate_all(cell, NEWTON, scenarios, params, batch)
    for scenario, got in zip(scenarios, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-9)


@pytest.mark.parametrize("variant", ["full", "block", "diagonal", "damped"])
def test_empty_batch_returns_empty_results(variant: str) -> None:
    cell = LSTM(3)
    params = random_params(cell, 1, 2, np.float32)
    batch = random_batch(cell, params, 2, 4, 0, np.float32)
    (got,) = differentiate_all(cell, VARIANTS[variant], (Scenario(),), params, batch)
    assert got.ys.shape == (4, 0, 3)
    assert_close(got.params_grad, jax.tree.map(np.zeros_like, params), 0)
    status = solve(cell, VARIANTS[variant], Scenario(), params, batch).status
    assert status.converged.shape == (0,)
    assert int(status.iterations) == 0


def test_zero_steps_converge() -> None:
    cell, params, batch = make_example(CELLS["lstm"], np.float32, steps=0)
    solution = solve(cell, NEWTON, Scenario(), params, batch)
    assert solution.carries.h.shape == (0, 3, 3)
    assert solution.status.converged.tolist() == [True] * 3
    assert int(solution.status.iterations) == 0


def test_gradients_of_a_learned_initial_carry_equal_a_loop(x64: None) -> None:
    step = lambda params, h, x: (np.tanh(params.w_ih.T @ x + params.w_hh.T @ h),) * 2
    row = Row(LearnedInitialCarry, step, init_carry=lambda params: params.h0)
    cell, params, batch = make_example(row)
    results = differentiate_all(cell, NEWTON, FEW_SCENARIOS, params, batch)
    for scenario, got in zip(FEW_SCENARIOS, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-9)


@pytest.mark.parametrize("key", [None, 3])
def test_results_with_noise_equal_scan(key: int | None, x64: None) -> None:
    cell = Noisy(4)
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, 9, 3)

    def run(engine: jrnn.Engine) -> Any:
        loss = lambda p, xs: (
            jrnn.unroll(
                cell,
                p,
                xs,
                lengths=batch.lengths,
                resets=batch.resets,
                key=None if key is None else jax.random.key(key),
                engine=engine,
            )[1]
            * batch.ct_ys
        ).sum()
        return jax.value_and_grad(loss, argnums=(0, 1))(params, batch.xs)

    assert_close(run(NEWTON), run(Scan()), 1e-9)


LONG_SEQUENCE_CELLS = {
    "paragru": ParaGRU(8),
    "paralstm": ParaLSTM(8),
    "indrnn": IndRNN(8, activation="tanh"),
    "gru": GRU(8),
}


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", mark_exhaustive(LONG_SEQUENCE_CELLS, always=("paralstm",)))
def test_ten_thousand_steps_equal_scan(name: str, wide: bool) -> None:
    cell, dtype = LONG_SEQUENCE_CELLS[name], np.float64 if wide else np.float32
    with jax.enable_x64(wide):
        params = cell.init(jax.random.key(0), 3, dtype)
        batch = random_batch(cell, params, 2, 10_000, 1, dtype)
        scenario = Scenario(lengths=False, resets=False)
        got, want = (
            differentiate_all(cell, engine, (scenario,), params, batch)
            for engine in (NEWTON, Scan())
        )
    assert_close(got, want, 1e-9 if wide else 1e-4)


# Derivatives

ENGINES = {"auto": NEWTON, "diagonal": VARIANTS["diagonal"]}


@pytest.mark.parametrize("variant", ENGINES)
@pytest.mark.parametrize(
    "name", mark_exhaustive(["lstm", "gru-reset-before", "lru"], always=("lstm", "lru"))
)
def test_forward_mode_equals_finite_differences(name: str, variant: str, x64: None) -> None:
    row, scenario, engine = CELLS[name], Scenario(reverse=True), ENGINES[variant]
    cell = CELLS[name].make(3)
    batch, point, direction = test_derivatives.make_example(cell)
    run = lambda *point: unroll_scenario(cell, engine, scenario, *replace_point(batch, point))
    jvp = jax.jit(lambda p, v: jax.jvp(run, p, v))
    expected = central_difference(
        lambda p: oracle(row, scenario, *replace_point(batch, p)), point, direction
    )
    assert_close(jvp(point, direction)[1], expected, 1e-8)


@pytest.mark.parametrize("variant", ENGINES)
@pytest.mark.parametrize(
    "name", mark_exhaustive(["lstm", "gru-reset-before"], always=("gru-reset-before",))
)
def test_second_derivatives_equal_finite_differences(name: str, variant: str, x64: None) -> None:
    scenario, engine = Scenario(), ENGINES[variant]
    cell = CELLS[name].make(3)
    batch, point, direction = test_derivatives.make_example(cell)
    loss = lambda p: inner_product(
        unroll_scenario(cell, engine, scenario, *replace_point(batch, p)),
        (batch.ct_carry, batch.ct_ys),
    )
    reverse_over_reverse = lambda p, v: jax.grad(lambda p: inner_product(jax.grad(loss)(p), v))(p)
    forward_over_reverse = lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,))[1]
    expected = central_difference(
        lambda p: loop_grads(cell, scenario, *replace_point(batch, p)), point, direction
    )
    both = jax.jit(lambda p, v: (reverse_over_reverse(p, v), forward_over_reverse(p, v)))
    for got in both(point, direction):
        assert_close(got, expected, 1e-7)


@pytest.mark.parametrize("variant", ["auto", "damped"])
def test_vmap_over_parameters_equals_a_loop(variant: str, x64: None) -> None:
    row, scenario, engine = CELLS["gru"], Scenario(), {**VARIANTS, "auto": NEWTON}[variant]
    cell = row.make(3)
    params = [random_params(cell, seed, 2) for seed in (1, 2)]
    params = [
        jax.tree.map(lambda leaf, s=s: s * leaf, p) for s, p in zip((3, 1e-3), params, strict=True)
    ]
    batch = random_batch(cell, params[0], 2, steps=9, batch=3)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    run = lambda p: differentiate_all(cell, engine, (scenario,), p, batch)[0]
    mapped = jax.jit(jax.vmap(run))(stacked)
    options = {"lengths": batch.lengths, "resets": batch.resets, "engine": engine}
    solve_status = lambda p: jrnn.newton(cell, p, batch.xs, batch.carry, **options).status
    status = jax.vmap(solve_status)(stacked)
    assert bool(status.converged.all())
    for n, p in enumerate(params):
        got = jax.tree.map(lambda leaf, n=n: leaf[n], mapped)
        assert_equals_loop(row, cell, scenario, got, p, batch, 1e-9)


def test_gradient_error_is_bounded_by_state_error(x64: None) -> None:
    # The gradient is computed at the approximate states.
    row, scenario = CELLS["gru"], Scenario(lengths=False, resets=False)
    cell, params, batch = make_example(row, steps=60)
    expected, value = (
        loop_grads(cell, scenario, params, batch),
        oracle(row, scenario, params, batch),
    )

    def error(got: Any, want: Any) -> float:
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in pairs)

    for tol in (1e-2, 1e-4):
        engine = Newton(jacobian="diagonal", tol=tol)
        (got,) = differentiate_all(cell, engine, (scenario,), params, batch)
        states = error((got.carry, got.ys), value)
        assert 1e-13 < states < 100 * tol
        assert 0 < error(tuple(got[2:]), expected) < 100 * states
