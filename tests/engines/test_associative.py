"""`Associative` against NumPy references and `Scan`, and its selection by `Auto`."""

import itertools
import logging
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jrnn
from jrnn import LRU, LSTM, Associative, MinGRU, Scan, structure
from jrnn.engines import auto
from tests.cells.linear_toys import (
    TOYS,
    Counting,
    Growth,
    GrowthParams,
    Mixer,
    NoisyLinear,
    NoisyLinearParams,
)
from tests.compilation import environment_with_devices
from tests.engines import test_nan
from tests.helpers import (
    HALF_OF_SCENARIOS,
    SCENARIOS,
    Batch,
    Results,
    Scenario,
    as_dtype,
    assert_close,
    assert_equals_loop,
    differentiate_all,
    inner_product,
    loop_grads,
    mark_exhaustive,
    oracle,
    random_batch,
    random_params,
    unroll_scenario,
)
from tests.table import CELLS, Row

LINEAR = {
    name: row
    for name, row in CELLS.items()
    if structure.recurrence_kind(row.make(2), 2) == "linear"
}
ROWS = LINEAR | TOYS
VARIANTS = {
    "chunk=1": Associative(chunk=1),
    "chunk=3": Associative(chunk=3),
    "block=3": Associative(block=3),
    "block=4,chunk=2": Associative(block=4, chunk=2),
}
# Lengths, resets and a carry, in both directions; tests/engines/test_mask.py has the masks.
FULL_SCENARIOS = (Scenario(), Scenario(reverse=True))
# The cells that the tests run with more scenarios, or also without the exhaustive tests.
DEFAULT_CELLS = ("minlstm-log", "lru", "varying-mixer", "pair")


def make_example(row: Row, steps: int = 7, batch: int = 3, dtype: Any = np.float64) -> Any:
    """Returns a cell with 2 hidden units and 2 inputs, its parameters, and a batch."""
    cell = row.make(2)
    params = random_params(cell, 1, input_size=2, dtype=dtype)
    return cell, params, random_batch(cell, params, 2, steps, batch, dtype)


