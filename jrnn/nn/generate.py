"""Sampling from a language model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jrnn.nn.heads import SequenceToSequence


@nnx.jit(static_argnames=("length",))
def _generate(model, prompt, length, key, temperature):
    def sample(logits, key):
        token = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, token, logits.argmax(axis=-1)).astype(prompt.dtype)

    def body(state, key):
        carry, logits = state
        token = sample(logits, key)
        carry, outputs = model(token[:, None], carry)
        return (carry, outputs[:, -1].astype(jnp.float32)), token

    carry, outputs = model(prompt)
    first = (carry, outputs[:, -1].astype(jnp.float32))
    _, tokens = lax.scan(body, first, jax.random.split(key, length))
    return tokens.T


def generate(
    model: SequenceToSequence,
    prompt: jax.Array,
    length: int,
    *,
    temperature: float = 1.0,
    key: jax.Array,
) -> jax.Array:
    """Samples tokens autoregressively from a model that predicts the next token.

    ::

        token ~ softmax(logits / temperature)

    Args:
      model: maps tokens to logits of the next token; it runs in evaluation mode.
      prompt: `[B, P]` ints, the first tokens, P at least 1.
      length: number of tokens to sample.
      temperature: below 1 favors likely tokens; 0 takes the most likely one.
      key: PRNG key.

    Returns:
      `[B, length]` tokens, without the prompt.

    Raises:
      ValueError: the prompt is empty, the length is below 1, the temperature is negative, or the
        body is time-major or not causal.
    """
    if model.body.time_major or not model.body.causal:
        raise ValueError(
            "generate: the body must be batch-major and causal, got "
            f"time_major={model.body.time_major}, causal={model.body.causal}"
        )
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ValueError(
            f"generate: prompt must have shape (batch, length of at least 1), got {prompt.shape}"
        )
    if length < 1:
        raise ValueError(f"generate: length must be at least 1, got {length}")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
    eval_model = nnx.merge(*nnx.split(model), copy=True)
    eval_model.eval()
    return _generate(eval_model, prompt, length, key, jnp.float32(temperature))
