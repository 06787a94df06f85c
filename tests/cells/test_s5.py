"""What is special to S5: how it begins, and that it is the real system that it stands for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import S5
from jrnn.cells.s5 import legs, mean_of_exp


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_states_begin_as_the_normal_part_of_hippo(size: int) -> None:
    # Gu et al., 2020: A of LegS, entry by entry; of rank one less it is normal.
    hippo = np.zeros((size, size))
    for n in range(size):
        for k in range(n + 1):
            hippo[n, k] = -(n + 1) if n == k else -np.sqrt((2 * n + 1) * (2 * k + 1))
    p = np.sqrt(np.arange(size) + 0.5)
    eigenvalues, v = legs(size)
    np.testing.assert_allclose(v * eigenvalues @ v.conj().T, hippo + np.outer(p, p), atol=1e-12)


@pytest.mark.parametrize("conjugate", [True, False])
def test_first_system_is_a_real_one(conjugate: bool, x64: None) -> None:
    # Its impulse response, C_0 exp(A t) ... B_0, has no imaginary part to drop: all steps alike.
    cell = S5(2, state_size=4, conjugate=conjugate, step_min=0.01, step_max=0.0101)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    params = params._replace(log_step=jnp.full(4, np.log(0.01)))
    count = 8 if conjugate else 4
    b: Any = np.asarray(params.w_ih[:, :4] + 1j * params.w_ih[:, 4:8]).T
    c: Any = np.asarray(params.c_re + 1j * params.c_im).T
    v: Any = legs(count)[1][:, -4:]
    b_0, c_0 = v @ b, c @ v.conj().T
    if conjugate:
        b_0, c_0 = 2 * b_0.real, 2 * c_0.real
    assert np.abs(b_0.imag).max() < 1e-12 and np.abs(c_0.imag).max() < 1e-12
    assert (np.asarray(params.lambda_im) > 0).all() == conjugate
    # A in the basis of V, by its own series: (exp(A t) - 1) / A = t + A t^2 / 2 + ...
    full, w = legs(count)
    A = np.real(w * full @ w.conj().T)
    power, a, taken = np.eye(count), np.eye(count), 0.01 * np.eye(count)
    for n in range(1, 30):
        power = power @ A * 0.01 / n
        a, taken = a + power, taken + 0.01 * power / (n + 1)
    xs = np.random.default_rng(1).normal(size=(6, 3))
    s, want = np.zeros(count), []
    for x in xs:
        s = a @ s + taken @ (b_0.real @ x)
        want.append(c_0.real @ s + x @ np.asarray(params.w_ih[:, 8:]))
    _, ys = jrnn.unroll(cell, params, xs[:, None])
    np.testing.assert_allclose(ys[:, 0], want, rtol=1e-10, atol=1e-12)


def test_an_integrator_is_a_system_like_others(x64: None) -> None:
    # lambda = 0 has a limit, and derivatives; near it nothing is lost.
    cell = S5(2, state_size=3)
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 2)))

    def run(real: Any) -> jax.Array:
        moved = params._replace(lambda_re=real, lambda_im=jnp.zeros(3))
        return jrnn.unroll(cell, moved, xs, engine="scan")[1]

    at, slope = jax.jvp(run, (jnp.zeros(3),), (jnp.ones(3),))
    for near in (-1e-3, 1e-4):
        expected = at + near * slope
        np.testing.assert_allclose(run(jnp.full(3, near)), expected, rtol=0, atol=20 * near**2)
    assert np.abs(slope).max() > 0.01  # what those bounds would not let pass
    step = jnp.exp(params.log_step)
    b = params.w_ih[:, :3] + 1j * params.w_ih[:, 3:6]
    s = jnp.cumsum(step * (xs[:, 0] @ b), axis=0)
    want = 2 * (s.real @ params.c_re - s.imag @ params.c_im) + xs[:, 0] @ params.w_ih[:, 6:]
    np.testing.assert_allclose(at[:, 0], want, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 1e-9, 1e-4, 1e-2, 0.099, 0.101, 1.0, 5.0])
def test_mean_of_exp_loses_nothing(size: float, x64: None) -> None:
    # Against the series of both, in higher precision.
    terms = np.cumprod(1 / np.arange(1, 90, dtype=np.longdouble))  # 1 / n!
    for turn in np.exp(1j * np.array([np.pi, 2.0, np.pi / 2])):
        m = np.clongdouble(size * turn)
        powers = m ** np.arange(88)
        want = complex((terms[:88] * powers).sum())
        slope = complex((terms[1:] * np.arange(1, 89) * powers).sum())
        for dtype, tolerance in ((jnp.complex128, 1e-11), (jnp.complex64, 1e-5)):
            both = jax.value_and_grad(mean_of_exp, holomorphic=True)
            got = both(jnp.asarray(complex(m), dtype))
            np.testing.assert_allclose(np.array(got), [want, slope], rtol=tolerance)


def test_steps_begin_uniform_in_their_logarithms() -> None:
    params = S5(2, state_size=400, step_min=0.01, step_max=1.0).init(jax.random.key(0), 2)
    want = np.linspace(np.log(0.01), 0, 400)
    np.testing.assert_allclose(np.sort(params.log_step), want, atol=0.4)
    np.testing.assert_allclose(params.lambda_re, np.full(400, -0.5))


@pytest.mark.parametrize("steps", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, float("inf"))])
def test_steps_lie_in_order_above_zero(steps: Any) -> None:
    with pytest.raises(ValueError, match="S5: step_min and step_max must be 0 < step_min < step_"):
        S5(4, step_min=steps[0], step_max=steps[1])


def test_state_size_must_be_a_positive_int() -> None:
    with pytest.raises(ValueError, match="S5: state_size must be a positive int, got 0"):
        S5(4, state_size=0)
