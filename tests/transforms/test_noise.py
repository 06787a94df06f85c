"""Stochastic transforms, compared between engines, and with NumPy loops over the sampled masks."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Associative, Cell, Elman, Fused, MinGRU, Newton, Scan
from jrnn.structure import recurrence_kind
from jrnn.transforms import dropout, highway, layer_norm, residual, weight_drop, zoneout
from tests.helpers import assert_close, random_params
from tests.oracles.common import sigmoid
from tests.oracles.gru import gru_reset_after
from tests.oracles.linear import mingru
from tests.oracles.lstm import lstm

STEPS, BATCH, SIZE = 6, 3, 3
KEY = jax.random.key(4)
XS = np.random.default_rng(0).normal(size=(STEPS, BATCH, SIZE))

NOISY = {
    "zoneout": zoneout(LSTM(SIZE), h=0.3, c=0.5),
    "zoneout-linear": zoneout(MinGRU(SIZE), h=0.4),
    "dropout": dropout(GRU(SIZE), x=0.4, y=0.3, candidate=0.4),
    "each-step": dropout(LSTM(SIZE), x=0.4, candidate=0.4, each_step=True),
    "weight_drop": weight_drop(LSTM(SIZE), rate=0.4),
    "nested": residual(zoneout(dropout(layer_norm(LSTM(SIZE)), x=0.4, candidate=0.4), h=0.3)),
}


def make_params(cell: Cell, seed: int = 1) -> Any:
    return random_params(cell, seed, SIZE)


def run(cell: Cell, params: Any, engine: Any = "scan", key: Any = KEY) -> Any:
    return jrnn.unroll(cell, params, XS, key=key, engine=engine)


def sample_noise(cell: Cell, params: Any, xs: Any = XS) -> tuple[Any, Any]:
    """Returns the parameters and the noise of the outermost transform, as `run` samples them."""
    params, noise = cell.sample_noise(params, xs, xs.shape[:2], KEY)
    return params, noise.own


def loop(step: Any, carry: Any) -> np.ndarray:
    """Runs `step(t, b, carry) -> (carry, y)` for all sequences b and steps t; returns all y."""
    ys = []
    for b in range(BATCH):
        s, outputs = carry, []
        for t in range(STEPS):
            s, y = step(t, b, s)
            outputs.append(y)
        ys.append(outputs)
    return np.swapaxes(np.array(ys), 0, 1)


# The entries of `NOISY` that are not only in the exhaustive tests.
ALWAYS = ("zoneout-linear", "dropout", "weight_drop")


@pytest.mark.parametrize(
    "name",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in NOISY
    ],
)
def test_noise_is_equal_on_every_engine(name: str, x64: None) -> None:
    cell = NOISY[name]
    params = make_params(cell)
    engines = [Fused(), Fused(chunk=2, remat=True), Newton()]
    engines += [Associative()] if recurrence_kind(cell, SIZE) == "linear" else []

    @jax.jit
    def run_all(params: Any) -> Any:
        def value_and_grad(engine: Any) -> Any:
            return jax.value_and_grad(lambda p: (run(cell, p, engine)[1] ** 2).sum())(params)

        return [value_and_grad(engine) for engine in [Scan(), *engines]]

    expected, *results = run_all(params)
    for got in results:
        assert_close(got, expected, 1e-8)
    assert (np.asarray(run(cell, params)[1]) != np.asarray(run(cell, params, key=None)[1])).any()


@pytest.mark.parametrize("name", NOISY)
def test_noise_depends_on_the_key(name: str) -> None:
    cell = NOISY[name]
    params = make_params(cell)
    repeated = (run(cell, params)[1] for _ in range(2))
    np.testing.assert_array_equal(*repeated)
    other = run(cell, params, key=jax.random.key(5))[1]
    assert (np.asarray(other) != np.asarray(run(cell, params)[1])).any()


def test_zoneout_equals_a_loop_with_its_masks(x64: None) -> None:
    cell = NOISY["zoneout"]
    params = make_params(cell)
    _, (h_mask, c_mask) = sample_noise(cell, params)

    def step(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = np.where(h_mask[t, b], carry.h, new.h)
        return jrnn.LSTMCarry(h, np.where(c_mask[t, b], carry.c, new.c)), h

    zeros: Any = np.zeros(SIZE)
    assert_close(run(cell, params)[1], loop(step, jrnn.LSTMCarry(zeros, zeros)), 1e-12)
    assert (np.asarray(h_mask) != np.asarray(c_mask)).any()


def test_zoneout_masks_of_h_and_c_differ(x64: None) -> None:
    cell = NOISY["zoneout"]
    _, masks = sample_noise(cell, make_params(cell))
    h, c = (np.asarray(mask) for mask in masks)
    assert (h & ~c).any() and (c & ~h).any()
    same = zoneout(LSTM(SIZE), h=0.5, c=0.5)
    _, masks = sample_noise(same, make_params(same))
    assert not np.array_equal(*masks)


def test_dropout_equals_a_loop_with_its_masks(x64: None) -> None:
    cell = NOISY["dropout"]
    params = make_params(cell)
    _, masks = sample_noise(cell, params)
    for mask in (*masks.x, *masks.candidate, masks.y):
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:1], mask.shape))
    assert not masks.x[0].all() and not masks.candidate[0].all() and not masks.y.all()

    def step(t: int, b: int, h: Any) -> Any:
        x = XS[t, b] * masks.x[0][t, b] / 0.6
        _, new_h = gru_reset_after(params, h, x)
        # Solve h' = z h + (1 - z) n for the candidate n, and apply dropout to it.
        z = sigmoid(
            params.w_ih[:, SIZE : 2 * SIZE].T @ x
            + params.w_hh[:, SIZE : 2 * SIZE].T @ h
            + params.b[SIZE : 2 * SIZE]
        )
        n = (new_h - z * h) / (1 - z)
        h = z * h + (1 - z) * n * masks.candidate[0][t, b] / 0.6
        return h, h * masks.y[t, b] / 0.7

    assert_close(run(cell, params)[1], loop(step, np.zeros(SIZE)), 1e-10)


def test_dropout_masks_of_inputs_candidates_and_outputs_differ() -> None:
    cell = dropout(GRU(SIZE), x=0.5, y=0.5, candidate=0.5)
    _, (x, candidate, y) = sample_noise(cell, make_params(cell))
    masks = [np.asarray(mask) for mask in (*x, *candidate, y)]
    for mask, other in itertools.combinations(masks, 2):
        assert (mask != other).any()
    for mask in masks:
        assert (mask != mask[:, :1]).any(), "all sequences have the same mask"


def test_nested_transforms_have_different_masks() -> None:
    cell = dropout(dropout(MinGRU(SIZE), x=0.5), x=0.5)
    _, noise = cell.sample_noise(make_params(cell), XS, XS.shape[:2], KEY)
    assert (np.asarray(noise.own.x[0]) != np.asarray(noise.inner.own.x[0])).any()


def test_dropout_with_each_step_has_different_masks_over_time() -> None:
    cell = NOISY["each-step"]
    _, masks = sample_noise(cell, make_params(cell))
    assert (np.asarray(masks.x[0][0]) != np.asarray(masks.x[0][1:])).any()


def test_weight_drop_equals_a_loop_with_its_weights(x64: None) -> None:
    cell = NOISY["weight_drop"]
    params = make_params(cell)
    dropped, _ = sample_noise(cell, params)
    mask = np.asarray(dropped.w_hh) != 0
    assert 0.3 < mask.mean() < 0.9
    np.testing.assert_allclose(dropped.w_hh[mask], params.w_hh[mask] / 0.6)
    np.testing.assert_array_equal(dropped.w_ih, params.w_ih)
    zeros: Any = np.zeros(SIZE)
    step = lambda t, b, carry: lstm(dropped, carry, XS[t, b])
    assert_close(run(cell, params)[1], loop(step, jrnn.LSTMCarry(zeros, zeros)), 1e-12)


@pytest.mark.parametrize("name", ["zoneout-linear", "dropout", "weight_drop"])
def test_rates_equal_the_fraction_of_dropped_values(name: str) -> None:
    cell = NOISY[name]
    params = random_params(cell, 1, SIZE, np.float32)
    _, noise = sample_noise(cell, params, jnp.zeros((200, 50, SIZE)))
    if name == "weight_drop":
        dropped, _ = sample_noise(cell, params._replace(w_hh=jnp.ones((300, 300))))
        np.testing.assert_allclose((dropped.w_hh == 0).mean(), 0.4, atol=0.02)
    elif name == "dropout":
        np.testing.assert_allclose(noise.x[0].mean(), 0.6, atol=0.1)
    else:
        np.testing.assert_allclose(noise[0].mean(), 0.4, atol=0.02)


def test_linear_cell_with_zoneout_remains_linear(x64: None) -> None:
    cell = NOISY["zoneout-linear"]
    params = make_params(cell)
    _, (mask,) = sample_noise(cell, params)

    def step(t: int, b: int, h: Any) -> Any:
        h = np.where(mask[t, b], h, mingru(params, h, XS[t, b])[0])
        return h, h

    assert recurrence_kind(cell, SIZE) == "linear"
    for engine in (Associative(), Associative(chunk=2)):
        assert_close(run(cell, params, engine)[1], loop(step, np.zeros(SIZE)), 1e-12)


def test_candidate_dropout_raises_without_a_candidate() -> None:
    cell = dropout(Elman(SIZE), candidate=0.5)
    with pytest.raises(
        ValueError, match=r"Dropout: candidate must be 0 .*0.5 for Elman\(.*set x or y"
    ):
        run(cell, make_params(cell))


def test_zoneout_raises_for_a_rate_that_applies_to_no_array() -> None:
    cell = zoneout(GRU(SIZE), c=0.5)
    message = r"c must be 0 for GRU\(.*, whose carry is one array, got c=0.5; set h=0.5 instead"
    with pytest.raises(ValueError, match=message):
        run(cell, make_params(cell))
    cell = zoneout(jrnn.LEM(SIZE), h=0.5)
    with pytest.raises(
        ValueError, match="h must be 0 for LEM.* carry is y, z, got h=0.5; set c=0.5 instead"
    ):
        run(cell, make_params(cell))
    cell = zoneout(jrnn.Clockwork(SIZE), c=0.5)  # the step counter t is an integer
    with pytest.raises(ValueError, match="c must be 0 for Clockwork.* carry is h, t, got c=0.5"):
        run(cell, make_params(cell))


def test_output_of_zoneout_around_dropout_follows_from_the_mixed_carry(x64: None) -> None:
    cell = zoneout(dropout(LSTM(SIZE), y=0.5), h=0.9)
    params = make_params(cell)
    _, noise = cell.sample_noise(params, XS, (STEPS, BATCH), KEY)
    (h_mask, _), y_mask = noise.own, noise.inner.own.y
    zeros: Any = np.zeros(SIZE)

    def step_of_means(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = 0.9 * carry.h + 0.1 * new.h
        return jrnn.LSTMCarry(h, new.c), h

    def step_with_masks(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = np.where(h_mask[t, b], carry.h, new.h)
        return jrnn.LSTMCarry(h, new.c), h * y_mask[t, b] / 0.5

    for key, step in ((None, step_of_means), (KEY, step_with_masks)):
        expected = loop(step, jrnn.LSTMCarry(zeros, zeros))
        assert_close(run(cell, params, key=key)[1], expected, 1e-12)


@pytest.mark.parametrize("batch", [(), (2, 5)])
def test_step_with_noise_accepts_any_batch_axes(batch: tuple[int, ...]) -> None:
    cell = dropout(GRU(SIZE), x=0.5, y=0.5, candidate=0.5)
    params = random_params(cell, 1, SIZE, np.float32)
    carry, y = cell.step(params, cell.init_carry(params, batch), jnp.ones((*batch, SIZE)), key=KEY)
    assert carry.shape == y.shape == (*batch, SIZE)


def test_weight_drop_raises_for_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"WeightDrop: names must contain a parameter of MinGRU\(.*w_hh"
    ):
        weight_drop(MinGRU(3)).init(KEY, 2)


def test_highway_passes_noise_to_the_inner_cell(x64: None) -> None:
    cell = highway(dropout(MinGRU(SIZE), x=0.4))
    params = make_params(cell)
    _, noise = cell.sample_noise(params, XS, (STEPS, BATCH), KEY)
    masks = noise.inner.own

    def step(t: int, b: int, h: Any) -> Any:
        h, y = mingru(params.cell, h, XS[t, b] * masks.x[0][t, b] / 0.6)
        gate = sigmoid(params.w_t.T @ XS[t, b] + params.b_t)
        return h, gate * y + (1 - gate) * XS[t, b]

    assert_close(run(cell, params)[1], loop(step, np.zeros(SIZE)), 1e-12)
