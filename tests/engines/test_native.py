"""The C++ kernels: shapes, instruction sets, threads, vmap, sanitizers and errors."""

import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jrnn
from jrnn import Native, Scan
from jrnn.engines import kernel_call
from tests.helpers import (
    HALF_OF_SCENARIOS,
    SCENARIOS,
    as_dtype,
    assert_close,
    differentiate_all,
    loop_grads,
    mark_exhaustive,
    oracle,
    random_batch,
    random_params,
    unroll_all,
)
from tests.table import CELLS, Row

kernels = pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
ROWS = [name for name, row in CELLS.items() if row.make(1).kernel_name() is not None]

SHAPES = [  # time, batch, input size, hidden size
    (5, 3, 2, 3),  # fewer units than a vector has
    (9, 13, 5, 37),  # remainders of tiles
    (40, 1, 9, 70),  # threads divide the units of a single sequence
    (3, 130, 1, 33),  # a large batch, one input
    (4, 17, 70, 16),  # many inputs
]


@pytest.fixture(params=ROWS)
def kernel_row(request: pytest.FixtureRequest) -> Row:
    return CELLS[request.param]


def test_values_and_gradients_equal_a_loop(kernel_row: Row, x64: None) -> None:
    cell = kernel_row.make(3)
    params = random_params(cell, 1, input_size=2)
    batch = random_batch(cell, params, 2, steps=5, batch=3)
    narrow = as_dtype((params, batch), np.float32)
    params, batch = as_dtype(narrow, np.float64)
    assert len(jax.tree.leaves(narrow)) == len(jax.tree.leaves((params, batch)))
    values = unroll_all(cell, Native(), HALF_OF_SCENARIOS, *narrow)
    for scenario, got, value in zip(
        HALF_OF_SCENARIOS,
        differentiate_all(cell, Native(), HALF_OF_SCENARIOS, *narrow),
        values,
        strict=True,
    ):
        assert got.ys.dtype == np.float32
        assert_close((got.carry, got.ys), oracle(kernel_row, scenario, params, batch), 1e-6)
        assert_close(tuple(value), oracle(kernel_row, scenario, params, batch), 1e-6)
        assert_close(tuple(got[2:]), loop_grads(cell, scenario, params, batch), 5e-6)


# All shapes of one row, and two shapes of each other row.
DEFAULT_SHAPES = [
    (name, shape)
    for n, name in enumerate(ROWS)
    for k, shape in enumerate(SHAPES)
    if name == "lstm-peepholes" or (n + k) % len(SHAPES) < 2
]


@pytest.mark.parametrize(
    ("name", "shape"),
    mark_exhaustive(itertools.product(ROWS, SHAPES), always=DEFAULT_SHAPES),
    ids=str,
)
def test_any_shape_equals_scan_in_float64(name: str, shape: Any, x64: None) -> None:
    steps, size, inputs, hidden = shape
    cell = CELLS[name].make(hidden)
    params = jax.tree.map(lambda a: a / np.sqrt(hidden), random_params(cell, 1, inputs))
    batch = random_batch(cell, params, 2, steps, size)
    narrow = as_dtype((params, batch), np.float32)
    expected = differentiate_all(cell, Scan(), SCENARIOS[-1:], *as_dtype(narrow, np.float64))
    for want, got in zip(
        expected, differentiate_all(cell, Native(), SCENARIOS[-1:], *narrow), strict=True
    ):
        assert_close(as_dtype(tuple(got), np.float64), tuple(want), 1e-5)


COMPARE_ENGINES = """
import jax, jax.numpy as jnp, numpy as np, jrnn
from jrnn import _kernels
assert _kernels.isa() == {isa!r}, _kernels.isa()
lstms = jrnn.LSTM(21, peepholes=True), jrnn.LSTM(21, coupled=True)
for cell in (*lstms, jrnn.GRU(21), jrnn.Elman(21)):
    params = cell.init(jax.random.key(0), 7)
    xs = jax.random.normal(jax.random.key(1), (30, 11, 7))
    loss = lambda params, xs, engine: jnp.mean(jrnn.unroll(cell, params, xs, engine=engine)[1] ** 2)
    for engine in ("native", "scan"):
        grads = jax.grad(loss, argnums=(0, 1))(params, xs, engine)
        if engine == "native":
            got = grads
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(grads)):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-7)
"""


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_gradients_on_each_instruction_set_equal_scan(isa: str) -> None:
    environment = os.environ | {"JRNN_ISA": isa}
    subprocess.run(
        [sys.executable, "-c", COMPARE_ENGINES.format(isa=isa)], check=True, env=environment
    )


def test_program_of_the_sanitizers_compiles() -> None:
    # `make sanitize` compiles and runs it, which takes minutes.
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    flags = ["-std=c++17", "-fsyntax-only", "-DPORTABLE", "-DJRNN_ISA=base"]
    subprocess.run([compiler, *flags, str(Path(__file__).with_name("sanitize.cc"))], check=True)


