"""Tests of `LSTM`, `GRU` and `StackedRNN`: layers, directions and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, LSTM, StackedRNN
from tests.helpers import assert_close
from tests.nn.test_rnn import B, H, I, T, batch, randomize_params


def compose_unrolls(model, cell, xs, lengths, resets, directions, initial_carry=None):
    """Calls `unroll` for each layer and direction.

    The backward direction is reset at the last step of each segment. Arrays are batch-major.
    """
    ends = np.zeros_like(resets)
    ends[:, :-1] = resets[:, 1:]
    ys, carries = xs.swapaxes(0, 1), []
    for layer in range(model.num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            carry, y = jrnn.unroll(
                cell,
                model.rnns[k].params,
                ys,
                None if initial_carry is None else jax.tree.map(lambda a, k=k: a[k], initial_carry),
                lengths=lengths,
                resets=(ends if direction else resets).T,
                reverse=bool(direction),
            )
            carries.append(carry)
            outputs.append(y)
        ys = jnp.concatenate(outputs, axis=-1)
    return jax.tree.map(lambda *a: jnp.stack(a), *carries), ys.swapaxes(0, 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("module", [LSTM, GRU])
def test_layers_equal_composed_unrolls(module, bidirectional):
    model = randomize_params(
        module(I, H, num_layers=2, bidirectional=bidirectional, rngs=nnx.Rngs(0))
    )
    cell = {LSTM: jrnn.LSTM(H), GRU: jrnn.GRU(H)}[module]
    directions = 1 + bidirectional
    xs, lengths, resets = batch()
    initial_carry = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(3), (2 * directions, *a.shape)),
        cell.init_carry(model.rnns[0].params, (B,)),
    )
    got = model(xs, initial_carry, lengths=lengths, resets=resets)
    assert_close(
        got, compose_unrolls(model, cell, xs, lengths, resets, directions, initial_carry), 1e-5
    )
    assert got[1].shape == (B, T, directions * H)


def test_reset_on_padding_has_no_effect_in_either_direction():
    model = randomize_params(GRU(I, H, bidirectional=True, rngs=nnx.Rngs(0)))
    xs, lengths, _ = batch()
    initial_carry = jnp.ones((2, B, H))
    resets = np.zeros((B, T), bool)
    without_resets = model(xs, initial_carry, lengths=lengths, resets=resets)
    resets[1, lengths[1]] = resets[2, T - 1] = True
    assert_close(model(xs, initial_carry, lengths=lengths, resets=resets), without_resets, 0)


def test_layers_and_directions_have_different_weights():
    model = LSTM(H, H, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    weights = [rnn.params.w_hh for rnn in model.rnns]
    assert len(weights) == 4
    for k in range(4):
        for other in range(k):
            assert not np.allclose(weights[k], weights[other])


def test_cell_options_are_passed_to_the_cells():
    lstm = LSTM(I, H, rngs=nnx.Rngs(0), forget_bias=2.0, peepholes=True, coupled=True)
    assert lstm.rnns[0].cell == jrnn.LSTM(H, forget_bias=2.0, peepholes=True, coupled=True)
    gru = GRU(I, H, rngs=nnx.Rngs(0), reset_after=False, t_max=9)
    assert gru.rnns[0].cell == jrnn.GRU(H, reset_after=False, t_max=9)
    rnn = StackedRNN(jrnn.Elman(H), I, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    assert rnn.rnns[0].params.b.dtype == jnp.bfloat16


def test_time_major_equals_batch_major():
    options = {"num_layers": 2, "bidirectional": True}
    model = GRU(I, H, rngs=nnx.Rngs(0), **options)
    time_major = GRU(I, H, rngs=nnx.Rngs(0), time_major=True, **options)
    xs, lengths, resets = batch()
    carry, ys = model(xs, lengths=lengths, resets=resets)
    time_major_carry, time_major_ys = time_major(
        xs.swapaxes(0, 1), lengths=lengths, resets=resets.T
    )
    assert_close((time_major_carry, time_major_ys), (carry, ys.swapaxes(0, 1)), 1e-6)


def test_two_calls_with_the_carry_equal_one_call():
    model = LSTM(I, H, num_layers=2, rngs=nnx.Rngs(0))
    xs, _, _ = batch()
    last, ys = model(xs)
    carry, early = model(xs[:, :2])
    carry, late = model(xs[:, 2:], carry)
    assert_close((carry, jnp.concatenate([early, late], axis=1)), (last, ys), 1e-6)


def test_dropout_applies_between_layers_in_training_only():
    model = LSTM(I, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    without_dropout = LSTM(I, H, num_layers=2, rngs=nnx.Rngs(0))
    xs, _, _ = batch()
    model.eval()
    _, deterministic = model(xs)
    assert_close(deterministic, without_dropout(xs)[1], 1e-6)
    model.train()
    _, first_ys = model(xs)
    _, second_ys = model(xs)
    assert not np.allclose(first_ys, deterministic) and not np.allclose(first_ys, second_ys)
    # Dropout is not applied to the outputs of the top layer, so none of them is zero.
    assert (np.abs(first_ys) > 0).all()


def test_dropout_preserves_the_expected_value():
    rate = 0.4
    model = LSTM(I, H, num_layers=2, dropout=rate, rngs=nnx.Rngs(0))
    model.train()
    dropped = model.dropout(jnp.ones((100, 100)))
    assert np.isclose((dropped == 0).mean(), rate, atol=0.03)
    assert np.isclose(dropped.mean(), 1, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.5}, "dropout must be 0 for a single layer"),
        ({"dropout": 1.0, "num_layers": 2}, r"dropout must be in \[0, 1\)"),
        ({"num_layers": 0}, "num_layers must be a positive int"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        LSTM(I, H, rngs=nnx.Rngs(0), **options)


def test_unknown_option_raises():
    with pytest.raises(TypeError, match="batch_first"):
        LSTM(I, H, rngs=nnx.Rngs(0), batch_first=True)


def test_carry_without_layer_axis_raises():
    model = GRU(I, H, num_layers=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(2, batch, ...\), got shape \(3, 5\)"):
        model(batch()[0], jnp.zeros((B, H)))


def test_time_intervals_are_passed_to_all_layers():
    rnn = StackedRNN(jrnn.CfC(H), I, 2, bidirectional=True, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(B, T, I)), jnp.float32)
    dt = jnp.asarray(rng.uniform(0.1, 3, (B, T)), jnp.float32)
    expected = xs
    for directions in (rnn.rnns[:2], rnn.rnns[2:]):
        inputs = jax.tree.map(lambda a: a.swapaxes(0, 1), jrnn.Timed(expected, dt))
        outputs = [direction(inputs)[1].swapaxes(0, 1) for direction in directions]
        expected = jnp.concatenate(outputs, axis=-1)
    assert_close(rnn(jrnn.Timed(xs, dt))[1], expected, 1e-6)
    assert not np.allclose(rnn(jrnn.Timed(xs, 2 * dt))[1], expected)
