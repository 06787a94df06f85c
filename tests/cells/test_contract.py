"""The contract of a cell: four functions that accept any leading axes, and derived methods."""

import pickle
from dataclasses import FrozenInstanceError, dataclass
from functools import partial
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
    LSTMCarry,
    MinGRU,
    MinLSTM,
    ParaGRU,
    ParaLSTM,
)
from jrnn.cells import REGISTRY
from jrnn.structure import update_is_elementwise
from jrnn.taps import capture_taps
from tests.helpers import (
    assert_close,
    complex_dtype,
    input_size_of,
    is_complex,
    normal_like,
    public_names,
    random_params,
)
from tests.table import CELLS, Row

LEADING = [(), (2, 3)]
# The names of the gates that `capture_taps` returns.
TAPPED_GATES = {
    LSTM: {"i", "f", "g", "o"},
    GRU: {"r", "z", "n"},
    Elman: {"h"},
    MinGRU: {"z", "n"},
    MinLSTM: {"f", "i", "n"},
    LRU: {"re", "im"},
    IndRNN: {"h"},
    ParaGRU: {"r", "z", "n"},
    ParaLSTM: {"f", "g", "o"},
}


def sample_carry_and_input(
    cell: Cell, params: Any, leading: tuple[int, ...]
) -> tuple[Any, np.ndarray]:
    """Returns a random carry and a random input with the given leading axes."""
    rng = np.random.default_rng(3)
    dtype = jax.tree.leaves(params)[0].dtype
    carry = jax.eval_shape(lambda p: cell.init_carry(p, leading), params)
    x = cell.inputs(input_size_of(params), leading)
    return jax.tree.map(lambda leaf: normal_like(rng, leaf, dtype), (carry, x))


