"""The damped step of Newton's method against a dense least-squares solve in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Elman, Newton
from jrnn.engines import damping
from tests.helpers import mark_exhaustive

STEPS, BATCH = 7, 4
DAMPING = np.array([0.0, 1e-3, 1.0, 50.0])  # one for each sequence


def random_system(is_complex: bool, n: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns random Jacobians `[T, B, n, n]` and residuals `[T, B, n]`.

    If n is None, the Jacobians are scalars, and both are `[T, B, 3]`.
    """
    rng = np.random.default_rng(0)
    normal = lambda *shape: (
        rng.normal(size=shape) + (1j * rng.normal(size=shape) if is_complex else 0)
    )
    shape = (3,) if n is None else (n, n)
    a, r = normal(STEPS, BATCH, *shape), normal(STEPS, BATCH, shape[0])
    a[3, 1] = 0  # as at a reset
    return a, r


def least_squares(a: np.ndarray, r: np.ndarray, weight: float, reverse: bool) -> np.ndarray:
    """Minimizes sum |d_t - A_t d_{t-1} - r_t|^2 + weight |d_t|^2 for one sequence, d `[T, n]`."""
    steps, n = r.shape
    order = list(range(steps))[:: -1 if reverse else 1]
    rows = np.eye(steps * n, dtype=a.dtype)
    for prev, t in zip(order, order[1:], strict=False):
        rows[t * n : (t + 1) * n, prev * n : (prev + 1) * n] = -a[t]
    system = np.concatenate([rows, np.sqrt(weight) * np.eye(steps * n)])
    target = np.concatenate([r.ravel(), np.zeros(steps * n)])
    return np.linalg.lstsq(system, target, rcond=None)[0].reshape(steps, n)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("n", [1, 3])
