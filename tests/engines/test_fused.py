"""`Fused`: gradients, second derivatives, memory, residuals and options."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jrnn
from jrnn import GRU, LSTM, Engine, Fused, Scan
from jrnn.engines.precision import bind, infer_precision
from jrnn.engines.readout import split_readout
from jrnn.engines.update_vjp import BackwardPlan, make_plan
from jrnn.masking import Masks
from tests.cells.toys import LearnedInitialCarry
from tests.helpers import (
    Batch,
    Scenario,
    as_dtype,
    assert_close,
    differentiate_all,
    inner_product,
    mark_exhaustive,
    random_batch,
    random_params,
    unroll_scenario,
)


def make_example(cell: jrnn.Cell, steps: int, batch: int = 3) -> tuple[Any, Batch]:
    """Returns random parameters for 2 inputs, and a batch."""
    params = random_params(cell, 1, input_size=2)
    return params, random_batch(cell, params, 2, steps, batch)


@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        (LSTM(3, peepholes=True), Fused(chunk=2)),
        (GRU(3), Fused()),
        (GRU(3, reset_after=False), Fused()),
        (LearnedInitialCarry(3), Fused(remat=True)),
    ],
    ids=repr,
)
def test_gradient_of_a_gradient_norm_equals_that_of_scan(
    cell: jrnn.Cell, engine: Engine, x64: None
) -> None:
    params, batch = make_example(cell, steps=5)

    def loss(engine: Engine, point: Any) -> Any:
        params, xs = point
        results = unroll_scenario(cell, engine, Scenario(), params, batch._replace(xs=xs))
        return inner_product(results, (batch.ct_carry, batch.ct_ys))

    def squared_norm(engine: Engine, point: Any) -> Any:
        grads = jax.grad(partial(loss, engine))(point)
        return inner_product(grads, grads)

    grad = jax.jit(jax.grad(squared_norm, argnums=1), static_argnums=0)
    point = (params, batch.xs)
    assert_close(grad(engine, point), grad(Scan(), point), 1e-10)


@pytest.mark.parametrize(
    ("steps", "chunk", "remat", "reverse"),
    mark_exhaustive(
        (
            (*shape, *options)
            for shape in [(0, 3), (1, 3), (6, 3), (7, 3), (7, 50), (9, None)]
            for options in itertools.product([False, True], repeat=2)
        ),
        always=[
            (0, 3, False, False),
            (1, 3, True, True),
            (6, 3, False, True),
            (7, 3, True, False),
            (7, 3, False, True),
            (7, 50, True, True),
            (9, None, False, False),
        ],
    ),
)
def test_gradients_for_any_chunk_equal_scan(
    steps: int, chunk: int | None, remat: bool, reverse: bool, x64: None
) -> None:
    cell, scenarios = LSTM(3, peepholes=True), (Scenario(reverse=reverse),)
    params, batch = make_example(cell, steps)
    run = lambda engine: differentiate_all(cell, engine, scenarios, params, batch)
    assert_close(run(Fused(chunk, remat)), run(Scan()), 1e-10)


def temp_bytes(engine: Engine, steps: int) -> int:
    """Returns the memory that a gradient needs besides its arguments and results, in bytes."""
    cell = LSTM(16)
    params = jax.eval_shape(lambda key: cell.init(key, 4), jax.random.key(0))

    def loss(params: Any, xs: Any) -> Any:
        carry, _ = jrnn.unroll(cell, params, xs, engine=engine)
        return (carry.h**2).sum()

    xs = jax.ShapeDtypeStruct((steps, 8, 4), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_remat_needs_less_than_a_tenth_of_the_memory_of_scan() -> None:
    assert temp_bytes(Fused(remat=True), 16384) < temp_bytes(Scan(), 16384) / 10


def test_memory_is_less_than_that_of_scan() -> None:
    assert temp_bytes(Fused(), 4096) < temp_bytes(Scan(), 4096)


@pytest.mark.parametrize(
    ("cell", "merged", "saved"),  # the numbers of merged gates and of residuals
    [
        (LSTM(3), 4, 5),  # i, f, g, o, tanh(c)
        (LSTM(3, peepholes=True), 4, 5),
        (LSTM(3, coupled=True), 3, 4),  # f, g, o, tanh(c)
        (GRU(3), 2, 4),  # r, z, n, and U_n h, which r multiplies
        (GRU(3, reset_after=False), 2, 3),  # r, z, n
        (jrnn.Elman(3), 1, 1),  # h
    ],
    ids=repr,
)
def test_residuals_are_few_and_added_gates_are_merged(
    cell: jrnn.Cell, merged: int, saved: int
) -> None:
    plan = plan_of(cell, jnp.float32)
    assert len(plan.pairs) == merged
    assert sum(source == "residual" for source, _ in plan.sources) == saved


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_parameters_that_update_reads_are_accumulated_in_the_loop(dtype: Any) -> None:
    """A cast of all parameters, for inputs of another dtype, is no use of them."""
    cell = LSTM(3, peepholes=True)
    plan = plan_of(cell, dtype)
    names = type(cell.init(jax.random.key(0), 2))._fields
    assert plan.used_in_update == tuple(name in ("p_i", "p_f", "p_o") for name in names[:6])


def plan_of(cell: jrnn.Cell, dtype: Any) -> BackwardPlan:
    """Returns the plan of the backward pass for inputs of a dtype and float32 parameters."""
    params = cell.init(jax.random.key(0), 2)
    xs = jnp.ones((1, 4, 2), dtype)
    bound = bind(cell, params, infer_precision(params, xs))
    carry = cell.init_carry(params, (4,))
    readout = split_readout(bound, carry, xs[0])
    prev_carries = jax.tree.map(lambda a: a[None], carry)
    return make_plan(readout, bound, prev_carries, xs, Masks(None, None, None, None))


@dataclass(frozen=True)
class StraightThrough(LearnedInitialCarry):
    """h' = tanh(W x + U h) + round(W x), where the last term has no derivative."""

    def update(self, params: Any, carry: jax.Array, z: jax.Array, u: jax.Array) -> Any:
        return jnp.tanh(z + u) + lax.stop_gradient(jnp.round(z))


