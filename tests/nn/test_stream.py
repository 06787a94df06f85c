"""Tests that single steps of `jrnn.stream` equal a call on the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, LSTM, RNN, SequenceToSequence, StackedRNN
from jrnn.transforms import learned_carry, zoneout
from tests.helpers import cache_size

B, T, INPUT = 2, 6, 3
XS = jax.random.normal(jax.random.key(0), (B, T, INPUT))
TOKENS = jax.random.randint(jax.random.key(1), (B, T), 0, 11)


def add_noise(model):
    """Adds noise to the parameters, so that no bias is zero."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    params = nnx.state(model, nnx.Param)
    nnx.update(
        model, jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), params)
    )
    return model


def token_model():
    """Returns a model that maps tokens to logits of 11 tokens."""
    rngs = nnx.Rngs(0)
    body = StackedRNN(jrnn.LSTM(4), 5, 2, rngs=rngs, dropout=0.5)
    embedding = nnx.Embed(11, 5, rngs=rngs)
    return SequenceToSequence(body, 11, rngs=rngs, embedding=embedding, dropout=0.5)


MODELS = {
    "rnn": lambda: RNN(jrnn.LSTM(4), INPUT, rngs=nnx.Rngs(0)),
    "learned-carry": lambda: RNN(learned_carry(jrnn.GRU(4)), INPUT, rngs=nnx.Rngs(0)),
    "zoneout": lambda: RNN(zoneout(jrnn.GRU(4), h=0.5), INPUT, rngs=nnx.Rngs(0)),
    "linear": lambda: RNN(jrnn.LRU(4), INPUT, rngs=nnx.Rngs(0)),
    "lstm": lambda: LSTM(INPUT, 4, 2, rngs=nnx.Rngs(0), dropout=0.3),
    "gru-time-major": lambda: GRU(INPUT, 4, 2, rngs=nnx.Rngs(0), time_major=True),
    "tokens": token_model,
}


def run_sequence(model, xs):
    """Returns the outputs for batch-major inputs, in evaluation mode and batch-major."""
    model.eval()
    if getattr(model, "time_major", False):
        return jnp.swapaxes(model(jnp.swapaxes(xs, 0, 1))[1], 0, 1)
    return model(xs)[1]


@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_the_whole_sequence(name):
    model = add_noise(MODELS[name]())
    xs = TOKENS if name == "tokens" else XS
    streamed = jrnn.stream(model, batch_size=B)
    ys = [streamed.step(xs[:, t]) for t in range(T)]
    np.testing.assert_allclose(jnp.stack(ys, 1), run_sequence(model, xs), rtol=1e-5, atol=1e-6)
    assert cache_size(streamed._run) == 1


def test_reset_applies_to_the_selected_rows():
    model = add_noise(MODELS["learned-carry"]())
    streamed = jrnn.stream(model, B)
    for t in range(3):
        streamed.step(XS[:, t])
    streamed.reset(np.array([False, True]))
    got = streamed.step(XS[:, 3])
    resets = jnp.zeros((B, T), bool).at[1, 3].set(True)
    np.testing.assert_allclose(got, model(XS, resets=resets)[1][:, 3], rtol=1e-5, atol=1e-6)
    streamed.reset()
    first = streamed.step(XS[:, 0])
    np.testing.assert_allclose(first, model(XS)[1][:, 0], rtol=1e-5, atol=1e-6)


def test_carry_can_be_set_and_changes_of_the_model_do_not_affect_the_stream():
    model = add_noise(MODELS["lstm"]())
    model.eval()
    carry, _ = model(XS[:, :4])
    expected = model(XS)[1][:, 4]
    new_stream, used_stream = jrnn.stream(model, B), jrnn.stream(model, B)
    used_stream.step(XS[:, 0])
    add_noise(model)
    for streamed in (new_stream, used_stream, used_stream):
        streamed.carry = carry
        np.testing.assert_allclose(streamed.step(XS[:, 4]), expected, rtol=1e-5, atol=1e-6)
    model.train()
    assert not model.rnns[0].deterministic


@pytest.mark.parametrize("steps", [0, 2])
def test_step_after_carry_is_set_to_none_starts_from_the_initial_carry(steps):
    model = add_noise(MODELS["learned-carry"]())
    streamed = jrnn.stream(model, B)
    for t in range(steps):
        streamed.step(XS[:, t])
    streamed.carry = None
    assert streamed.carry is None
    got = streamed.step(XS[:, 0])
    np.testing.assert_allclose(got, model(XS)[1][:, 0], rtol=1e-5, atol=1e-6)


def test_invalid_streams_raise():
    with pytest.raises(
        ValueError, match="model must be causal, got a model whose outputs may depend"
    ):
        jrnn.stream(LSTM(INPUT, 4, rngs=nnx.Rngs(0), bidirectional=True))
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        jrnn.stream(MODELS["rnn"](), batch_size=0)
    streamed = jrnn.stream(MODELS["rnn"]())
    with pytest.raises(ValueError, match=r"a first axis of batch_size=1, got shapes \[\(2, 3\)\]"):
        streamed.step(XS[:, 0])
    streamed.step(XS[:1, 0])
    with pytest.raises(ValueError, match="x must have a first axis of batch_size=1"):
        streamed.step(XS[:, 0])
    with pytest.raises(
        ValueError, match=r"one step, of shape \(1, 3\), got shape \(1, 6, 3\); pass"
    ):
        streamed.step(XS[:1])
    with pytest.raises(
        ValueError, match=r"one step, of shape \(2,\), got shape \(2, 6\); pass the s"
    ):
        jrnn.stream(token_model(), batch_size=2).step(TOKENS)
    with pytest.raises(ValueError, match=r"rows must be bool of shape \(batch,\) = \(1,\), got"):
        streamed.reset(jnp.ones(3))
