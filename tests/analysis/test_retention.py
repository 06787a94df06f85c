"""Tests of `jrnn.analysis.retention`, against a loop of products and against a derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn.analysis import capture_gates, retention

T, HIDDEN = 6, 3


def retention_by_loops(forget, resets, reverse):
    """Returns [s, t, ...]: the product of the gates after step s up to t, in scan order."""
    order = range(len(forget))[:: -1 if reverse else 1]
    result = np.zeros((len(forget), *forget.shape))
    for s in order:
        product = np.ones(forget.shape[1:])
        result[s, s] = product
        for t in [t for t in order if (t < s if reverse else t > s)]:
            product = np.zeros_like(product) if resets[t] else product * forget[t]
            result[s, t] = product
    return result


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
def test_retention_equals_a_loop_of_products(with_resets, reverse):
    forget = jax.random.uniform(jax.random.key(0), (T, HIDDEN), jnp.float32).at[2, 1].set(0.0)
    resets = np.zeros(T, bool)
    resets[[0, 4]] = with_resets
    got = retention(forget, jnp.asarray(resets) if with_resets else None, reverse=reverse)
    expected = retention_by_loops(np.asarray(forget), resets, reverse)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_retention_equals_the_derivative_of_the_cell_state():
    cell = jrnn.LSTM(HIDDEN)
    params = cell.init(jax.random.key(0), 2)
    noise = jax.random.normal(jax.random.key(1), params.b.shape, jnp.float32)
    # Without recurrent weights, the gates are constant with respect to the carry.
    params = params._replace(w_hh=jnp.zeros_like(params.w_hh), b=noise)
    xs = jax.random.normal(jax.random.key(2), (T, 1, 2), jnp.float32)

    def final_cell_state(c):
        carry = jrnn.LSTMCarry(h=jnp.zeros((1, HIDDEN)), c=c[None])
        return jrnn.unroll(cell, params, xs[1:], carry, engine="scan")[0].c[0]

    forget = capture_gates(cell, params, xs).gates["f"][:, 0]
    jacobian = jax.jacobian(final_cell_state)(jnp.array([0.3, -0.2, 0.1]))
    np.testing.assert_allclose(jnp.diag(retention(forget)[0, -1]), jacobian, rtol=1e-5, atol=1e-8)


def test_retention_of_zero_steps_is_empty():
    assert retention(jnp.zeros((0, HIDDEN))).shape == (0, 0, HIDDEN)


def test_retention_raises_for_wrong_shapes():
    with pytest.raises(ValueError, match=r"forget must have shape \(time, ...\)"):
        retention(jnp.array(0.5))
    with pytest.raises(ValueError, match=r"resets must have shape \(time,\) = \(6,\), got \(2,\)"):
        retention(jnp.ones((T, HIDDEN)), jnp.zeros(2, bool))
