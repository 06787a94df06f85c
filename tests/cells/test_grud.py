"""GRU-D without missing values, imputation of missing values, and invalid inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, GRUD, GRUDCarry, Observed, transforms
from jrnn.cells import GRUParams
from tests.helpers import assert_close, random_params


def test_grud_without_missing_values_equals_gru_with_reset_after_false(x64: None) -> None:
    params, rng = random_params(GRUD(3), 1, 2), np.random.default_rng(2)
    params = params._replace(
        w_mh=0 * params.w_mh, b_decay_x=0 * params.b_decay_x, b_decay_h=0 * params.b_decay_h
    )
    h, x, x_last = (jnp.array(rng.normal(size=n)) for n in (3, 2, 2))
    observed = Observed(x, jnp.ones(2), jnp.zeros(2))
    carry, y = GRUD(3).step(params, GRUDCarry(h, x_last), observed)
    gru_params = GRUParams(params.w_ih, params.w_hh, params.b)
    expected, _ = GRU(3, reset_after=False).step(gru_params, h, x)
    assert_close((carry.h, y, carry.x_last), (expected, expected, x), 1e-12)


def test_missing_values_are_ignored_and_decay_to_the_mean() -> None:
    cell = GRUD(3)
    params = cell.init(jax.random.key(0), 2)._replace(mean=jnp.array([2.0, -1.0]))
    carry = cell.init_carry(params, ())
    np.testing.assert_array_equal(carry.x_last, params.mean)

    def step(x: float, delta: float, x_last: float) -> GRUDCarry:
        missing = Observed(jnp.full(2, x), jnp.zeros(2), jnp.full(2, delta))
        return cell.step(params, GRUDCarry(carry.h, jnp.full(2, x_last)), missing)[0]

    assert_close(step(0.0, 0.5, 7.0), step(9.0, 0.5, 7.0), 0)
    np.testing.assert_array_equal(step(0.0, 0.5, 7.0).x_last, 7.0)
    assert np.abs(step(0.0, 0.0, 7.0).h - step(0.0, 0.0, 3.0).h).max() > 1e-2
    assert_close(step(0.0, 1e4, 7.0).h, step(0.0, 1e4, 3.0).h, 1e-6)


def test_input_of_wrong_type_or_size_raises() -> None:
    cell = GRUD(3)
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"GRUD: x must be jrnn.Observed.*of shape \(2"):
        cell.project(params, jnp.ones(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"GRUD: delta must have a last axis of 2 .*\(1,\)"):
        cell.project(params, Observed(jnp.ones(2), jnp.ones(2), jnp.ones(1)))


@pytest.mark.parametrize("cell", [GRUD(3), transforms.residual(GRUD(2))], ids=["grud", "residual"])
def test_nan_where_the_mask_is_zero_has_no_effect(cell: jrnn.Cell) -> None:
    params = cell.init(jax.random.key(0), 2)
    rng = np.random.default_rng(1)
    values = rng.normal(size=(7, 4, 2)).astype(np.float32)
    mask = (rng.random((7, 4, 2)) < 0.6).astype(np.float32)
    delta, resets = np.ones_like(values), rng.random((7, 4)) < 0.3

    def run(params: object, values: jax.Array) -> jax.Array:
        return jrnn.unroll(cell, params, Observed(values, mask, delta), resets=resets)[1]

    loss = lambda params, values: (run(params, values) ** 2).sum()
    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    want = differentiate(params, np.where(mask == 0, 0, values))
    got = differentiate(params, np.where(mask == 0, np.nan, values))
    assert_close(got, want, 0)
    x = Observed(jnp.full(2, jnp.nan), jnp.zeros(2), jnp.ones(2))
    carry = GRUDCarry(jnp.zeros(3), jnp.zeros(2))
    assert np.isfinite(GRUD(3).step(GRUD(3).init(jax.random.key(0), 2), carry, x)[1]).all()
