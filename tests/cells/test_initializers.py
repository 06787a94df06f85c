"""How parameters begin: each gate for itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import GRU, LSTM, Elman, initializers
from tests.table import Row

INPUT, HIDDEN = 5, 16
GATES = {LSTM: "ifgo", GRU: "rzn", Elman: "h"}


def blocks(joined: Any) -> list[np.ndarray]:
    """The gates of a joined array, in float64."""
    return np.split(np.asarray(joined, np.float64), joined.shape[-1] // HIDDEN, axis=-1)


def test_recurrent_weights_of_each_gate_are_orthogonal(row: Row) -> None:
    params = row.make(HIDDEN).init(jax.random.key(0), INPUT)
    for gate in blocks(params.w_hh):
        np.testing.assert_allclose(gate.T @ gate, np.eye(HIDDEN), atol=1e-5)
    assert_all_differ(blocks(params.w_hh))


def test_input_weights_fill_the_glorot_limit_of_one_gate(row: Row) -> None:
    limit = np.sqrt(6 / (INPUT + HIDDEN))
    params = row.make(HIDDEN).init(jax.random.key(0), INPUT)
    for gate in blocks(params.w_ih):
        assert 0.9 * limit < np.abs(gate).max() <= limit
        np.testing.assert_allclose(gate.std(), limit / np.sqrt(3), rtol=0.2)
    assert_all_differ(blocks(params.w_ih))


def assert_all_differ(gates: list[np.ndarray]) -> None:
    for n, gate in enumerate(gates):
        for other in gates[:n]:
            assert (gate != other).all()


def test_input_and_recurrent_weights_come_from_different_keys(row: Row) -> None:
    params = row.make(4).init(jax.random.key(0), 4)
    again = row.make(4).init(jax.random.key(0), 4)
    other = row.make(4).init(jax.random.key(1), 4)
    np.testing.assert_array_equal(params.w_ih, again.w_ih)
    assert (np.asarray(params.w_ih) != np.asarray(other.w_ih)).all()
    assert (np.asarray(params.w_hh) != np.asarray(other.w_hh)).all()


def test_biases_and_peepholes_are_zero_but_for_the_forget_bias(row: Row) -> None:
    cell = row.make(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT)
    for name, leaf in params._asdict().items():
        if name not in ("w_ih", "w_hh", "b") and leaf is not None:
            np.testing.assert_array_equal(leaf, np.zeros(HIDDEN))
    gates = cell.gates if isinstance(cell, LSTM) else GATES[type(cell)]
    for gate, bias in zip(gates, blocks(params.b), strict=True):
        np.testing.assert_array_equal(bias, 1.0 if gate == "f" else 0.0)


@pytest.mark.parametrize("coupled", [False, True])
def test_forget_bias_is_in_f_alone(coupled: bool) -> None:
    cell = LSTM(HIDDEN, forget_bias=-2.5, coupled=coupled)
    params = cell.init(jax.random.key(0), INPUT)
    for gate, bias in zip(cell.gates, blocks(params.b), strict=True):
        np.testing.assert_array_equal(bias, -2.5 if gate == "f" else 0.0)


@pytest.mark.parametrize("t_max", [3, 1000])
def test_chrono_is_the_logarithm_of_uniform_times(t_max: int) -> None:
    bias = np.asarray(initializers.chrono(jax.random.key(0), 4000, t_max, jnp.float32))
    times = np.exp(bias)
    assert bias.min() >= 0
    assert times.max() <= (t_max - 1) * (1 + 1e-6)
    np.testing.assert_allclose(times.mean(), t_max / 2, rtol=0.03)
    np.testing.assert_allclose(times.std(), (t_max - 2) / np.sqrt(12), rtol=0.05)


def test_chrono_of_the_lstm_keeps_with_f_and_writes_with_i() -> None:
    params = LSTM(HIDDEN, t_max=50).init(jax.random.key(0), INPUT)
    i, f, g, o = blocks(params.b)
    np.testing.assert_array_equal(i, -f)
    assert (f > 0).all() and (f <= np.log(49)).all() and len(set(f)) == HIDDEN
    np.testing.assert_array_equal((g, o), np.zeros((2, HIDDEN)))


def test_chrono_of_the_coupled_lstm_is_in_f() -> None:
    params = LSTM(HIDDEN, t_max=50, coupled=True).init(jax.random.key(0), INPUT)
    f, g, o = blocks(params.b)
    assert (f > 0).all() and (f <= np.log(49)).all()
    np.testing.assert_array_equal((g, o), np.zeros((2, HIDDEN)))


@pytest.mark.parametrize("reset_after", [True, False])
def test_chrono_of_the_gru_keeps_with_z(reset_after: bool) -> None:
    params = GRU(HIDDEN, reset_after, t_max=50).init(jax.random.key(0), INPUT)
    r, z, n = blocks(params.b)
    assert (z > 0).all() and (z <= np.log(49)).all() and len(set(z)) == HIDDEN
    np.testing.assert_array_equal((r, n), np.zeros((2, HIDDEN)))


def test_half_precision_parameters_are_float32_ones_rounded(row: Row) -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        params = row.make(HIDDEN).init(jax.random.key(0), INPUT, dtype)
        wide = row.make(HIDDEN).init(jax.random.key(0), INPUT)
        for leaf, whole in zip(jax.tree.leaves(params), jax.tree.leaves(wide), strict=True):
            assert leaf.dtype == dtype
            np.testing.assert_array_equal(leaf, whole.astype(dtype))


def test_chrono_in_half_precision_is_rounded() -> None:
    half = initializers.chrono(jax.random.key(0), HIDDEN, 50, jnp.bfloat16)
    whole = initializers.chrono(jax.random.key(0), HIDDEN, 50, jnp.float32)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))