def assert_all_equal_loop(
    row: Row, scenarios: Any, results: list[Results], params: Any, batch: Batch
) -> None:
    """Asserts that the results of each scenario equal those of a loop over sequences and steps."""
    cell = row.make(2)
    for scenario, got in zip(scenarios, results, strict=True):
        assert_equals_loop(row, cell, scenario, got, params, batch, 1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_values_and_gradients_equal_a_loop(name: str, x64: None) -> None:
    # Only some cells run half of the scenarios, since compilation takes most of the time.
    scenarios = HALF_OF_SCENARIOS if name in DEFAULT_CELLS else FULL_SCENARIOS
    cell, params, batch = make_example(ROWS[name])
    results = differentiate_all(cell, Associative(), scenarios, params, batch)
    assert_all_equal_loop(ROWS[name], scenarios, results, params, batch)


@pytest.mark.parametrize(
    ("name", "variant"),
    mark_exhaustive(
        [
            ("lru", "chunk=1"),
            ("pair", "chunk=1"),
            ("minlstm", "chunk=3"),
            ("varying-mixer", "chunk=3"),
            ("mixer", "block=3"),
            ("pair", "block=3"),
            ("lru", "block=4,chunk=2"),
        ],
        always=[
            ("pair", "chunk=1"),
            ("varying-mixer", "chunk=3"),
            ("mixer", "block=3"),
            ("lru", "block=4,chunk=2"),
        ],
    ),
)
def test_variants_equal_a_loop(name: str, variant: str, x64: None) -> None:
    scenarios = (*FULL_SCENARIOS, Scenario(lengths=False, carry=False))
    cell, params, batch = make_example(ROWS[name])
    results = differentiate_all(cell, VARIANTS[variant], scenarios, params, batch)
    assert_all_equal_loop(ROWS[name], scenarios, results, params, batch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ROWS)
def test_every_scenario_equals_a_loop(name: str, x64: None) -> None:
    cell, params, batch = make_example(ROWS[name])
    results = differentiate_all(cell, Associative(), SCENARIOS, params, batch)
    assert_all_equal_loop(ROWS[name], SCENARIOS, results, params, batch)


@pytest.mark.parametrize("name", mark_exhaustive(ROWS, always=DEFAULT_CELLS))
def test_values_and_gradients_equal_a_loop_in_float32(name: str) -> None:
    row = ROWS[name]
    cell, params, batch = make_example(row, dtype=np.float32)
    engine = Associative(chunk=2)
    results = differentiate_all(cell, engine, FULL_SCENARIOS, params, batch)
    with jax.enable_x64(True):
        wide = as_dtype((params, batch), np.float64)
        truths = [loop_grads(cell, scenario, *wide) for scenario in FULL_SCENARIOS]
    for scenario, got, truth in zip(FULL_SCENARIOS, results, truths, strict=True):
        assert got.ys.dtype == np.float32
        assert_close((got.carry, got.ys), oracle(row, scenario, *wide), 1e-4)
        assert_close(tuple(got[2:]), truth, 1e-4)


@pytest.mark.parametrize(
    ("name", "steps", "batch", "engine"),
    mark_exhaustive(
        (
            (name, *shape, engine)
            for name in ("minlstm-log", "mixer")
            for shape in [(0, 2), (1, 2), (5, 0), (0, 0)]
            for engine in (Associative(), Associative(chunk=3, block=2))
        ),
        always=[
            ("mixer", 0, 2, Associative(chunk=3, block=2)),
            ("mixer", 1, 2, Associative()),
            ("mixer", 5, 0, Associative(chunk=3, block=2)),
            ("minlstm-log", 0, 2, Associative()),
            ("minlstm-log", 1, 2, Associative(chunk=3, block=2)),
            ("minlstm-log", 0, 0, Associative()),
        ],
    ),
    ids=repr,
)
def test_empty_time_or_batch_equals_a_loop(
    name: str, steps: int, batch: int, engine: Associative, x64: None
) -> None:
    cell, params, inputs = make_example(ROWS[name], steps, batch)
    results = differentiate_all(cell, engine, FULL_SCENARIOS, params, inputs)
    assert_all_equal_loop(ROWS[name], FULL_SCENARIOS, results, params, inputs)


def test_results_with_noise_equal_a_loop(x64: None) -> None:
    cell, (steps, batch, hidden) = NoisyLinear(3), (5, 2, 3)
    rng = np.random.default_rng(1)
    params = NoisyLinearParams(rng.normal(size=(2, hidden)), rng.normal(size=hidden))
    xs, key = rng.normal(size=(steps, batch, 2)), jax.random.key(3)
    noise = cell.sample_noise(params, xs, (steps, batch), key)
    dropped, masks = jax.tree.map(np.asarray, noise)
    want, s = [], np.zeros((batch, hidden))
    for t in range(steps):
        s = np.tanh(dropped.decay) * s + masks[t] * (xs[t] @ params.w_ih)
        want.append(s)
    for engine in (Associative(), Associative(chunk=2), Associative(block=2)):
        carry, ys = jrnn.unroll(cell, params, xs, key=key, engine=engine)
        assert_close((carry, ys), (s, np.array(want)), 1e-12)


NUM_STEPS = 10_000


@pytest.mark.parametrize(
    ("cell", "engine", "reverse"),
    mark_exhaustive(
        itertools.product(
            [MinGRU(2), LRU(2, r_min=0.99)], [Associative(), Associative(chunk=100)], [False, True]
        ),
        always=[
            (MinGRU(2), Associative(chunk=100), False),
            (LRU(2, r_min=0.99), Associative(), True),
        ],
    ),
    ids=repr,
)
def test_ten_thousand_steps_equal_scan(cell: Any, engine: Associative, reverse: bool) -> None:
    params = cell.init(jax.random.key(0), 2)
    params = as_dtype(params, np.float32)
    batch = random_batch(cell, params, 2, NUM_STEPS, 2, np.float32)
    scenario = Scenario(resets=False, reverse=reverse)
    narrow = differentiate_all(cell, engine, (scenario,), params, batch)[0]
    with jax.enable_x64(True):
        wide = as_dtype((params, batch), np.float64)
        truth = differentiate_all(cell, Scan(), (scenario,), *wide)[0]
        assert_close(differentiate_all(cell, engine, (scenario,), *wide)[0], truth, 1e-9)
    assert_close((narrow.carry, narrow.ys), (truth.carry, truth.ys), 1e-4)
    # The rounding of eigenvalues limits the accuracy of an LRU; Scan in float32 has the same error.
    assert_close(tuple(narrow[2:]), tuple(truth[2:]), 1e-3)


def test_bfloat16_is_accumulated_in_float32() -> None:
    # s' = a s + 1 with a exact in bfloat16, so that only the sum is rounded.
    a, params = 1 - 2.0**-8, GrowthParams(np.ones((1, 1), jnp.bfloat16))
    xs = np.full((1000, 1, 1), a, jnp.bfloat16)
    want = (1 - a ** np.arange(1, 1001)) / (1 - a)
    run = lambda engine: jrnn.unroll(Growth(1), params, xs, engine=engine)[1]
    error = lambda ys: np.abs(np.asarray(ys, np.float64)[:, 0, 0] / want - 1).max()
    for engine in (Associative(), Associative(chunk=1)):
        assert run(engine).dtype == jnp.bfloat16
        assert error(run(engine)) < 2**-6  # rounding of the output
    assert error(run(Scan())) > 2**-4  # accumulates in bfloat16


@pytest.fixture(params=["mingru", "minlstm-log", "lru", "varying-mixer"])
def kind(request: pytest.FixtureRequest) -> Row:
    """One linear cell of each kind, instead of the rows of `KINDS`."""
    return ROWS[request.param]


@pytest.fixture
def engine(kind: Row) -> Associative:
    """A different variant for each row."""
    engines = (Associative(), Associative(chunk=1), Associative(chunk=2), Associative(block=4))
    return engines[
        [CELLS["mingru"], CELLS["minlstm-log"], CELLS["lru"], TOYS["varying-mixer"]].index(kind)
    ]


# The tests of `unroll` in test_nan.py, with the fixtures `kind` and `engine` above.
baseline = test_nan.baseline
test_nan_on_padding_has_no_effect = test_nan.test_nan_on_padding_has_no_effect
test_nan_before_a_reset_does_not_propagate_past_it = (
    test_nan.test_nan_before_a_reset_does_not_propagate_past_it
)
test_a_loss_that_depends_on_a_nan_before_a_reset_has_a_nan_gradient = (
    test_nan.test_a_loss_that_depends_on_a_nan_before_a_reset_has_a_nan_gradient
)
test_nan_in_the_carry_does_not_propagate_past_a_reset = (
    test_nan.test_nan_in_the_carry_does_not_propagate_past_a_reset
)
test_reset_at_the_first_step_discards_nan_in_the_carry = (
    test_nan.test_reset_at_the_first_step_discards_nan_in_the_carry
)
test_nan_without_a_later_reset_propagates = test_nan.test_nan_without_a_later_reset_propagates
test_nan_in_the_carry_without_a_reset_propagates = (
    test_nan.test_nan_in_the_carry_without_a_reset_propagates
)
test_nan_in_the_carry_of_an_empty_sequence_is_returned = (
    test_nan.test_nan_in_the_carry_of_an_empty_sequence_is_returned
)


GROWTH_PARAMS = GrowthParams(np.ones((1, 1), np.float32))


@pytest.mark.parametrize(
    "engine",
    [Associative(), Associative(chunk=1), Associative(chunk=3), Associative(block=5)],
    ids=repr,
)
def test_overflow_does_not_pass_a_reset(engine: Associative, reverse: bool) -> None:
    xs = np.full((64, 2, 1), 0.5, np.float32)
    xs[:20, 0] = 1e10
    resets = np.zeros((64, 2), bool)
    resets[20, 0] = True
    if reverse:
        xs, resets = xs[::-1].copy(), resets[::-1].copy()
    options = {"resets": resets, "reverse": reverse}
    carry, ys = jrnn.unroll(Growth(1), GROWTH_PARAMS, xs, engine=engine, **options)
    ys = np.asarray(ys)[:: -1 if reverse else 1]
    assert not np.isfinite(ys[10:20, 0]).any()
    assert np.isfinite(ys[20:]).all()
    np.testing.assert_allclose(carry, 2)
    np.testing.assert_allclose(ys[20:, 0, 0], 2 - 0.5 ** np.arange(44), rtol=1e-6)


def test_integer_carry_leaves_keep_their_dtype() -> None:
    xs = np.ones((9, 2, 1), np.float32)
    options = {"lengths": np.array([9, 4]), "resets": np.eye(9, 2, -3, dtype=bool)}
    carry, _ = jrnn.unroll(Counting(1), GROWTH_PARAMS, xs, engine=Associative(), **options)
    assert carry.steps.dtype == np.int32
    assert carry.steps.tolist() == [6, 4]


@pytest.mark.parametrize(
    ("name", "engine"),
    mark_exhaustive(
        itertools.product(
            ["mingru", "mingru-log", "minlstm", "minlstm-log"],
            [Associative(), Associative(chunk=1)],
        ),
        always=[
            ("mingru-log", Associative(chunk=1)),
            ("minlstm", Associative(chunk=1)),
            ("minlstm-log", Associative()),
        ],
    ),
    ids=repr,
)
def test_saturated_gates_give_accurate_values_and_finite_gradients(
    name: str, engine: Associative
) -> None:
    row = CELLS[name]
    cell, params, _ = make_example(row, dtype=np.float32)
    gates = params.b.shape[0] // 2
    rng = np.random.default_rng(4)
    params = params._replace(w_ih=np.tile(np.eye(2, dtype=np.float32) * 100, gates))
    batch = random_batch(cell, params, 3, 1000, 3, np.float32)
    batch = batch._replace(xs=rng.choice([-1.0, 0.02, 1.0], batch.xs.shape).astype(np.float32))
    scenario = Scenario(lengths=False, resets=False, carry=False)
    (got,) = differentiate_all(cell, engine, (scenario,), params, batch)
    with np.errstate(over="ignore", invalid="raise"):
        want = oracle(row, scenario, *as_dtype((params, batch), np.float64))
    assert_close((got.carry, got.ys), want, 1e-5)
    for leaf in jax.tree.leaves(got[2:]):
        assert np.isfinite(leaf).all()


def test_cell_without_coefficients_raises() -> None:
    cell = LSTM(3)
    with pytest.raises(TypeError, match="must be linear in its carry and have `coefficients`.*LST"):
        jrnn.unroll(cell, cell.init(jax.random.key(0), 2), np.ones((3, 1, 2)), engine="associative")


def test_invalid_mesh_type_raises() -> None:
    with pytest.raises(TypeError, match="mesh must be a jax.sharding.Mesh .*got 'time'"):
        Associative(mesh="time")  # pyright: ignore


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["chunk", "block"])
def test_chunk_and_block_must_be_positive_ints(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Associative: {name} must be a positive int, got"):
        Associative(**{name: value})


def test_invalid_mesh_options_raise() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("time",))
    with pytest.raises(ValueError, match="block must be None with a mesh, got both"):
        Associative(block=2, mesh=mesh)
    with pytest.raises(ValueError, match="axis must be one of time, got 'tiem'; did you mean 'ti"):
        Associative(mesh=mesh, axis="tiem")


