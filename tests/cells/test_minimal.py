"""Where the gates of minimal cells are all but shut, and where their candidates are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import Cell, MinGRU, MinLSTM
from jrnn.cells.minimal import log_positive

EXTREME = np.array([-1e4, -200, -1e-30, 0, 1e-30, 200, 1e4], np.float32)


def test_logarithm_of_the_candidate_and_its_slope_are_right_and_finite() -> None:
    value, slope = jax.vmap(jax.value_and_grad(log_positive))(EXTREME)
    low = np.minimum(EXTREME, 0).astype(np.float64)
    above = EXTREME >= 0
    want = np.where(above, np.log(np.maximum(EXTREME, 0) + 0.5), low - np.log1p(np.exp(low)))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    slopes = np.where(above, 1 / (np.maximum(EXTREME, 0) + 0.5), 1 / (1 + np.exp(low)))
    np.testing.assert_allclose(slope, slopes, rtol=1e-6)


@pytest.mark.parametrize("log_space", [False, True])
@pytest.mark.parametrize("cls", [MinGRU, MinLSTM])
def test_shut_gates_give_finite_steps_and_gradients(
    cls: type[MinGRU | MinLSTM], log_space: bool
) -> None:
    cell: Cell = cls(1, log_space=log_space)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    for shut in EXTREME:
        given = params._replace(b=jnp.full_like(params.b, shut).at[-1].set(2.0))
        step = lambda p: cell.step(p, jnp.ones((1,)), jnp.ones((1,)))[1].sum()
        y, grads = jax.value_and_grad(step)(given)
        assert jnp.isfinite(y) and jnp.isfinite(grads.b).all()
        if cls is MinLSTM:  # gates that are equally shut share one half each
            np.testing.assert_allclose(y, 0.5 + 0.5 * (2.5 if log_space else 2.0), rtol=1e-6)
