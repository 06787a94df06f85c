"""`Newton`: options, errors and dtypes."""

import dataclasses
import logging
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
    Newton,
    Scan,
)
from tests.cells.toys import Counter, Integrator, Leaky, LearnedInitialCarry, Timed
from tests.engines.newton_helpers import NEWTON, make_example
from tests.helpers import (
    Scenario,
    as_dtype,
    assert_close,
    cast_batch,
    complex_dtype,
    differentiate_all,
    is_complex,
    mark_exhaustive,
    oracle,
    random_batch,
    random_params,
    unroll_all,
)
from tests.table import CELLS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jacobian": "dense"}, "Newton: jacobian must be one of auto, diagonal, block, full"),
        ({"jacobian": "blok"}, "did you mean 'block'"),
        ({"jacobian": None}, "Newton: jacobian must be one of"),
        ({"init": "zero"}, "Newton: init must be one of step, carry"),
        ({"fallback": "fused"}, "Newton: fallback must be one of error, scan, none"),
        ({"fallback": None}, "Newton: fallback must be one of error, scan, none"),
        ({"max_steps": 0}, "Newton: max_steps must be a positive int"),
        ({"max_steps": 1.5}, "Newton: max_steps must be a positive int"),
        ({"max_bytes": -1}, "Newton: max_bytes must be a positive int"),
        ({"damping": 0}, "Newton: damping must be a finite number above 0, got 0"),
        ({"damping": True}, "Newton: damping must be a finite number above 0, got True"),
        ({"damping": -1.0}, "Newton: damping must be a finite number above 0"),
        ({"damping": float("nan")}, "Newton: damping must be a finite number above 0"),
        ({"tol": 0.0}, "Newton: tol must be a finite number above 0"),
        ({"tol": float("inf")}, "Newton: tol must be a finite number above 0"),
    ],
)
def test_invalid_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Newton(**options)


def test_full_jacobians_over_the_limit_raise_at_trace_time() -> None:
    cell = LSTM(8)
    params = cell.init(jax.random.key(0), 2)
    needed = 100 * 3 * 16**2 * 4
    run = lambda limit: jax.eval_shape(
        lambda xs: jrnn.unroll(cell, params, xs, engine=Newton(jacobian="full", max_bytes=limit))[
            1
        ],
        jax.ShapeDtypeStruct((100, 3, 2), np.float32),
    )
    assert run(needed).shape == (100, 3, 8)
    gib = f"{needed / 2**30:.3g} GiB"
    with pytest.raises(
        ValueError, match=f"at most max_bytes={needed - 1} .*, got {gib} for"
    ) as caught:
        run(needed - 1)
    for words in ("100 steps, 3 seq", "size 16", "'block'", "'diagonal'", "'fused'", "increase"):
        assert words in str(caught.value)
    with jax.enable_x64(True), pytest.raises(ValueError, match="at most max_bytes"):
        jax.eval_shape(
            lambda xs: jrnn.newton(cell, params, xs, engine=Newton(max_bytes=needed)),
            jax.ShapeDtypeStruct((100, 3, 2), np.float64),
        )


