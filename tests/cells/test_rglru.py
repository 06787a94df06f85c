"""The RG-LRU: initial decays, closed gates, and half precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import RGLRU


def test_initial_decays_of_open_gate_are_uniform() -> None:
    cell = RGLRU(4000, r_min=0.5, r_max=0.9)
    params = cell.init(jax.random.key(0), 1)
    # A pre-activation of 30 opens the recurrence gate, and one of -100 closes the input gate.
    z = [jnp.full(4000, value) for value in (30.0, -100.0, 0.0)]
    a, b = cell.coefficients(params, type(cell.project(params, jnp.ones(1)))(*z))
    assert 0.5 <= a.min() < 0.505 and 0.895 < a.max() <= 0.9
    np.testing.assert_allclose(np.sort(a), np.linspace(0.5, 0.9, 4000), atol=0.02)
    assert not b.any()


@pytest.mark.parametrize("bias", [-20.0, -90.0, -150.0, -1e4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_closed_gate_are_finite_and_correct(bias: float, dtype: jnp.dtype) -> None:
    cell = RGLRU(1)
    params = cell.init(jax.random.key(0), 1, dtype)
    params = params._replace(b=jnp.array([bias, 0, 0], dtype), w_ih=jnp.ones((1, 3), dtype))

    def loss(b: jax.Array, lam: jax.Array) -> jax.Array:
        new_params = params._replace(b=b, lam=lam)
        return cell.step(new_params, jnp.zeros(1, dtype), jnp.zeros(1, dtype) + 1)[0].sum()

    value = loss(params.b, params.lam)
    grad_b, grad_lam = jax.grad(loss, argnums=(0, 1))(params.b, params.lam)
    assert jnp.isfinite(grad_b).all() and jnp.isfinite(grad_lam).all()
    # For a near 1, sqrt(1 - a^2) is about sqrt(-2 log a), and log a is proportional to exp(b_r).
    np.testing.assert_allclose(float(grad_b[0]), float(value) / 2, rtol=0.05)


def test_decays_close_to_one_are_distinct_in_half_precision() -> None:
    params = RGLRU(1).init(jax.random.key(0), 1, jnp.bfloat16)
    z = RGLRU(1).project(params, jnp.zeros(1, jnp.bfloat16))
    decays = [
        float(RGLRU(1).coefficients(params._replace(lam=jnp.full(1, lam, jnp.bfloat16)), z)[0][0])
        for lam in (-9.0, -8.0)
    ]
    expected = [np.exp(-8 * 0.5 * np.log1p(np.exp(lam))) for lam in (-9.0, -8.0)]
    np.testing.assert_allclose(decays, expected, rtol=1e-6)
    assert decays[1] < decays[0] < 1


@pytest.mark.parametrize(
    ("r_min", "r_max"),
    [(0.0, 0.9), (0.5, 0.5), (0.9, 0.1), (0.5, 1.0), (float("nan"), 0.9), ("0.5", 0.9)],
)
def test_r_min_and_r_max_must_be_increasing_between_zero_and_one(r_min: Any, r_max: float) -> None:
    message = "RGLRU: r_min and r_max must satisfy 0 < r_min < r_max < 1, got r_min="
    with pytest.raises(ValueError, match=message):
        RGLRU(4, r_min=r_min, r_max=r_max)
