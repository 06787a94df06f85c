"""`Newton`: iterations, status, fallbacks and initial guesses."""

import contextlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LSTM,
    Cell,
    Elman,
    LSTMCarry,
    Newton,
    ParaGRU,
    ParaLSTM,
    Scan,
    structure,
)
from jrnn.engines import newton_iteration
from tests.engines.newton_helpers import NEWTON, all_carries, make_example, solve
from tests.helpers import (
    Scenario,
    as_dtype,
    assert_close,
    differentiate_all,
    inner_product,
    loop_grads,
    mark_exhaustive,
    oracle,
    random_batch,
    random_params,
)
from tests.table import CELLS


@pytest.mark.parametrize(
    ("name", "kind", "reverse"),
    mark_exhaustive(
        itertools.product(["lstm", "elman-tanh"], ["full", "diagonal"], [True, False]),
        always=[("lstm", "full", True), ("elman-tanh", "diagonal", False)],
    ),
)
def test_k_iterations_make_k_states_exact(name: str, kind: str, reverse: bool, x64: None) -> None:
    row, scenario, steps = CELLS[name], Scenario(lengths=False, reverse=reverse), 12
    cell = row.make(4)
    params = random_params(cell, 1, 2)
    # Large weights, so that the other states are not exact.
    params = params._replace(w_hh=3 * params.w_hh)
    batch = random_batch(cell, params, 2, steps, 2)
    resets = np.zeros((steps, 2), bool)
    resets[5] = True
    batch = batch._replace(resets=resets)
    expected = all_carries(row, scenario, params, batch)
    starts = [steps - 1, 5] if reverse else [0, 5]
    for k in (1, 3, 4):
        engine = Newton(jacobian=kind, max_steps=k, fallback="none", tol=1e-300)  # type: ignore
        solution = solve(cell, engine, scenario, params, batch)
        assert int(solution.status.iterations) == k
        exact = [start - n if reverse else start + n for start in starts for n in range(k)]
        pick = lambda tree, t=exact: jax.tree.map(lambda leaf: np.asarray(leaf)[t], tree)
        assert_close(pick(solution.carries), pick(expected), 1e-10)
        rest = [t for t in range(steps) if t not in exact]
        error = np.abs(
            np.asarray(jax.tree.leaves(solution.carries)[0] - jax.tree.leaves(expected)[0])
        )
        assert error[rest].max() > 1e-6, "all states are exact: the test has no effect"


CONTRACTING = {
    "paragru": (ParaGRU(256), 4096, 32),
    "paralstm": (ParaLSTM(256), 4096, 32),
    "lstm": (LSTM(32), 1024, 8),
    "gru": (GRU(32), 1024, 8),
}


@pytest.mark.parametrize("name", mark_exhaustive(CONTRACTING, always=("paragru", "lstm")))
def test_a_contracting_cell_takes_few_iterations(name: str) -> None:
    cell, steps, inputs = CONTRACTING[name]
    params = cell.init(jax.random.key(0), inputs)
    xs = jax.random.normal(jax.random.key(1), (steps, 1, inputs))
    kind = "full" if structure.recurrence_kind(cell, inputs) == "dense" else "auto"
    solution = jrnn.newton(cell, params, xs, engine=Newton(jacobian=kind, tol=1e-6))
    assert bool(solution.status.converged.all())
    assert int(solution.status.iterations) <= 8
    want = jrnn.unroll(cell, params, xs, engine="scan")
    assert_close((solution.carry, solution.ys), want, 1e-4)


@pytest.mark.parametrize("gain", [3.0, 6.0])
def test_chaotic_cell_converges_within_t_iterations(gain: float) -> None:
    # Products of Jacobians overflow float32 in early iterations, but the states must stay finite.
    cell = Elman(32)
    params = cell.init(jax.random.key(0), 2)
    params = params._replace(w_hh=gain * params.w_hh)
    xs = 0.5 * jax.random.normal(jax.random.key(1), (200, 2, 2))
    solution = jrnn.newton(cell, params, xs, engine=Newton(max_steps=200))
    assert np.isfinite(solution.ys).all()
    assert bool(solution.status.converged.all())
    prev_carries = np.concatenate([np.zeros((1, 2, 32)), np.asarray(solution.carries, float)[:-1]])
    p = as_dtype(params, np.float64)
    expected = np.tanh(np.asarray(xs, float) @ p.w_ih + prev_carries @ p.w_hh + p.b)
    np.testing.assert_allclose(solution.carries, expected, atol=3e-5)


