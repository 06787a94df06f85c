"""Mixed precision: dtypes of products, outputs, carries and gradients."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Cell, Elman, Engine, structure
from jrnn.cells import ElmanParams
from tests.cells.toys import Integrator
from tests.helpers import (
    Scenario,
    as_dtype,
    assert_close,
    cast_batch,
    complex_dtype,
    differentiate_all,
    is_complex,
    loop_grads,
    oracle,
    random_batch,
    random_params,
    unroll_all,
    unroll_scenario,
)
from tests.table import CELLS, Row

SCENARIO = Scenario(lengths=False, resets=False)

# Dtypes of params, xs, outputs and carry; and the tolerance against float64.
MIXED = {
    "f32-bf16": (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32, 3e-2),
    "bf16-f32": (jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32, 1e-5),
    "bf16-bf16": (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, 6e-2),
    "f64-f32": (jnp.float64, jnp.float32, jnp.float32, jnp.float64, 1e-5),
    "f32-f64": (jnp.float32, jnp.float64, jnp.float64, jnp.float64, 1e-10),
}


@pytest.mark.parametrize("mix", MIXED)
def test_dtypes_and_values_of_mixed_precision(kind: Row, engine: Engine, mix: str) -> None:
    params_dtype, xs_dtype, ys_dtype, carry_dtype, tolerance = MIXED[mix]
    cell = kind.make(4)
    params = random_params(cell, 1, 3, params_dtype)
    batch = random_batch(cell, params, 2, steps=6, batch=3)
    batch = cast_batch(batch, xs_dtype, ys_dtype, carry_dtype)
    expected = oracle(kind, SCENARIO, *as_dtype((params, batch), np.float64))
    with jax.enable_x64("f64" in mix):
        got = unroll_all(cell, engine, (SCENARIO,), params, batch)[0]
        grads, default_carry_results = jax.eval_shape(
            lambda p, b: (
                differentiate_all(cell, engine, (SCENARIO,), p, b)[0],
                unroll_scenario(cell, engine, SCENARIO._replace(carry=False), p, b),
            ),
            params,
            batch,
        )
    assert_close(got, expected, tolerance)
    complex_carry = any(map(is_complex, jax.tree.leaves(batch.carry)))
    to_dtype = complex_dtype if complex_carry else jnp.dtype
    for carry, ys in (got, default_carry_results):
        assert ys.dtype == ys_dtype
        assert dtypes(carry) == {to_dtype(carry_dtype)}
    assert dtypes(grads.params_grad) == {jnp.dtype(params_dtype)}
    assert dtypes(grads.xs_grad) == {jnp.dtype(xs_dtype)}
    assert dtypes(grads.carry_grad) == {to_dtype(carry_dtype)}


@pytest.mark.parametrize("carry_dtype", [jnp.bfloat16, jnp.float32])
def test_the_final_carry_has_the_dtype_of_the_initial_carry(
    kind: Row, engine: Engine, carry_dtype: Any
) -> None:
    # Windows of a long sequence can therefore be run in `lax.scan`.
    cell = kind.make(4)
    params = random_params(cell, 1, 3, np.float32)
    batch = random_batch(cell, params, 2, steps=6, batch=3, dtype=np.float32)
    batch = batch._replace(carry=as_dtype(batch.carry, carry_dtype))
    carry, ys = jax.eval_shape(
        lambda p, b: unroll_scenario(cell, engine, SCENARIO, p, b), params, batch
    )
    assert dtypes(carry) == dtypes(batch.carry)
    assert ys.dtype == np.float32


def dtypes(tree: object) -> set[np.dtype]:
    """Returns the set of the dtypes of all leaves."""
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def test_products_are_in_the_dtype_of_the_inputs(kind: Row, engine: Engine) -> None:
    cell = kind.make(4)
    params = random_params(cell, 1, 3, np.float32)
    batch = random_batch(cell, params, 2, steps=6, batch=3)
    z, u = jax.eval_shape(cell.project, params, batch.xs[0]), cell.recur(params, batch.carry)
    if structure.multiplies_by_params(cell.update, params, batch.carry, z, u):
        pytest.skip("products inside update are in the wider dtype")
    batch = batch._replace(xs=batch.xs.astype(jnp.bfloat16))
    jaxpr = str(
        jax.make_jaxpr(lambda p, b: unroll_scenario(cell, engine, SCENARIO, p, b))(params, batch)
    )
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", jaxpr)
    assert set(products) == {"bf16"}


@pytest.mark.parametrize("mix", ["f32-bf16", "bf16-f32"])
@pytest.mark.parametrize("cell", [GRU(2), LSTM(2, proj_size=1)], ids=["gru", "projected"])
def test_each_method_receives_its_dtype(
    cell: Cell, engine: Engine, mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params_dtype, xs_dtype, _, carry_dtype, _ = MIXED[mix]
    received = {}

    def recorded(name: str) -> Any:
        method = getattr(type(cell), name)

        def record(self: Cell, *args: Any) -> Any:
            received[name] = dtypes(args)
            return method(self, *args)

        return record

    for name in ("project", "recur", "update", "readout"):
        monkeypatch.setattr(type(cell), name, recorded(name))
    params = random_params(cell, 1, 3, params_dtype)
    jax.eval_shape(partial(jrnn.unroll, cell, engine=engine), params, np.ones((5, 1, 3), xs_dtype))
    compute, accum = {jnp.dtype(xs_dtype)}, {jnp.dtype(carry_dtype)}
    # A readout with products also receives the compute dtype.
    readout = compute if isinstance(cell, LSTM) else accum
    assert received == {"project": compute, "recur": compute, "update": accum, "readout": readout}


def test_gradients_of_mixed_precision_are_close_to_float32(kind: Row, engine: Engine) -> None:
    cell = kind.make(4)
    params = random_params(cell, 1, 3, np.float32)
    batch = random_batch(cell, params, 2, steps=6, batch=3, dtype=np.float32)
    rounded = batch._replace(
        xs=batch.xs.astype(jnp.bfloat16), ct_ys=batch.ct_ys.astype(jnp.bfloat16)
    )
    (got,) = differentiate_all(cell, engine, (SCENARIO,), params, rounded)
    assert_close(tuple(got[2:]), loop_grads(cell, SCENARIO, params, batch), 5e-2)


def test_the_carry_is_accumulated_in_the_wider_dtype(engine: Engine) -> None:
    # 1 + 1/1024 is 1 in bfloat16, and 1 + 1e-8 is 1 in float32: sums in these dtypes stall.
    cell = Integrator(hidden_size=1)
    xs = np.full((2048, 1, 1), 2.0**-10)
    ones = np.ones((1, 1), np.float32)
    carry, ys = jrnn.unroll(cell, np.float32(0), xs.astype(jnp.bfloat16), ones, engine=engine)
    np.testing.assert_array_equal(carry, 3.0)
    assert ys.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        tiny = np.full((4, 1, 1), 1e-8, np.float32)
        carry, _ = jrnn.unroll(cell, np.float64(0), tiny, np.ones((1, 1)), engine=engine)
        np.testing.assert_allclose(carry - 1, 4e-8, rtol=1e-5)


def test_weight_gradients_are_accumulated_in_the_wider_dtype(engine: Engine) -> None:
    # A sum of ones in bfloat16 stalls at 256.
    cell = Elman(1, activation="relu")
    one = np.ones((1, 1), np.float32)
    params = ElmanParams(w_ih=one, w_hh=0 * one, b=np.zeros(1, np.float32))
    xs = jnp.ones((1024, 1, 1), jnp.bfloat16)

    @jax.grad
    def grads(params: ElmanParams) -> jax.Array:
        return jrnn.unroll(cell, params, xs, engine=engine)[1].astype(np.float32).sum()

    got = grads(params)
    np.testing.assert_allclose((got.w_ih[0, 0], got.b[0]), 1024, rtol=1e-2)


@pytest.mark.parametrize("cell", [LSTM(1), GRU(1)])
def test_slowly_changing_carries_do_not_stall_with_bfloat16_inputs(
    cell: Cell, engine: Engine
) -> None:
    # The candidate of the LSTM is small, and its forget gate and the update gate of the GRU are
    # almost 1. After about 300 steps, a step adds less than half a unit in the last place of
    # bfloat16.
    row = CELLS[type(cell).__name__.lower()]
    params = jax.tree.map(np.zeros_like, random_params(cell, 1, 1, np.float32))
    b = {"LSTM": [8.0, 12.0, 0.003, 8.0], "GRU": [0.0, 6.9, 0.5]}[type(cell).__name__]
    params = params._replace(b=np.array(b, np.float32))
    batch = random_batch(cell, params, 1, 1000, 1)
    batch = batch._replace(xs=batch.xs.astype(jnp.bfloat16))
    scenario = Scenario(lengths=False, resets=False, carry=False)
    want = oracle(row, scenario, *as_dtype((params, batch), np.float64))
    got = unroll_all(cell, engine, (scenario,), params, batch)[0]
    assert_close(got[0], want[0], 1e-2)
    narrow = unroll_all(cell, engine, (scenario,), as_dtype(params, jnp.bfloat16), batch)[0]
    with pytest.raises(AssertionError):
        assert_close(narrow[0], want[0], 0.2)