def test_carry_that_is_not_real_raises() -> None:
    xs = np.ones((4, 2, 1), np.float32)
    counter = Counter()
    with pytest.raises(TypeError, match=r"must be floating, got dtypes \['int32'\].*fused"):
        jrnn.unroll(counter, np.float32(0), xs, engine="newton")
    leaky = Leaky(2)
    timed = Timed(np.ones((4, 2, 3), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(TypeError, match=r"got dtypes \['float32', 'int32'\] of Leaky"):
        jrnn.unroll(leaky, leaky.init(jax.random.key(0), 3), timed, engine="newton")

    @dataclasses.dataclass(frozen=True)
    class WithoutCoefficients(LRU):  # a complex carry, and not known to be linear
        def coefficients(self, params: Any, z: Any) -> None:
            return None

        def update(self, params: Any, carry: Any, z: Any, u: None) -> Any:
            return LRU.coefficients(self, params, z).apply(carry)

    cell = WithoutCoefficients(2)
    with pytest.raises(TypeError, match=r"got dtypes \['complex64'\] of .*WithoutCoefficients"):
        jrnn.unroll(cell, cell.init(jax.random.key(0), 1), xs, engine="newton")


class UnequalLeaves(LearnedInitialCarry):
    """Leaves of different sizes: h' = tanh(W x + U h + V n), and n' = tanh(0.5 n + h'[:2])."""

    def init_carry(self, params: Any, batch_shape: tuple[int, ...]) -> Any:
        zeros = jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)
        return {"h": zeros, "n": zeros[..., :2]}

    def recur(self, params: Any, carry: Any) -> jax.Array:
        return carry["h"] @ params.w_hh

    def update(self, params: Any, carry: Any, z: jax.Array, u: jax.Array) -> Any:
        h = jnp.tanh(z + u + carry["n"] @ params.w_hh[:2])
        return {"h": h, "n": jnp.tanh(0.5 * carry["n"] + h[..., :2])}

    def readout(self, params: Any, carry: Any, z: jax.Array) -> jax.Array:
        return carry["h"]


def test_only_block_jacobians_require_leaves_of_one_shape(x64: None) -> None:
    cell, scenario = UnequalLeaves(3), Scenario(resets=False)
    params = random_params(cell, 1, 2)
    batch = random_batch(cell, params, 2, 9, 3)
    want = differentiate_all(cell, Scan(), (scenario,), params, batch)
    for kind in ("auto", "full", "diagonal"):
        engine = Newton(jacobian=kind)
        got = differentiate_all(cell, engine, (scenario,), params, batch)
        assert_close(got, want, 1e-9)
    with pytest.raises(
        ValueError,
        match=r"the same shape for jacobian='block', got \[\(3, 3\), \(3, 2\)\] .*'diagonal'",
    ):
        jrnn.newton(cell, params, batch.xs, engine=Newton(jacobian="block"))
    large = UnequalLeaves(80)  # more elements than "auto" allows for full Jacobians
    params = large.init(jax.random.key(0), 2)
    params = jax.tree.map(lambda leaf: leaf / 40, params)
    xs = np.ones((20, 1, 2), np.float32)
    got, want = (jrnn.unroll(large, params, xs, engine=e) for e in (NEWTON, Scan()))
    assert_close(got, want, 1e-4)


@pytest.mark.parametrize("engine", ["newton", Scan(), Newton])
def test_newton_requires_a_newton_engine(engine: Any) -> None:
    with pytest.raises(TypeError, match=r"newton: engine must be a jrnn.Newton\(...\), got"):
        jrnn.newton(GRU(2), None, np.ones((2, 1, 1)), engine=engine)


def test_newton_by_name_equals_the_default_engine() -> None:
    cell, params, batch = make_example(CELLS["gru"], np.float32)
    named, default = (jrnn.unroll(cell, params, batch.xs, engine=e) for e in ("newton", Newton()))
    assert_close(named, default, 0)


def test_second_call_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    messages_of_jax = lambda: [r for r in caplog.records if r.name.startswith("jax")]
    run = lambda xs: (
        jrnn.newton(GRU(5), params, xs, engine=Newton(tol=1e-5)),
        jrnn.unroll(GRU(5), params, xs, engine=Newton(tol=1e-5)),
    )
    params = GRU(5).init(jax.random.key(0), 2)
    with jax.log_compiles():
        run(np.ones((6, 2, 2), np.float32))
        assert messages_of_jax(), "no compilation was captured"
        caplog.clear()
        run(np.zeros((6, 2, 2), np.float32))
        assert not messages_of_jax()


# Dtypes of params, xs, outputs and carry; and the tolerance against float64.
MIXED = {
    "f32-bf16": (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.float32, 3e-2),
    "bf16-f32": (jnp.bfloat16, jnp.float32, jnp.float32, jnp.float32, 1e-4),
    "bf16-bf16": (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, 6e-2),
    "f64-f32": (jnp.float64, jnp.float32, jnp.float32, jnp.float64, 1e-5),
}


@pytest.mark.parametrize("mix", MIXED)
@pytest.mark.parametrize(
    "name", mark_exhaustive(["lstm", "gru-reset-before", "lru"], always=("lstm",))
)
def test_dtypes_and_values_of_mixed_precision(name: str, mix: str) -> None:
    params_dtype, xs_dtype, ys_dtype, carry_dtype, tolerance = MIXED[mix]
    row, scenario = CELLS[name], Scenario(lengths=False, resets=False)
    cell = row.make(4)
    params = random_params(cell, 1, 3, params_dtype)
    batch = random_batch(cell, params, 2, steps=20, batch=3)
    batch = cast_batch(batch, xs_dtype, ys_dtype, carry_dtype)
    truth = oracle(row, scenario, *as_dtype((params, batch), np.float64))
    with jax.enable_x64("f64" in mix):
        got = unroll_all(cell, NEWTON, (scenario,), params, batch)[0]
        shapes = jax.eval_shape(
            lambda p, b: differentiate_all(cell, NEWTON, (scenario,), p, b)[0], params, batch
        )
    assert_close(got, truth, tolerance)
    complex_carry = any(map(is_complex, jax.tree.leaves(batch.carry)))
    to_dtype = complex_dtype if complex_carry else jnp.dtype
    dtypes = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree)}
    assert got[1].dtype == ys_dtype
    assert dtypes(got[0]) == {to_dtype(carry_dtype)}
    assert dtypes(shapes.params_grad) == {jnp.dtype(params_dtype)}
    assert dtypes(shapes.xs_grad) == {jnp.dtype(xs_dtype)}
    assert dtypes(shapes.carry_grad) == {to_dtype(carry_dtype)}


@pytest.mark.parametrize("params_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "cell", mark_exhaustive([GRU(16), LSTM(16), Elman(16)], always=[GRU(16)]), ids=repr
)
def test_error_of_long_bfloat16_sequences_is_at_most_twice_that_of_scan(
    cell: Cell, params_dtype: Any
) -> None:
    # A tolerance below the rounding error of products would need one iteration per step.
    wide = cell.init(jax.random.key(0), 3)
    params = jax.tree.map(lambda leaf: leaf.astype(params_dtype), wide)
    xs = jax.random.normal(jax.random.key(1), (500, 2, 3))
    truth = jrnn.unroll(cell, wide, xs, engine="scan")[1]
    solution = jrnn.newton(cell, params, xs.astype(jnp.bfloat16))
    assert bool(solution.status.converged.all())
    error = np.abs(np.asarray(solution.ys, np.float32) - truth).max()
    scan = jrnn.unroll(cell, params, xs.astype(jnp.bfloat16), engine="scan")[1]
    assert error < 2 * np.abs(np.asarray(scan, np.float32) - truth).max()


def test_sum_of_many_steps_equals_cumsum(x64: None) -> None:
    xs = np.random.default_rng(0).normal(size=(3000, 1, 2))
    solution = jrnn.newton(Integrator(2), np.float64(0), xs)
    np.testing.assert_allclose(solution.ys, np.cumsum(xs, axis=0), atol=1e-10)