# Status


def make_chaotic_example(
    dtype: Any = np.float64, steps: int = 200, batch: int = 3
) -> tuple[Cell, Any, Any]:
    """Returns a chaotic cell, its parameters and inputs `[T, B, 2]`.

    Sequence 1 is not chaotic, since its inputs saturate the cell.
    """
    cell = Elman(32)
    params = cell.init(jax.random.key(0), 2, dtype)
    params = params._replace(w_hh=3 * params.w_hh)
    xs = np.random.default_rng(0).normal(size=(steps, batch, 2)).astype(dtype) / 4
    xs[:, 1] = 1e6
    return cell, params, xs


def test_status_of_a_chaotic_cell_has_its_residuals(x64: None) -> None:
    cell, params, xs = make_chaotic_example()
    solution = jrnn.newton(cell, params, xs, engine=Newton(max_steps=20))
    status = solution.status
    assert status.converged.tolist() == [False, True, False]
    assert int(status.iterations) == 20
    assert status.residuals.shape == (21, 3)
    assert np.isfinite(status.residuals).all()
    prev_carries = np.concatenate([np.zeros((1, 3, 32)), solution.carries[:-1]])
    p = jax.tree.map(np.asarray, params)
    after = np.tanh(xs @ p.w_ih + prev_carries @ p.w_hh + p.b)
    states = np.asarray(solution.carries)
    error = (np.abs(after - states) / (1 + np.abs(states))).max(axis=(0, 2))
    np.testing.assert_allclose(status.residuals[20], error, rtol=1e-7, atol=1e-14)
    # Index 0 has the residuals of the initial guess, which is one step from the initial carry.
    guess = np.tanh(xs @ p.w_ih + p.b)
    shifted = np.concatenate([np.zeros((1, 3, 32)), guess[:-1]])
    after = np.tanh(xs @ p.w_ih + shifted @ p.w_hh + p.b)
    first = (np.abs(after - guess) / (1 + np.abs(guess))).max(axis=(0, 2))
    np.testing.assert_allclose(status.residuals[0], first, rtol=1e-9)


