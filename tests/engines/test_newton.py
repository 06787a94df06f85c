"""`Newton` against the oracles and the loop, its status, and what it says where it fails."""

import contextlib
import dataclasses
import itertools
import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LRU,
    LSTM,
    Cell,
    Elman,
    IndRNN,
    LSTMCarry,
    Newton,
    ParaGRU,
    ParaLSTM,
    Scan,
    structure,
)
from jrnn.engines import iterate
from tests.cells.toys import Counter, Integrator, Leaky, Learned, Noisy, Timed
from tests.helpers import (
    WAYS,
    Batch,
    Way,
    as_dtype,
    assert_close,
    call,
    counterpart,
    differentiate_all,
    inner,
    is_complex,
    loop_grads,
    mostly_exhaustive,
    normal_like,
    oracle,
    random_batch,
    random_params,
    unroll_all,
)
from tests.table import CELLS, Row

FEW = WAYS[::5]
NEWTON = Newton()
KINDS = {
    "full": Newton(jacobian="full"),
    "block": Newton(jacobian="block"),
    "diagonal": Newton(jacobian="diagonal"),
    "damped": Newton(damping=1.0),
    "damped-block": Newton(jacobian="block", damping=0.1),
    "carry": Newton(init="carry"),
    "scan": Newton(fallback="scan"),
}
SOME = ("lstm", "gru-reset-before", "paralstm", "lru", "gru", "elman-relu")
# Each kind on one cell; in the exhaustive suite on three, and each cell with three or four kinds.
PAIRS = mostly_exhaustive(
    [(SOME[(n + 2 * k) % 6], kind) for n, kind in enumerate(KINDS) for k in range(3)],
    but=[(SOME[n % 6], kind) for n, kind in enumerate(KINDS)],
)


Point = tuple[Any, Any, Any]  # params, xs, carry


def example(row: Row, dtype: Any = np.float64, steps: int = 7) -> tuple[Cell, Any, Batch]:
    cell = row.make(3)
    params = random_params(cell, 1, 2, dtype)
    return cell, params, random_batch(cell, params, 2, steps, 3, dtype)


