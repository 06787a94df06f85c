"""The options of the LSTM, its variants by name, its heads and its projection."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn import GRU, LSTM, Cell, lstm_variant
from jrnn.cells.lstm_variants import VARIANTS
from jrnn.structure import jacobian_sparsity, update_is_elementwise
from tests.helpers import assert_close, normal_like, random_params
from tests.oracles.common import block_diagonal

# The gates of the variants that do not have all of i, f, g and o.
VARIANT_GATES = {"NIG": "fgo", "NFG": "igo", "NOG": "ifg", "CIFG": "fgo"}
OPTIONS_WITHOUT_KERNEL = {
    "input_gate": False,
    "forget_gate": False,
    "output_gate": False,
    "input_activation": "linear",
    "output_activation": "relu",
    "gate_recurrence": True,
    "proj_size": 2,
    "heads": 2,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_disabled_gates_have_no_weights(name: str) -> None:
    cell = lstm_variant(name, 4)
    params = cell.init(jax.random.key(0), 3)
    gates = VARIANT_GATES.get(name, "ifgo")
    assert "".join(cell.gates) == gates
    sizes = {leaf.shape[-1] for leaf in (params.w_ih, params.w_hh, params.b)}
    assert sizes == {4 * len(gates)}
    peepholes = {gate for gate in "ifo" if getattr(params, f"p_{gate}") is not None}
    assert peepholes == (set() if name == "NP" else set(gates) - {"g"})
    assert (params.w_gates is not None) == (name == "FGR")


def test_variants_accept_other_options_of_the_lstm() -> None:
    assert lstm_variant("NOG", 4, t_max=9) == LSTM(4, peepholes=True, output_gate=False, t_max=9)


def test_unknown_variant_raises() -> None:
    with pytest.raises(ValueError, match="lstm_variant: name must be .* 'noaf'; did you .* 'NOAF'"):
        lstm_variant("noaf", 4)


def test_option_set_by_variant_raises() -> None:
    message = "lstm_variant: variant NP has peepholes=False, got peepholes=True; remove this option"
    with pytest.raises(ValueError, match=message):
        lstm_variant("NP", 4, peepholes=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupled": True, "forget_gate": False}, "coupled=True.* remove forget_gate=False"),
        ({"coupled": True, "input_gate": False}, "coupled=True.* remove input_gate=False"),
        ({"forget_gate": False, "forget_bias": 2.0}, "forget_bias=2.0 requires a forget gate"),
        (
            {"forget_gate": False, "t_max": 9},
            "t_max=9 requires a forget gate, got forget_gate=False",
        ),
        ({"gate_recurrence": True, "coupled": True}, "gate_recurrence=True .* got f, o; remove"),
        ({"gate_recurrence": True, "output_gate": False}, "gate_recurrence=True .* got i, f; "),
        (
            {"peepholes": True, "input_gate": False, "forget_gate": False, "output_gate": False},
            "peepholes=True requires an input, forget or output gate, got none",
        ),
        ({"output_gate": 1}, "output_gate must be True or False, got 1"),
        ({"input_activation": "tahn"}, "input_activation must be one of .* did you mean 'tanh'"),
        ({"output_activation": None}, "output_activation must be one of .*, linear, got None"),
        ({"proj_size": 0}, "proj_size must be a positive int, got 0"),
        ({"heads": 4}, "heads must divide hidden_size=6, got 4; choose .* 4, such as 8"),
        ({"heads": 2.0}, "heads must be a positive int, got 2.0"),
        ({"heads": 2, "proj_size": 3}, "heads must divide proj_size=3, got 2; .* such as 4"),
    ],
    ids=str,
)
def test_invalid_or_incompatible_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="LSTM: " + message):
        LSTM(6, **options)


def test_gru_heads_must_divide_hidden_size() -> None:
    with pytest.raises(ValueError, match="GRU: heads must divide hidden_size=6, got 4"):
        GRU(6, heads=4)


def test_kernel_name_is_none_for_options_without_kernel() -> None:
    other_options = {"hidden_size", "forget_bias", "peepholes", "coupled", "t_max", "bias"}
    assert {field.name for field in fields(LSTM)} == other_options | set(OPTIONS_WITHOUT_KERNEL)
    for name, value in OPTIONS_WITHOUT_KERNEL.items():
        assert replace(LSTM(4), **{name: value}).kernel_name() is None
    cell = LSTM(4, peepholes=True, coupled=True, t_max=9)
    assert cell.kernel_name() == "lstm-peepholes-coupled"
    assert GRU(4).kernel_name() == "gru" and GRU(4, heads=2).kernel_name() is None


def cell_structure(cell: Cell) -> tuple[bool, str | None]:
    """Returns whether `update` is elementwise, and the result of `jacobian_sparsity`."""
    params = cell.init(jax.random.key(0), 2)
    carry, z = cell.init_carry(params, (3,)), cell.project(params, jnp.ones((3, 2)))
    u = cell.recur(params, carry)
    kind = jacobian_sparsity(cell, params, carry, z)
    return update_is_elementwise(cell, params, carry, z, u), kind


def test_heads_of_one_unit_have_block_or_diagonal_jacobian() -> None:
    assert cell_structure(LSTM(4, heads=4)) == (True, "block")
    assert cell_structure(GRU(4, heads=4)) == (True, "diagonal")
    assert cell_structure(GRU(4, heads=4, reset_after=False)) == (True, "diagonal")
    projected = LSTM(4, proj_size=4, heads=4)
    for cell in (LSTM(4, heads=2), projected, LSTM(1), GRU(4, heads=2), GRU(1)):
        assert cell_structure(cell) == (True, None)


@pytest.mark.parametrize(
    "options",
    [
        {"coupled": True, "peepholes": True},
        {"input_gate": False},
        {"gate_recurrence": True},
        {"proj_size": 3},
        {"proj_size": 9, "gate_recurrence": True},
    ],
    ids=str,
)
def test_heads_equal_block_diagonal_matrices_with_other_options(options: dict[str, Any]) -> None:
    with_heads, without_heads = LSTM(6, heads=3, **options), LSTM(6, **options)
    params = random_params(with_heads, 1, 2, np.float32)
    full_params = params._replace(w_hh=block_diagonal(params.w_hh, "".join(with_heads.gates)))
    if params.w_gates is not None:
        w_gates = np.stack([block_diagonal(w, "ifo") for w in params.w_gates])
        full_params = full_params._replace(w_gates=w_gates)
    rng = np.random.default_rng(2)
    carry = jax.tree.map(
        lambda leaf: normal_like(rng, leaf, np.float32), with_heads.init_carry(params, (5,))
    )
    x = rng.normal(size=(5, 2)).astype(np.float32)
    expected = without_heads.step(full_params, carry, x)
    assert_close(with_heads.step(params, carry, x), expected, 1e-6)


@pytest.mark.parametrize("cell", [LSTM(6, heads=2), GRU(6, heads=2)], ids=repr)
def test_initial_weights_of_each_head_and_gate_are_orthogonal(cell: Any) -> None:
    w_hh = np.asarray(cell.init(jax.random.key(0), 3).w_hh, np.float64)
    blocks = [block for head in w_hh for block in np.split(head, w_hh.shape[-1] // 3, axis=-1)]
    for n, block in enumerate(blocks):
        np.testing.assert_allclose(block.T @ block, np.eye(3), atol=1e-5)
        assert all((block != other).all() for other in blocks[:n])


def test_initial_projection_has_orthogonal_columns_and_gates_orthogonal_rows() -> None:
    params = LSTM(6, proj_size=2).init(jax.random.key(0), 3)
    w_hr, w_hh = (np.asarray(leaf, np.float64) for leaf in (params.w_hr, params.w_hh))
    np.testing.assert_allclose(w_hr.T @ w_hr, np.eye(2), atol=1e-5)
    for gate in np.split(w_hh, 4, axis=-1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(2), atol=1e-5)


def test_initial_gate_recurrence_has_nine_orthogonal_matrices() -> None:
    params = LSTM(6, gate_recurrence=True).init(jax.random.key(0), 3)
    w_gates = np.asarray(params.w_gates, np.float64)
    matrices = [gate for source in w_gates for gate in np.split(source, 3, axis=-1)]
    assert len(matrices) == 9
    for n, matrix in enumerate(matrices):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(6), atol=1e-5)
        assert all((matrix != other).all() for other in matrices[:n])
