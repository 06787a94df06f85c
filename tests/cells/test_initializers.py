"""Initial parameters: weights and biases of each gate, and recurrent eigenvalues."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LRU,
    LSTM,
    Cell,
    Elman,
    IndRNN,
    MinGRU,
    MinLSTM,
    ParaGRU,
    ParaLSTM,
    initializers,
)
from tests.table import CELLS, Row

INPUT, HIDDEN = 5, 16
GATES = {
    GRU: "rzn",
    Elman: "h",
    MinGRU: "zn",
    MinLSTM: "fin",
    IndRNN: "h",
    ParaGRU: "rzn",
    ParaLSTM: "fgo",
}
NAMES = [
    "lstm",
    "lstm-peepholes",
    "lstm-coupled",
    "lstm-nfg",
    "lstm-fgr",
    "gru",
    "gru-reset-before",
    "elman-tanh",
    "mingru",
    "minlstm",
    "lru",
    "indrnn",
    "paragru",
    "paralstm",
]


@pytest.fixture(params=NAMES)
def row(request: pytest.FixtureRequest) -> Row:
    """The cells whose weights and biases are tested gate by gate."""
    return CELLS[request.param]


def split_gates(array: Any) -> list[np.ndarray]:
    """Splits a concatenated array into gates, in float64."""
    return np.split(np.asarray(array, np.float64), array.shape[-1] // HIDDEN, axis=-1)


def test_recurrent_weights_of_each_gate_are_orthogonal(row: Row) -> None:
    cell = row.make(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT)
    if cell.recur(params, cell.init_carry(params, ())) is None:
        pytest.skip("no recurrent matrix")
    for gate in split_gates(params.w_hh):
        np.testing.assert_allclose(gate.T @ gate, np.eye(HIDDEN), atol=1e-5)
    assert_all_differ(split_gates(params.w_hh))


def test_input_weights_have_glorot_limit_of_one_gate(row: Row) -> None:
    limit = np.sqrt(6 / (INPUT + HIDDEN))
    cell = row.make(HIDDEN)
    if isinstance(cell, LRU):
        pytest.skip("normal weights, as in its paper")
    params = cell.init(jax.random.key(0), INPUT)
    for gate in split_gates(params.w_ih):
        assert 0.9 * limit < np.abs(gate).max() <= limit
        np.testing.assert_allclose(gate.std(), limit / np.sqrt(3), rtol=0.2)
    assert_all_differ(split_gates(params.w_ih))


def assert_all_differ(gates: list[np.ndarray]) -> None:
    """Asserts that each element differs between any two gates."""
    for n, gate in enumerate(gates):
        for other in gates[:n]:
            assert (gate != other).all()


def test_weights_are_determined_by_the_key(row: Row) -> None:
    params, same_key, other_key = (row.make(4).init(jax.random.key(n), 4) for n in (0, 0, 1))
    for name, leaf in params._asdict().items():
        np.testing.assert_array_equal(leaf, getattr(same_key, name))
        if leaf is not None and name[:2] not in ("b", "b_", "p_"):
            assert (np.asarray(leaf) != np.asarray(getattr(other_key, name))).all(), name


def test_biases_and_peepholes_are_zero_except_forget_bias(row: Row) -> None:
    cell = row.make(HIDDEN)
    params = cell.init(jax.random.key(0), INPUT)
    for name, leaf in params._asdict().items():
        if name[:2] in ("p_", "b_") and leaf is not None:
            np.testing.assert_array_equal(leaf, np.zeros(HIDDEN))
    if isinstance(cell, LRU):
        assert not hasattr(params, "b")
        return
    gates = cell.gates if isinstance(cell, LSTM) else GATES[type(cell)]
    forget_bias = 0.0 if isinstance(cell, MinLSTM) else 1.0
    for gate, bias in zip(gates, split_gates(params.b), strict=True):
        np.testing.assert_array_equal(bias, forget_bias if gate == "f" else 0.0)


@pytest.mark.parametrize("coupled", [False, True])
def test_forget_bias_applies_only_to_f(coupled: bool) -> None:
    cell = LSTM(HIDDEN, forget_bias=-2.5, coupled=coupled)
    params = cell.init(jax.random.key(0), INPUT)
    for gate, bias in zip(cell.gates, split_gates(params.b), strict=True):
        np.testing.assert_array_equal(bias, -2.5 if gate == "f" else 0.0)


@pytest.mark.parametrize(
    "cell", [MinLSTM(HIDDEN, forget_bias=2.5), ParaLSTM(HIDDEN, forget_bias=2.5)], ids=repr
)
def test_forget_bias_of_minlstm_and_paralstm_applies_only_to_f(cell: Any) -> None:
    params = cell.init(jax.random.key(0), INPUT)
    for gate, bias in zip(GATES[type(cell)], split_gates(params.b), strict=True):
        np.testing.assert_array_equal(bias, 2.5 if gate == "f" else 0.0)


@pytest.mark.parametrize("t_max", [3, 1000])
def test_chrono_biases_are_logarithms_of_uniform_times(t_max: int) -> None:
    bias = np.asarray(initializers.chrono(jax.random.key(0), 4000, t_max, jnp.float32))
    times = np.exp(bias)
    assert bias.min() >= 0
    assert times.max() <= (t_max - 1) * (1 + 1e-6)
    np.testing.assert_allclose(times.mean(), t_max / 2, rtol=0.03)
    np.testing.assert_allclose(times.std(), (t_max - 2) / np.sqrt(12), rtol=0.05)


def test_lstm_chrono_biases_of_i_are_negated_biases_of_f() -> None:
    params = LSTM(HIDDEN, t_max=50).init(jax.random.key(0), INPUT)
    i, f, g, o = split_gates(params.b)
    np.testing.assert_array_equal(i, -f)
    assert (f > 0).all() and (f <= np.log(49)).all() and len(set(f)) == HIDDEN
    np.testing.assert_array_equal((g, o), np.zeros((2, HIDDEN)))


def test_coupled_lstm_chrono_biases_are_in_f() -> None:
    params = LSTM(HIDDEN, t_max=50, coupled=True).init(jax.random.key(0), INPUT)
    f, g, o = split_gates(params.b)
    assert (f > 0).all() and (f <= np.log(49)).all()
    np.testing.assert_array_equal((g, o), np.zeros((2, HIDDEN)))


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_chrono_biases_are_in_z(reset_after: bool) -> None:
    params = GRU(HIDDEN, reset_after=reset_after, t_max=50).init(jax.random.key(0), INPUT)
    r, z, n = split_gates(params.b)
    assert (z > 0).all() and (z <= np.log(49)).all() and len(set(z)) == HIDDEN
    np.testing.assert_array_equal((r, n), np.zeros((2, HIDDEN)))


def test_half_precision_parameters_are_rounded_float32_parameters(row: Row) -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        params = row.make(HIDDEN).init(jax.random.key(0), INPUT, dtype)
        float32_params = row.make(HIDDEN).init(jax.random.key(0), INPUT)
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(float32_params), strict=True)
        for leaf, float32_leaf in leaves:
            assert leaf.dtype == dtype
            np.testing.assert_array_equal(leaf, float32_leaf.astype(dtype))


def test_half_precision_chrono_biases_are_rounded() -> None:
    half = initializers.chrono(jax.random.key(0), HIDDEN, 50, jnp.bfloat16)
    single = initializers.chrono(jax.random.key(0), HIDDEN, 50, jnp.float32)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))


UNITS = 4000


@pytest.mark.parametrize(
    ("r_min", "r_max", "max_phase"), [(0.0, 1.0, 2 * np.pi), (0.5, 0.6, 0.3), (0.9, 0.999, np.pi)]
)
def test_ring_is_uniform_over_area(r_min: float, r_max: float, max_phase: float) -> None:
    ring = initializers.ring(jax.random.key(0), UNITS, r_min, r_max, max_phase, jnp.float32)
    nu, angle, gamma = (np.exp(np.asarray(leaf, np.float64)) for leaf in ring)
    radius = np.exp(-nu)
    assert (radius > r_min - 1e-6).all() and (radius < r_max + 1e-6).all()
    assert (angle > 0).all() and (angle < max_phase * (1 + 1e-6)).all()
    area, phase = (radius**2 - r_min**2) / (r_max**2 - r_min**2), angle / max_phase
    for uniform in (area, phase):
        np.testing.assert_allclose(np.sort(uniform), (np.arange(UNITS) + 0.5) / UNITS, atol=0.03)
    assert abs(np.corrcoef(area, phase)[0, 1]) < 0.05
    np.testing.assert_allclose(gamma, np.sqrt(-np.expm1(-2 * nu)), rtol=1e-4)


class ConstantUniform:
    """Replaces `jax.random.uniform` by a function that returns one end of its range."""

    def __init__(self, end: int) -> None:
        self.end = end

    def __call__(self, key: Any, shape: Any, dtype: Any, *ends: float) -> jax.Array:
        return jnp.full(shape, (ends or (0.0, 1.0))[self.end], dtype)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.0, 1e-30), (1 - 1e-9, 1.0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_ring_is_finite_for_extreme_samples(
    end: int, r_min: float, r_max: float, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.random, "uniform", ConstantUniform(end))
    ring = initializers.ring(jax.random.key(0), 3, r_min, r_max, 2 * np.pi, dtype)
    for leaf in ring:
        assert leaf.dtype == dtype
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


def test_lru_matrices_have_the_variances_of_the_paper() -> None:
    params = LRU(64).init(jax.random.key(0), 400)
    parts = [np.asarray(part) for part in jnp.split(params.w_ih, 3, axis=-1)]
    variances = [part.var() for part in (*parts, params.c_re, params.c_im)]
    np.testing.assert_allclose(variances, [1 / 800, 1 / 800, 1 / 400, 1 / 64, 1 / 64], rtol=0.1)
    assert_all_differ(parts)
    assert_all_differ([np.asarray(params.c_re), np.asarray(params.c_im)])


def test_lru_state_has_unit_variance_for_white_noise() -> None:
    # With gamma, E|s|^2 is 1 for inputs of variance 1 and any eigenvalues.
    cell = LRU(256, r_min=0.5, r_max=0.95)
    params = cell.init(jax.random.key(0), 32)
    xs = np.random.default_rng(0).normal(size=(300, 8, 32)).astype(np.float32)
    carry, _ = jrnn.unroll(cell, params, xs, engine="scan")
    np.testing.assert_allclose((np.abs(carry) ** 2).mean(), 1.0, rtol=0.1)


@pytest.mark.parametrize(("t_max", "low", "high"), [(None, 0, 1), (10, 0.933033, 1.071773)])
def test_indrnn_recurrent_weights_cover_their_range(
    t_max: int | None, low: float, high: float
) -> None:
    w = np.asarray(IndRNN(UNITS, t_max=t_max).init(jax.random.key(0), 1).w_hh)
    assert low <= w.min() and w.max() <= high + 1e-6
    np.testing.assert_allclose((w.min(), w.max()), (low, high), atol=0.01 * (high - low))
    np.testing.assert_allclose(w.mean(), (low + high) / 2, atol=0.02 * (high - low))


@pytest.mark.parametrize("cell", [ParaGRU(UNITS), ParaLSTM(UNITS)], ids=["gru", "lstm"])
def test_initial_para_cells_are_contractions(cell: Cell) -> None:
    params = cell.init(jax.random.key(0), 2)
    w = np.asarray(params.w_hh)
    np.testing.assert_allclose((w.min(), w.max()), (-1 / 3, 1 / 3), atol=1e-3)
    # Each unit has its own Jacobian; the maximum norm is the largest sum of a row.
    rng = np.random.default_rng(0)
    carry = jax.tree.map(
        lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32), cell.init_carry(params, ())
    )
    x = 3 * rng.normal(size=2).astype(np.float32)
    step = lambda leaves: jax.tree.leaves(
        cell.step(params, jax.tree.unflatten(jax.tree.structure(carry), leaves), x)[0]
    )
    leaves = jax.tree.leaves(carry)
    tangents = np.eye(len(leaves), dtype=np.float32)[..., None] * np.ones(UNITS, np.float32)
    columns = [jax.jvp(step, (leaves,), (list(tangent),))[1] for tangent in tangents]
    norms = np.abs(np.asarray(columns)).sum(axis=0)
    assert norms.max() < 1
    assert norms.max() > 0.5


# For each gate, the sign of its chrono biases, or 0 if it has none.
CHRONO = {"MinGRU": (-1, 0), "MinLSTM": (1, -1, 0), "ParaGRU": (0, 1, 0), "ParaLSTM": (1, 0, 0)}


@pytest.mark.parametrize("name", CHRONO)
def test_chrono_biases_of_other_cells_are_in_the_forget_gate(name: str) -> None:
    params = getattr(jrnn, name)(HIDDEN, t_max=50).init(jax.random.key(0), INPUT)
    biases = np.split(np.asarray(params.b), len(CHRONO[name]))
    (forget, *others) = (sign * b for sign, b in zip(CHRONO[name], biases, strict=True) if sign)
    assert (forget > 0).all() and (forget <= np.log(49)).all() and len(set(forget)) == HIDDEN
    assert all(np.array_equal(other, forget) for other in others)
    assert not any(b.any() for sign, b in zip(CHRONO[name], biases, strict=True) if not sign)


@pytest.mark.parametrize("name", ["MinGRU", "MinLSTM", "ParaGRU", "ParaLSTM"])
def test_chrono_biases_determine_decay_of_the_state(name: str) -> None:
    # Without inputs and candidates the state is multiplied by sigmoid(b) at each step.
    cell = getattr(jrnn, name)(HIDDEN, t_max=1000)
    params = cell.init(jax.random.key(0), INPUT)
    params = params._replace(w_ih=jnp.zeros_like(params.w_ih))
    if "Para" in name:
        params = params._replace(w_hh=jnp.zeros_like(params.w_hh))
    ones = jax.tree.map(jnp.ones_like, cell.init_carry(params, ()))
    new_carry, _ = cell.step(params, ones, jnp.zeros(INPUT))
    decay = np.asarray(new_carry.c if name == "ParaLSTM" else new_carry, np.float64)
    bias = np.log(decay) - np.log1p(-decay)
    assert ((bias > 0) & (bias < np.log(1000))).all() and np.median(bias) > np.log(100)