def test_smooth_with_matrices_equals_dense_least_squares(
    n: int, is_complex: bool, reverse: bool, x64: None
) -> None:
    a, r = random_system(is_complex, n)
    got = damping.smooth(damping.MATRICES, *map(jnp.asarray, (a, r, DAMPING)), reverse)
    for b, weight in enumerate(DAMPING):
        want = least_squares(a[:, b], r[:, b], weight, reverse)
        np.testing.assert_allclose(got[:, b], want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_smooth_with_scalars_equals_dense_least_squares(
    is_complex: bool, reverse: bool, x64: None
) -> None:
    a, r = random_system(is_complex, None)
    got = damping.smooth(damping.SCALARS, *map(jnp.asarray, (a, r, DAMPING)), reverse)
    for b, weight in enumerate(DAMPING):
        columns = [
            least_squares(a[:, b, k, None, None], r[:, b, k, None], weight, reverse)
            for k in range(3)
        ]
        np.testing.assert_allclose(
            got[:, b], np.concatenate(columns, axis=-1), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("kind", ["full", "block", "diagonal"])
def test_damped_step_of_each_jacobian_kind_equals_dense_least_squares(kind: Any, x64: None) -> None:
    rng = np.random.default_rng(1)
    leaves = [rng.normal(size=(STEPS, BATCH, 2)) for _ in range(2)]
    parts = rng.normal(size=(2, 2, STEPS, BATCH, 2))
    dense = np.zeros((STEPS, BATCH, 4, 4))
    for i in range(2):
        for j in range(2):
            for k in range(2):
                if i == j or kind != "diagonal":
                    dense[..., 2 * i + k, 2 * j + k] = parts[i, j, ..., k]
    jacobians = {
        "full": jnp.asarray(dense),
        "block": tuple(tuple(map(jnp.asarray, row)) for row in parts),
        "diagonal": tuple(jnp.asarray(parts[i, i]) for i in range(2)),
    }[kind]
    got = damping.damped_step(
        kind, jacobians, [jnp.asarray(a) for a in leaves], jnp.asarray(DAMPING), True
    )
    r = np.concatenate(leaves, axis=-1)
    for b, weight in enumerate(DAMPING):
        want = least_squares(dense[:, b], r[:, b], weight, True)
        np.testing.assert_allclose(
            np.concatenate(got, axis=-1)[:, b], want, rtol=1e-9, atol=1e-9 * np.abs(want).max()
        )


# Computed by NumPy, since two concurrent batched LAPACK calls of XLA can deadlock.
INVERSE = lambda a: jnp.asarray(np.linalg.inv(np.asarray(a)))


@pytest.mark.parametrize("n", mark_exhaustive([None, 1, 3], always=[None, 3]))
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_parallel_covariances_equal_sequential(
    n: int | None, is_complex: bool, reverse: bool, x64: None
) -> None:
    a, _ = random_system(is_complex, n)
    ops = damping.SCALARS if n is None else damping.MATRICES._replace(general_inverse=INVERSE)
    weight = jnp.asarray(DAMPING).reshape(-1, *(1,) * (a.ndim - 2))
    arguments = ops, jnp.asarray(a), weight, reverse
    for got, want in zip(
        damping.parallel_covariances(*arguments), damping.covariances(*arguments), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


def test_last_covariances_equal_those_of_the_normal_equations(x64: None) -> None:
    # No observation follows the last state: its covariance is the last block of the inverse of the
    # normal matrix.
    a, _ = random_system(False, 2)
    weight = jnp.asarray(DAMPING).reshape(-1, 1, 1)
    predicted, updated = damping.covariances(damping.MATRICES, jnp.asarray(a), weight, False)
    for b, w in enumerate(DAMPING):
        rows = np.eye(2 * STEPS)
        for t in range(1, STEPS):
            rows[2 * t : 2 * t + 2, 2 * t - 2 : 2 * t] = -a[t, b]
        inverse = np.linalg.inv(rows.T @ rows + w * np.eye(2 * STEPS))
        np.testing.assert_allclose(updated[-1, b], inverse[-2:, -2:], rtol=1e-7)
        precision = rows.T @ rows + w * np.diag([1.0] * (2 * STEPS - 2) + [0.0] * 2)
        np.testing.assert_allclose(predicted[-1, b], np.linalg.inv(precision)[-2:, -2:], rtol=1e-7)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_positive_inverse_equals_numpy(n: int, is_complex: bool, x64: None) -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(4, n, n)) + (1j * rng.normal(size=(4, n, n)) if is_complex else 0)
    a = half @ np.conj(np.swapaxes(half, -1, -2)) + 0.1 * np.eye(n)
    np.testing.assert_allclose(
        damping.positive_inverse(jnp.asarray(a)), np.linalg.inv(a), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("kind", ["full", "diagonal"])
@pytest.mark.parametrize("name", mark_exhaustive(["elman", "lstm", "gru"], always=["elman", "gru"]))
def test_converged_damped_solutions_equal_scan(name: str, kind: Any, x64: None) -> None:
    gain, cell = {"elman": (1.5, Elman(8)), "lstm": (3.0, LSTM(8)), "gru": (3.0, GRU(8))}[name]
    params = cell.init(jax.random.key(0), 2, np.float64)
    params = params._replace(w_hh=gain * params.w_hh)
    xs = np.random.default_rng(0).normal(size=(40, 3, 2)) / 2
    xs[:, 1] = 100 * np.sign(xs[:, 1])  # these saturate the cell, so that the sequence converges
    solution = jrnn.newton(
        cell, params, xs, engine=Newton(jacobian=kind, damping=1.0, max_steps=40)
    )
    want = np.asarray(jrnn.unroll(cell, params, xs, engine="scan")[1])
    residuals = np.asarray(solution.status.residuals)
    converged = np.asarray(solution.status.converged)
    last = residuals[int(solution.status.iterations)]
    np.testing.assert_array_equal(converged, last <= 64 * np.finfo(float).eps)
    error = np.abs(np.asarray(solution.ys) - want).max(axis=(0, 2))
    assert converged.any() and not converged.all()
    assert (error[converged] < 1e-6).all()
    assert np.isfinite(solution.ys).all()


def test_damped_steps_never_increase_the_residual(x64: None) -> None:
    # The sum of squared residuals, computed in NumPy, increases at no step with damping, and
    # at some step without damping.
    cell = Elman(8)
    params = cell.init(jax.random.key(0), 2, np.float64)
    params = params._replace(w_hh=2.5 * params.w_hh)
    xs = np.random.default_rng(0).normal(size=(60, 2, 2)) / 2
    p = jax.tree.map(np.asarray, params)

    def sums_of_squares(**options: Any) -> np.ndarray:
        """Returns the sum of each sequence after 1, 2, 3 and 5 steps, `[4, B]`."""
        sums = []
        for k in (1, 2, 3, 5):
            engine = Newton(max_steps=k, tol=1e-12, **options)
            states = np.asarray(jrnn.newton(cell, params, xs, engine=engine).carries)
            prev_carries = np.concatenate([np.zeros((1, 2, 8)), states[:-1]])
            residuals = np.tanh(xs @ p.w_ih + prev_carries @ p.w_hh + p.b) - states
            sums.append(np.square(residuals).sum(axis=(0, 2)))
        return np.stack(sums)

    damped, undamped = sums_of_squares(damping=1.0), sums_of_squares()
    assert (np.diff(damped, axis=0) <= 1e-20).all()
    assert damped[-1].sum() < damped[0].sum() / 2
    assert (np.diff(undamped, axis=0) > 0).any(), "undamped steps never increase the residual"
