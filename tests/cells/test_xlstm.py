"""The sLSTM and the mLSTM: stabilization, heads, and initial forget biases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import MLSTM, SLSTM
from tests.helpers import random_params


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_slstm_is_invariant_to_common_scale_of_input_gates(forget: Any, shift: float) -> None:
    # exp(300) overflows in float32, and exp(-300) underflows.
    cell = SLSTM(4, heads=2, forget_activation=forget)
    params = random_params(cell, 1, 3, np.float32)
    xs = np.random.default_rng(2).normal(size=(9, 2, 3)).astype(np.float32)
    resets = np.arange(18).reshape(9, 2) == 9  # only one sequence is reset
    loss = lambda b: (jrnn.unroll(cell, params._replace(b=b), xs, resets=resets)[1] ** 2).sum()
    shifted = np.concatenate([params.b[:4] + shift, params.b[4:]])
    np.testing.assert_allclose(loss(shifted), loss(params.b), rtol=1e-4)
    grads = jax.grad(loss)(params.b), jax.grad(loss)(shifted)
    np.testing.assert_allclose(*grads, rtol=1e-3, atol=1e-4)


def test_mlstm_equals_stabilized_form_of_the_paper(x64: None) -> None:
    cell = MLSTM(4, soft_cap=None)
    params = random_params(cell, 1, 3)
    xs = np.random.default_rng(2).normal(size=(9, 3))
    (C, n), m = np.zeros((2, 4, 4)), 0.0
    n, expected = n[0], []
    for x in xs:
        a = x @ params.w_ih + params.b
        q, k, v, o = np.split(a[:16], 4)
        log_f = -np.log1p(np.exp(-a[17]))
        prev_m, m = m, max(log_f + m, a[16])
        f, i, k = np.exp(log_f + prev_m - m), np.exp(a[16] - m), k / 2
        C, n = f * C + i * np.outer(v, k), f * n + i * k
        expected.append(C @ q / max(abs(n @ q), np.exp(-m)) / (1 + np.exp(-o)))
    _, ys = jrnn.unroll(cell, params, xs[:, None])
    np.testing.assert_allclose(ys[:, 0], expected, rtol=1e-10)


def test_soft_cap_bounds_the_input_gate() -> None:
    cell = MLSTM(2, soft_cap=4.0)
    params = cell.init(jax.random.key(0), 1)
    coefficients = lambda b: cell.coefficients(
        params, cell.project(params._replace(b=b), jnp.zeros(1))
    )
    b = params.b.at[2:4].set(1.0).at[4:6].set(1.0)  # keys and values of 1: n' = i / sqrt(2)
    for bias, expected in ((1e6, np.exp(4)), (-1e6, np.exp(-4)), (0.01, np.exp(0.01))):
        i = coefficients(b.at[8].set(bias))[1].n * np.sqrt(2)
        np.testing.assert_allclose(i, np.full((1, 2), expected), rtol=1e-5)


def test_slstm_units_depend_only_on_their_own_head() -> None:
    cell = SLSTM(6, heads=3)
    params = random_params(cell, 1, 2, np.float32)
    sum_of_gates = lambda h: jax.tree.reduce(
        jnp.add, cell.recur(params, cell.init_carry(params, ())._replace(h=h))
    )
    depends = np.asarray(jax.jacobian(sum_of_gates)(jnp.zeros(6))) != 0
    np.testing.assert_array_equal(depends, np.kron(np.eye(3), np.ones((2, 2))) != 0)


def test_initial_forget_biases_are_spaced_from_three_to_six() -> None:
    b = SLSTM(6, heads=2).init(jax.random.key(0), 2).b
    np.testing.assert_allclose(b, [0] * 6 + [3, 4.5, 6] * 2 + [0] * 12)
    assert not SLSTM(6, forget_activation="exp").init(jax.random.key(0), 2).b.any()
    b = MLSTM(6, heads=3).init(jax.random.key(0), 2).b
    np.testing.assert_allclose(b, [0] * 27 + [3, 4.5, 6])


@pytest.mark.parametrize("cls", [SLSTM, MLSTM])
def test_heads_must_divide_the_hidden_size(cls: Any) -> None:
    message = f"{cls.__name__}: heads must divide hidden_size=6, got 4; .* multiple of 4, such as 8"
    with pytest.raises(ValueError, match=message):
        cls(6, heads=4)
    with pytest.raises(ValueError, match=f"{cls.__name__}: heads must be a positive int, got 0"):
        cls(6, heads=0)


def test_invalid_options_raise() -> None:
    with pytest.raises(
        ValueError, match="forget_activation must be one of sigmoid, exp, got 'sigmiod'; did"
    ):
        SLSTM(4, forget_activation="sigmiod")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="MLSTM: soft_cap must be a finite number above 0, got -1"):
        MLSTM(4, soft_cap=-1)