def compute_gates(cell: Cell, params: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    """Returns the pre-activations z and u of a step."""
    return cell.project(params, x), cell.recur(params, carry)


def update_and_readout(cell: Cell, params: Any, carry: Any, z: Any, u: Any) -> tuple[Any, Any]:
    """Returns the new carry and the output, from the pre-activations."""
    carry = cell.update(params, carry, z, u)
    return carry, cell.readout(params, carry, z)


def test_every_registered_cell_is_in_the_test_table() -> None:
    assert set(REGISTRY.values()) <= {type(row.make(2)) for row in CELLS.values()}
    for name, cls in REGISTRY.items():
        make: Any = cls
        assert isinstance(make(hidden_size=2), Cell), name


@partial(jax.jit, static_argnums=0)
def run_functions(cell: Cell, params: Any, carry: Any, x: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Returns z, u, the result of the four functions, that of `step`, and u of twice the carry."""
    z, u = compute_gates(cell, params, carry, x)
    double = jax.tree.map(lambda c: (2 * c).astype(c.dtype), carry)
    result = update_and_readout(cell, params, carry, z, u)
    return z, u, result, cell.step(params, carry, x), cell.recur(params, double)


def test_functions_accept_any_leading_axes(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    for leading in LEADING:
        carry, x = sample_carry_and_input(cell, params, leading)
        got = jax.tree.map(np.asarray, run_functions(cell, params, carry, x)[:3])
        for index in np.ndindex(leading):
            args = jax.tree.map(lambda leaf, at=index: leaf[at], (carry, x))
            expected = run_functions(cell, params, *args)[:3]
            assert_close(jax.tree.map(lambda leaf, at=index: leaf[at], got), expected, 1e-6)
            assert_close(expected[2], row.step(params, *args), 1e-5)


def test_gates_keep_leading_axes_and_match_the_carry_or_output_size(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = sample_carry_and_input(cell, params, (5,))
    z, u = jax.eval_shape(partial(compute_gates, cell), params, carry, x)
    result = jax.eval_shape(cell.step, params, carry, x)
    sizes = {1} | {n for leaf in jax.tree.leaves(result) for n in leaf.shape[1:]}
    for leaf in jax.tree.leaves((z, u)):
        assert leaf.shape[0] == 5
        assert not update_is_elementwise(cell, params, carry, z, u) or leaf.shape[-1] in sizes


def test_step_equals_composition_of_the_four_functions(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    _, _, composed, stepped, _ = run_functions(
        cell, params, *sample_carry_and_input(cell, params, (2, 3))
    )
    assert_close(stepped, composed, 0)


def test_recur_of_twice_the_carry_is_twice_recur(row: Row) -> None:
    # `recur` must be linear for engines that compute weight gradients after the backward loop.
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    _, once, _, _, twice = run_functions(
        cell, params, *sample_carry_and_input(cell, params, (2, 3))
    )
    assert_close(jax.tree.map(lambda u: 2 * np.asarray(u), once), twice, 1e-6)


def test_update_of_a_linear_cell_applies_its_coefficients(row: Row) -> None:
    cell = row.make(3)
    if type(cell).coefficients is Cell.coefficients:
        pytest.skip("not linear")
    params = random_params(cell, 1, 2, np.float32)
    carry, x = sample_carry_and_input(cell, params, (5,))
    z, u = compute_gates(cell, params, carry, x)
    coefficients = cell.coefficients(params, z)
    if coefficients is None:
        pytest.skip("not linear")
    assert u is None
    assert_close(cell.update(params, carry, z, u), coefficients.apply(carry), 1e-6)


@dataclass(frozen=True)
class NoReadout(Cell):
    """A cell with two states and without a readout."""

    hidden_size: int

    def init(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.zeros((), dtype)

    def init_carry(self, params: jax.Array, batch_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.dtype)
        return LSTMCarry(zeros, zeros)

    def project(self, params: jax.Array, x: jax.Array) -> jax.Array:
        return x

    def recur(self, params: jax.Array, carry: LSTMCarry) -> None:
        return None

    def update(self, params: jax.Array, carry: LSTMCarry, z: jax.Array, u: None) -> LSTMCarry:
        return LSTMCarry(z, carry.c + z)


def test_cell_with_two_states_must_define_readout() -> None:
    cell = NoReadout(2)
    params = cell.init(jax.random.key(0), 2)
    message = r"NoReadout: the carry must be one array .*, got 2 arrays; implement readout\(self"
    with pytest.raises(TypeError, match=message):
        cell.step(params, cell.init_carry(params, ()), jnp.ones(2))


def test_init_carry_has_requested_batch_axes_and_dtype(row: Row) -> None:
    cell = row.make(3)
    for dtype in (jnp.float32, jnp.bfloat16):
        shapes = jax.eval_shape(lambda d=dtype: cell.init(jax.random.key(0), 2, d))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}
        params = random_params(cell, 1, 2, dtype)
        carries = jax.jit(lambda p: [cell.init_carry(p, leading) for leading in LEADING])(params)
        for leading, carry in zip(LEADING, carries, strict=True):
            expected_carry = row.init_carry(params)
            assert jax.tree.structure(carry) == jax.tree.structure(expected_carry)
            pairs = zip(jax.tree.leaves(carry), jax.tree.leaves(expected_carry), strict=True)
            for leaf, expected in pairs:
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    assert leaf.dtype == (complex_dtype(dtype) if is_complex(leaf) else dtype)
                assert is_complex(leaf) == is_complex(expected)
                assert leaf.shape == (*leading, *np.shape(expected))
                np.testing.assert_array_equal(leaf, np.broadcast_to(expected, leaf.shape))


def test_cell_is_hashable_picklable_and_printable(row: Row) -> None:
    cell: Any = row.make(3)
    assert cell == row.make(3) and hash(cell) == hash(row.make(3))
    assert cell != row.make(4)
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert eval(repr(cell), public_names(jrnn) | vars(jrnn.transforms)) == cell
    with pytest.raises(FrozenInstanceError):
        cell.hidden_size = 4


def test_parameters_are_distinct_arrays(row: Row) -> None:
    cell = row.make(3)
    outvars = jax.make_jaxpr(lambda key: cell.init(key, 2))(jax.random.key(0)).jaxpr.outvars
    assert len(set(map(id, outvars))) == len(outvars)


def test_parameters_do_not_share_buffers(kind: Row) -> None:
    cell = kind.make(3)
    params = cell.init(jax.random.key(0), 2)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    assert len(set(pointers)) == len(pointers)
    jax.jit(lambda p: jax.tree.map(lambda a: a + 1, p), donate_argnums=0)(params)


def test_overriding_step_raises() -> None:
    with pytest.raises(TypeError, match="OverridesStep: step must not be overridden"):

        class OverridesStep(LSTM):
            def step(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
                return super().step(*args, **kwargs)


def test_overriding_step_in_a_mixin_raises() -> None:
    class Mixin:
        def step(self) -> None: ...

    with pytest.raises(TypeError, match="OverridesStep: step must not be overridden"):

        class OverridesStep(Mixin, Elman):  # pyright: ignore
            pass


def test_gates_are_captured_by_name(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = sample_carry_and_input(cell, params, (5,))

    def capture(params: Any) -> Any:
        return capture_taps(cell.step)(params, carry, x)[1]

    gates = jax.eval_shape(capture, params)
    assert gates
    assert set(gates) == TAPPED_GATES.get(type(cell), set(gates))
    assert {leaf.shape[0] for leaf in gates.values()} == {5}


def test_captured_lstm_gates_reproduce_its_step() -> None:
    cell = LSTM(3, peepholes=True)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = sample_carry_and_input(cell, params, (5,))
    (after, y), gates = capture_taps(cell.step)(params, carry, x)
    assert list(gates) == ["i", "f", "g", "o"]
    c = gates["f"] * carry.c + gates["i"] * gates["g"]
    assert_close((after.c, y), (c, gates["o"] * jnp.tanh(c)), 1e-6)


def test_captured_gru_gates_reproduce_its_step() -> None:
    cell = GRU(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = sample_carry_and_input(cell, params, (5,))
    (_, y), gates = capture_taps(cell.step)(params, carry, x)
    assert list(gates) == ["r", "z", "n"]
    assert_close(y, (1 - gates["z"]) * gates["n"] + gates["z"] * carry, 1e-6)
