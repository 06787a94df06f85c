"""Transforms with noise: against loops in NumPy with the masks that were drawn, on every engine."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Associative, Cell, Elman, Fused, MinGRU, Newton, Scan
from jrnn.structure import recurrence
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


def setting(cell: Cell, seed: int = 1) -> Any:
    return random_params(cell, seed, SIZE)


def run(cell: Cell, params: Any, engine: Any = "scan", key: Any = KEY) -> Any:
    return jrnn.unroll(cell, params, XS, key=key, engine=engine)


def draw(cell: Cell, params: Any, xs: Any = XS) -> tuple[Any, Any]:
    """The changed parameters and the transform's own noise, as `run` draws them."""
    params, noise = cell.sample_noise(params, xs, xs.shape[:2], KEY)
    return params, noise.own


def loop(step: Any, carry: Any) -> np.ndarray:
    """The outputs of one sequence after another, by `step(t, b, carry) -> (carry, y)`."""
    ys = []
    for b in range(BATCH):
        s, outputs = carry, []
        for t in range(STEPS):
            s, y = step(t, b, s)
            outputs.append(y)
        ys.append(outputs)
    return np.swapaxes(np.array(ys), 0, 1)


FEW = ("zoneout-linear", "dropout", "weight_drop")


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.exhaustive) for name in NOISY],
)
def test_every_engine_sees_the_same_noise(name: str, x64: None) -> None:
    cell = NOISY[name]
    params = setting(cell)
    engines = [Fused(), Fused(chunk=2, remat=True), Newton()]
    engines += [Associative()] if recurrence(cell, SIZE) == "linear" else []

    @jax.jit
    def everything(params: Any) -> Any:
        def one(engine: Any) -> Any:
            return jax.value_and_grad(lambda p: (run(cell, p, engine)[1] ** 2).sum())(params)

        return [one(engine) for engine in [Scan(), *engines]]

    want, *others = everything(params)
    for got in others:
        assert_close(got, want, 1e-8)
    assert (np.asarray(run(cell, params)[1]) != np.asarray(run(cell, params, key=None)[1])).any()


@pytest.mark.parametrize("name", NOISY)
def test_a_key_gives_the_same_noise_again_and_another_key_another(name: str) -> None:
    cell = NOISY[name]
    params = setting(cell)
    again = (run(cell, params)[1] for _ in range(2))
    np.testing.assert_array_equal(*again)
    other = run(cell, params, key=jax.random.key(5))[1]
    assert (np.asarray(other) != np.asarray(run(cell, params)[1])).any()


def test_zoneout_keeps_what_its_masks_say(x64: None) -> None:
    cell = NOISY["zoneout"]
    params = setting(cell)
    _, (h_mask, c_mask) = draw(cell, params)

    def step(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = np.where(h_mask[t, b], carry.h, new.h)
        return jrnn.LSTMCarry(h, np.where(c_mask[t, b], carry.c, new.c)), h

    zeros: Any = np.zeros(SIZE)
    assert_close(run(cell, params)[1], loop(step, jrnn.LSTMCarry(zeros, zeros)), 1e-12)
    assert (np.asarray(h_mask) != np.asarray(c_mask)).any()


def test_zoneout_draws_the_masks_of_h_and_c_apart(x64: None) -> None:
    cell = NOISY["zoneout"]
    _, masks = draw(cell, setting(cell))
    h, c = (np.asarray(mask) for mask in masks)
    assert (h & ~c).any() and (c & ~h).any()
    same = zoneout(LSTM(SIZE), h=0.5, c=0.5)
    _, masks = draw(same, setting(same))
    assert not np.array_equal(*masks)


def test_dropout_masks_inputs_candidates_and_outputs(x64: None) -> None:
    cell = NOISY["dropout"]
    params = setting(cell)
    _, masks = draw(cell, params)
    for mask in (*masks.x, *masks.candidate, masks.y):
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:1], mask.shape))
    assert not masks.x[0].all() and not masks.candidate[0].all() and not masks.y.all()

    def step(t: int, b: int, h: Any) -> Any:
        x = XS[t, b] * masks.x[0][t, b] / 0.6
        _, undropped = gru_reset_after(params, h, x)
        # The same step with a candidate n out of h' = z h + (1 - z) n.
        z = sigmoid(
            params.w_ih[:, SIZE : 2 * SIZE].T @ x
            + params.w_hh[:, SIZE : 2 * SIZE].T @ h
            + params.b[SIZE : 2 * SIZE]
        )
        n = (undropped - z * h) / (1 - z)
        h = z * h + (1 - z) * n * masks.candidate[0][t, b] / 0.6
        return h, h * masks.y[t, b] / 0.7

    assert_close(run(cell, params)[1], loop(step, np.zeros(SIZE)), 1e-10)


def test_dropout_masks_of_inputs_candidates_and_outputs_differ() -> None:
    cell = dropout(GRU(SIZE), x=0.5, y=0.5, candidate=0.5)
    _, (x, candidate, y) = draw(cell, setting(cell))
    masks = [np.asarray(mask) for mask in (*x, *candidate, y)]
    for mask, other in itertools.combinations(masks, 2):
        assert (mask != other).any()
    for mask in masks:
        assert (mask != mask[:, :1]).any(), "all sequences have one mask"


def test_nested_transforms_draw_different_masks() -> None:
    cell = dropout(dropout(MinGRU(SIZE), x=0.5), x=0.5)
    _, noise = cell.sample_noise(setting(cell), XS, XS.shape[:2], KEY)
    assert (np.asarray(noise.own.x[0]) != np.asarray(noise.inside.own.x[0])).any()


