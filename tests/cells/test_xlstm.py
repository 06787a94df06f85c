"""What is special to the cells of xLSTM: scales that cancel, heads, and how forget gates begin."""

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
def test_slstm_sees_no_common_scale_of_its_input_gates(forget: Any, shift: float) -> None:
    # exp(300) is beyond float32, and exp(-300) below it.
    cell = SLSTM(4, heads=2, forget=forget)
    params = random_params(cell, 1, 3, np.float32)
    xs = np.random.default_rng(2).normal(size=(9, 2, 3)).astype(np.float32)
    resets = np.arange(18).reshape(9, 2) == 9  # one sequence starts anew, the other does not
    loss = lambda b: (jrnn.unroll(cell, params._replace(b=b), xs, resets=resets)[1] ** 2).sum()
    shifted = np.concatenate([params.b[:4] + shift, params.b[4:]])
    np.testing.assert_allclose(loss(shifted), loss(params.b), rtol=1e-4)
    grads = jax.grad(loss)(params.b), jax.grad(loss)(shifted)
    np.testing.assert_allclose(*grads, rtol=1e-3, atol=1e-4)


def test_mlstm_is_the_stabilized_form_of_the_paper(x64: None) -> None:
    cell = MLSTM(4, soft_cap=None)
    params = random_params(cell, 1, 3)
    xs = np.random.default_rng(2).normal(size=(9, 3))
    (C, n), m = np.zeros((2, 4, 4)), 0.0
    n, want = n[0], []
    for x in xs:
        a = x @ params.w_ih + params.b
        q, k, v, o = np.split(a[:16], 4)
        log_f = -np.log1p(np.exp(-a[17]))
        before, m = m, max(log_f + m, a[16])
        f, i, k = np.exp(log_f + before - m), np.exp(a[16] - m), k / 2
        C, n = f * C + i * np.outer(v, k), f * n + i * k
        want.append(C @ q / max(abs(n @ q), np.exp(-m)) / (1 + np.exp(-o)))
    _, ys = jrnn.unroll(cell, params, xs[:, None])
    np.testing.assert_allclose(ys[:, 0], want, rtol=1e-10)


def test_soft_cap_keeps_the_input_gate_in_range() -> None:
    cell = MLSTM(2, soft_cap=4.0)
    params = cell.init(jax.random.key(0), 1)
    gate = lambda b: cell.coefficients(params, cell.project(params._replace(b=b), jnp.zeros(1)))
    b = params.b.at[2:4].set(1.0).at[4:6].set(1.0)  # keys and values of 1: n' = i / sqrt(2)
    for size, want in ((1e6, np.exp(4)), (-1e6, np.exp(-4)), (0.01, np.exp(0.01))):
        written = gate(b.at[8].set(size))[1].n * np.sqrt(2)
        np.testing.assert_allclose(written, np.full((1, 2), want), rtol=1e-5)


def test_a_unit_of_slstm_sees_the_past_of_its_own_head_alone() -> None:
    cell = SLSTM(6, heads=3)
    params = random_params(cell, 1, 2, np.float32)
    recurred = lambda h: jax.tree.reduce(
        jnp.add, cell.recur(params, cell.init_carry(params, ())._replace(h=h))
    )
    seen = np.asarray(jax.jacobian(recurred)(jnp.zeros(6))) != 0
    np.testing.assert_array_equal(seen, np.kron(np.eye(3), np.ones((2, 2))) != 0)


def test_forget_biases_begin_from_three_to_six() -> None:
    b = SLSTM(6, heads=2).init(jax.random.key(0), 2).b
    np.testing.assert_allclose(b, [0] * 6 + [3, 4.5, 6] * 2 + [0] * 12)
    assert not SLSTM(6, forget="exp").init(jax.random.key(0), 2).b.any()
    b = MLSTM(6, heads=3).init(jax.random.key(0), 2).b
    np.testing.assert_allclose(b, [0] * 27 + [3, 4.5, 6])


@pytest.mark.parametrize("cls", [SLSTM, MLSTM])
def test_heads_must_divide_the_hidden_size(cls: Any) -> None:
    message = f"{cls.__name__}: heads must divide hidden_size=6, got 4; .* multiple of 4, such as 8"
    with pytest.raises(ValueError, match=message):
        cls(6, heads=4)
    with pytest.raises(ValueError, match=f"{cls.__name__}: heads must be a positive int, got 0"):
        cls(6, heads=0)


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="forget must be one of sigmoid, exp, got 'sigmiod'; did"):
        SLSTM(4, forget="sigmiod")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="MLSTM: soft_cap must be a number above 0, got -1"):
        MLSTM(4, soft_cap=-1)
