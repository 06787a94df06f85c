"""Cells with a structured recurrence: properties from their papers, and invalid options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import LEM, AntisymmetricRNN, Clockwork, ClockworkCarry, CoRNN, FastGRNN
from tests.helpers import random_params


def test_undamped_antisymmetric_jacobian_is_orthogonal() -> None:
    # The Jacobian of a step at 0 is I + epsilon (M - M^T).
    cell = AntisymmetricRNN(6, epsilon=1e-3, gamma=0.0)
    params = cell.init(jax.random.key(0), 2)._replace(b=jnp.zeros(6))
    step = lambda h: cell.step(params, h, jnp.zeros(2))[0]
    singular_values = np.linalg.svd(np.asarray(jax.jacobian(step)(jnp.zeros(6))))[1]
    np.testing.assert_allclose(singular_values, 1, atol=1e-4)


def test_antisymmetric_damping_decays_the_state() -> None:
    cell = AntisymmetricRNN(6, epsilon=0.01, gamma=1.0)
    params = cell.init(jax.random.key(0), 2)
    h = 0.1 * jax.random.normal(jax.random.key(1), (1, 6))
    last, _ = jrnn.unroll(cell, params, jnp.zeros((100, 1, 2)), h)
    # The decay is exp(-epsilon gamma t), up to errors of Euler's method and of linearizing tanh.
    np.testing.assert_allclose(np.linalg.norm(last) / np.linalg.norm(h), np.exp(-1.0), rtol=0.05)


def test_cornn_without_input_oscillates_at_sqrt_gamma() -> None:
    cell = CoRNN(1, dt=0.01, gamma=4.0, epsilon=0.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    init_carry = jrnn.CoRNNCarry(y=jnp.ones((1, 1)), z=jnp.zeros((1, 1)))
    _, ys = jrnn.unroll(cell, params, jnp.zeros((1000, 1, 1)), init_carry)
    times = 0.01 * np.arange(1, 1001)
    np.testing.assert_allclose(ys[:, 0, 0], np.cos(2 * times), atol=0.02)


def test_fastgrnn_initialization_equals_that_of_the_authors() -> None:
    params = FastGRNN(5).init(jax.random.key(0), 3)
    assert (params.zeta.tolist(), params.nu.tolist()) == ([1.0], [-4.0])
    np.testing.assert_array_equal(params.b, np.ones(10))
    b_z, b_n = np.split(np.asarray(FastGRNN(64, t_max=100).init(jax.random.key(0), 3).b), 2)
    assert 0 <= b_z.min() < 2 and 4 < b_z.max() <= np.log(99)
    np.testing.assert_array_equal(b_n, np.ones(64))


def test_clockwork_modules_change_only_at_their_periods() -> None:
    cell = Clockwork(6, periods=(1, 2, 6))
    params = random_params(cell, 0, 2, np.float32)
    xs = jax.random.normal(jax.random.key(0), (13, 1, 2))
    _, ys = jrnn.unroll(cell, params, xs)
    changed = np.any(np.diff(ys[:, 0], axis=0, prepend=0).reshape(13, 3, 2) != 0, axis=-1)
    t = np.arange(13)
    np.testing.assert_array_equal(changed, np.stack([t % 1 == 0, t % 2 == 0, t % 6 == 0], axis=-1))


def test_clockwork_step_counter_is_reset_and_wraps_around() -> None:
    cell = Clockwork(4, periods=(2, 3))
    params = random_params(cell, 0, 2, np.float32)
    resets = np.zeros((10, 2), bool)
    resets[7, 1] = True
    last, _ = jrnn.unroll(cell, params, jnp.ones((10, 2, 2)), resets=resets)
    assert last.t.dtype == jnp.int32
    assert last.t.tolist() == [10 % 6, 3]


def test_slow_clockwork_modules_do_not_depend_on_fast_ones() -> None:
    cell = Clockwork(4, periods=(1, 2))
    params = random_params(cell, 0, 2, np.float32)
    step = lambda h: cell.step(params, ClockworkCarry(h, jnp.int32(0)), jnp.ones(2))[0].h
    jacobian = np.asarray(jax.jacobian(step)(jnp.ones(4)))
    np.testing.assert_array_equal(jacobian == 0, np.kron([[0, 0], [1, 0]], np.ones((2, 2))))
    w_hh = cell.init(jax.random.key(0), 2).w_hh
    np.testing.assert_array_equal(np.asarray(w_hh).T == 0, jacobian == 0)


@pytest.mark.parametrize(("hidden", "modules"), [(1, 1), (7, 7), (12, 6), (128, 8), (3, 3)])
def test_clockwork_uses_the_most_modules_that_divide_hidden_size(hidden: int, modules: int) -> None:
    expected = np.repeat(2 ** np.arange(modules), hidden // modules)
    np.testing.assert_array_equal(Clockwork(hidden).unit_periods, expected)


def test_newton_does_not_support_clockwork() -> None:
    cell = Clockwork(4)
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(
        TypeError, match="all leaves of the carry must be floating, .*int32.*; use engine="
    ):
        jrnn.unroll(cell, params, jnp.ones((5, 1, 2)), engine="newton")


@pytest.mark.parametrize("periods", [(), (0, 1), (2, 1), (1, 1), (1, 2.0), [1, 2], 3, (True, 2)])
def test_clockwork_periods_must_be_increasing_positive_ints(periods: Any) -> None:
    with pytest.raises(
        ValueError, match="Clockwork: periods must be a tuple of increasing positive ints"
    ):
        Clockwork(6, periods=periods)


def test_clockwork_periods_must_have_a_common_multiple_in_32_bits() -> None:
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
    with pytest.raises(
        ValueError, match="common multiple of periods must be below 2.31, .* got 6469"
    ):
        Clockwork(10, periods=primes)
    assert Clockwork(9, periods=primes[:9]).periods == primes[:9]


def test_clockwork_hidden_size_must_be_a_multiple_of_modules() -> None:
    with pytest.raises(ValueError, match="a multiple of the number of periods, 3, got 4"):
        Clockwork(4, periods=(1, 2, 4))
    with pytest.raises(
        ValueError, match=r"a multiple of a number from 2 to 8, got 11; .* as 16, or"
    ):
        Clockwork(11)
    assert Clockwork(11, periods=(1,)).unit_periods.tolist() == [1] * 11


INVALID_OPTIONS = [
    (AntisymmetricRNN, {"epsilon": 0}, "epsilon must be a finite number above 0"),
    (AntisymmetricRNN, {"gamma": -0.1}, "gamma must be a finite number of at least 0"),
    (AntisymmetricRNN, {"gated": 1}, "gated must be True or False"),
    (CoRNN, {"dt": 0.0}, "dt must be a finite number above 0"),
    (CoRNN, {"gamma": float("inf")}, "gamma must be a finite number of at least 0"),
    (CoRNN, {"epsilon": "1"}, "epsilon must be a finite number of at least 0"),
    (LEM, {"dt": -1}, "dt must be a finite number above 0"),
    (FastGRNN, {"t_max": 2}, "t_max must be an int of at least 3 steps"),
    (FastGRNN, {"t_max": 9, "forget_bias": 2.0}, "remove forget_bias"),
]


@pytest.mark.parametrize(("cls", "options", "message"), INVALID_OPTIONS)
def test_invalid_options_raise(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: .*{message}"):
        cls(4, **options)
