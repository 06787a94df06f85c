"""Modules for reinforcement learning: single steps and resets equal the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, LSTM, RNN, ScannedRNN
from jrnn.nn import linen as jrnn_linen

T, B, SIZE = 6, 2, 3
XS = np.random.default_rng(0).normal(size=(T, B, SIZE)).astype(np.float32)
DONES = np.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 1]], bool).T
RESETS = np.concatenate([np.ones((1, B), bool), DONES[:-1]])
"""An episode begins after each step that ends one."""


def run_episodes(run, rows):
    """Returns the outputs of one environment: each episode is a sequence of its own."""
    starts = np.flatnonzero(RESETS[:, rows])
    ends = [*starts[1:], T]
    return np.concatenate(
        [run(XS[a:b, rows : rows + 1])[1][:, 0] for a, b in zip(starts, ends, strict=True)]
    )


def test_resets_are_the_dones_of_the_step_before():
    rnn = ScannedRNN(jrnn.GRU(4), SIZE, rngs=nnx.Rngs(0), engine="scan")
    carry, ys = rnn(rnn.init_carry(B), (XS, RESETS))
    alone = lambda xs: rnn(None, (xs, None))
    for environment in range(B):
        expected = run_episodes(alone, environment)
        np.testing.assert_allclose(ys[:, environment], expected, atol=1e-6)
    np.testing.assert_allclose(carry, ys[-1], atol=1e-6)


def test_linen_module_has_the_same_outputs():
    cell = jrnn.GRU(4)
    module = jrnn_linen.ScannedRNN(cell, engine="scan")
    variables = module.init(jax.random.key(0), None, (XS, RESETS))
    carry = module.apply(variables, B, method=module.init_carry)
    carry, ys = module.apply(variables, carry, (XS, RESETS))
    params = variables["params"]["cell"]
    expected = jrnn.unroll(cell, params, XS, resets=RESETS, engine="scan")
    np.testing.assert_array_equal(ys, expected[1])
    np.testing.assert_array_equal(carry, expected[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: RNN(jrnn.LSTM(4), SIZE, rngs=rngs, engine="scan"),
        lambda rngs: RNN(jrnn.GRU(4), SIZE, rngs=rngs, time_major=True, engine="scan"),
        lambda rngs: LSTM(SIZE, 4, num_layers=2, rngs=rngs, engine="scan"),
    ],
    ids=["RNN", "time-major", "LSTM"],
)
def test_steps_equal_the_whole_sequence(make):
    model = make(nnx.Rngs(0))
    axis = 0 if model.time_major else 1
    whole = lambda a: a if model.time_major else np.swapaxes(a, 0, 1)
    expected = model(whole(XS), resets=whole(RESETS))
    carry, outputs = model.init_carry(B), []
    for x, resets in zip(XS, RESETS, strict=True):
        carry, y = model.step(x, carry, resets=resets)
        outputs.append(y)
    np.testing.assert_allclose(jnp.stack(outputs, axis), expected[1], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, expected[0])


def test_steps_may_have_spatial_axes():
    model = RNN(jrnn.ConvLSTM(2, spatial_shape=(4,)), SIZE, rngs=nnx.Rngs(0), engine="scan")
    xs = np.random.default_rng(1).normal(size=(B, 2, 4, SIZE)).astype(np.float32)
    carry, first = model.step(xs[:, 0])
    _, second = model.step(xs[:, 1], carry)
    np.testing.assert_allclose(jnp.stack([first, second], 1), model(xs)[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"of shape \(batch, 4, input\), got \(2, 2, 4, 3\)"):
        model.step(xs)


def test_steps_need_a_causal_module_and_one_step():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="GRU: step needs a causal module"):
        GRU(SIZE, 4, bidirectional=True, rngs=rngs).step(XS[0])
    model = GRU(SIZE, 4, rngs=rngs)
    with pytest.raises(ValueError, match=r"of shape \(batch, input\), got \(6, 2, 3\)"):
        model.step(XS)
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        model.init_carry(0)