def test_gates_used_separately_are_not_merged(x64: None) -> None:
    # z and u have the same cotangent, but `update` does not only use their sum.
    cell = StraightThrough(3)
    params, batch = make_example(cell, steps=5)
    run = lambda engine: differentiate_all(cell, engine, (Scenario(),), params, batch)
    assert_close(run(Fused()), run(Scan()), 1e-10)


def test_forward_mode_raises() -> None:
    cell = LSTM(3)
    params, batch = make_example(cell, steps=2)
    xs = batch.xs.astype(np.float32)
    run = lambda xs: unroll_scenario(cell, Fused(), Scenario(), params, batch._replace(xs=xs))
    with pytest.raises(TypeError, match="forward-mode.*use engine='scan'"):
        jax.jvp(run, (xs,), (xs,))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, "2"])
def test_chunk_must_be_a_positive_int(chunk: Any) -> None:
    with pytest.raises(ValueError, match="Fused: chunk must be a positive int, got"):
        Fused(chunk=chunk)


@pytest.mark.parametrize("remat", [None, 1, "yes"])
def test_remat_must_be_a_bool(remat: Any) -> None:
    with pytest.raises(ValueError, match="Fused: remat must be True or False, got"):
        Fused(remat=remat)


@pytest.mark.parametrize("cell", [LSTM(3, peepholes=True), GRU(3)], ids=repr)
def test_small_cell_with_large_batch_uses_chunks_of_one_step(cell: jrnn.Cell, x64: None) -> None:
    params, batch = make_example(cell, steps=4, batch=33)
    assert Fused().chunk_size(4, 33, weights=100) == 1
    run = lambda engine: differentiate_all(cell, engine, (Scenario(),), params, batch)
    assert_close(run(Fused()), run(Scan()), 1e-10)


def test_gradients_do_not_depend_on_the_sharding_of_the_arguments() -> None:
    cell = GRU(3)
    params, batch = make_example(cell, steps=4)
    params, xs = as_dtype((params, batch.xs), np.float32)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    placed = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
    lengths = placed(jnp.array([4, 2, 0]), "data")

    def loss(params: Any, xs: Any) -> Any:
        return jrnn.unroll(cell, params, xs, lengths=lengths, engine="fused")[1].sum()

    want = jax.grad(loss, argnums=(0, 1))(placed(params), placed(xs))
    assert_close(jax.grad(loss, argnums=(0, 1))(params, placed(xs, None, "data")), want, 1e-6)
    assert_close(jax.grad(loss, argnums=(0, 1))(params, xs), want, 1e-6)


@pytest.mark.parametrize(("steps", "batch", "want"), [(128, 32, 8), (0, 0, 1), (784, 64, 4)])
def test_default_chunk_depends_on_the_batch_size(steps: int, batch: int, want: int) -> None:
    assert Fused().chunk_size(steps, batch) == want