def all_carries(row: Row, way: Way, params: Any, batch: Batch) -> Any:
    """The oracle's carry after each step, leaves `[T, B, ...]`, kept on padding."""
    found = []
    for t in range(len(batch.xs)):
        # All steps up to t, in the direction of travel.
        done = slice(t, None) if way.reverse else slice(t + 1)
        lengths = np.clip(batch.lengths - (t if way.reverse else 0), 0, None)
        some = batch._replace(
            xs=batch.xs[done], resets=batch.resets[done], ct_ys=batch.ct_ys[done], lengths=lengths
        )
        found.append(oracle(row, way, params, some)[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


@partial(jax.jit, static_argnames=("cell", "engine", "way"))
def solve(cell: Cell, engine: Newton, way: Way, params: Any, batch: Batch) -> Any:
    return jrnn.newton(
        cell,
        params,
        batch.xs,
        batch.carry if way.carry else None,
        lengths=batch.lengths if way.lengths else None,
        resets=batch.resets if way.resets else None,
        reverse=way.reverse,
        engine=engine,
    )


# Truth


@pytest.mark.parametrize("name", mostly_exhaustive(CELLS, but=SOME))
def test_values_and_gradients_equal_a_loop_in_float64(name: str, x64: None) -> None:
    row = CELLS[name]
    cell, params, batch = example(row)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(batch.carry)):
        pytest.skip("an integer in the carry, which Newton refuses")
    ways = FEW if name in SOME else FEW[-1:]
    results = differentiate_all(cell, NEWTON, ways, params, batch)
    for way, got in zip(ways, results, strict=True):
        assert_close((got.carry, got.ys), oracle(row, way, params, batch), 1e-9)
        assert_close(tuple(got[2:]), loop_grads(cell, way, params, batch), 1e-9)


@pytest.mark.parametrize(
    "name", mostly_exhaustive((*SOME, "paragru", "indrnn"), but=("lstm", "lru", "indrnn"))
)
def test_values_and_gradients_equal_a_loop_in_float32(name: str) -> None:
    row, way = CELLS[name], Way(reverse=True)
    cell, params, batch = example(row, np.float32)
    (got,) = differentiate_all(cell, NEWTON, (way,), params, batch)
    assert got.ys.dtype == np.float32
    with jax.enable_x64(True):
        wide = as_dtype((params, batch), np.float64)
        want, truth = oracle(row, way, *wide), loop_grads(cell, way, *wide)
    assert_close((got.carry, got.ys), want, 1e-4)
    assert_close(tuple(got[2:]), truth, 1e-4)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_variant_equals_a_loop(name: str, kind: str, x64: None) -> None:
    # A diagonal Jacobian of a dense cell is wrong, and what it finds, with its gradient, is right.
    row, way = CELLS[name], Way(reverse=kind in ("block", "damped"))
    cell, params, batch = example(row)
    (got,) = differentiate_all(cell, KINDS[kind], (way,), params, batch)
    assert_close((got.carry, got.ys), oracle(row, way, params, batch), 1e-9)
    assert_close(tuple(got[2:]), loop_grads(cell, way, params, batch), 1e-9)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", ["lstm", "paragru", "lru"])
def test_few_steps_equal_a_loop(name: str, steps: int, x64: None) -> None:
    row = CELLS[name]
    cell, params, batch = example(row, steps=steps)
    ways = (Way(), Way(reverse=True))
    results = differentiate_all(cell, NEWTON, ways, params, batch)
    for way, got in zip(ways, results, strict=True):
        assert_close((got.carry, got.ys), oracle(row, way, params, batch), 1e-9)
        assert_close(tuple(got[2:]), loop_grads(cell, way, params, batch), 1e-9)


@pytest.mark.parametrize("kind", ["full", "block", "diagonal", "damped"])
def test_no_sequences_return_none(kind: str) -> None:
    cell = LSTM(3)
    params = random_params(cell, 1, 2, np.float32)
    batch = random_batch(cell, params, 2, 4, 0, np.float32)
    (got,) = differentiate_all(cell, KINDS[kind], (Way(),), params, batch)
    assert got.ys.shape == (4, 0, 3)
    assert_close(got.params_grad, jax.tree.map(np.zeros_like, params), 0)
    status = solve(cell, KINDS[kind], Way(), params, batch).status
    assert status.converged.shape == (0,)
    assert int(status.iterations) == 0


def test_no_steps_have_converged() -> None:
    cell, params, batch = example(CELLS["lstm"], np.float32, steps=0)
    solution = solve(cell, NEWTON, Way(), params, batch)
    assert solution.carries.h.shape == (0, 3, 3)
    assert solution.status.converged.tolist() == [True] * 3
    assert int(solution.status.iterations) == 0


def test_a_learned_first_carry_gets_its_gradient(x64: None) -> None:
    step = lambda params, h, x: (np.tanh(params.w_ih.T @ x + params.w_hh.T @ h),) * 2
    row = Row(Learned, step, start=lambda params: params.h0)
    cell, params, batch = example(row)
    results = differentiate_all(cell, NEWTON, FEW, params, batch)
    for way, got in zip(FEW, results, strict=True):
        assert_close((got.carry, got.ys), oracle(row, way, params, batch), 1e-9)
        assert_close(tuple(got[2:]), loop_grads(cell, way, params, batch), 1e-9)


@pytest.mark.parametrize("key", [None, 3])
def test_noise_is_that_of_other_engines(key: int | None, x64: None) -> None:
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


LONG = {
    "paragru": ParaGRU(8),
    "paralstm": ParaLSTM(8),
    "indrnn": IndRNN(8, activation="tanh"),
    "gru": GRU(8),
}


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", mostly_exhaustive(LONG, but=("paralstm",)))
def test_ten_thousand_steps_equal_scan(name: str, wide: bool) -> None:
    cell, dtype = LONG[name], np.float64 if wide else np.float32
    with jax.enable_x64(wide):
        params = cell.init(jax.random.key(0), 3, dtype)
        batch = random_batch(cell, params, 2, 10_000, 1, dtype)
        way = Way(lengths=False, resets=False)
        got, want = (
            differentiate_all(cell, engine, (way,), params, batch) for engine in (NEWTON, Scan())
        )
    assert_close(got, want, 1e-9 if wide else 1e-4)


# Iterations


@pytest.mark.parametrize(
    ("name", "kind", "reverse"),
    mostly_exhaustive(
        itertools.product(["lstm", "elman-tanh"], ["full", "diagonal"], [True, False]),
        but=[("lstm", "full", True), ("elman-tanh", "diagonal", False)],
    ),
)
def test_k_iterations_make_k_states_exact(name: str, kind: str, reverse: bool, x64: None) -> None:
    row, way, steps = CELLS[name], Way(lengths=False, reverse=reverse), 12
    cell = row.make(4)
    params = random_params(cell, 1, 2)
    params = params._replace(w_hh=3 * params.w_hh)  # so that others are not, by chance
    batch = random_batch(cell, params, 2, steps, 2)
    middle = np.zeros((steps, 2), bool)
    middle[5] = True
    batch = batch._replace(resets=middle)
    truth = all_carries(row, way, params, batch)
    starts = [steps - 1, 5] if reverse else [0, 5]
    for k in (1, 3, 4):
        engine = Newton(jacobian=kind, max_steps=k, fallback="none", tol=1e-300)  # type: ignore
        solution = solve(cell, engine, way, params, batch)
        assert int(solution.status.iterations) == k
        exact = [start - n if reverse else start + n for start in starts for n in range(k)]
        # The first guess is a step from the first carry, which has made one state exact already.
        pick = lambda tree, t=exact: jax.tree.map(lambda leaf: np.asarray(leaf)[t], tree)
        assert_close(pick(solution.carries), pick(truth), 1e-10)
        rest = [t for t in range(steps) if t not in exact]
        error = np.abs(np.asarray(jax.tree.leaves(solution.carries)[0] - jax.tree.leaves(truth)[0]))
        assert error[rest].max() > 1e-6, "nothing is left to be found: the test shows nothing"


CONTRACTING = {
    "paragru": (ParaGRU(256), 4096, 32),
    "paralstm": (ParaLSTM(256), 4096, 32),
    "lstm": (LSTM(32), 1024, 8),
    "gru": (GRU(32), 1024, 8),
}


@pytest.mark.parametrize("name", mostly_exhaustive(CONTRACTING, but=("paragru", "lstm")))
def test_a_contracting_cell_takes_few_iterations(name: str) -> None:
    cell, steps, inputs = CONTRACTING[name]
    params = cell.init(jax.random.key(0), inputs)
    xs = jax.random.normal(jax.random.key(1), (steps, 1, inputs))
    kind = "full" if structure.recurrence(cell, inputs) == "dense" else "auto"
    solution = jrnn.newton(cell, params, xs, engine=Newton(jacobian=kind, tol=1e-6))
    assert bool(solution.status.converged.all())
    assert int(solution.status.iterations) <= 8
    want = jrnn.unroll(cell, params, xs, engine="scan")
    assert_close((solution.carry, solution.ys), want, 1e-4)


@pytest.mark.parametrize("gain", [3.0, 6.0])
def test_as_many_iterations_as_steps_solve_even_chaos(gain: float) -> None:
    # On the way products of Jacobians overflow float32: what has become NaN once must not stay so.
    cell = Elman(32)
    params = cell.init(jax.random.key(0), 2)
    params = params._replace(w_hh=gain * params.w_hh)
    xs = 0.5 * jax.random.normal(jax.random.key(1), (200, 2, 2))
    solution = jrnn.newton(cell, params, xs, engine=Newton(max_steps=200))
    assert np.isfinite(solution.ys).all()
    assert bool(solution.status.converged.all())
    prev_carries = np.concatenate([np.zeros((1, 2, 32)), np.asarray(solution.carries, float)[:-1]])
    p = as_dtype(params, np.float64)
    truth = np.tanh(np.asarray(xs, float) @ p.w_ih + prev_carries @ p.w_hh + p.b)
    np.testing.assert_allclose(solution.carries, truth, atol=3e-5)


# Status


def chaos(dtype: Any = np.float64, steps: int = 200, batch: int = 3) -> tuple[Cell, Any, Any]:
    """Of three sequences the middle one is not chaotic: its inputs saturate the cell."""
    cell = Elman(32)
    params = cell.init(jax.random.key(0), 2, dtype)
    params = params._replace(w_hh=3 * params.w_hh)
    xs = np.random.default_rng(0).normal(size=(steps, batch, 2)).astype(dtype) / 4
    xs[:, 1] = 1e6
    return cell, params, xs


def test_chaos_is_reported_with_its_residuals(x64: None) -> None:
    cell, params, xs = chaos()
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
    # The first guess is one step from the first carry: its residuals too are those of the oracle.
    guess = np.tanh(xs @ p.w_ih + p.b)
    shifted = np.concatenate([np.zeros((1, 3, 32)), guess[:-1]])
    after = np.tanh(xs @ p.w_ih + shifted @ p.w_hh + p.b)
    first = (np.abs(after - guess) / (1 + np.abs(guess))).max(axis=(0, 2))
    np.testing.assert_allclose(status.residuals[0], first, rtol=1e-9)


@pytest.mark.parametrize("cell", [LSTM(16), GRU(16)], ids=["lstm", "gru"])
def test_a_gated_cell_of_spectral_radius_3_is_reported_or_right(cell: Cell, x64: None) -> None:
    params = cell.init(jax.random.key(0), 2, np.float64)
    blocks = np.split(np.asarray(params.w_hh), params.w_hh.shape[1] // 16, axis=1)
    radius = [np.abs(np.linalg.eigvals(block)).max() for block in blocks]
    scaled = [3 * block / r for block, r in zip(blocks, radius, strict=True)]
    params = params._replace(w_hh=np.concatenate(scaled, axis=1))
    xs = np.random.default_rng(0).normal(size=(300, 3, 2)) / 4
    solution = jrnn.newton(cell, params, xs, engine=Newton(max_steps=20))
    want = np.asarray(jrnn.unroll(cell, params, xs, engine="scan")[1])
    error = np.abs(np.asarray(solution.ys) - want).max(axis=(0, 2))
    assert not solution.status.converged.all(), "no chaos here"
    assert (error[np.asarray(solution.status.converged)] < 1e-6).all()


def test_residuals_beyond_the_last_iteration_are_nan() -> None:
    cell, params, batch = example(CELLS["lstm"], np.float32)
    status = solve(cell, NEWTON, Way(), params, batch).status
    k = int(status.iterations)
    assert 0 < k < 100
    assert status.residuals.shape == (101, 3)
    assert np.isfinite(status.residuals[: k + 1]).all()
    assert np.isnan(status.residuals[k + 1 :]).all()
    assert (status.residuals[k] <= 8e-6).all() and (status.residuals[k - 1] > 8e-6).any()


def settle() -> None:
    """Lets no error that is still under way show up in a later test."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()


def unroll_chaos(transform: str) -> Any:
    cell, params, xs = chaos(np.float32)
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
def test_what_has_not_converged_is_raised(transform: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(unroll_chaos(transform))
    message = str(caught.value)
    for words in ("FloatingPointError", "2 of 3 sequences", "lyapunov", "fallback='scan'"):
        assert words in message
    settle()


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_fallback_to_scan_has_the_values_and_gradients_of_scan(kind: Any, x64: None) -> None:
    cell, params, xs = chaos(steps=60)
    engine = Newton(jacobian=kind, max_steps=5, fallback="scan")
    rng = np.random.default_rng(1)
    batch = random_batch(cell, params, 1, 60, 3)
    batch = batch._replace(xs=xs, resets=rng.random((60, 3)) < 0.02)
    way = Way(carry=False, lengths=False, reverse=kind == "full")
    status = solve(cell, engine, way, params, batch).status
    assert 0 < status.converged.sum() < 3
    got, want = (differentiate_all(cell, e, (way,), params, batch)[0] for e in (engine, Scan()))
    assert_close(got, want, 1e-9)
    bad = ~np.asarray(status.converged)
    np.testing.assert_allclose(got.ys[:, bad], want.ys[:, bad], atol=1e-11)


def test_fallback_none_returns_what_there_is() -> None:
    cell, params, xs = chaos(np.float32)
    engine = Newton(max_steps=5, fallback="none")
    _, ys = jrnn.unroll(cell, params, xs, engine=engine)
    want = jrnn.newton(cell, params, xs, engine=engine)
    np.testing.assert_array_equal(ys, want.ys)
    jax.effects_barrier()
    assert want.status.converged.tolist() == [False, True, False]


def test_no_maximum_passes_over_a_nan() -> None:
    # As XLA's does on a CPU, of arrays of this shape (jaxlib 0.10.2).
    residuals = np.zeros((200, 2, 32), np.float32)
    residuals[100, 1, 5] = np.nan
    point = iterate.Point([jnp.zeros_like(residuals)], [jnp.asarray(residuals)], None)
    np.testing.assert_array_equal(point.error(), [0, np.nan])
    assert np.isnan(point.errors()[100, 1])


@pytest.mark.parametrize("hidden", [3, 32])
@pytest.mark.parametrize(
    "name",
    mostly_exhaustive(["lstm", "gru", "paragru", "paralstm", "mingru"], but=("gru", "mingru")),
)
def test_a_nan_is_no_convergence_and_leaves_the_past_alone(name: str, hidden: int) -> None:
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
    assert int(status.iterations) < 30, "the NaN is waited for"


def test_a_nan_in_the_inputs_is_raised() -> None:
    cell = GRU(3)
    params = cell.init(jax.random.key(0), 2)
    xs = np.ones((5, 2, 2), np.float32)
    xs[3, 0] = np.nan
    with pytest.raises(jax.errors.JaxRuntimeError, match="1 of 2 sequences"):
        jax.block_until_ready(jrnn.unroll(cell, params, xs, engine="newton"))
    settle()


# Warm start


def test_a_guess_of_nearby_parameters_saves_iterations(x64: None) -> None:
    cell = GRU(8)
    params = cell.init(jax.random.key(0), 3, np.float64)
    xs = np.random.default_rng(0).normal(size=(200, 2, 3))
    first = jrnn.newton(cell, params, xs)
    moved = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    cold, warm = jrnn.newton(cell, moved, xs), jrnn.newton(cell, moved, xs, guess=first.carries)
    assert int(warm.status.iterations) < int(cold.status.iterations)
    assert_close(warm.ys, cold.ys, 1e-12)
    assert int(jrnn.newton(cell, params, xs, guess=first.carries).status.iterations) == 0


def test_a_guess_that_is_not_finite_is_none() -> None:
    cell, params, batch = example(CELLS["gru"], np.float32)
    first = jrnn.newton(cell, params, batch.xs)
    for bad in (np.nan, np.inf):
        guess = first.carries.at[2:, 1].set(bad)
        again = jrnn.newton(cell, params, batch.xs, guess=guess)
        assert bool(again.status.converged.all())
        assert_close(again.ys, first.ys, 1e-5)


def test_a_guess_has_no_bearing_on_value_and_gradient(x64: None) -> None:
    row, way = CELLS["lstm"], Way()
    cell, params, batch = example(row)
    guess = jax.tree.map(
        lambda leaf: np.random.default_rng(5).normal(size=(7, *leaf.shape)), batch.carry
    )

    def loss(p: Any, xs: Any, carry: Any, guess: Any) -> Any:
        solution = jrnn.newton(
            cell, p, xs, carry, lengths=batch.lengths, resets=batch.resets, guess=guess
        )
        results = (solution.carry, solution.ys)
        return inner(results, (batch.ct_carry, batch.ct_ys)), solution

    point = (params, batch.xs, batch.carry, guess)
    grads, solution = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*point)
    assert bool(solution.status.converged.all())
    assert_close((solution.carry, solution.ys), oracle(row, way, params, batch), 1e-9)
    assert_close(grads[:3], loop_grads(cell, way, params, batch), 1e-9)
    assert_close(grads[3], jax.tree.map(np.zeros_like, guess), 0)


def test_the_carries_are_those_after_each_step(x64: None) -> None:
    row = CELLS["lstm"]
    cell, params, batch = example(row)
    for way in (Way(), Way(reverse=True)):
        solution = solve(cell, NEWTON, way, params, batch)
        assert_close(solution.carries, all_carries(row, way, params, batch), 1e-9)


@pytest.mark.parametrize(
    ("guess", "message"),
    [
        (LSTMCarry(np.zeros((7, 3, 3)), np.zeros((7, 3, 2))), r"\(7, 3, 3\).*got .*\(7, 3, 2\)"),
        (LSTMCarry(np.zeros((6, 3, 3)), np.zeros((6, 3, 3))), r"\(7, 3, 3\).*got .*\(6, 3, 3\)"),
        (np.zeros((7, 3, 3)), r"guess must have the structure of .*LSTMCarry"),
    ],
)
def test_a_wrong_guess_is_refused(guess: Any, message: str) -> None:
    cell, params, batch = example(CELLS["lstm"], np.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        jrnn.newton(cell, params, batch.xs, guess=guess)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jacobian": "dense"}, "Newton: jacobian must be one of auto, diagonal, block, full"),
        ({"jacobian": "blok"}, "did you mean 'block'"),
        ({"jacobian": None}, "Newton: jacobian must be one of"),
        ({"init": "zero"}, "Newton: init must be one of step, carry"),
        ({"fallback": "fused"}, "Newton: fallback must be one of error, scan, none"),
        ({"fallback": None}, "Newton: fallback must be one of error, scan, none"),
        ({"max_steps": 0}, "Newton: max_steps must be a positive int"),
        ({"max_steps": 1.5}, "Newton: max_steps must be a positive int"),
        ({"max_bytes": -1}, "Newton: max_bytes must be a positive int"),
        ({"damping": 0}, "Newton: damping must be a number above 0, got 0"),
        ({"damping": True}, "Newton: damping must be a number above 0, got True"),
        ({"damping": -1.0}, "Newton: damping must be a number above 0"),
        ({"damping": float("nan")}, "Newton: damping must be a number above 0"),
        ({"tol": 0.0}, "Newton: tol must be a number above 0"),
        ({"tol": float("inf")}, "Newton: tol must be a number above 0"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Newton(**options)


def test_full_jacobians_over_the_limit_are_refused_at_trace_time() -> None:
    cell = LSTM(8)
    params = cell.init(jax.random.key(0), 2)
    needed = 100 * 3 * 16**2 * 4
    run = lambda limit: jax.eval_shape(
        lambda xs: jrnn.unroll(cell, params, xs, engine=Newton(jacobian="full", max_bytes=limit))[
            1
        ],
        jax.ShapeDtypeStruct((100, 3, 2), np.float32),
    )
    assert run(needed).shape == (100, 3, 8)
    gib = f"{needed / 2**30:.3g} GiB"
    with pytest.raises(ValueError, match=f"{gib}, over max_bytes={needed - 1}") as caught:
        run(needed - 1)
    for words in ("100 steps, 3 seq", "carry of 16", "'block'", "'diagonal'", "'fused'", "allow"):
        assert words in str(caught.value)
    with jax.enable_x64(True), pytest.raises(ValueError, match="over max_bytes"):
        jax.eval_shape(
            lambda xs: jrnn.newton(cell, params, xs, engine=Newton(max_bytes=needed)),
            jax.ShapeDtypeStruct((100, 3, 2), np.float64),
        )


def test_a_carry_that_is_not_real_is_refused() -> None:
    xs = np.ones((4, 2, 1), np.float32)
    counter = Counter()
    with pytest.raises(TypeError, match=r"floating leaves alone, got dtypes \['int32'\].*fused"):
        jrnn.unroll(counter, np.float32(0), xs, engine="newton")
    leaky = Leaky(2)
    timed = Timed(np.ones((4, 2, 3), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(TypeError, match=r"got dtypes \['float32', 'int32'\] of Leaky"):
        jrnn.unroll(leaky, leaky.init(jax.random.key(0), 3), timed, engine="newton")

    @dataclasses.dataclass(frozen=True)
    class Modulus(LRU):  # no longer linear, and complex
        def coefficients(self, params: Any, z: Any) -> None:
            return None

        def update(self, params: Any, carry: Any, z: Any, u: None) -> Any:
            return LRU.coefficients(self, params, z).apply(carry)

    cell = Modulus(2)
    with pytest.raises(TypeError, match=r"got dtypes \['complex64'\] of .*Modulus"):
        jrnn.unroll(cell, cell.init(jax.random.key(0), 1), xs, engine="newton")


class Odd(Learned):
    """A second leaf that is narrower than the first: n' = tanh(0.5 n + h')."""

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return {"h": zeros, "n": zeros[..., :2]}

    def recur(self, params: Any, carry: Any) -> jax.Array:
        return carry["h"] @ params.w_hh

    def update(self, params: Any, carry: Any, z: jax.Array, u: jax.Array) -> Any:
        h = jnp.tanh(z + u + carry["n"] @ params.w_hh[:2])
        return {"h": h, "n": jnp.tanh(0.5 * carry["n"] + h[..., :2])}

    def readout(self, params: Any, carry: Any, z: jax.Array) -> jax.Array:
        return carry["h"]


def test_leaves_of_unlike_shapes_have_no_blocks(x64: None) -> None:
    cell, way = Odd(3), Way(resets=False)
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, 9, 3)
    want = differentiate_all(cell, Scan(), (way,), params, batch)
    for kind in ("auto", "full", "diagonal"):
        engine = Newton(jacobian=kind)
        got = differentiate_all(cell, engine, (way,), params, batch)
        assert_close(got, want, 1e-9)
    with pytest.raises(ValueError, match=r"one shape, got \[\(3, 3\), \(3, 2\)\] .*'diagonal'"):
        jrnn.newton(cell, params, batch.xs, engine=Newton(jacobian="block"))
    large = Odd(80)
    params = large.init(jax.random.key(0), 2)  # over what "auto" takes a full one for
    params = jax.tree.map(lambda leaf: leaf / 40, params)
    xs = np.ones((20, 1, 2), np.float32)
    got, want = (jrnn.unroll(large, params, xs, engine=e) for e in (NEWTON, Scan()))
    assert_close(got, want, 1e-4)


@pytest.mark.parametrize("engine", ["newton", Scan(), Newton])
def test_newton_takes_its_own_engine_alone(engine: Any) -> None:
    with pytest.raises(TypeError, match=r"newton: engine must be a jrnn.Newton\(...\), got"):
        jrnn.newton(GRU(2), None, np.ones((2, 1, 1)), engine=engine)


def test_newton_goes_by_its_name() -> None:
    cell, params, batch = example(CELLS["gru"], np.float32)
    named, given = (jrnn.unroll(cell, params, batch.xs, engine=e) for e in ("newton", Newton()))
    assert_close(named, given, 0)


def test_second_call_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    said = lambda: [r for r in caplog.records if r.name.startswith("jax")]
    run = lambda xs: (
        jrnn.newton(GRU(5), params, xs, engine=Newton(tol=1e-5)),
        jrnn.unroll(GRU(5), params, xs, engine=Newton(tol=1e-5)),
    )
    params = GRU(5).init(jax.random.key(0), 2)
    with jax.log_compiles():
        run(np.ones((6, 2, 2), np.float32))
        assert said(), "nothing is watched"
        caplog.clear()
        run(np.zeros((6, 2, 2), np.float32))
        assert not said()


# Derivatives

EPS = 1e-5


def moving(name: str, seed: int = 1) -> tuple[Cell, Batch, Point, Point]:
    cell = CELLS[name].make(3)
    params = random_params(cell, seed, 2)
    batch = random_batch(cell, params, seed + 1, steps=5, batch=3)
    point = (params, batch.xs, batch.carry)
    rng = np.random.default_rng(seed + 2)
    return cell, batch, point, jax.tree.map(lambda a: normal_like(rng, a, np.float64), point)


def at(batch: Batch, point: Point) -> tuple[Any, Batch]:
    params, xs, carry = point
    return params, batch._replace(xs=xs, carry=carry)


def difference(function: Any, point: Point, direction: Point) -> Any:
    ahead, behind = (
        function(jax.tree.map(lambda p, v, e=step: p + e * v, point, direction))
        for step in (EPS, -EPS)
    )
    return jax.tree.map(lambda a, b: (a - b) / (2 * EPS), ahead, behind)


ENGINES = {"auto": NEWTON, "diagonal": KINDS["diagonal"]}


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    "name", mostly_exhaustive(["lstm", "gru-reset-before", "lru"], but=("lstm", "lru"))
)
def test_forward_mode_equals_finite_differences(name: str, kind: str, x64: None) -> None:
    row, way, engine = CELLS[name], Way(reverse=True), ENGINES[kind]
    cell, batch, point, direction = moving(name)
    run = lambda *point: call(cell, engine, way, *at(batch, point))
    jvp = jax.jit(lambda p, v: jax.jvp(run, p, v))
    truth = difference(lambda p: oracle(row, way, *at(batch, p)), point, direction)
    assert_close(jvp(point, direction)[1], truth, 1e-8)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    "name", mostly_exhaustive(["lstm", "gru-reset-before"], but=("gru-reset-before",))
)
def test_second_derivatives_equal_finite_differences(name: str, kind: str, x64: None) -> None:
    way, engine = Way(), ENGINES[kind]
    cell, batch, point, direction = moving(name)
    loss = lambda p: inner(call(cell, engine, way, *at(batch, p)), (batch.ct_carry, batch.ct_ys))
    over = lambda p, v: jax.grad(lambda p: inner(jax.grad(loss)(p), v))(p)
    ahead = lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,))[1]
    truth = difference(lambda p: loop_grads(cell, way, *at(batch, p)), point, direction)
    both = jax.jit(lambda p, v: (over(p, v), ahead(p, v)))
    for got in both(point, direction):
        assert_close(got, truth, 1e-7)


@pytest.mark.parametrize("kind", ["auto", "damped"])
def test_vmap_over_parameters_equals_a_loop(kind: str, x64: None) -> None:
    row, way, engine = CELLS["gru"], Way(), {**KINDS, "auto": NEWTON}[kind]
    cell = row.make(3)
    params = [random_params(cell, seed, 2) for seed in (1, 2)]
    params = [
        jax.tree.map(lambda leaf, s=s: s * leaf, p) for s, p in zip((3, 1e-3), params, strict=True)
    ]
    batch = random_batch(cell, params[0], 2, steps=9, batch=3)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    run = lambda p: differentiate_all(cell, engine, (way,), p, batch)[0]
    mapped = jax.jit(jax.vmap(run))(stacked)
    given = {"lengths": batch.lengths, "resets": batch.resets, "engine": engine}
    solved = lambda p: jrnn.newton(cell, p, batch.xs, batch.carry, **given).status
    status = jax.vmap(solved)(stacked)
    assert bool(status.converged.all())
    for n, p in enumerate(params):
        got = jax.tree.map(lambda leaf, n=n: leaf[n], mapped)
        assert_close((got.carry, got.ys), oracle(row, way, p, batch), 1e-9)
        assert_close(tuple(got[2:]), loop_grads(cell, way, p, batch), 1e-9)


def test_the_gradient_is_as_near_as_the_states(x64: None) -> None:
    # It is that of the equations at the states found: off by as much as these, not by more.
    row, way = CELLS["gru"], Way(lengths=False, resets=False)
    cell, params, batch = example(row, steps=60)
    truth, value = loop_grads(cell, way, params, batch), oracle(row, way, params, batch)

    def error(got: Any, want: Any) -> float:
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in pairs)

    for tol in (1e-2, 1e-4):
        engine = Newton(jacobian="diagonal", tol=tol)
        (got,) = differentiate_all(cell, engine, (way,), params, batch)
        states = error((got.carry, got.ys), value)
        assert 1e-13 < states < 100 * tol
        assert 0 < error(tuple(got[2:]), truth) < 100 * states


# Precision

MIXED = {
    "f32-bf16": (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32, 3e-2),
    "bf16-f32": (jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32, 1e-4),
    "bf16-bf16": (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, 6e-2),
    "f64-f32": (jnp.float64, jnp.float32, jnp.float32, jnp.float64, 1e-5),
}


@pytest.mark.parametrize("mix", MIXED)
@pytest.mark.parametrize(
    "name", mostly_exhaustive(["lstm", "gru-reset-before", "lru"], but=("lstm",))
)
def test_dtypes_and_values_of_mixed_precision(name: str, mix: str) -> None:
    of_params, of_xs, of_ys, of_carry, tolerance = MIXED[mix]
    row, way = CELLS[name], Way(lengths=False, resets=False)
    cell = row.make(4)
    params = random_params(cell, 1, 3, of_params)
    batch = random_batch(cell, params, 2, steps=20, batch=3)
    batch = batch._replace(
        xs=batch.xs.astype(of_xs),
        carry=as_dtype(batch.carry, of_carry),
        ct_ys=batch.ct_ys.astype(of_ys),
        ct_carry=as_dtype(batch.ct_carry, of_carry),
    )
    truth = oracle(row, way, *as_dtype((params, batch), np.float64))
    with jax.enable_x64("f64" in mix):
        got = unroll_all(cell, NEWTON, (way,), params, batch)[0]
        shapes = jax.eval_shape(
            lambda p, b: differentiate_all(cell, NEWTON, (way,), p, b)[0], params, batch
        )
    assert_close(got, truth, tolerance)
    kind = counterpart if any(map(is_complex, jax.tree.leaves(batch.carry))) else jnp.dtype
    dtypes = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree)}
    assert got[1].dtype == of_ys
    assert dtypes(got[0]) == {kind(of_carry)}
    assert dtypes(shapes.params_grad) == {jnp.dtype(of_params)}
    assert dtypes(shapes.xs_grad) == {jnp.dtype(of_xs)}
    assert dtypes(shapes.carry_grad) == {kind(of_carry)}


@pytest.mark.parametrize("of_params", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "cell", mostly_exhaustive([GRU(16), LSTM(16), Elman(16)], but=[GRU(16)]), ids=repr
)
def test_a_long_sequence_of_bfloat16_is_as_near_as_scan(cell: Cell, of_params: Any) -> None:
    # Rounding makes steps of the products: a tolerance below it is met one step at a time alone.
    wide = cell.init(jax.random.key(0), 3)
    params = jax.tree.map(lambda leaf: leaf.astype(of_params), wide)
    xs = jax.random.normal(jax.random.key(1), (500, 2, 3))
    truth = jrnn.unroll(cell, wide, xs, engine="scan")[1]
    solution = jrnn.newton(cell, params, xs.astype(jnp.bfloat16))
    assert bool(solution.status.converged.all())
    error = np.abs(np.asarray(solution.ys, np.float32) - truth).max()
    scan = jrnn.unroll(cell, params, xs.astype(jnp.bfloat16), engine="scan")[1]
    assert error < 2 * np.abs(np.asarray(scan, np.float32) - truth).max()


def test_a_sum_of_many_steps_is_that_of_scan(x64: None) -> None:
    xs = np.random.default_rng(0).normal(size=(3000, 1, 2))
    solution = jrnn.newton(Integrator(2), np.float64(0), xs)
    np.testing.assert_allclose(solution.ys, np.cumsum(xs, axis=0), atol=1e-10)
