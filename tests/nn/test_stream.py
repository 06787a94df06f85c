"""One step at a time gives what the whole sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, LSTM, RNN, SequenceToSequence, StackedRNN
from jrnn.transforms import learned_carry, zoneout

B, T, INPUT = 2, 6, 3
XS = jax.random.normal(jax.random.key(0), (B, T, INPUT))
TOKENS = jax.random.randint(jax.random.key(1), (B, T), 0, 11)


def moved(model):
    """With biases that are not zero."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    params = nnx.state(model, nnx.Param)
    nnx.update(
        model, jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), params)
    )
    return model


def tokens_in():
    rngs = nnx.Rngs(0)
    body = StackedRNN(jrnn.LSTM(4), 5, 2, rngs=rngs, dropout=0.5)
    embedding = nnx.Embed(11, 5, rngs=rngs)
    return SequenceToSequence(body, 11, rngs=rngs, embedding=embedding, dropout=0.5)


MODELS = {
    "rnn": lambda: RNN(jrnn.LSTM(4), INPUT, rngs=nnx.Rngs(0)),
    "learned": lambda: RNN(learned_carry(jrnn.GRU(4)), INPUT, rngs=nnx.Rngs(0)),
    "noisy": lambda: RNN(zoneout(jrnn.GRU(4), h=0.5), INPUT, rngs=nnx.Rngs(0)),
    "linear": lambda: RNN(jrnn.LRU(4), INPUT, rngs=nnx.Rngs(0)),
    "lstm": lambda: LSTM(INPUT, 4, 2, rngs=nnx.Rngs(0), dropout=0.3),
    "gru, time first": lambda: GRU(INPUT, 4, 2, rngs=nnx.Rngs(0), time_major=True),
    "tokens": tokens_in,
}


def whole(model, xs):
    model.eval()
    if getattr(model, "time_major", False):
        return jnp.swapaxes(model(jnp.swapaxes(xs, 0, 1))[1], 0, 1)
    return model(xs)[1]


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_the_whole_sequence(name):
    model = moved(MODELS[name]())
    xs = TOKENS if name == "tokens" else XS
    live = jrnn.stream(model, batch_size=B)
    ys = [live.step(xs[:, t]) for t in range(T)]
    np.testing.assert_allclose(jnp.stack(ys, 1), whole(model, xs), rtol=1e-5, atol=1e-6)
    assert live._run._cache_size() == 1


def test_reset_begins_anew_in_the_rows_named():
    model = moved(MODELS["learned"]())
    live = jrnn.stream(model, B)
    for t in range(3):
        live.step(XS[:, t])
    live.reset(np.array([False, True]))
    got = live.step(XS[:, 3])
    resets = jnp.zeros((B, T), bool).at[1, 3].set(True)
    np.testing.assert_allclose(got, model(XS, resets=resets)[1][:, 3], rtol=1e-5, atol=1e-6)
    live.reset()
    first = live.step(XS[:, 0])
    np.testing.assert_allclose(first, model(XS)[1][:, 0], rtol=1e-5, atol=1e-6)


def test_a_carry_can_be_put_in_and_training_goes_on_apart():
    model = moved(MODELS["lstm"]())
    model.eval()
    carry, _ = model(XS[:, :4])
    want = model(XS)[1][:, 4]
    fresh, used = jrnn.stream(model, B), jrnn.stream(model, B)
    used.step(XS[:, 0])
    moved(model)
    for live in (fresh, used, used):
        live.carry = carry
        np.testing.assert_allclose(live.step(XS[:, 4]), want, rtol=1e-5, atol=1e-6)
    model.train()
    assert not model.rnns[0].deterministic


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(ValueError, match="must be causal, but an output of it may depend on later"):
        jrnn.stream(LSTM(INPUT, 4, rngs=nnx.Rngs(0), bidirectional=True))
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        jrnn.stream(MODELS["rnn"](), batch_size=0)
    live = jrnn.stream(MODELS["rnn"]())
    with pytest.raises(ValueError, match=r"batch of 1 as its first axis, got shapes \[\(2, 3\)\]"):
        live.step(XS[:, 0])
    live.step(XS[:1, 0])
    with pytest.raises(ValueError, match="x must have the batch of 1"):
        live.step(XS[:, 0])
    with pytest.raises(ValueError, match=r"rows must be bool of shape \(batch,\) = \(1,\), got"):
        live.reset(jnp.ones(3))
