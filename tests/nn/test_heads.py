"""Models with a head, and drawing tokens from one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, RNN, Classifier, SequenceToSequence, generate
from tests.helpers import assert_close
from tests.nn.test_rnn import B, H, I, T, batch, shaken

K = 3


def body(**options):
    return GRU(I, H, rngs=nnx.Rngs(0), **options)


def head(model, pooled):
    return pooled @ model.head.kernel[...] + model.head.bias[...]


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_classifier_pools_valid_steps(pool, bidirectional, padded):
    model = shaken(Classifier(body(bidirectional=bidirectional), K, pool=pool, rngs=nnx.Rngs(1)))
    xs, lengths, _ = batch()
    lengths = lengths if padded else np.full(B, T)
    ys = np.asarray(model.body(xs, lengths=lengths)[1])
    rows = []
    for b, length in enumerate(lengths):
        y = ys[b, :length]
        if pool == "last":
            rows.append(np.concatenate([y[-1, :H], y[0, H:]]))
        else:
            rows.append(y.mean(axis=0) if pool == "mean" else y.max(axis=0))
    got = model(xs, lengths=lengths if padded else None)
    assert_close(got, head(model, np.stack(rows)), 1e-5)


def test_classifier_reads_the_first_step_of_a_reverse_body():
    model = Classifier(RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), reverse=True), K, rngs=nnx.Rngs(1))
    xs, lengths, _ = batch()
    carry, _ = model.body(xs, lengths=lengths)
    assert_close(model(xs, lengths=lengths), head(model, carry), 1e-5)


def test_classifier_takes_a_time_major_body():
    model = Classifier(body(), K, rngs=nnx.Rngs(1))
    turned = Classifier(body(time_major=True), K, rngs=nnx.Rngs(1))
    xs, lengths, _ = batch()
    assert_close(turned(xs.swapaxes(0, 1), lengths=lengths), model(xs, lengths=lengths), 1e-6)


def test_padding_has_no_bearing_on_a_classifier():
    xs, lengths, _ = batch()
    dirty = np.array(xs)
    for b, length in enumerate(lengths):
        dirty[b, length:] = np.nan
    for pool in ("last", "mean", "max"):
        model = Classifier(body(bidirectional=True), K, pool=pool, rngs=nnx.Rngs(1))
        clean = model(xs, lengths=lengths)
        assert_close(model(jnp.asarray(dirty), lengths=lengths), clean, 0)


def test_sequence_to_sequence_reads_every_step_and_goes_on():
    model = SequenceToSequence(body(num_layers=2), K, rngs=nnx.Rngs(1))
    xs, _, resets = batch()
    last, outputs = model(xs, resets=resets)
    assert_close(outputs, head(model, model.body(xs, resets=resets)[1]), 1e-6)
    carry, early = model(xs[:, :3], resets=resets[:, :3])
    carry, late = model(xs[:, 3:], carry, resets=resets[:, 3:])
    assert_close((carry, jnp.concatenate([early, late], 1)), (last, outputs), 1e-5)


def test_head_dropout_acts_in_training_alone():
    model = Classifier(body(), K, dropout=0.5, rngs=nnx.Rngs(1))
    xs, _, _ = batch()
    model.eval()
    quiet = model(xs)
    assert_close(quiet, model(xs), 0)
    model.train()
    assert not np.allclose(model(xs), quiet)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pool": "first"}, "pool must be one of"), ({"dropout": -0.1}, r"lie in \[0, 1\)")],
)
def test_odd_heads_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(body(), K, rngs=nnx.Rngs(1), **options)


@pytest.fixture(scope="module")
def language_model():
    rngs = nnx.Rngs(0)
    embedding = nnx.Embed(K, I, rngs=rngs)
    return shaken(SequenceToSequence(body(), K, embedding=embedding, rngs=rngs), seed=5)


def test_generate_at_temperature_zero_takes_the_likeliest(language_model):
    prompt = jnp.array([[0, 1], [2, 2]])
    tokens = generate(language_model, prompt, 6, temperature=0.0, key=jax.random.key(0))
    sequence = np.asarray(prompt)
    for _ in range(6):  # the slow way: the whole sequence again for each token
        _, scores = language_model(jnp.asarray(sequence))
        sequence = np.concatenate([sequence, np.asarray(scores[:, -1].argmax(-1))[:, None]], 1)
    np.testing.assert_array_equal(tokens, sequence[:, 2:])


def test_generate_leaves_dropout_out(language_model):
    noisy = SequenceToSequence(
        body(), K, embedding=language_model.embedding, dropout=0.9, rngs=nnx.Rngs(1)
    )
    noisy.train()
    prompt, key = jnp.array([[0, 1]]), jax.random.key(0)
    one, two = (generate(noisy, prompt, 20, temperature=0.0, key=key) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not noisy.dropout.deterministic  # the model itself stays as it was


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"time_major": True}])
def test_generate_refuses_a_body_that_cannot_go_on(options):
    model = SequenceToSequence(body(**options), K, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="must be batch-major and causal"):
        generate(model, jnp.zeros((1, 2), int), 3, key=jax.random.key(0))


def test_an_empty_sequence_pools_to_zeros():
    xs, _, _ = batch()
    for pool in ("last", "mean", "max"):
        model = shaken(Classifier(body(), K, pool=pool, rngs=nnx.Rngs(1)))
        scores = model(xs, lengths=np.array([0, T, 2]))
        assert_close(scores[0], model.head.bias[...], 1e-6)
        assert_close(model(xs[:, :0])[0], model.head.bias[...], 1e-6)
        assert_close(model(xs, lengths=np.full(B, T + 9)), model(xs), 1e-6)


def test_generate_draws_by_the_predicted_distribution(language_model):
    _, scores = language_model(jnp.array([[0, 1]]))
    prompt = jnp.tile(jnp.array([[0, 1]]), (4000, 1))
    tokens = generate(language_model, prompt, 1, temperature=0.5, key=jax.random.key(0))
    share = np.bincount(np.asarray(tokens[:, 0]), minlength=K) / len(tokens)
    np.testing.assert_allclose(share, jax.nn.softmax(scores[0, -1] / 0.5), atol=0.03)
    again = generate(language_model, prompt, 1, temperature=0.5, key=jax.random.key(0))
    np.testing.assert_array_equal(tokens, again)


@pytest.mark.parametrize(
    ("prompt", "length", "temperature", "message"),
    [
        (jnp.zeros((1, 0), int), 3, 1.0, "prompt must have shape"),
        (jnp.zeros((1, 2), int), 0, 1.0, "length must be at least 1"),
        (jnp.zeros((1, 2), int), 3, -1.0, "temperature must be at least 0"),
    ],
)
def test_odd_requests_to_generate_are_refused(language_model, prompt, length, temperature, message):
    with pytest.raises(ValueError, match=message):
        generate(language_model, prompt, length, temperature=temperature, key=jax.random.key(0))
