"""Noise of the CTRNN, irregular time steps of the CfC, and invalid options of both."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import CTRNN, CfC, Engine, Timed
from tests.helpers import assert_close, random_params
from tests.oracles.common import relu
from tests.oracles.continuous import cfc, ctrnn

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 2, 4


def normal(*shape: int, seed: int = 0) -> Any:
    """Returns normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_ctrnn_noise_equals_samples_from_the_key(engine: Engine, reverse: bool) -> None:
    cell = CTRNN(HIDDEN, tau=10.0, dt=5.0, sigma=0.3)
    params, xs = random_params(cell, 0, INPUT, np.float32), normal(STEPS, BATCH, INPUT)
    key = jax.random.key(7)
    carry, ys = jrnn.unroll(cell, params, xs, key=key, reverse=reverse, engine=engine)
    noise = jax.random.normal(key, (STEPS, BATCH, HIDDEN))
    noise = np.asarray(noise) * np.sqrt(2 * 0.5) * 0.3  # sqrt(2 alpha) sigma, with alpha = dt / tau
    step = partial(ctrnn, activation=relu, alpha=0.5)
    for b in range(BATCH):
        s: Any = np.zeros(HIDDEN), np.zeros(HIDDEN)
        for t in range(STEPS)[:: -1 if reverse else 1]:
            s, y = step(params, s, xs[t, b], noise=noise[t, b])
            assert_close(ys[t, b], y, 1e-5)
        assert_close(jax.tree.map(lambda leaf, b=b: leaf[b], carry), s, 1e-5)


def test_ctrnn_is_deterministic_without_key_or_sigma() -> None:
    noisy, noiseless = CTRNN(HIDDEN, sigma=0.3), CTRNN(HIDDEN)
    params, xs = random_params(noisy, 0, INPUT, np.float32), normal(STEPS, BATCH, INPUT)
    expected = jrnn.unroll(noiseless, params, xs)
    assert_close(jrnn.unroll(noisy, params, xs), expected, 0)
    assert_close(jrnn.unroll(noiseless, params, xs, key=jax.random.key(0)), expected, 0)
    assert noisy.is_stochastic and not noiseless.is_stochastic


def test_sigma_determines_the_standard_deviation_of_the_potentials() -> None:
    # With alpha = dt / tau = 0.05, the stationary variance of
    # h' = (1 - alpha) h + sqrt(2 alpha) sigma xi is sigma^2 / (1 - alpha / 2).
    cell = CTRNN(200, dt=5.0, sigma=0.5)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    run = lambda key: jrnn.unroll(cell, params, jnp.zeros((200, 20, 1)), key=key)[0].h
    deviation = np.std(run(jax.random.key(1)))
    np.testing.assert_allclose(deviation, 0.5 / np.sqrt(1 - 0.05 / 2), rtol=0.05)


def test_potential_decays_with_time_constant_tau() -> None:
    cell = CTRNN(1, tau=100.0, dt=1.0, activation="tanh")
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    init_carry = jrnn.CTRNNCarry(h=jnp.ones((1, 1)), r=jnp.tanh(jnp.ones((1, 1))))
    last, _ = jrnn.unroll(cell, params, jnp.zeros((100, 1, 1)), init_carry)
    np.testing.assert_allclose(last.h, np.exp(-1), rtol=0.01)


def test_rates_equal_activation_of_potentials_at_every_step() -> None:
    cell = CTRNN(HIDDEN, activation="softplus")
    params = random_params(cell, 0, INPUT, np.float32)
    carry = cell.init_carry(params, (BATCH,))
    for x in normal(STEPS, BATCH, INPUT):
        np.testing.assert_allclose(carry.r, np.log1p(np.exp(carry.h)), rtol=1e-5)
        carry, y = cell.step(params, carry, x)
        np.testing.assert_array_equal(y, carry.r)


