"""S5: its initialization, its discretization, and the equivalent real system."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import S5
from jrnn.cells.s5 import expm1_quotient, hippo_legs_eig


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_hippo_legs_eig_decomposes_normal_part_of_hippo(size: int) -> None:
    # Gu et al., 2020: A of LegS, entry by entry; plus a matrix of rank one it is normal.
    hippo = np.zeros((size, size))
    for n in range(size):
        for k in range(n + 1):
            hippo[n, k] = -(n + 1) if n == k else -np.sqrt((2 * n + 1) * (2 * k + 1))
    p = np.sqrt(np.arange(size) + 0.5)
    eigenvalues, v = hippo_legs_eig(size)
    np.testing.assert_allclose(v * eigenvalues @ v.conj().T, hippo + np.outer(p, p), atol=1e-12)


@pytest.mark.parametrize("conjugate", [True, False])
def test_initial_system_is_real(conjugate: bool, x64: None) -> None:
    # B_0 and C_0 are the input and output matrices in the basis of the real A. With equal step
    # sizes, the cell equals the real system of A, B_0 and C_0.
    cell = S5(2, state_size=4, conjugate=conjugate, step_min=0.01, step_max=0.0101)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    params = params._replace(log_step=jnp.full(4, np.log(0.01)))
    count = 8 if conjugate else 4
    b: Any = np.asarray(params.w_ih[:, :4] + 1j * params.w_ih[:, 4:8]).T
    c: Any = np.asarray(params.c_re + 1j * params.c_im).T
    v: Any = hippo_legs_eig(count)[1][:, -4:]
    b_0, c_0 = v @ b, c @ v.conj().T
    if conjugate:
        b_0, c_0 = 2 * b_0.real, 2 * c_0.real
    assert np.abs(b_0.imag).max() < 1e-12 and np.abs(c_0.imag).max() < 1e-12
    assert (np.asarray(params.lambda_im) > 0).all() == conjugate
    # The real A, discretized by a series: (exp(A t) - 1) / A = t + A t^2 / 2 + ...
    eigenvalues, w = hippo_legs_eig(count)
    A = np.real(w * eigenvalues @ w.conj().T)
    power, a, input_scale = np.eye(count), np.eye(count), 0.01 * np.eye(count)
    for n in range(1, 30):
        power = power @ A * 0.01 / n
        a, input_scale = a + power, input_scale + 0.01 * power / (n + 1)
    xs = np.random.default_rng(1).normal(size=(6, 3))
    s, expected = np.zeros(count), []
    for x in xs:
        s = a @ s + input_scale @ (b_0.real @ x)
        expected.append(c_0.real @ s + x @ np.asarray(params.w_ih[:, 8:]))
    _, ys = jrnn.unroll(cell, params, xs[:, None])
    np.testing.assert_allclose(ys[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_zero_eigenvalues_give_an_integrator_with_finite_derivatives(x64: None) -> None:
    # The discretization has a limit and derivatives at lambda = 0, and is accurate near it.
    cell = S5(2, state_size=3)
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 2)))

    def run(lambda_re: Any) -> jax.Array:
        new_params = params._replace(lambda_re=lambda_re, lambda_im=jnp.zeros(3))
        return jrnn.unroll(cell, new_params, xs, engine="scan")[1]

    ys, tangent = jax.jvp(run, (jnp.zeros(3),), (jnp.ones(3),))
    for eps in (-1e-3, 1e-4):
        expected = ys + eps * tangent
        np.testing.assert_allclose(run(jnp.full(3, eps)), expected, rtol=0, atol=20 * eps**2)
    assert np.abs(tangent).max() > 0.01  # larger than the tolerances above
    step = jnp.exp(params.log_step)
    b = params.w_ih[:, :3] + 1j * params.w_ih[:, 3:6]
    s = jnp.cumsum(step * (xs[:, 0] @ b), axis=0)
    expected = 2 * (s.real @ params.c_re - s.imag @ params.c_im) + xs[:, 0] @ params.w_ih[:, 6:]
    np.testing.assert_allclose(ys[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 1e-9, 1e-4, 1e-2, 0.099, 0.101, 1.0, 5.0])
def test_expm1_quotient_and_its_derivative_are_accurate(size: float, x64: None) -> None:
    # Compared with the series of both in extended precision.
    terms = np.cumprod(1 / np.arange(1, 90, dtype=np.longdouble))  # 1 / n!
    for direction in np.exp(1j * np.array([np.pi, 2.0, np.pi / 2])):
        m = np.clongdouble(size * direction)
        powers = m ** np.arange(88)
        expected = complex((terms[:88] * powers).sum())
        derivative = complex((terms[1:] * np.arange(1, 89) * powers).sum())
        for dtype, tolerance in ((jnp.complex128, 1e-11), (jnp.complex64, 1e-5)):
            value_and_grad = jax.value_and_grad(expm1_quotient, holomorphic=True)
            got = value_and_grad(jnp.asarray(complex(m), dtype))
            np.testing.assert_allclose(np.array(got), [expected, derivative], rtol=tolerance)


def test_initial_step_sizes_are_log_uniform() -> None:
    params = S5(2, state_size=400, step_min=0.01, step_max=1.0).init(jax.random.key(0), 2)
    expected = np.linspace(np.log(0.01), 0, 400)
    np.testing.assert_allclose(np.sort(params.log_step), expected, atol=0.4)
    np.testing.assert_allclose(params.lambda_re, np.full(400, -0.5))


@pytest.mark.parametrize(
    "steps", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, float("inf")), ("0", 1.0)]
)
def test_step_sizes_must_be_increasing_and_positive(steps: Any) -> None:
    with pytest.raises(ValueError, match="S5: step_min and step_max must satisfy 0 < step_min <"):
        S5(4, step_min=steps[0], step_max=steps[1])


def test_state_size_must_be_a_positive_int() -> None:
    with pytest.raises(ValueError, match="S5: state_size must be a positive int, got 0"):
        S5(4, state_size=0)
