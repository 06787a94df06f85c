"""The carry keeps its dtype in user-written loops over steps and over windows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jrnn
from jrnn import GRU, LSTM, Cell, stack
from jrnn.transforms import clip, dropout, zoneout
from tests.helpers import as_dtype, assert_close, random_batch, random_params
from tests.table import Row

STEPS, BATCH, SIZE = 6, 3, 2
XS = np.random.default_rng(0).normal(size=(STEPS, BATCH, SIZE))


def dtypes(tree: Any) -> list[Any]:
    """Returns the dtype of each leaf."""
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def make_params_and_inputs(cell: Any, params_dtype: Any, xs_dtype: Any) -> tuple[Any, Any]:
    """Returns parameters and inputs in these dtypes, with values that are exact in bfloat16."""
    params = random_params(cell, 1, SIZE, np.float32)
    xs = random_batch(cell, params, 2, STEPS, BATCH).xs if isinstance(cell, Cell) else XS
    exact = lambda tree: as_dtype(as_dtype(tree, jnp.bfloat16), np.float32)
    return as_dtype(exact(params), params_dtype), as_dtype(exact(xs), xs_dtype)


def loop_over_steps(cell: Cell, params: Any, xs: Any, use_init_carry_like: bool) -> Any:
    """Runs a loop over `step` as users write it, from `init_carry_like` or from `init_carry`.

    Asserts that the final carry has the dtypes of the initial carry.
    """
    first = (
        cell.init_carry_like(params, jax.tree.map(lambda a: a[0], xs))
        if use_init_carry_like
        else cell.init_carry(params, (BATCH,))
    )
    last, ys = lax.scan(lambda carry, x: cell.step(params, carry, x), first, xs)
    assert dtypes(last) == dtypes(first)
    return last, ys


# Dtypes of params and of xs.
PAIRS = [(jnp.bfloat16, np.float32), (np.float32, np.float64), (np.float32, jnp.bfloat16)]


@pytest.mark.parametrize(("params_dtype", "xs_dtype"), PAIRS, ids=str)
def test_loop_over_steps_keeps_carry_dtype(
    kind_or_row: Row, params_dtype: Any, xs_dtype: Any, x64: None
) -> None:
    cell = kind_or_row.make(3)
    params, xs = make_params_and_inputs(cell, params_dtype, xs_dtype)
    init_carry = cell.init_carry(params, (BATCH,))

    @jax.jit
    def run(params: Any, xs: Any) -> Any:
        return (
            loop_over_steps(cell, params, xs, use_init_carry_like=False),
            loop_over_steps(cell, params, xs, use_init_carry_like=True),
            jrnn.unroll(cell, params, xs, engine="scan"),
        )

    (from_init_carry, _), (last, ys), (expected, expected_ys) = run(params, xs)
    assert dtypes(from_init_carry) == dtypes(init_carry)
    assert dtypes(last) == dtypes(expected)
    # In contrast to `unroll`, `step` does not cast parameters: it computes functions of bfloat16
    # parameters in bfloat16, and products of bfloat16 inputs and float32 parameters in float32.
    if xs_dtype != jnp.bfloat16:
        assert_close((last, ys), (expected, expected_ys), 1e-6 if xs_dtype == np.float64 else 0.02)


def test_init_carry_like_has_batch_axes_and_dtype_of_inputs() -> None:
    timed = jrnn.Timed(jnp.ones((4, 5, SIZE)), jnp.ones((4, 5)))
    below = jrnn.WithCellState(jnp.ones((4, 5, SIZE)), jnp.ones((4, 5, 3)))
    observed = jrnn.GRUD(3).inputs(SIZE, (4, 5))
    cells: list[tuple[Any, Any]] = [
        (jrnn.CfC(3), timed),
        (jrnn.DepthGatedLSTM(3), below),
        (jrnn.GRUD(3), observed),
        (zoneout(dropout(LSTM(3), x=0.2), h=0.5), timed.x),
    ]
    for cell, x in cells:
        params = cell.init(jax.random.key(0), SIZE, jnp.bfloat16)
        carry = cell.init_carry_like(params, x)
        expected = jax.tree.leaves(cell.init_carry(params, (4, 5)))
        assert [a.shape for a in jax.tree.leaves(carry)] == [a.shape for a in expected]
        assert set(dtypes(carry)) == {np.dtype("float32")}
        new, _ = cell.step(params, carry, x)
        assert dtypes(new) == dtypes(carry)


@pytest.mark.parametrize("engine", ["scan", "fused", "auto"])
@pytest.mark.parametrize(("params_dtype", "xs_dtype"), PAIRS[:2], ids=str)
def test_loop_over_windows_keeps_carry_dtype(
    params_dtype: Any, xs_dtype: Any, engine: str, x64: None
) -> None:
    layer = stack([clip(LSTM(3), carry=5.0), GRU(2)])
    params, xs = make_params_and_inputs(layer, params_dtype, xs_dtype)
    windows = xs.reshape(3, 2, BATCH, SIZE)
    mask = np.random.default_rng(1).random((STEPS, BATCH)) < 0.7
    first = layer.init_carry(params, (BATCH,))

    @jax.jit
    def run(first: Any) -> Any:
        def body(carry: Any, window: Any) -> Any:
            xs, mask = window
            return jrnn.unroll(layer, params, xs, carry, mask=mask, engine=engine)

        return lax.scan(body, first, (windows, mask.reshape(3, 2, BATCH)))

    last, ys = run(first)
    assert dtypes(last) == dtypes(first) and ys.dtype == xs_dtype
    last, ys = run(jax.tree.map(lambda a: a.astype(xs_dtype), first))
    expected, expected_ys = jrnn.unroll(layer, params, xs, mask=mask, engine="scan")
    assert dtypes(last) == dtypes(expected)
    assert_close((last, ys.reshape(expected_ys.shape)), (expected, expected_ys), 1e-6)


def test_integer_carry_keeps_its_dtype() -> None:
    cell = jrnn.Clockwork(4, periods=(1, 2))
    params = cell.init(jax.random.key(0), SIZE, jnp.bfloat16)
    carry = cell.init_carry_like(params, jnp.ones((BATCH, SIZE)))
    new, _ = cell.step(params, carry, jnp.ones((BATCH, SIZE)))
    assert dtypes(new) == dtypes(carry)
    assert any(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes(carry))