@pytest.mark.parametrize(("activation", "truth"), [("tanh", np.tanh), ("sigmoid", None)])
def test_activations_are_accurate(activation: Any, truth: Any) -> None:
    truth = truth or (lambda a: 1 / (1 + np.exp(-a)))
    xs = np.concatenate([np.linspace(-20, 20, 40001), np.geomspace(1e-30, 1, 2001)])
    xs = xs.astype(np.float32)
    params = jrnn.cells.ElmanParams(jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1))
    cell = jrnn.Elman(1, activation=activation)
    _, ys = jrnn.unroll(cell, params, xs[None, :, None], engine="native")
    want = truth(xs.astype(np.float64))
    ulps = np.abs(np.asarray(ys)[0, :, 0] - want) / np.spacing(np.abs(want).astype(np.float32))
    assert ulps.max() < 3
    extremes = jnp.array([-np.inf, -1e30, -88.0, -0.0, 0.0, 88.0, 1e30, np.inf], jnp.float32)
    _, ys = jrnn.unroll(cell, params, extremes[None, :, None], engine="native")
    want = truth(np.clip(np.asarray(extremes, np.float64), -100, 100))
    np.testing.assert_allclose(ys[0, :, 0], want, rtol=1e-6, atol=2e-38)
    assert not np.signbit(ys[0, 4, 0])


def test_nan_and_inf_inputs_equal_scan() -> None:
    cell = jrnn.LSTM(5)
    params = cell.init(jax.random.key(0), 1)
    xs = jnp.array([[[np.nan], [np.inf], [-np.inf], [1.0]]])
    _, ys = jrnn.unroll(cell, params, xs, engine="native")
    _, want = jrnn.unroll(cell, params, xs, engine="scan")
    np.testing.assert_allclose(ys, want, atol=1e-6)
    assert np.isnan(ys[0, 0]).all() and np.isfinite(ys[0, 1:]).all()


def make_value_and_grad(engine: Any) -> Any:
    """Returns `(params, xs, lengths, resets) -> (loss, grads)`, with gradients of params and xs."""
    cell = jrnn.LSTM(6, peepholes=True)

    def run(params: Any, xs: Any, lengths: Any, resets: Any) -> Any:
        carry, ys = jrnn.unroll(cell, params, xs, lengths=lengths, resets=resets, engine=engine)
        return jnp.sum(ys**2) + jnp.sum(carry.c)

    return jax.value_and_grad(run, argnums=(0, 1))


@pytest.mark.parametrize(
    "axes", [(None, 0, 0, 0), (0, 0, 0, 0), (0, None, None, None), (None, 0, None, 0)], ids=str
)
def test_vmap_equals_scan(axes: tuple[int | None, ...]) -> None:
    cell = jrnn.LSTM(6, peepholes=True)
    rng = np.random.default_rng(0)
    params = random_params(cell, 0, 3, np.float32)
    full = (
        jax.tree.map(lambda a: np.stack([a, 2 * a]), params),
        rng.normal(size=(2, 7, 4, 3)).astype(np.float32),
        rng.integers(0, 8, (2, 4)),
        rng.random((2, 7, 4)) < 0.3,
    )
    pick = lambda a, axis: a if axis == 0 else jax.tree.map(lambda leaf: leaf[0], a)
    arguments = [pick(a, axis) for a, axis in zip(full, axes, strict=True)]
    got = jax.jit(jax.vmap(make_value_and_grad("native"), in_axes=axes))(*arguments)
    want = jax.vmap(make_value_and_grad("scan"), in_axes=axes)(*arguments)
    assert_close(got, want, 1e-5)


def test_nested_vmap_is_one_call() -> None:
    params = random_params(jrnn.GRU(4), 0, 2, np.float32)
    xs = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 2)).astype(np.float32)
    run = lambda xs, engine: jrnn.unroll(jrnn.GRU(4), params, xs, engine=engine)[1]
    twice = lambda engine: jax.vmap(jax.vmap(lambda xs: run(xs, engine)))
    assert_close(twice("native")(xs), twice("scan")(xs), 1e-5)
    assert str(jax.make_jaxpr(twice("native"))(xs)).count("jrnn_forward") == 1


def test_vmap_over_an_empty_axis_returns_empty_results() -> None:
    params = random_params(jrnn.GRU(4), 0, 2, np.float32)
    run = lambda xs: jrnn.unroll(jrnn.GRU(4), params, xs, engine="native")[1].sum()
    value, grad = jax.vmap(jax.value_and_grad(run))(jnp.zeros((0, 5, 3, 2)))
    assert value.shape == (0,) and grad.shape == (0, 5, 3, 2)


@pytest.mark.parametrize("shape", [(), (1,), (2, 12), "int32"], ids=str)
@pytest.mark.parametrize("engine", ["native", "auto"])
def test_bias_of_wrong_shape_or_dtype_raises(engine: str, shape: Any) -> None:
    cell = jrnn.GRU(4)
    params = random_params(cell, 0, 2, np.float32)
    b = jnp.ones(12, jnp.int32) if shape == "int32" else jnp.full(shape, 0.3)
    params, xs = params._replace(b=b), jnp.ones((3, 2, 2))
    with pytest.raises((ValueError, TypeError), match=r"params must be those of GRU.*got b: "):
        jrnn.unroll(cell, params, xs, engine=engine)