def test_second_call_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cell = MinGRU(5)
    params, xs = cell.init(jax.random.key(0), 3), np.ones((11, 2, 3), np.float32)
    mesh = lambda: Mesh(np.array(jax.devices()[:1]), ("time",))
    for make_engine in (lambda: Associative(chunk=3), lambda: Associative(mesh=mesh())):
        with jax.log_compiles():
            jrnn.unroll(cell, params, xs, engine=make_engine())
            assert any("ompil" in record.getMessage() for record in caplog.records)
            caplog.clear()
            jrnn.unroll(MinGRU(5), params, xs, engine=make_engine())
            assert [r for r in caplog.records if r.name.startswith("jax")] == []


def test_mesh_of_one_device_equals_a_loop(x64: None) -> None:
    engine = Associative(mesh=Mesh(np.array(jax.devices()[:1]), ("time",)))
    cell, params, batch = make_example(TOYS["pair"])
    results = differentiate_all(cell, engine, FULL_SCENARIOS, params, batch)
    assert_all_equal_loop(TOYS["pair"], FULL_SCENARIOS, results, params, batch)


@pytest.mark.parametrize(
    "engine",
    mark_exhaustive(
        [Associative(), Associative(block=2, chunk=1)], always=[Associative(block=2, chunk=1)]
    ),
    ids=repr,
)
def test_derivatives_of_all_modes_equal_those_of_scan(engine: Associative, x64: None) -> None:
    row = TOYS["pair"]
    cell, params, batch = make_example(row, steps=5, batch=2)
    direction = random_params(cell, 7, input_size=2)

    def all_modes(engine: Any) -> Any:
        run = lambda p: unroll_scenario(cell, engine, Scenario(), p, batch)
        loss = lambda p: inner_product(run(p), (batch.ct_carry, batch.ct_ys)) ** 2
        hessian = jax.hessian(lambda w: loss(params._replace(fast=w)))(params.fast)
        second = jax.grad(lambda p: inner_product(jax.grad(loss)(p), direction))(params)
        return jax.jvp(run, (params,), (direction,)), hessian, second

    got, want = jax.jit(lambda: (all_modes(engine), all_modes(Scan())))()
    assert_close(got, want, 1e-9)