def test_masks_of_each_step_differ() -> None:
    cell = NOISY["each-step"]
    _, masks = draw(cell, setting(cell))
    assert (np.asarray(masks.x[0][0]) != np.asarray(masks.x[0][1:])).any()


def test_dropped_weights_are_the_same_for_all(x64: None) -> None:
    cell = NOISY["weight_drop"]
    params = setting(cell)
    dropped, _ = draw(cell, params)
    kept = np.asarray(dropped.w_hh) != 0
    assert 0.3 < kept.mean() < 0.9
    np.testing.assert_allclose(dropped.w_hh[kept], params.w_hh[kept] / 0.6)
    np.testing.assert_array_equal(dropped.w_ih, params.w_ih)
    zeros: Any = np.zeros(SIZE)
    step = lambda t, b, carry: lstm(dropped, carry, XS[t, b])
    assert_close(run(cell, params)[1], loop(step, jrnn.LSTMCarry(zeros, zeros)), 1e-12)


@pytest.mark.parametrize("name", ["zoneout-linear", "dropout", "weight_drop"])
def test_rates_are_the_share_of_what_is_dropped(name: str) -> None:
    cell = NOISY[name]
    params, many = random_params(cell, 1, SIZE, np.float32), jnp.zeros((200, 50, SIZE))
    _, noise = draw(cell, params, many)
    if name == "weight_drop":
        large = jnp.ones((300, 300))
        dropped, _ = draw(cell, params._replace(w_hh=large))
        np.testing.assert_allclose((dropped.w_hh == 0).mean(), 0.4, atol=0.02)
    elif name == "dropout":
        np.testing.assert_allclose(noise.x[0].mean(), 0.6, atol=0.1)
    else:
        np.testing.assert_allclose(noise[0].mean(), 0.4, atol=0.02)


def test_a_linear_cell_stays_linear_under_noise(x64: None) -> None:
    cell = NOISY["zoneout-linear"]
    params = setting(cell)
    _, (mask,) = draw(cell, params)

    def step(t: int, b: int, h: Any) -> Any:
        h = np.where(mask[t, b], h, mingru(params, h, XS[t, b])[0])
        return h, h

    assert recurrence(cell, SIZE) == "linear"
    for engine in (Associative(), Associative(chunk=2)):
        assert_close(run(cell, params, engine)[1], loop(step, np.zeros(SIZE)), 1e-12)


def test_candidates_of_a_cell_without_any_are_refused() -> None:
    cell = dropout(Elman(SIZE), candidate=0.5)
    with pytest.raises(ValueError, match=r"Dropout: Elman\(.* has no candidate to drop"):
        run(cell, setting(cell))


def test_zoneout_of_a_cell_state_needs_one() -> None:
    cell = zoneout(GRU(SIZE), c=0.5)
    message = r"carry of GRU\(.* has the rate c; that of one array is h: write h=0.5"
    with pytest.raises(ValueError, match=message):
        run(cell, setting(cell))
    cell = zoneout(jrnn.LEM(SIZE), h=0.5)
    with pytest.raises(ValueError, match="the rate h; that of y, z is c: write c=0.5"):
        run(cell, setting(cell))


def test_zoneout_around_dropout_reads_out_the_mixed_carry(x64: None) -> None:
    cell = zoneout(dropout(LSTM(SIZE), y=0.5), h=0.9)
    params = setting(cell)
    _, noise = cell.sample_noise(params, XS, (STEPS, BATCH), KEY)
    (h_mask, _), y_mask = noise.own, noise.inside.own.y
    zeros: Any = np.zeros(SIZE)

    def expected(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = 0.9 * carry.h + 0.1 * new.h
        return jrnn.LSTMCarry(h, new.c), h

    def drawn(t: int, b: int, carry: Any) -> Any:
        new, _ = lstm(params, carry, XS[t, b])
        h = np.where(h_mask[t, b], carry.h, new.h)
        return jrnn.LSTMCarry(h, new.c), h * y_mask[t, b] / 0.5

    for key, step in ((None, expected), (KEY, drawn)):
        want = loop(step, jrnn.LSTMCarry(zeros, zeros))
        assert_close(run(cell, params, key=key)[1], want, 1e-12)


@pytest.mark.parametrize("batch", [(), (2, 5)])
def test_a_step_with_noise_may_have_any_batch_axes(batch: tuple[int, ...]) -> None:
    cell = dropout(GRU(SIZE), x=0.5, y=0.5, candidate=0.5)
    params = random_params(cell, 1, SIZE, np.float32)
    carry, y = cell.step(params, cell.init_carry(params, batch), jnp.ones((*batch, SIZE)), key=KEY)
    assert carry.shape == y.shape == (*batch, SIZE)


def test_weights_to_be_dropped_must_exist() -> None:
    with pytest.raises(ValueError, match=r"WeightDrop: no parameter of MinGRU\(.* is named w_hh"):
        weight_drop(MinGRU(3)).init(KEY, 2)


def test_highway_passes_noise_to_the_cell_inside(x64: None) -> None:
    cell = highway(dropout(MinGRU(SIZE), x=0.4))
    params = setting(cell)
    _, noise = cell.sample_noise(params, XS, (STEPS, BATCH), KEY)
    masks = noise.inside.own

    def step(t: int, b: int, h: Any) -> Any:
        h, y = mingru(params.cell, h, XS[t, b] * masks.x[0][t, b] / 0.6)
        gate = sigmoid(params.w_t.T @ XS[t, b] + params.b_t)
        return h, gate * y + (1 - gate) * XS[t, b]

    assert_close(run(cell, params)[1], loop(step, np.zeros(SIZE)), 1e-12)