@pytest.mark.parametrize("cell", [LSTM(16), GRU(16)], ids=["lstm", "gru"])
def test_converged_gated_cells_of_spectral_radius_3_equal_scan(cell: Cell, x64: None) -> None:
    params = cell.init(jax.random.key(0), 2, np.float64)
    blocks = np.split(np.asarray(params.w_hh), params.w_hh.shape[1] // 16, axis=1)
    radius = [np.abs(np.linalg.eigvals(block)).max() for block in blocks]
    scaled = [3 * block / r for block, r in zip(blocks, radius, strict=True)]
    params = params._replace(w_hh=np.concatenate(scaled, axis=1))
    xs = np.random.default_rng(0).normal(size=(300, 3, 2)) / 4
    xs[:, 1] = 100 * np.sign(xs[:, 1])  # these saturate the gates, so that the sequence converges
    solution = jrnn.newton(cell, params, xs, engine=Newton(max_steps=20))
    want = np.asarray(jrnn.unroll(cell, params, xs, engine="scan")[1])
    error = np.abs(np.asarray(solution.ys) - want).max(axis=(0, 2))
    converged = np.asarray(solution.status.converged)
    assert converged.any() and not converged.all()
    assert (error[converged] < 1e-6).all()


def test_residuals_beyond_the_last_iteration_are_nan() -> None:
    cell, params, batch = make_example(CELLS["lstm"], np.float32)
    status = solve(cell, NEWTON, Scenario(), params, batch).status
    k = int(status.iterations)
    assert 0 < k < 100
    assert status.residuals.shape == (101, 3)
    assert np.isfinite(status.residuals[: k + 1]).all()
    assert np.isnan(status.residuals[k + 1 :]).all()
    assert (status.residuals[k] <= 8e-6).all() and (status.residuals[k - 1] > 8e-6).any()


def suppress_pending_errors() -> None:
    """Waits for pending callbacks and ignores their errors, which would fail a later test."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()


def unroll_chaotic_cell(transform: str) -> Any:
    """Calls `unroll` of a chaotic cell with too few iterations, under a transformation of JAX."""
    cell, params, xs = make_chaotic_example(np.float32)
    engine = Newton(max_steps=5)
    run = lambda params: jrnn.unroll(cell, params, xs, engine=engine)[1]
    loss = lambda params: run(params).sum()
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    return {
        "eager": lambda: run(params),
        "jit": lambda: jax.jit(run)(params),
        "grad": lambda: jax.grad(loss)(params),
        "jit-grad": lambda: jax.jit(jax.grad(loss))(params),
        "jvp": lambda: jax.jvp(run, (params,), (params,)),
        "vmap": lambda: jax.vmap(run)(many),
        "remat": lambda: jax.grad(jax.checkpoint(loss))(params),
    }[transform]()


@pytest.mark.parametrize("transform", ["eager", "jit", "grad", "jit-grad", "jvp", "vmap", "remat"])
def test_unconverged_sequences_raise(transform: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(unroll_chaotic_cell(transform))
    message = str(caught.value)
    for words in ("FloatingPointError", "2 of 3 sequences", "lyapunov", "fallback='scan'"):
        assert words in message
    suppress_pending_errors()


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_fallback_scan_equals_scan(kind: Any, x64: None) -> None:
    cell, params, xs = make_chaotic_example(steps=60)
    engine = Newton(jacobian=kind, max_steps=5, fallback="scan")
    rng = np.random.default_rng(1)
    batch = random_batch(cell, params, 1, 60, 3)
    batch = batch._replace(xs=xs, resets=rng.random((60, 3)) < 0.02)
    scenario = Scenario(carry=False, lengths=False, reverse=kind == "full")
    status = solve(cell, engine, scenario, params, batch).status
    assert 0 < status.converged.sum() < 3
    got, want = (
        differentiate_all(cell, e, (scenario,), params, batch)[0] for e in (engine, Scan())
    )
    assert_close(got, want, 1e-9)
    bad = ~np.asarray(status.converged)
    np.testing.assert_allclose(got.ys[:, bad], want.ys[:, bad], atol=1e-11)


def test_fallback_none_returns_the_last_iterate() -> None:
    cell, params, xs = make_chaotic_example(np.float32)
    engine = Newton(max_steps=5, fallback="none")
    _, ys = jrnn.unroll(cell, params, xs, engine=engine)
    want = jrnn.newton(cell, params, xs, engine=engine)
    np.testing.assert_array_equal(ys, want.ys)
    jax.effects_barrier()
    assert want.status.converged.tolist() == [False, True, False]


def test_residuals_propagate_nan() -> None:
    # jnp.max does not propagate NaN on a CPU for this shape (jaxlib 0.10.2).
    residuals = np.zeros((200, 2, 32), np.float32)
    residuals[100, 1, 5] = np.nan
    linearization = newton_iteration.Linearization(
        [jnp.zeros_like(residuals)], [jnp.asarray(residuals)], None
    )
    np.testing.assert_array_equal(linearization.max_residual(), [0, np.nan])
    assert np.isnan(linearization.step_residuals()[100, 1])


@pytest.mark.parametrize("hidden", [3, 32])
@pytest.mark.parametrize(
    "name",
    mark_exhaustive(["lstm", "gru", "paragru", "paralstm", "mingru"], always=("gru", "mingru")),
)
def test_nan_does_not_converge_or_affect_earlier_steps(name: str, hidden: int) -> None:
    row = CELLS[name]
    cell = row.make(hidden)
    params = cell.init(jax.random.key(0), 2)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(40, 3, 2)).astype(np.float32)
    clean = np.asarray(jrnn.unroll(cell, params, xs, engine="scan")[1])
    xs[25, 1, 0] = np.nan
    solution = jrnn.newton(cell, params, xs)
    ys, status = np.asarray(solution.ys), solution.status
    assert status.converged.tolist() == [True, False, True]
    assert np.isnan(ys[25:, 1]).any(axis=-1).all()
    assert np.isnan(status.residuals[:, 1]).all()
    np.testing.assert_allclose(ys[:, [0, 2]], clean[:, [0, 2]], atol=1e-4)
    np.testing.assert_allclose(ys[:25, 1], clean[:25, 1], atol=1e-4)
    assert int(status.iterations) < 30, "NaNs must not delay convergence"


def test_nan_in_the_inputs_raises() -> None:
    cell = GRU(3)
    params = cell.init(jax.random.key(0), 2)
    xs = np.ones((5, 2, 2), np.float32)
    xs[3, 0] = np.nan
    with pytest.raises(jax.errors.JaxRuntimeError, match="1 of 2 sequences"):
        jax.block_until_ready(jrnn.unroll(cell, params, xs, engine="newton"))
    suppress_pending_errors()


# Initial guesses


def test_a_guess_of_nearby_parameters_saves_iterations(x64: None) -> None:
    cell = GRU(8)
    params = cell.init(jax.random.key(0), 3, np.float64)
    xs = np.random.default_rng(0).normal(size=(200, 2, 3))
    first = jrnn.newton(cell, params, xs)
    perturbed = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    cold, warm = (
        jrnn.newton(cell, perturbed, xs),
        jrnn.newton(cell, perturbed, xs, guess=first.carries),
    )
    assert int(warm.status.iterations) < int(cold.status.iterations)
    assert_close(warm.ys, cold.ys, 1e-12)
    assert int(jrnn.newton(cell, params, xs, guess=first.carries).status.iterations) == 0


def test_non_finite_guess_is_ignored() -> None:
    cell, params, batch = make_example(CELLS["gru"], np.float32)
    first = jrnn.newton(cell, params, batch.xs)
    for bad in (np.nan, np.inf):
        guess = first.carries.at[2:, 1].set(bad)
        again = jrnn.newton(cell, params, batch.xs, guess=guess)
        assert bool(again.status.converged.all())
        assert_close(again.ys, first.ys, 1e-5)


def test_guess_does_not_affect_value_or_gradient(x64: None) -> None:
    row, scenario = CELLS["lstm"], Scenario()
    cell, params, batch = make_example(row)
    guess = jax.tree.map(
        lambda leaf: np.random.default_rng(5).normal(size=(7, *leaf.shape)), batch.carry
    )

    def loss(p: Any, xs: Any, carry: Any, guess: Any) -> Any:
        solution = jrnn.newton(
            cell, p, xs, carry, lengths=batch.lengths, resets=batch.resets, guess=guess
        )
        results = (solution.carry, solution.ys)
        return inner_product(results, (batch.ct_carry, batch.ct_ys)), solution

    point = (params, batch.xs, batch.carry, guess)
    grads, solution = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*point)
    assert bool(solution.status.converged.all())
    assert_close((solution.carry, solution.ys), oracle(row, scenario, params, batch), 1e-9)
    assert_close(grads[:3], loop_grads(cell, scenario, params, batch), 1e-9)
    assert_close(grads[3], jax.tree.map(np.zeros_like, guess), 0)


def test_carries_equal_a_loop(x64: None) -> None:
    row = CELLS["lstm"]
    cell, params, batch = make_example(row)
    for scenario in (Scenario(), Scenario(reverse=True)):
        solution = solve(cell, NEWTON, scenario, params, batch)
        assert_close(solution.carries, all_carries(row, scenario, params, batch), 1e-9)


@pytest.mark.parametrize(
    ("guess", "message"),
    [
        (LSTMCarry(np.zeros((7, 3, 3)), np.zeros((7, 3, 2))), r"\(7, 3, 3\).*got .*\(7, 3, 2\)"),
        (LSTMCarry(np.zeros((6, 3, 3)), np.zeros((6, 3, 3))), r"\(7, 3, 3\).*got .*\(6, 3, 3\)"),
        (np.zeros((7, 3, 3)), r"guess must be LSTMCarry"),
    ],
)
def test_invalid_guess_raises(guess: Any, message: str) -> None:
    cell, params, batch = make_example(CELLS["lstm"], np.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        jrnn.newton(cell, params, batch.xs, guess=guess)