@pytest.mark.parametrize(
    "engine",
    mark_exhaustive(
        [Associative(), Associative(block=3, chunk=2)], always=[Associative(block=3, chunk=2)]
    ),
    ids=repr,
)
def test_vmap_over_params_and_batches_equals_a_loop(engine: Associative, x64: None) -> None:
    row, scenario = TOYS["varying-mixer"], Scenario()
    cell = row.make(2)
    params = [random_params(cell, seed, input_size=2) for seed in (1, 2)]
    batches = [random_batch(cell, p, 4, 7, 3) for p in params]
    stack = partial(jax.tree.map, lambda *leaves: np.stack(leaves))
    run = lambda p, b: differentiate_all(cell, engine, (scenario,), p, b)[0]
    mapped = jax.jit(jax.vmap(run))(stack(*params), stack(*batches))
    for n in range(2):
        got = jax.tree.map(lambda leaf, n=n: leaf[n], mapped)
        assert_all_equal_loop(row, (scenario,), [got], params[n], batches[n])


def test_coefficients_receive_all_steps_of_a_block_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    coefficients = Mixer.coefficients

    def record(self: Mixer, params: Any, z: jax.Array) -> Any:
        shapes.append(z.shape)
        return coefficients(self, params, z)

    monkeypatch.setattr(Mixer, "coefficients", record)
    cell = Mixer(4)
    params = cell.init(jax.random.key(0), 2)
    run = lambda engine: jax.eval_shape(
        lambda xs: jrnn.unroll(cell, params, xs, engine=engine), np.ones((13, 3, 2), np.float32)
    )
    run(Associative())
    one_step = (3, 4)  # `is_linear` calls `coefficients` for one step
    assert shapes == [one_step, (13, 3, 4)]
    shapes.clear()
    run(Associative(block=5))
    assert set(shapes) == {one_step, (5, 3, 4), (3, 3, 4)}


