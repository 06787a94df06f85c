"""`unroll(return_carries=True)`: the carry after each step, against a loop, on several engines."""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Associative, Cell, Engine, Fused, MinGRU, Native, Newton, Scan
from jrnn.transforms import dropout, learned_carry, projection, zoneout
from tests.helpers import assert_close, init_carry_vjp, random_params, step_vjp

STEPS, BATCH, SIZE = 5, 4, 2
MASK = np.array([[0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], bool)
LENGTHS = np.array([5, 3, 0, 4], np.int32)
RESETS = np.random.default_rng(3).random(MASK.shape) < 0.4
XS = np.random.default_rng(0).normal(size=(STEPS, BATCH, SIZE))


class Scenario(NamedTuple):
    """The optional arguments of `unroll`."""

    lengths: Any = None
    mask: Any = None
    resets: Any = None
    carry: bool = True
    reverse: bool = False


SCENARIOS = (
    Scenario(),
    Scenario(LENGTHS, resets=RESETS, carry=False),
    Scenario(mask=MASK, resets=RESETS, reverse=True),
    Scenario(LENGTHS, MASK, carry=False, reverse=True),
)

CELLS: dict[str, Cell] = {
    "lstm": LSTM(3, peepholes=True),
    "projected": LSTM(4, proj_size=3),
    "gru": GRU(3),
    "lru": jrnn.LRU(3),
    "mingru": MinGRU(3, log_space=True),
    "s5": jrnn.S5(3),
    "learned": learned_carry(projection(GRU(3), size=2)),
    "zoneout": zoneout(LSTM(3), h=0.3, c=0.4),
}
CASES: list[tuple[str, Engine]] = [
    ("lstm", Scan()),
    ("projected", Fused(chunk=2)),
    ("learned", Fused(chunk=3, remat=True)),
    ("lru", Associative()),
    ("gru", Newton()),
]
MORE_CASES: list[tuple[str, Engine]] = [
    ("projected", Scan()),
    ("s5", Scan()),
    ("lstm", Fused()),
    ("mingru", Associative(chunk=2)),
    ("s5", Associative()),
    ("zoneout", Newton()),
    ("lru", Newton()),
]
ALL_CASES = CASES + [pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE_CASES]


def make_cotangents(tree: Any) -> Any:
    """Returns cotangents in the shapes and dtypes of the leaves."""
    return jax.tree.map(lambda a: np.cos(np.arange(a.size)).reshape(a.shape).astype(a.dtype), tree)


def loop(cell: Cell, scenario: Scenario, params: Any, xs: Any, initial: Any, ct: Any) -> Any:
    """Computes the results of `unroll` and their gradients, sequence by sequence, step by step.

    The carry is repeated on padding, so its cotangents are summed.

    Args:
      cell: the cell.
      scenario: the optional arguments.
      params: the parameters.
      xs: inputs `[T, B, input]`.
      initial: the initial carry, leaves `[B, ...]`.
      ct: cotangents of the final carry, the outputs and the carries.

    Returns:
      The triple (final carry, outputs, carries), and the gradients of params, xs and initial.
    """
    ct_final, ct_ys, ct_carries = ct
    zeros, add = partial(jax.tree.map, np.zeros_like), partial(jax.tree.map, np.add)
    final, ys, carries = zeros((ct_final, ct_ys, ct_carries))
    params_grad, xs_grad, initial_grad = zeros((params, xs, initial))
    index_leaves = lambda tree, *index: jax.tree.map(lambda a: a[index], tree)

    def assign(tree: Any, value: Any, *index: int) -> None:
        for leaf, part in zip(jax.tree.leaves(tree), jax.tree.leaves(value), strict=True):
            leaf[index] = part

    for b in range(BATCH):
        reset_carry, _ = init_carry_vjp(cell, params, index_leaves(ct_final, b))
        carry = index_leaves(initial, b) if scenario.carry else reset_carry
        order = range(STEPS)[:: -1 if scenario.reverse else 1]
        inside = [t for t in order if scenario.lengths is None or t < scenario.lengths[b]]
        valid = [t for t in inside if scenario.mask is None or scenario.mask[t, b]]
        resets = [t for t in valid if scenario.resets is not None and scenario.resets[t, b]]
        prev = {}
        for t in order:
            if t in valid:
                prev[t] = reset_carry if t in resets else carry
                args = params, prev[t], xs[t, b], ct_ys[t, b], index_leaves(ct_final, b)
                (carry, y), _ = step_vjp(cell, *args)
                assign(ys, y, t, b)
            assign(carries, carry, t, b)
        assign(final, carry, b)

        cotangent, ct_reset_carry = index_leaves(ct_final, b), zeros(index_leaves(ct_final, b))
        for t in reversed(order):
            cotangent = add(cotangent, index_leaves(ct_carries, t, b))
            if t in valid:
                args = params, prev[t], xs[t, b], ct_ys[t, b], cotangent
                _, (step_grad, cotangent, xs_grad[t, b]) = step_vjp(cell, *args)
                params_grad = add(params_grad, step_grad)
            if t in resets:
                ct_reset_carry, cotangent = add(ct_reset_carry, cotangent), zeros(cotangent)
        if scenario.carry:
            assign(initial_grad, cotangent, b)
        else:
            ct_reset_carry = add(ct_reset_carry, cotangent)
        params_grad = add(params_grad, init_carry_vjp(cell, params, ct_reset_carry)[1])
    return (final, ys, carries), (params_grad, xs_grad, initial_grad)


@partial(jax.jit, static_argnames=("cell", "engine"))
def run_engine(cell: Cell, engine: Engine, params: Any, xs: Any, initial: Any) -> Any:
    """Returns the results and the gradients of all scenarios, with one compilation."""
    results = []
    for scenario in SCENARIOS:

        def run(params: Any, xs: Any, initial: Any, scenario: Scenario = scenario) -> Any:
            return jrnn.unroll(
                cell,
                params,
                xs,
                initial if scenario.carry else None,
                lengths=scenario.lengths,
                mask=scenario.mask,
                resets=scenario.resets,
                reverse=scenario.reverse,
                engine=engine,
                return_carries=True,
            )

        out, vjp = jax.vjp(run, params, xs, initial)
        results.append((out, vjp(make_cotangents(out))))
    return results


def assert_equals_loop(cell: Cell, engine: Engine, dtype: Any, tolerance: float) -> None:
    """Asserts that the results and gradients of all scenarios equal those of `loop`."""
    params, xs, initial = sample_inputs(cell, dtype)
    for scenario, got in zip(SCENARIOS, run_engine(cell, engine, params, xs, initial), strict=True):
        want = loop(cell, scenario, params, xs, initial, make_cotangents(got[0]))
        assert_close(got, want, tolerance)


def sample_inputs(cell: Cell, dtype: Any) -> Any:
    """Returns parameters, inputs, and an initial carry other than `init_carry`."""
    params = random_params(cell, 1, SIZE, dtype)
    initial = jax.tree.map(lambda a: np.asarray(a + 0.3), cell.init_carry(params, (BATCH,)))
    return params, XS.astype(dtype), initial


@pytest.mark.parametrize(("name", "engine"), ALL_CASES, ids=str)
def test_carries_equal_a_loop(name: str, engine: Engine, x64: None) -> None:
    tolerance = 1e-8 if isinstance(engine, Newton) else 1e-10
    assert_equals_loop(CELLS[name], engine, np.float64, tolerance)


@pytest.mark.parametrize(
    "cell", [GRU(3), learned_carry(projection(jrnn.Elman(3), size=2))], ids=["gru", "learned"]
)
def test_carries_of_the_native_engine_equal_a_loop(cell: Cell) -> None:
    pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
    assert_equals_loop(cell, Native(), np.float32, 2e-5)


@pytest.mark.parametrize("name", CELLS)
def test_zero_steps_return_empty_carries(name: str) -> None:
    cell = CELLS[name]
    params, xs, initial = sample_inputs(cell, np.float32)
    for reverse in (False, True):
        options = {"reverse": reverse, "mask": MASK[:0], "resets": RESETS[:0]}
        final, ys, carries = jrnn.unroll(
            cell, params, xs[:0], initial, return_carries=True, **options
        )
        assert_close(final, initial, 0)
        assert ys.shape[:2] == (0, BATCH)
        want = jax.tree.map(lambda a: np.zeros((0, *a.shape)), initial)
        got = [a.shape for a in jax.tree.leaves(carries)]
        assert got == [a.shape for a in jax.tree.leaves(want)]


def test_outputs_do_not_depend_on_return_carries() -> None:
    cell = dropout(LSTM(3), x=0.5, y=0.5)
    params, xs, initial = sample_inputs(cell, np.float32)
    options = {"mask": MASK, "resets": RESETS, "key": jax.random.key(0)}
    final, ys, carries = jrnn.unroll(cell, params, xs, initial, return_carries=True, **options)
    assert_close((final, ys), jrnn.unroll(cell, params, xs, initial, **options), 1e-6)
    assert_close(jax.tree.map(lambda a: a[-1], carries), final, 0)


def test_carries_are_in_the_accumulation_dtype() -> None:
    cell = LSTM(3)
    params, xs, initial = sample_inputs(cell, np.float32)
    final, ys, carries = jrnn.unroll(
        cell, params, xs.astype(jnp.bfloat16), initial, return_carries=True
    )
    assert ys.dtype == jnp.bfloat16 and carries.c.dtype == final.c.dtype == np.float32
    assert_close(jax.tree.map(lambda a: a[-1], carries), final, 0)


# A cell, steps, batch size, the engine that `Auto` chooses, and a part of the logged reason.
CHOICES = [
    (LSTM(3), 5, 4, "Fused", "return_carries must be False"),
    (LSTM(3), 5, 40, "Scan", "return_carries must be False"),
    (GRU(3), 5, 4, "Native", ""),
    (jrnn.Elman(3), 5, 40, "Native", ""),
    (projection(GRU(3), size=2), 5, 4, "Native", ""),
    (MinGRU(3), 300, 4, "Associative", "no kernel supports MinGRU"),
]


@pytest.mark.parametrize(("cell", "steps", "batch", "engine", "reason"), CHOICES, ids=str)
def test_auto_chooses_an_engine_that_supports_carries(
    cell: Cell, steps: int, batch: int, engine: str, reason: str, caplog: Any
) -> None:
    pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
    params = random_params(cell, 1, SIZE, np.float32)
    xs = jnp.ones((steps, batch, SIZE))
    run = lambda params, xs: jrnn.unroll(cell, params, xs, return_carries=True)
    with caplog.at_level(logging.INFO, "jrnn"):
        jax.eval_shape(run, params, xs)
    (message,) = [r.getMessage() for r in caplog.records if r.name == "jrnn"]
    assert message.startswith(f"engine='auto' chose {engine}(") and reason in message


def test_native_raises_for_carries_with_a_cell_state() -> None:
    pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
    params, xs, initial = sample_inputs(LSTM(3), np.float32)
    with pytest.raises(
        ValueError, match="engine 'native': return_carries must be False, .*; use engine='auto'"
    ):
        jrnn.unroll(LSTM(3), params, xs, initial, engine="native", return_carries=True)


def test_return_carries_raises_for_layers_that_are_not_cells() -> None:
    layer = jrnn.stack([GRU(3)])
    with pytest.raises(TypeError, match="must be a single cell for return_carries, got Stack"):
        jrnn.unroll(layer, layer.init(jax.random.key(0), SIZE), XS, return_carries=True)


# The carry after each step of the test below, with a NaN in the inputs or in the initial carry.
AFTER_NAN_INPUT = [-0.5, np.nan, np.nan, np.nan, -0.5]
AFTER_NAN_CARRY = [np.nan, np.nan, np.nan, np.nan, -0.5]


@pytest.mark.parametrize("engine", ["scan", "fused", "native"])
@pytest.mark.parametrize(
    ("bad_step", "initial", "want"), [(1, 0.0, AFTER_NAN_INPUT), (None, np.nan, AFTER_NAN_CARRY)]
)
def test_padding_between_a_nan_and_a_reset_has_a_nan_carry(
    engine: str, bad_step: int | None, initial: float, want: list[float]
) -> None:
    # All weights are zero: h' = tanh(b) = -0.5 on valid steps without NaN. Step 2 is padding, and
    # step 4 is reset.
    if engine == "native":
        pytest.importorskip("jrnn._kernels")
    cell = jrnn.Elman(1)
    params = cell.init(jax.random.key(0), 1)
    params = jax.tree.map(jnp.zeros_like, params)._replace(
        b=jnp.full((1,), np.arctanh(-0.5), jnp.float32)
    )
    xs = np.ones((5, 1, 1), np.float32)
    if bad_step is not None:
        xs[bad_step] = np.nan
    valid = np.array([bad_step is not None, True, False, True, True])[:, None]
    resets = np.array([False, False, False, False, True])[:, None]
    run = lambda xs, engine: jrnn.unroll(
        cell,
        params,
        xs,
        jnp.full((1, 1), initial),
        mask=valid,
        resets=resets,
        engine=engine,
        return_carries=True,
    )[2]
    np.testing.assert_allclose(np.ravel(run(jnp.asarray(xs), engine)), want, rtol=1e-6)
    captured = jrnn.analysis.capture_gates(
        cell, params, jnp.asarray(xs), jnp.full((1, 1), initial), mask=valid, resets=resets
    ).carries
    np.testing.assert_allclose(np.ravel(captured), want, rtol=1e-6)


def test_newton_returns_nan_carries_where_scan_does() -> None:
    cell = jrnn.GRU(2)
    params = random_params(cell, 1, 3)
    xs = jnp.ones((5, 1, 3)).at[1].set(jnp.nan)
    resets = jnp.array([False, False, False, False, True])[:, None]
    want = jrnn.unroll(cell, params, xs, resets=resets, engine="scan", return_carries=True)[2]
    got = jrnn.newton(cell, params, xs, resets=resets).carries
    assert np.isnan(got[1:4]).all()
    np.testing.assert_allclose(got, want, rtol=1e-5)
