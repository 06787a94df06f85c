"""Tests of `Classifier` and `SequenceToSequence`, and of sampling tokens by `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import GRU, RNN, Classifier, SequenceToSequence, StackedRNN, generate
from tests.helpers import assert_close
from tests.nn.test_rnn import B, H, I, T, batch, randomize_params

K = 3


def body(**options):
    """Returns a recurrent module with the input size and hidden size of `batch`."""
    return GRU(I, H, rngs=nnx.Rngs(0), **options)


def apply_head(model, pooled):
    return pooled @ model.head.kernel[...] + model.head.bias[...]


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_classifier_pools_valid_steps(pool, bidirectional, padded):
    model = randomize_params(
        Classifier(body(bidirectional=bidirectional), K, pool=pool, rngs=nnx.Rngs(1))
    )
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
    assert_close(got, apply_head(model, np.stack(rows)), 1e-5)


def test_classifier_pools_the_first_step_of_a_reverse_body():
    model = Classifier(RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), reverse=True), K, rngs=nnx.Rngs(1))
    xs, lengths, _ = batch()
    carry, _ = model.body(xs, lengths=lengths)
    assert_close(model(xs, lengths=lengths), apply_head(model, carry), 1e-5)


def test_classifier_pools_directions_of_different_sizes():
    layer = jrnn.bidirectional(jrnn.GRU(H), jrnn.LSTM(H + 3))
    bodies = RNN(layer, I, rngs=nnx.Rngs(0)), StackedRNN(layer, I, num_layers=2, rngs=nnx.Rngs(0))
    xs, lengths, _ = batch()
    for body in (*bodies, RNN(jrnn.stack([jrnn.GRU(2), layer]), I, rngs=nnx.Rngs(0))):
        model = Classifier(body, K, rngs=nnx.Rngs(1))
        ys = np.asarray(body(xs, lengths=lengths)[1])
        last = ys[np.arange(B), np.maximum(lengths - 1, 0), :H]
        pooled = np.concatenate([last, ys[:, 0, H:]], axis=-1)
        assert_close(model(xs, lengths=lengths), apply_head(model, pooled), 1e-5)


def test_classifier_accepts_a_time_major_body():
    model = Classifier(body(), K, rngs=nnx.Rngs(1))
    time_major = Classifier(body(time_major=True), K, rngs=nnx.Rngs(1))
    xs, lengths, _ = batch()
    assert_close(time_major(xs.swapaxes(0, 1), lengths=lengths), model(xs, lengths=lengths), 1e-6)


def test_padding_does_not_change_a_classifier():
    xs, lengths, _ = batch()
    xs_with_nan = np.array(xs)
    for b, length in enumerate(lengths):
        xs_with_nan[b, length:] = np.nan
    for pool in ("last", "mean", "max"):
        model = Classifier(body(bidirectional=True), K, pool=pool, rngs=nnx.Rngs(1))
        expected = model(xs, lengths=lengths)
        assert_close(model(jnp.asarray(xs_with_nan), lengths=lengths), expected, 0)


def test_sequence_to_sequence_in_two_calls_equals_one_call():
    model = SequenceToSequence(body(num_layers=2), K, rngs=nnx.Rngs(1))
    xs, _, resets = batch()
    last, outputs = model(xs, resets=resets)
    assert_close(outputs, apply_head(model, model.body(xs, resets=resets)[1]), 1e-6)
    carry, early = model(xs[:, :3], resets=resets[:, :3])
    carry, late = model(xs[:, 3:], carry, resets=resets[:, 3:])
    assert_close((carry, jnp.concatenate([early, late], 1)), (last, outputs), 1e-5)


def test_head_dropout_applies_in_training_only():
    model = Classifier(body(), K, dropout=0.5, rngs=nnx.Rngs(1))
    xs, _, _ = batch()
    model.eval()
    deterministic = model(xs)
    assert_close(deterministic, model(xs), 0)
    model.train()
    assert not np.allclose(model(xs), deterministic)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pool": "first"}, "pool must be one of"), ({"dropout": -0.1}, r"be in \[0, 1\)")],
)
def test_invalid_head_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(body(), K, rngs=nnx.Rngs(1), **options)


@pytest.fixture(scope="module")
def language_model():
    rngs = nnx.Rngs(0)
    embedding = nnx.Embed(K, I, rngs=rngs)
    return randomize_params(SequenceToSequence(body(), K, embedding=embedding, rngs=rngs), seed=5)


def test_generate_at_temperature_zero_selects_the_most_likely_token(language_model):
    prompt = jnp.array([[0, 1], [2, 2]])
    tokens = generate(language_model, prompt, 6, temperature=0.0, key=jax.random.key(0))
    sequence = np.asarray(prompt)
    for _ in range(6):  # run the whole sequence again for each token
        _, logits = language_model(jnp.asarray(sequence))
        sequence = np.concatenate([sequence, np.asarray(logits[:, -1].argmax(-1))[:, None]], 1)
    np.testing.assert_array_equal(tokens, sequence[:, 2:])


def test_generate_disables_dropout(language_model):
    noisy = SequenceToSequence(
        body(), K, embedding=language_model.embedding, dropout=0.9, rngs=nnx.Rngs(1)
    )
    noisy.train()
    prompt, key = jnp.array([[0, 1]]), jax.random.key(0)
    first, second = (generate(noisy, prompt, 20, temperature=0.0, key=key) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not noisy.dropout.deterministic  # the model itself remains in training mode


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"time_major": True}])
def test_generate_raises_for_a_noncausal_or_time_major_body(options):
    model = SequenceToSequence(body(**options), K, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="model.body must be batch-major and causal"):
        generate(model, jnp.zeros((1, 2), int), 3, key=jax.random.key(0))


def test_empty_sequence_pools_to_zeros_and_traced_lengths_are_clipped():
    xs, _, _ = batch()
    for pool in ("last", "mean", "max"):
        model = randomize_params(Classifier(body(), K, pool=pool, rngs=nnx.Rngs(1)))
        logits = model(xs, lengths=np.array([0, T, 2]))
        assert_close(logits[0], model.head.bias[...], 1e-6)
        assert_close(model(xs[:, :0])[0], model.head.bias[...], 1e-6)
        traced = jax.jit(lambda lengths, model=model: model(xs, lengths=lengths))
        assert_close(traced(np.full(B, T + 9)), model(xs), 1e-6)


def test_generate_samples_the_predicted_distribution(language_model):
    _, logits = language_model(jnp.array([[0, 1]]))
    prompt = jnp.tile(jnp.array([[0, 1]]), (4000, 1))
    tokens = generate(language_model, prompt, 1, temperature=0.5, key=jax.random.key(0))
    frequencies = np.bincount(np.asarray(tokens[:, 0]), minlength=K) / len(tokens)
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits[0, -1] / 0.5), atol=0.03)
    repeated = generate(language_model, prompt, 1, temperature=0.5, key=jax.random.key(0))
    np.testing.assert_array_equal(tokens, repeated)


def test_excluded_tokens_are_never_generated(language_model):
    prompt = jnp.tile(jnp.array([[0, 1]]), (200, 1))
    options = {"temperature": 2.0, "key": jax.random.key(0)}
    free = generate(language_model, prompt, 4, **options)
    limited = generate(language_model, prompt, 4, exclude=[1], **options)
    assert (free == 1).any() and not (limited == 1).any() and len(np.unique(limited)) == K - 1
    for exclude in ([K], [-1], list(range(K))):
        with pytest.raises(
            ValueError, match=f"exclude must have some of the tokens from 0 to {K - 1}"
        ):
            generate(language_model, prompt, 4, exclude=exclude, **options)


@pytest.mark.parametrize(
    ("prompt", "length", "temperature", "message"),
    [
        (jnp.zeros((1, 0), int), 3, 1.0, "prompt must have shape"),
        (jnp.zeros((1, 2), int), 0, 1.0, "length must be an int from 1"),
        (jnp.zeros((1, 2), int), 3, -1.0, "temperature must be a finite number of at least 0"),
    ],
)
def test_generate_raises_for_invalid_arguments(
    language_model, prompt, length, temperature, message
):
    with pytest.raises(ValueError, match=message):
        generate(language_model, prompt, length, temperature=temperature, key=jax.random.key(0))
