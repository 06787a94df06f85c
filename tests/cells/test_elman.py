"""The Elman network initialized as the IRNN."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import Elman

IRNN = Elman(50, activation="relu", identity=1.0)


def test_irnn_initialization_is_identity_with_small_input_weights() -> None:
    params = IRNN.init(jax.random.key(0), 40)
    np.testing.assert_array_equal(params.w_hh, np.eye(50))
    np.testing.assert_array_equal(params.b, np.zeros(50))
    np.testing.assert_allclose(np.std(params.w_ih), 0.001, rtol=0.1)
    assert abs(np.mean(params.w_ih)) < 1e-4


def test_identity_is_scaled_by_the_option() -> None:
    params = Elman(4, identity=0.01).init(jax.random.key(0), 3, jnp.bfloat16)
    assert params.w_hh.dtype == params.w_ih.dtype == jnp.bfloat16
    np.testing.assert_allclose(params.w_hh.astype(np.float32), 0.01 * np.eye(4), rtol=1e-2)


def test_initial_irnn_copies_its_state() -> None:
    params = IRNN.init(jax.random.key(0), 3)
    h = jnp.linspace(0, 1, 50)[None]
    last, _ = jrnn.unroll(IRNN, params, jnp.zeros((300, 1, 3)), h)
    np.testing.assert_array_equal(last, h)


@pytest.mark.parametrize("identity", [0, -1.0, True, "1", float("nan")])
def test_identity_must_be_a_positive_number(identity: Any) -> None:
    with pytest.raises(ValueError, match="Elman: identity must be a finite number above 0, got"):
        Elman(4, identity=identity)
