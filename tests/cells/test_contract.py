"""The contract of a cell: three parts, any leading axes, and what is derived from them."""

import pickle
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any, get_args

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
)
from jrnn import cell as contract
from jrnn.cells import REGISTRY
from tests.helpers import (
    assert_close,
    counterpart,
    input_size_of,
    is_complex,
    normal_like,
    random_params,
)
from tests.table import CELLS, Row

LEADING = [(), (2, 3)]
RECORDED = {
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


def draw(cell: Cell, params: Any, leading: tuple[int, ...]) -> tuple[Any, np.ndarray]:
    """A carry and an input with any leading axes."""
    rng = np.random.default_rng(3)
    dtype = jax.tree.leaves(params)[0].dtype
    carry = jax.eval_shape(lambda p: cell.init_carry(p, leading), params)
    x = cell.inputs(input_size_of(params), leading)
    return jax.tree.map(lambda leaf: normal_like(rng, leaf, dtype), (carry, x))


def parts(cell: Cell, params: Any, carry: Any, x: Any) -> tuple[Any, Any, Any]:
    """The parameters as a step has them, without noise, and the gates z and u."""
    params, x = cell.perturbed(params, carry, x)
    return params, cell.project(params, x), cell.recur(params, carry)


def test_every_registered_cell_has_a_row() -> None:
    assert set(REGISTRY.values()) <= {type(row.make(2)) for row in CELLS.values()}
    for name, cls in REGISTRY.items():
        make: Any = cls
        assert isinstance(make(hidden_size=2), Cell), name


@partial(jax.jit, static_argnums=0)
def run_parts(cell: Cell, params: Any, carry: Any, x: Any) -> tuple[Any, Any, Any, Any, Any]:
    """z, u, what update returns, what step returns, and u of twice the carry."""
    own, z, u = parts(cell, params, carry, x)
    double = jax.tree.map(lambda c: (2 * c).astype(c.dtype), carry)
    updated, stepped = cell.update(own, carry, z, u), cell.step(params, carry, x)
    return z, u, updated, stepped, cell.recur(params, double)


def test_parts_accept_any_leading_axes(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    for leading in LEADING:
        carry, x = draw(cell, params, leading)
        got = jax.tree.map(np.asarray, run_parts(cell, params, carry, x)[:3])
        for index in np.ndindex(leading):
            alone = jax.tree.map(lambda leaf, at=index: leaf[at], (carry, x))
            want = run_parts(cell, params, *alone)[:3]
            assert_close(jax.tree.map(lambda leaf, at=index: leaf[at], got), want, 1e-6)
            assert_close(want[2], row.step(params, *alone), 1e-5)


def test_gates_are_one_array_each(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = draw(cell, params, (5,))
    _, z, u = jax.eval_shape(partial(parts, cell), params, carry, x)
    for leaf in jax.tree.leaves((z, u)):
        assert leaf.shape[0] == 5
        assert not cell.pointwise or leaf.shape[-1] in (cell.hidden_size, 1)


def test_step_is_made_of_the_parts(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    _, _, updated, stepped, _ = run_parts(cell, params, *draw(cell, params, (2, 3)))
    assert_close(stepped, updated, 0)


def test_recur_is_linear_in_the_carry(row: Row) -> None:
    # An engine that defers the weight gradients counts on it: no bias and no gate in there.
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    _, once, _, _, twice = run_parts(cell, params, *draw(cell, params, (2, 3)))
    assert_close(jax.tree.map(lambda u: 2 * np.asarray(u), once), twice, 1e-6)


def test_update_multiplies_matrices_only_if_it_says_so(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = draw(cell, params, (5,))
    own, z, u = jax.eval_shape(partial(parts, cell), params, carry, x)
    jaxpr = str(jax.make_jaxpr(cell.update)(own, carry, z, u))
    assert not (cell.pointwise and "dot_general" in jaxpr)
    assert cell.recurrence in get_args(contract.Recurrence)


def test_first_carry_has_the_axes_and_dtype_asked_for(row: Row) -> None:
    cell = row.make(3)
    for dtype in (jnp.float32, jnp.bfloat16):
        shapes = jax.eval_shape(lambda d=dtype: cell.init(jax.random.key(0), 2, d))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}
        params = random_params(cell, 1, 2, dtype)
        carries = jax.jit(lambda p: [cell.init_carry(p, leading) for leading in LEADING])(params)
        for leading, carry in zip(LEADING, carries, strict=True):
            start = row.start(params)
            assert jax.tree.structure(carry) == jax.tree.structure(start)
            for leaf, truth in zip(jax.tree.leaves(carry), jax.tree.leaves(start), strict=True):
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    assert leaf.dtype == (counterpart(dtype) if is_complex(leaf) else dtype)
                assert is_complex(leaf) == is_complex(truth)
                assert leaf.shape == (*leading, *np.shape(truth))
                np.testing.assert_array_equal(leaf, np.broadcast_to(truth, leaf.shape))


def test_cell_is_a_value(row: Row) -> None:
    cell = row.make(3)
    assert cell == row.make(3) and hash(cell) == hash(row.make(3))
    assert cell != row.make(4)
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert eval(repr(cell), vars(jrnn) | vars(jrnn.transforms)) == cell
    with pytest.raises(FrozenInstanceError):
        cell.hidden_size = 4


def test_no_two_parameters_are_one_array(row: Row) -> None:
    cell = row.make(3)
    made = jax.make_jaxpr(lambda key: cell.init(key, 2))(jax.random.key(0)).jaxpr.outvars
    assert len(set(map(id, made))) == len(made)


def test_no_two_parameters_share_a_buffer(kind: Row) -> None:
    cell = kind.make(3)
    params = cell.init(jax.random.key(0), 2)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    assert len(set(pointers)) == len(pointers)
    jax.jit(lambda p: jax.tree.map(lambda a: a + 1, p), donate_argnums=0)(params)


def test_overriding_step_is_refused() -> None:
    with pytest.raises(TypeError, match="Hasty: step is derived and never overridden"):

        class Hasty(LSTM):
            def step(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
                return super().step(*args, **kwargs)


def test_overriding_step_through_another_base_is_refused() -> None:
    class Mixin:
        def step(self) -> None: ...

    with pytest.raises(TypeError, match="Hasty: step is derived and never overridden"):

        class Hasty(Mixin, Elman):  # pyright: ignore[reportUnusedClass]
            pass


def test_gates_are_recorded_by_name(row: Row) -> None:
    cell = row.make(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = draw(cell, params, (5,))

    def recorded(params: Any) -> Any:
        with contract.recording() as gates:
            cell.step(params, carry, x)
        return gates

    gates = jax.eval_shape(recorded, params)
    assert gates
    assert set(gates) == RECORDED.get(type(cell), set(gates))
    assert {leaf.shape[0] for leaf in gates.values()} == {5}


def test_nothing_is_recorded_outside_of_the_block() -> None:
    contract.record(before=jnp.ones(1))
    with contract.recording() as outer:
        with pytest.raises(KeyError), contract.recording() as inner:
            contract.record(inside=jnp.ones(1))
            raise KeyError
        contract.record(between=jnp.ones(1))
    contract.record(after=jnp.ones(1))
    assert (set(outer), set(inner)) == ({"between"}, {"inside"})


def test_recorded_gates_of_the_lstm_explain_its_step() -> None:
    cell = LSTM(3, peepholes=True)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = draw(cell, params, (5,))
    with contract.recording() as gates:
        after, y = cell.step(params, carry, x)
    c = gates["f"] * carry.c + gates["i"] * gates["g"]
    assert_close((after.c, y), (c, gates["o"] * jnp.tanh(c)), 1e-6)


def test_recorded_gates_of_the_gru_explain_its_step() -> None:
    cell = GRU(3)
    params = random_params(cell, 1, 2, np.float32)
    carry, x = draw(cell, params, (5,))
    with contract.recording() as gates:
        _, y = cell.step(params, carry, x)
    assert_close(y, (1 - gates["z"]) * gates["n"] + gates["z"] * carry, 1e-6)