def test_gradients_do_not_depend_on_thread_scheduling() -> None:
    cell = jrnn.LSTM(40, peepholes=True)
    params = random_params(cell, 0, 8, np.float32)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(50, 64, 8)), jnp.float32)
    run = jax.jit(jax.grad(lambda p: jnp.sum(jrnn.unroll(cell, p, xs, engine="native")[1] ** 2)))
    first = jax.tree.map(np.asarray, run(params))
    with ThreadPoolExecutor(4) as pool:  # concurrent calls compete for the threads of the kernels
        for grads in pool.map(lambda _: jax.tree.map(np.asarray, run(params)), range(100)):
            jax.tree.map(np.testing.assert_array_equal, grads, first)


def test_gradients_of_biases_over_many_rows_are_accurate() -> None:
    cell = jrnn.GRU(4)
    params = random_params(cell, 0, 2, np.float32)
    xs = np.random.default_rng(0).normal(size=(500, 200, 2)).astype(np.float32)
    grads = lambda engine: jax.grad(
        lambda p: jnp.sum(jrnn.unroll(cell, p, xs, engine=engine)[1] ** 2)
    )(params)
    native, scan = grads("native"), grads("scan")
    for name in ("b", "b_hn"):
        got, want = getattr(native, name), getattr(scan, name)
        assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()


def test_shard_map_equals_unsharded() -> None:
    cell = jrnn.GRU(5)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (6, 4, 3))
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    batch = PartitionSpec(None, "data")
    run = lambda params, xs: jrnn.unroll(cell, params, xs, engine="native")[1]
    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, check_vma=False
    )
    assert_close(jax.jit(sharded)(params, xs), run(params, xs), 1e-6)


def test_concurrent_calls_are_independent() -> None:
    cell = jrnn.LSTM(48)
    params = cell.init(jax.random.key(0), 8)
    xs = jax.random.normal(jax.random.key(1), (8, 30, 5, 8))
    run = jax.jit(
        jax.grad(lambda p, xs: jnp.sum(jrnn.unroll(cell, p, xs, engine="native")[1] ** 2))
    )
    expected = [run(params, x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda x: run(params, x), xs), expected, strict=True):
                assert_close(got, want, 1e-5)


UNSUPPORTED = [
    (
        jrnn.GRU(3, reset_after=False),
        np.float32,
        "no kernel supports GRU.*kernels are lstm",
    ),
    (jrnn.LSTM(3), jnp.bfloat16, "must be float32, got bfloat16 and float32"),
]


@pytest.mark.parametrize(("cell", "dtype", "message"), UNSUPPORTED, ids=str)
def test_unsupported_cell_or_dtype_raises(cell: jrnn.Cell, dtype: Any, message: str) -> None:
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=f"engine 'native': .*{message}.*engine='auto'"):
        jrnn.unroll(cell, params, jnp.ones((2, 3, 2), dtype), engine="native")


def test_second_derivatives_raise() -> None:
    cell = jrnn.GRU(3)
    params, xs = cell.init(jax.random.key(0), 2), jnp.ones((4, 1, 2))
    loss = lambda xs: jrnn.unroll(cell, params, xs, engine="native")[1].sum()
    with pytest.raises(ValueError, match="for second derivatives use engine='fused'"):
        jax.jit(jax.hessian(loss))(xs)


def test_missing_extension_raises_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_call.register_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "jrnn._kernels", None)
    monkeypatch.delattr(jrnn, "_kernels", raising=False)
    cell = jrnn.LSTM(3)
    params = cell.init(jax.random.key(0), 2)
    try:
        with pytest.raises(ValueError, match="extension is not installed.*reinstall jrnn where"):
            jrnn.unroll(cell, params, jnp.ones((11, 3, 2)), engine="native")
        _, ys = jrnn.unroll(cell, params, jnp.ones((12, 3, 2)))
    finally:
        kernel_call.register_kernels.cache_clear()
    assert ys.shape == (12, 3, 3)


def test_residuals_on_padding_are_zeros() -> None:
    """Memory that a kernel does not write may contain NaN, for which `jax_debug_nans` raises."""
    code = """
import jax, numpy as np, jrnn
xs, lengths = np.ones((5, 3, 3), np.float32), np.array([5, 2, 0], np.int32)
for cell in (jrnn.LSTM(4), jrnn.GRU(4)):
    params = cell.init(jax.random.key(0), 3)
    run = lambda params: jrnn.unroll(cell, params, xs, lengths=lengths, engine="native")
    leaves = jax.tree.leaves(jax.vjp(run, params)[1])
    saved = [np.asarray(a) for a in leaves if a.ndim == 4 and a.shape[:2] == (5, 3)]
    assert saved and not any(a[2:, 1].any() or a[:, 2].any() for a in saved)
"""
    # With this variable, glibc overwrites memory that it allocates.
    env = os.environ | {"MALLOC_PERTURB_": "85", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
