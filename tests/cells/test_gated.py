"""Variants of the GRU and of the LSTM: initialization, options, and equalities between cells."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    JANET,
    LSTM,
    MGU,
    MUT1,
    MUT2,
    MUT3,
    UGRNN,
    Cell,
    DepthGatedLSTM,
    Elman,
    MinimalRNN,
    MogrifierLSTM,
    MultiplicativeLSTM,
    WithCellState,
)
from jrnn.cells import GRUParams, LSTMParams
from jrnn.taps import capture_taps
from jrnn.testing import check_cell
from tests.helpers import assert_close, normal_like, random_params
from tests.oracles.gated import depth_gated_lstm, janet, mogrifier_lstm

INPUT, HIDDEN = 5, 16
# Cells, and those of their initial biases that are not zero, by the index of the gate.
INITIAL_BIASES = [
    (MUT1(HIDDEN), {}),
    (MUT2(HIDDEN), {}),
    (MUT3(HIDDEN), {}),
    (MGU(HIDDEN), {}),
    (MinimalRNN(HIDDEN), {}),
    (UGRNN(HIDDEN, forget_bias=2.5), {0: 2.5}),
    (JANET(HIDDEN), {0: 1.0}),
    (MultiplicativeLSTM(HIDDEN), {1: 1.0}),
    (MogrifierLSTM(HIDDEN, forget_bias=-2.5), {1: -2.5}),
    (DepthGatedLSTM(HIDDEN), {1: 1.0}),
]


def split_gates(array: Any) -> list[np.ndarray]:
    """Splits a concatenated array into gates, in float64."""
    return np.split(np.asarray(array, np.float64), array.shape[-1] // HIDDEN, axis=-1)


@pytest.mark.parametrize(("cell", "biases"), INITIAL_BIASES, ids=str)
def test_weights_and_biases_are_initialized_as_in_the_lstm(cell: Cell, biases: dict) -> None:
    params = cell.init(jax.random.key(0), INPUT)
    for gate in split_gates(params.w_hh):
        np.testing.assert_allclose(gate.T @ gate, np.eye(HIDDEN), atol=1e-5)
    limit = np.sqrt(6 / (INPUT + HIDDEN))
    for gate in split_gates(params.w_ih):
        assert 0.9 * limit < np.abs(gate).max() <= limit
    for n, bias in enumerate(split_gates(params.b)):
        np.testing.assert_array_equal(bias, biases.get(n, 0.0))


@pytest.mark.parametrize("cls", [JANET, UGRNN])
def test_chrono_biases_are_in_the_forget_gate(cls: Any) -> None:
    forget, other = split_gates(cls(HIDDEN, t_max=50).init(jax.random.key(0), INPUT).b)
    assert (forget > 0).all() and (forget <= np.log(49)).all()
    assert len(set(forget)) == HIDDEN
    np.testing.assert_array_equal(other, 0)
    with pytest.raises(ValueError, match="t_max must be an int of at least 3 steps, got 2"):
        cls(4, t_max=2)
    with pytest.raises(ValueError, match="t_max=9 determines the forget bias.*remove forget_bias"):
        cls(4, t_max=9, forget_bias=2.0)


@pytest.mark.parametrize("beta", [None, True, "1", float("nan"), float("inf")])
def test_janet_beta_must_be_a_finite_number(beta: Any) -> None:
    with pytest.raises(ValueError, match="JANET: beta must be a finite number, got"):
        JANET(4, beta=beta)


@pytest.mark.parametrize("name", ["rounds", "rank"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_mogrifier_rounds_and_rank_must_be_positive_ints(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"MogrifierLSTM: {name} must be a positive int, got"):
        MogrifierLSTM(4, **{name: value})


def step_args(cell: Cell) -> tuple[Any, Any, np.ndarray]:
    """Returns parameters, carry and input of one sequence, in float64."""
    params, rng = random_params(cell, 1, INPUT), np.random.default_rng(2)
    carry = jax.eval_shape(lambda p: cell.init_carry(p, ()), params)
    carry = jax.tree.map(lambda leaf: normal_like(rng, leaf, np.float64), carry)
    return params, carry, rng.normal(size=INPUT)


def test_janet_with_any_beta_equals_oracle(x64: None) -> None:
    for beta in (0.0, -0.5, 2.0):
        cell = JANET(3, beta=beta)
        args = step_args(cell)
        assert_close(cell.step(*args), janet(*args, beta=beta), 1e-12)


@pytest.mark.parametrize(("rounds", "rank"), [(1, None), (1, 2), (2, None), (3, 1), (6, 7)])
def test_mogrifier_with_any_rounds_and_rank_equals_oracle(
    rounds: int, rank: int | None, x64: None
) -> None:
    cell = MogrifierLSTM(3, rounds=rounds, rank=rank)
    params, carry, x = step_args(cell)
    assert (params.r is None) == (rounds == 1)
    assert (params.q_right is None) == (rank is None)
    expected = mogrifier_lstm(params, carry, x, rounds=rounds)
    assert_close(cell.step(params, carry, x), expected, 1e-12)


def test_mogrifier_with_zero_round_weights_equals_lstm(x64: None) -> None:
    cell = MogrifierLSTM(3)
    params, carry, x = step_args(cell)
    params = params._replace(q=0 * params.q, r=0 * params.r)
    plain = LSTMParams(params.w_ih, params.w_hh, params.b)
    assert_close(cell.step(params, carry, x), LSTM(3).step(plain, carry, x), 1e-12)


def test_mut2_equals_gru_with_reset_after_false_and_negated_z(x64: None) -> None:
    params, h, x = step_args(MUT2(3))

    def to_gru(leaf: Any) -> Any:
        z, r, n = np.split(leaf, 3, axis=-1)
        return np.concatenate([r, -z, n], axis=-1)

    gru = GRUParams(to_gru(params.w_ih), to_gru(params.w_hh), to_gru(params.b))
    assert_close(MUT2(3).step(params, h, x), GRU(3, reset_after=False).step(gru, h, x), 1e-12)


def random_inputs_with_cell_state(key: jax.Array, leading: tuple[int, ...]) -> WithCellState:
    """Returns random outputs `[*leading, 3]` and cell states `[*leading, 2]` of a layer below."""
    keys = jax.random.split(key)
    leaves = (jax.random.normal(k, (*leading, n)) for k, n in zip(keys, (3, 2), strict=True))
    return WithCellState(*leaves)


def test_depth_gated_lstm_with_layer_below_satisfies_the_contract() -> None:
    check_cell(DepthGatedLSTM(2), sample_inputs=random_inputs_with_cell_state)


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_depth_gated_lstm_with_layer_below_equals_oracle(engine: str, x64: None) -> None:
    steps, cell = 6, DepthGatedLSTM(2)
    params, rng = random_params(cell, 1, 3), np.random.default_rng(4)
    start = cell.init_carry(params, (1,))
    xs = random_inputs_with_cell_state(jax.random.key(5), (steps, 1))
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), (params, xs))
    weights = rng.normal(size=(steps, 1, 2))

    def oracle(eps: float) -> tuple[np.ndarray, Any]:
        """Returns outputs and final carry for params and xs changed by eps times `direction`."""
        p, x = jax.tree.map(lambda a, d: np.asarray(a) + eps * d, (params, xs), direction)
        carry, ys = jax.tree.map(lambda leaf: np.asarray(leaf)[0], start), []
        for t in range(steps):
            carry, y = depth_gated_lstm(p, carry, x.x[t, 0], x.c[t, 0])
            ys.append(y)
        return np.stack(ys), carry

    def loss(p: Any, x: Any) -> jax.Array:
        return (jrnn.unroll(cell, p, x, start, engine=engine)[1] * weights).sum()

    carry, ys = jrnn.unroll(cell, params, xs, start, engine=engine)
    assert_close(ys[:, 0], oracle(0.0)[0], 1e-10)
    assert_close(jax.tree.map(lambda leaf: leaf[0], carry), oracle(0.0)[1], 1e-10)
    grads = jax.grad(loss, argnums=(0, 1))(params, xs)
    directional = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    expected = ((oracle(1e-5)[0] - oracle(-1e-5)[0])[:, None] * weights).sum() / 2e-5
    np.testing.assert_allclose(directional, expected, rtol=1e-7)


def test_cell_state_of_the_layer_below_must_have_the_same_hidden_size() -> None:
    cell = DepthGatedLSTM(2)
    params = cell.init(jax.random.key(0), 3)
    message = r"DepthGatedLSTM: c must have a last axis of 2 \(hidden_size\), got shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        cell.project(params, WithCellState(jnp.ones(3), jnp.ones(3)))


def test_depth_gated_lstm_accepts_inputs_with_and_without_layer_below() -> None:
    assert DepthGatedLSTM(2).input_types == (WithCellState,)
    assert not Elman(2).input_types
    cell, zeros = DepthGatedLSTM(2), jnp.zeros(2)
    params = cell.init(jax.random.key(0), 3)
    for x, names in ((jnp.ones(3), "ifgo"), (WithCellState(jnp.ones(3), zeros), "difgo")):
        _, gates = capture_taps(cell.step)(params, cell.init_carry(params, ()), x)
        assert "".join(gates) == names
