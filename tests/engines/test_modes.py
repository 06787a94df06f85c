"""Engines in modes of JAX such as `debug_nans`, and under its transformations.

All tests are rows of one table of modes, cells, engines and masks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import jrnn
from jrnn import Engine, nn
from jrnn.analysis import capture_gates, lyapunov
from jrnn.engines.auto import Auto
from jrnn.testing.case import assert_close
from tests.helpers import differentiable_leaves, mark_exhaustive, random_batch, random_params
from tests.table import CELLS

STEPS, BATCH = 4, 3
LENGTHS = np.array([STEPS, 2, 0], np.int32)
VALID = np.arange(STEPS)[:, None] < LENGTHS
RESETS = np.zeros((STEPS, BATCH), bool)
RESETS[1] = True

ENGINES: dict[str, Engine] = {
    "auto": Auto(),
    "scan": jrnn.Scan(),
    "fused": jrnn.Fused(),
    "remat": jrnn.Fused(chunk=3, remat=True),
    "native": jrnn.Native(),
    "associative": jrnn.Associative(),
    "newton": jrnn.Newton(),
    "damped": jrnn.Newton(damping=1.0),
}
MASKS: dict[str, dict[str, np.ndarray]] = {
    "none": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": VALID[::-1].copy()},
    "resets": {"resets": RESETS},
    "all": {"lengths": LENGTHS, "mask": VALID[:, ::-1] | VALID, "resets": RESETS},
}
# The cells that are tested on engines that do not support every cell.
HAVE_KERNELS = ("lstm", "lstm-peepholes", "lstm-coupled", "gru", "elman-tanh", "elman-relu")
LINEAR = ("mingru", "mingru-log", "lru", "s5", "rglru")
NEWTON = (*HAVE_KERNELS, *LINEAR)


class Case(NamedTuple):
    """A cell on an engine with masks."""

    cell: str
    engine: str
    masks: str

    def __str__(self) -> str:
        return "-".join(self)

    @property
    def padding(self) -> np.ndarray:
        """`[T, B]` bool, True on padding."""
        masks = MASKS[self.masks]
        valid = np.ones((STEPS, BATCH), bool)
        if "lengths" in masks:
            valid &= VALID
        return ~(valid & masks.get("mask", True))


def is_tested(cell: str, engine: str) -> bool:
    """Returns whether a cell is tested on an engine."""
    tested = {"native": HAVE_KERNELS, "associative": LINEAR, "newton": NEWTON, "damped": ("gru",)}
    return engine not in tested or cell in tested[engine]


@cache
def arguments(cell: str, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Returns random float32 parameters, inputs of a dtype, and a random initial carry."""
    made = CELLS[cell].make(4)
    params = random_params(made, 1, 2, np.float32)
    batch = random_batch(made, params, 2, STEPS, BATCH, np.float32)
    to_dtype = lambda leaf: jnp.asarray(leaf, dtype) if leaf.dtype == np.float32 else leaf
    return params, jax.tree.map(to_dtype, batch.xs), batch.carry


@cache
def make_loss(case: Case) -> Callable[..., Any]:
    """Returns `(params, xs, carry, masks) -> loss`.

    The loss depends on the final carry and all outputs, with noise from a fixed key.
    """
    cell, engine = CELLS[case.cell].make(4), ENGINES[case.engine]

    def loss(params: Any, xs: Any, carry: Any, masks: Any) -> jax.Array:
        key = jax.random.key(0)
        results = jrnn.unroll(cell, params, xs, carry, **masks, key=key, engine=engine)
        leaves = jax.tree.leaves(differentiable_leaves(results))
        # One sum for each leaf: a stack would need equal dtypes.
        return sum((jnp.sum(jnp.sin(a.real.astype(jnp.float32))) for a in leaves), jnp.float32(0))

    return loss


