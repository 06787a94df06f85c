"""Sampling of tokens from a language model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.core import Tracer

from jrnn import checks, memory
from jrnn.nn.heads import Classifier, SequenceToSequence
from jrnn.signatures import explain_signature

MAX_LENGTH = 2**31 - 1
"""The largest `length` of `generate`, since XLA counts the steps of a loop in 32 bits."""


@nnx.jit(static_argnames=("length", "exclude"))
def _generate(model, prompt, length, key, temperature, exclude):
    def sample_token(logits, key):
        logits = logits.at[:, list(exclude)].set(-jnp.inf) if exclude else logits
        token = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, token, logits.argmax(axis=-1)).astype(prompt.dtype)

    def body(state, key):
        carry, logits = state
        token = sample_token(logits, key)
        carry, outputs = model(token[:, None], carry)
        return (carry, outputs[:, -1].astype(jnp.float32)), token

    carry, outputs = model(prompt)
    initial_state = (carry, outputs[:, -1].astype(jnp.float32))
    _, tokens = lax.scan(body, initial_state, jax.random.split(key, length))
    return tokens.T


@explain_signature()
def generate(
    model: SequenceToSequence,
    prompt: jax.Array,
    length: int,
    *,
    temperature: float = 1.0,
    exclude: Sequence[int] = (),
    key: jax.Array,
) -> jax.Array:
    """Samples tokens autoregressively from a model that predicts the next token.

    ::

        token ~ softmax(logits / temperature)

    Args:
      model: maps tokens to logits of the next token; a copy of it runs in evaluation mode.
      prompt: `[B, P]` ints, the first tokens, with P of at least 1.
      length: number of tokens to sample for each sequence.
      temperature: 1 samples from the predicted distribution, a lower value favors likely tokens,
        and 0 selects the most likely token.
      exclude: tokens that are never sampled, such as that of unknown characters.
      key: PRNG key.

    Returns:
      `[B, length]` tokens with the dtype of the prompt, without the prompt.

    Raises:
      TypeError: the model has no output for each step, the prompt is not of ints, or `key` is not a
        PRNG key.
      ValueError: the prompt is empty or has a token outside of the vocabulary, the embedding has
        fewer rows than the model has outputs, `length` is not an int from 1 to `MAX_LENGTH` or
        needs too much memory, `temperature` is not a finite number of at least 0, `exclude` has
        other ints than tokens or all tokens, or the body of the model is time-major or not causal.
    """
    if getattr(model, "body", None) is None or isinstance(model, Classifier):
        raise TypeError(
            "generate: model must be a SequenceToSequence, which predicts the next token, got "
            f"{checks.describe(model)}"
        )
    if model.body.time_major or not model.body.causal:
        raise ValueError(
            "generate: model.body must be batch-major and causal, got "
            f"time_major={model.body.time_major}, causal={model.body.causal}"
        )
    length = checks.int_between("generate", "length", length, 1, MAX_LENGTH)
    if not isinstance(temperature, Tracer):
        checks.non_negative_number("generate", "temperature", temperature)
    checks.prng_key("generate", "key", key)
    prompt = jnp.asarray(prompt)
    _check_prompt(model, prompt)
    excluded = tuple(sorted({int(token) for token in exclude}))
    outputs = model.head.out_features
    if excluded and (excluded[0] < 0 or excluded[-1] >= outputs or len(excluded) == outputs):
        raise ValueError(
            f"generate: exclude must have some of the tokens from 0 to {outputs - 1}, got "
            f"{checks.describe(list(excluded))}"
        )
    # A key of 8 bytes for each step; a token and its transposed copy, for each step and sequence.
    needed = length * (8 + 8 * prompt.shape[0])
    memory.check_devices("generate", f"{length} tokens", needed, "sample fewer tokens")
    eval_model = nnx.merge(*nnx.split(model), copy=True)
    eval_model.eval()
    return _generate(eval_model, prompt, length, key, jnp.float32(temperature), excluded)


def _check_prompt(model: SequenceToSequence, prompt: jax.Array) -> None:
    """Raises unless the prompt consists of tokens of the model's vocabulary.

    The vocabulary is that of `model.embedding` if it is an `nnx.Embed`, otherwise the outputs of
    the model. The values of a traced prompt are not known, and not validated.
    """
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ValueError(
            "generate: prompt must have shape (batch, time) with at least 1 step, got "
            f"{prompt.shape}"
        )
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise TypeError(f"generate: prompt must be tokens of an int dtype, got {prompt.dtype}")
    size, outputs = model.head.out_features, model.head.out_features
    if isinstance(model.embedding, nnx.Embed):
        size = model.embedding.num_embeddings
    if outputs > size:
        raise ValueError(
            f"generate: model.embedding must have a row for each of the {outputs} tokens that the "
            f"model predicts, got {size} rows"
        )
    if prompt.size == 0 or isinstance(prompt, Tracer):
        return
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"generate: prompt must have tokens from 0 to {size - 1}, the vocabulary of the model, "
            f"got {low if low < 0 else high}"
        )
