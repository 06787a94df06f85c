"""The convolutional LSTM: three spatial axes, initialization, and validation of shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import ConvLSTM
from tests.helpers import assert_close, normal_like, random_params
from tests.oracles.conv import convlstm


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_step_over_three_spatial_axes_equals_oracle(kernel_size: int, x64: None) -> None:
    cell = ConvLSTM(2, spatial_shape=(2, 3, 4), kernel_size=kernel_size)
    params = random_params(cell, 1, 3)
    rng = np.random.default_rng(2)
    like = cell.init_carry(params, ()), cell.inputs(3, ())
    carry, x = jax.tree.map(lambda leaf: normal_like(rng, leaf, np.float64), like)
    assert_close(cell.step(params, carry, x), convlstm(params, carry, x), 1e-12)


def test_empty_batch_returns_empty_outputs() -> None:
    cell = ConvLSTM(2, spatial_shape=(3,))
    params = cell.init(jax.random.key(0), 1)
    _, ys = jrnn.unroll(cell, params, np.zeros((4, 0, 3, 1), np.float32))
    assert ys.shape == (4, 0, 3, 2)


def test_kernels_are_initialized_per_gate() -> None:
    params = ConvLSTM(8, kernel_size=3, forget_bias=2.0).init(jax.random.key(0), 4)
    limit = np.sqrt(6 / (9 * 4 + 9 * 8))  # Glorot: fan-in and fan-out include the kernel
    assert 0.95 * limit < np.abs(params.w_ih).max() <= limit
    for gate in np.split(np.asarray(params.w_hh).reshape(9 * 8, 32), 4, axis=-1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(8), atol=1e-5)
    np.testing.assert_array_equal(params.b, np.repeat([0, 2, 0, 0], 8))


def test_wrong_spatial_shape_of_input_raises() -> None:
    cell = ConvLSTM(2, spatial_shape=(3, 4))
    params = cell.init(jax.random.key(0), 1)
    message = r"x must have shape \[..., \*spatial_shape, input\] with .* \(3, 4\), got .*4, 3"
    with pytest.raises(ValueError, match=message):
        cell.step(params, cell.init_carry(params, (5,)), jnp.ones((5, 4, 3, 1)))


@pytest.mark.parametrize("shape", [8, (), (2, 2, 2, 2), [4, 4]], ids=repr)
def test_spatial_shape_must_be_a_tuple_of_one_to_three_sizes(shape: Any) -> None:
    with pytest.raises(ValueError, match="ConvLSTM: spatial_shape must be a tuple of one to three"):
        ConvLSTM(2, spatial_shape=shape)


def test_invalid_spatial_and_kernel_sizes_raise() -> None:
    with pytest.raises(ValueError, match="each size of spatial_shape must be a positive .* 0"):
        ConvLSTM(2, spatial_shape=(3, 0))
    with pytest.raises(ValueError, match="ConvLSTM: kernel_size must be odd, .*got 4; use 5"):
        ConvLSTM(2, kernel_size=4)