def differentiate(case: Case) -> Callable[..., Any]:
    """Returns `(params, xs, carry, masks) -> (loss, grads)`.

    The gradients are those of parameters, inputs and carry.
    """
    loss = make_loss(case)

    def value_and_grads(params: Any, xs: Any, carry: Any, masks: Any) -> Any:
        grad = jax.value_and_grad(loss, (0, 1, 2), allow_int=True)
        value, grads = grad(params, xs, carry, masks)
        return value, differentiable_leaves(grads)

    return value_and_grads


@cache
def expected(case: Case) -> Any:
    """Returns the loss and its gradients in the default mode of JAX, under `jit`."""
    return jax.jit(differentiate(case))(*arguments(case.cell), MASKS[case.masks])


def run_eagerly(case: Case, *, clear: bool = True) -> Any:
    """Differentiates without an outer `jit`.

    Residuals are then outputs of executed computations, which `debug_nans` checks.
    """
    if clear:  # debugging modes are not part of the keys of JAX's caches
        jax.clear_caches()
    return differentiate(case)(*arguments(case.cell), MASKS[case.masks])


TRACED: dict[str, Callable[[], Any]] = {
    "rank_promotion": partial(jax.numpy_rank_promotion, "raise"),
    "dtype_promotion": partial(jax.numpy_dtype_promotion, "strict"),
    "checking_leaks": jax.checking_leaks,
}
"""Modes that affect only tracing."""
EXECUTED: dict[str, Callable[[], Any]] = {
    "debug_nans": partial(jax.debug_nans, True),
    "debug_infs": partial(jax.debug_infs, True),
    "x64": partial(jax.enable_x64, True),
    "disable_jit": jax.disable_jit,
}
"""Modes that affect execution."""


def check_traced(name: str, case: Case) -> None:
    """Checks that the gradients can be traced in a mode of `TRACED`."""
    args = (*arguments(case.cell), MASKS[case.masks])
    if name == "checking_leaks":  # not part of the keys of JAX's caches
        jax.clear_caches()
    with TRACED[name]():
        jax.make_jaxpr(differentiate(case))(*args)


def check_executed(name: str, case: Case) -> None:
    """Checks that values and gradients do not change in a mode of `EXECUTED`."""
    want = expected(case)
    with EXECUTED[name]():
        got = run_eagerly(case)
    assert_close(got, want)


def check_strict_bfloat16(case: Case) -> None:
    """Checks bfloat16 inputs with strict promotion in x64, where ints are int64 and int32."""
    params, xs, carry = arguments(case.cell, "bfloat16")
    masks = MASKS[case.masks]
    if case.engine == "native":
        with pytest.raises(ValueError, match="products and gates must be float32, got bfloat16"):
            jax.jit(differentiate(case))(params, xs, carry, masks)
        return
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        value, grads = jax.jit(differentiate(case))(params, xs, carry, masks)
    want, _ = jax.jit(differentiate(case))(params, xs, carry, masks)
    assert_close(value, want)
    assert all(np.isfinite(np.asarray(leaf, np.complex64)).all() for leaf in jax.tree.leaves(grads))


def check_nan_on_padding(case: Case) -> None:
    """Checks that NaN on padding is in no result and in no residual."""
    params, xs, carry = arguments(case.cell)
    set_nan = lambda leaf: np.where(case.padding.reshape(*case.padding.shape, 1), np.nan, leaf)
    flatten = lambda leaf: leaf.reshape(STEPS, BATCH, -1)
    xs = jax.tree.map(
        lambda leaf: set_nan(flatten(np.asarray(leaf))).reshape(leaf.shape).astype(leaf.dtype), xs
    )
    want = expected(case)
    jax.clear_caches()
    with jax.debug_nans(True):
        got = differentiate(case)(params, xs, carry, MASKS[case.masks])
    assert_close(got, want)


