"""The minGRU and the minLSTM with saturated gates, and their function `log_positive`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import Cell, MinGRU, MinLSTM
from jrnn.cells.minimal import log_positive

EXTREME = np.array([-1e4, -200, -1e-30, 0, 1e-30, 200, 1e4], np.float32)


def test_log_positive_and_its_derivative_equal_numpy() -> None:
    value, derivative = jax.vmap(jax.value_and_grad(log_positive))(EXTREME)
    negative_part = np.minimum(EXTREME, 0).astype(np.float64)
    non_negative = EXTREME >= 0
    log_sigmoid = negative_part - np.log1p(np.exp(negative_part))
    expected = np.where(non_negative, np.log(np.maximum(EXTREME, 0) + 0.5), log_sigmoid)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    derivatives = 1 / (np.maximum(EXTREME, 0) + 0.5), 1 / (1 + np.exp(negative_part))
    expected = np.where(non_negative, *derivatives)
    np.testing.assert_allclose(derivative, expected, rtol=1e-6)


@pytest.mark.parametrize("log_space", [False, True])
@pytest.mark.parametrize("cls", [MinGRU, MinLSTM])
def test_saturated_gates_have_finite_outputs_and_gradients(
    cls: type[MinGRU | MinLSTM], log_space: bool
) -> None:
    cell: Cell = cls(1, log_space=log_space)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    for bias in EXTREME:
        saturated = params._replace(b=jnp.full_like(params.b, bias).at[-1].set(2.0))
        step = lambda p: cell.step(p, jnp.ones((1,)), jnp.ones((1,)))[1].sum()
        y, grads = jax.value_and_grad(step)(saturated)
        assert jnp.isfinite(y) and jnp.isfinite(grads.b).all()
        if cls is MinLSTM:  # the two gates are equal, so each is 1/2
            np.testing.assert_allclose(y, 0.5 + 0.5 * (2.5 if log_space else 2.0), rtol=1e-6)