@pytest.mark.parametrize("steps", [auto.ASSOCIATIVE_MIN_STEPS - 1, auto.ASSOCIATIVE_MIN_STEPS])
@pytest.mark.parametrize(("batch", "choice_if_short"), [(1, "Fused("), (32, "Scan(")])
def test_auto_chooses_associative_for_long_sequences_of_linear_cells(
    steps: int, batch: int, choice_if_short: str, caplog: pytest.LogCaptureFixture
) -> None:
    cell = LRU(6)
    params = cell.init(jax.random.key(0), 2)
    with caplog.at_level("DEBUG", logger="jrnn"):
        jax.eval_shape(lambda xs: jrnn.unroll(cell, params, xs), jnp.ones((steps, batch, 2)))
    expected = "Associative(" if steps == auto.ASSOCIATIVE_MIN_STEPS else choice_if_short
    assert f"engine='auto' chose {expected}" in caplog.text


def test_auto_does_not_choose_associative_for_nonlinear_cells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cell = jrnn.IndRNN(6)
    params = cell.init(jax.random.key(0), 2)
    with caplog.at_level("DEBUG", logger="jrnn"):
        jax.eval_shape(
            lambda xs: jrnn.unroll(cell, params, xs),
            jnp.ones((2 * auto.ASSOCIATIVE_MIN_STEPS, 1, 2)),
        )
    assert "engine='auto' chose Fused(" in caplog.text


def test_auto_chooses_associative_for_short_sequences_on_accelerators(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cell = LRU(6)
    params = cell.init(jax.random.key(0), 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level("DEBUG", logger="jrnn"):
        jax.eval_shape(lambda xs: jrnn.unroll(cell, params, xs), jnp.ones((3, 1, 3)))
    assert "engine='auto' chose Associative(" in caplog.text


def test_time_is_sharded_over_devices() -> None:
    environment = environment_with_devices(8)
    command = [sys.executable, "-W", "error", "-m", "tests.engines.time_sharding"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