def check_nan_before_reset(case: Case) -> None:
    """Checks that NaN before a reset is in no gradient of a loss without the steps before it."""
    params, xs, carry = arguments(case.cell)
    cell, engine = CELLS[case.cell].make(4), ENGINES[case.engine]

    def set_nan(leaf: Any) -> Any:
        leaf = np.array(leaf)
        leaf[0, 0] = np.nan  # the sequence without padding
        return leaf

    def loss(params: Any, xs: Any) -> jax.Array:
        _, ys = jrnn.unroll(cell, params, xs, carry, **MASKS[case.masks], engine=engine)
        return jnp.sum(ys[1:, 0])

    grad = jax.jit(jax.grad(loss))
    want = grad(params, xs)
    with jax.debug_nans(True):
        assert_close(grad(params, jax.tree.map(set_nan, xs)), want)


def check_transfer_guard(case: Case) -> None:
    """Checks that a compiled call transfers nothing between host and device."""
    args = jax.device_put((*arguments(case.cell), MASKS[case.masks]))
    jitted = jax.jit(differentiate(case))
    want = jitted(*args)
    with jax.transfer_guard("disallow"):
        got = jitted(*args)
    assert_close(got, want)


def check_shard_map(case: Case) -> None:
    """Checks values and gradients inside `jax.shard_map` with its defaults."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    params, xs, carry = arguments(case.cell)
    masks = MASKS[case.masks]
    over_batch, over_time = PartitionSpec("data"), PartitionSpec(None, "data")
    mask_specs = {name: over_batch if name == "lengths" else over_time for name in masks}
    specs = (PartitionSpec(), over_time, over_batch)

    def on_shard(params: Any, xs: Any, carry: Any, masks: Any) -> Any:
        loss = lambda *args: jax.lax.psum(make_loss(case)(*args, masks), "data")
        value, grads = jax.value_and_grad(loss, (0, 1, 2), allow_int=True)(params, xs, carry)
        return value, differentiable_leaves(grads)

    sharded = jax.shard_map(
        on_shard, mesh=mesh, in_specs=(*specs, mask_specs), out_specs=(PartitionSpec(), specs)
    )
    assert_close(jax.jit(sharded)(params, xs, carry, masks), expected(case))


def check_jvp(case: Case) -> None:
    """Checks that forward mode under `jit` works or raises jrnn's own message.

    `auto` is not checked, since it may select an engine of either kind.
    """
    params, xs, carry = arguments(case.cell)
    masks = MASKS[case.masks]
    run = lambda params: make_loss(case)(params, xs, carry, masks)
    push = jax.jit(lambda params: jax.jvp(run, (params,), (params,))[1])
    if case.engine in ("fused", "remat", "native"):
        with pytest.raises(TypeError, match="reverse-mode derivatives only.*engine='scan'"):
            push(params)
    elif case.engine != "auto":
        _, (ct_params, *_) = expected(case)
        products = jax.tree.map(lambda a, b: np.vdot(a, b), ct_params, params)
        assert_close(push(params), np.float32(sum(jax.tree.leaves(products))), rtol=1e-4)


def check_export(case: Case) -> None:
    """Checks `jax.export` with symbolic time and batch, through its serialized form."""
    params, xs, _ = arguments(case.cell)
    masks = MASKS[case.masks]
    cell, engine = CELLS[case.cell].make(4), ENGINES[case.engine]
    run = jax.jit(lambda params, xs, masks: jrnn.unroll(cell, params, xs, **masks, engine=engine))
    time, batch = jax.export.symbolic_shape("T, B")
    like = lambda leading, leaf: jax.ShapeDtypeStruct(
        (*leading, *leaf.shape[len(leading) :]), leaf.dtype
    )
    args = (
        jax.tree.map(partial(like, ()), params),
        jax.tree.map(partial(like, (time, batch)), xs),
        {k: like((batch,) if k == "lengths" else (time, batch), v) for k, v in masks.items()},
    )
    if not engine.supports_symbolic_shapes:
        with pytest.raises(ValueError, match="symbolic dimensions.*engine='scan'"):
            jax.export.export(run)(*args)
        return
    exported = jax.export.deserialize(jax.export.export(run)(*args).serialize())
    assert_close(exported.call(params, xs, masks), run(params, xs, masks))


def check_threads(case: Case) -> None:
    """Checks jitted and eager calls of several threads at the same time."""
    jax.clear_caches()
    jitted = jax.jit(differentiate(case))
    args = (*arguments(case.cell), MASKS[case.masks])
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(jitted, *args) for _ in range(4)]
        calls += [pool.submit(run_eagerly, case, clear=False) for _ in range(4)]
        results = [call.result() for call in calls]
    for got in results:
        assert_close(got, expected(case))


MODES: dict[str, Callable[[Case], None]] = {
    **{name: partial(check_traced, name) for name in TRACED},
    **{name: partial(check_executed, name) for name in EXECUTED},
    "strict_bfloat16": check_strict_bfloat16,
    "nan_on_padding": check_nan_on_padding,
    "nan_before_reset": check_nan_before_reset,
    "transfer_guard": check_transfer_guard,
    "shard_map": check_shard_map,
    "jvp": check_jvp,
    "export": check_export,
    "threads": check_threads,
}
# Cells of all kinds are tested in all modes on all engines. The other cells are tested on `scan` in
# the modes that only trace.
KINDS = ("lstm-peepholes", "gru", "lru", "s5", "clockwork", "grud", "cfc", "dropped-lstm", "mlstm")
TRACED_FOR_EVERY_CELL = ("rank_promotion", "dtype_promotion")
# The modes that are tested with each entry of `MASKS`; all other modes are only tested with "all".
TESTED_WITH_EVERY_MASK = ("debug_nans", "nan_on_padding", "shard_map", "export")

TABLE = [
    (mode, Case(cell, engine, masks))
    for mode in MODES
    for cell in (CELLS if mode in TRACED_FOR_EVERY_CELL else KINDS)
    for engine in (ENGINES if cell in KINDS else ["scan"])
    for masks in (MASKS if mode in TESTED_WITH_EVERY_MASK else ["all"])
    if is_tested(cell, engine)
]
NATIVE, GRU = Case("lstm-peepholes", "native", "all"), Case("gru", "fused", "all")
LRU, NOISY = Case("lru", "associative", "all"), Case("dropped-lstm", "scan", "all")
NEWTON_GRU, CLOCKWORK = Case("gru", "newton", "all"), Case("clockwork", "fused", "all")
ALWAYS = [
    *(
        (mode, case)
        for mode in TRACED_FOR_EVERY_CELL
        for case in (NATIVE, GRU, LRU, NOISY, NEWTON_GRU, CLOCKWORK)
    ),
    *(
        (mode, Case(cell, "scan", "all"))
        for mode in TRACED_FOR_EVERY_CELL
        for cell in ("s5", "grud", "cfc")
    ),
    ("checking_leaks", GRU),
    ("debug_nans", Case("lstm-peepholes", "native", "lengths")),
    ("debug_infs", GRU),
    ("x64", NATIVE),
    ("disable_jit", NATIVE),
    ("strict_bfloat16", Case("s5", "scan", "all")),
    ("nan_on_padding", NATIVE),
    ("nan_on_padding", GRU),
    ("nan_on_padding", Case("gru", "native", "mask")),
    ("nan_before_reset", LRU),
    ("transfer_guard", NATIVE),
    *(("shard_map", case) for case in (NATIVE, GRU, LRU, NEWTON_GRU)),
    *(("jvp", case) for case in (NATIVE, GRU)),
    *(("export", case) for case in (NOISY, NATIVE, Case("gru", "auto", "all"))),
    ("threads", NATIVE),
]


@pytest.mark.parametrize(
    "mode, case", mark_exhaustive(TABLE, always=ALWAYS), ids=lambda value: str(value)
)
def test_engine_works_in_mode(mode: str, case: Case) -> None:
    MODES[mode](case)


@pytest.mark.parametrize("mode", TRACED_FOR_EVERY_CELL)
def test_params_and_carries_of_every_cell_are_initialized_in_mode(mode: str) -> None:
    for name, row in CELLS.items():
        cell = row.make(4)
        for dtype in (jnp.float32, jnp.bfloat16):

            def init(key: jax.Array, cell: Any = cell, dtype: Any = dtype) -> Any:
                params = cell.init(key, 3, dtype)
                return params, cell.init_carry(params, (2,))

            with TRACED[mode]():
                assert jax.eval_shape(init, jax.random.key(0)), name


def run_modules(xs: Any) -> None:
    """Calls the modules of `jrnn.nn`, layers and analyses with lengths; `xs` is `[B, T, 3]`."""
    lengths, rngs = jnp.array([4, 2]), nnx.Rngs(0)
    gru = nn.GRU(3, 4, 2, rngs=rngs, bidirectional=True, dropout=0.3)
    for pool in ("last", "mean", "max"):
        nn.Classifier(gru, 2, rngs=rngs, pool=pool, dropout=0.5)(xs, lengths=lengths)
    body = nn.LSTM(3, 4, rngs=rngs)
    embedding = nnx.Embed(6, 3, rngs=rngs)
    model = nn.SequenceToSequence(body, 6, rngs=rngs, embedding=embedding)
    nn.generate(model, jnp.array([[1, 2]]), 3, key=jax.random.key(0), temperature=0.7)
    nn.stream(body, batch_size=2).step(xs[:, 0])
    for merge in ("concat", "sum", "mul", "ave"):
        layer = jrnn.bidirectional(jrnn.GRU(4), merge=merge)
        params = layer.init(jax.random.key(0), 3)
        jrnn.unroll(layer, params, xs.swapaxes(0, 1), lengths=lengths)
    for cell in (jrnn.LSTM(4), jrnn.GRU(4)):
        params = cell.init(jax.random.key(0), 3)
        for analyze in (lyapunov, capture_gates):
            analyze(cell, params, xs.swapaxes(0, 1), lengths=lengths)


@pytest.mark.parametrize("mode", TRACED_FOR_EVERY_CELL)
def test_modules_and_analyses_work_in_mode(mode: str) -> None:
    with TRACED[mode]():
        jax.eval_shape(run_modules, jax.ShapeDtypeStruct((2, 4, 3), jnp.float32))


def test_max_pooling_over_padding_computes_no_infinity() -> None:
    model = nn.Classifier(nn.GRU(3, 4, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(0), pool="max")
    with jax.debug_infs(True):
        assert model(jnp.ones((2, 4, 3)), lengths=jnp.array([4, 0])).shape == (2, 2)


def test_export_of_a_kernel_advises_another_engine() -> None:
    """The message of `jax.export` for concrete shapes contains the name of the kernel."""
    params, xs, _ = arguments("gru")
    run = jax.jit(lambda params, xs: jrnn.unroll(jrnn.GRU(4), params, xs, engine="native"))
    with pytest.raises(ValueError, match="jrnn_forward .for jax.export use engine='scan'"):
        jax.export.export(run)(params, xs)


def test_jacfwd_under_jit_advises_another_engine() -> None:
    params, xs, carry = arguments("gru")
    run = lambda params: make_loss(GRU)(params, xs, carry, {})
    with pytest.raises(TypeError) as caught:
        jax.jit(jax.jacfwd(run))(params)
    assert "use engine='scan'" in str(caught.value.__notes__)


def test_auto_logs_its_choice_for_symbolic_shapes(caplog: pytest.LogCaptureFixture) -> None:
    params, xs, _ = arguments("gru")
    time, batch = jax.export.symbolic_shape("T, B")
    like = jax.ShapeDtypeStruct((time, batch, xs.shape[-1]), xs.dtype)
    with caplog.at_level("INFO", "jrnn"):
        jax.eval_shape(lambda p, xs: jrnn.unroll(CELLS["gru"].make(4), p, xs), params, like)
    assert [r.getMessage() for r in caplog.records if r.name == "jrnn"] == [
        "engine='auto' chose Scan(unroll=1): time or batch is symbolic"
    ]