@pytest.mark.parametrize("units", [None, 5])
def test_irregular_time_steps_equal_numpy_loop(engine: Engine, units: int | None) -> None:
    cell = CfC(HIDDEN, backbone_units=units)
    params = random_params(cell, 0, INPUT, np.float32)
    xs: Any = Timed(normal(STEPS, BATCH, INPUT), abs(3 * normal(STEPS, BATCH, seed=1)))
    lengths = np.array([STEPS, 4, 1], np.int32)
    _, ys = jrnn.unroll(cell, params, xs, lengths=lengths, engine=engine)
    for b in range(BATCH):
        h = np.zeros(HIDDEN)
        for t in range(lengths[b]):
            h, y = cfc(params, h, xs.x[t, b], xs.dt[t, b], backbone=units is not None)
            assert_close(ys[t, b], y, 1e-5)


def test_gradient_of_time_steps_equals_finite_differences(engine: Engine, x64: None) -> None:
    cell = CfC(HIDDEN, backbone_units=5)
    params = random_params(cell, 0, INPUT)
    x, dt = normal(STEPS, BATCH, INPUT).astype(float), abs(normal(STEPS, BATCH, seed=1)) + 0.1
    loss = jax.jit(
        lambda dt: (jrnn.unroll(cell, params, Timed(x, dt), engine=engine)[1] ** 2).sum()
    )
    grad, eps = jax.grad(loss)(dt.astype(float)), 1e-6
    for index in [(0, 0), (3, 1), (STEPS - 1, 2)]:
        delta = np.zeros((STEPS, BATCH))
        delta[index] = eps
        expected = (loss(dt + delta) - loss(dt - delta)) / (2 * eps)
        np.testing.assert_allclose(grad[index], expected, rtol=1e-6, atol=1e-8)


def test_inputs_without_dt_have_time_step_one() -> None:
    cell = CfC(HIDDEN, backbone_units=5)
    params, xs = random_params(cell, 0, INPUT, np.float32), normal(STEPS, BATCH, INPUT)
    timed = Timed(xs, jnp.ones((STEPS, BATCH)))
    assert_close(jrnn.unroll(cell, params, timed), jrnn.unroll(cell, params, xs), 0)


def test_float32_time_steps_keep_half_precision_carry() -> None:
    cell = CfC(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT, jnp.bfloat16)
    x = Timed(jnp.ones((BATCH, INPUT), jnp.bfloat16), jnp.ones(BATCH, jnp.float32))
    h, _ = cell.step(params, cell.init_carry(params, (BATCH,)), x)
    assert h.dtype == jnp.bfloat16


def test_cfc_weights_have_glorot_limit_of_input_and_state() -> None:
    for units, width, fan_out in [(None, 4 * 30, 30), (50, 50, 50)]:
        params = CfC(30, backbone_units=units).init(jax.random.key(0), 20)
        weights = np.concatenate([params.w_ih, params.w_hh])
        assert weights.shape == (50, width)
        limit = np.sqrt(6 / (50 + fan_out))
        assert 0.95 * limit < np.abs(weights).max() <= limit
        assert 0.9 * limit < np.abs(params.w_hh).max()


def test_time_steps_of_wrong_shape_raise() -> None:
    cell = CfC(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT)
    with pytest.raises(ValueError, match=r"CfC: dt must have the leading axes of x, \(3,\), got"):
        cell.project(params, Timed(jnp.ones((3, INPUT)), jnp.ones(())))


INVALID_OPTIONS = [
    (CTRNN, {"tau": 0}, "tau must be a finite number above 0"),
    (CTRNN, {"dt": -1.0}, "dt must be a finite number above 0"),
    (CTRNN, {"tau": 10.0, "dt": 11.0}, "dt must be at most tau, .*use a smaller dt"),
    (CTRNN, {"sigma": -0.1}, "sigma must be a finite number of at least 0"),
    (CTRNN, {"activation": "rleu"}, "activation must be one of .*did you mean 'relu'"),
    (CfC, {"backbone_units": 0}, "backbone_units must be a positive int"),
    (CfC, {"mode": "nogate"}, "mode must be one of .*did you mean 'no_gate'"),
]


@pytest.mark.parametrize(("cls", "options", "message"), INVALID_OPTIONS)
def test_invalid_options_raise(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: .*{message}"):
        cls(4, **options)
