"""Sampling from a network that predicts the next token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jrnn.nn.heads import SequenceToSequence


@nnx.jit(static_argnames=("length",))
def _generate(model, prompt, length, key, temperature):
    def draw(scores, key):
        drawn = jax.random.categorical(key, scores / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, drawn, scores.argmax(axis=-1)).astype(prompt.dtype)

    def body(state, key):
        carry, scores = state
        token = draw(scores, key)
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
    """Draws tokens one after another, each from what the network predicts after those before.

    ::

        token ~ softmax(scores / temperature)

    Args:
      model: takes tokens and gives scores for the next one; its dropout is left out.
      prompt: `[B, P]` ints to begin with, P at least 1.
      length: number of tokens to draw.
      temperature: below 1 is bolder towards the likely, 0 takes the likeliest.
      key: randomness.

    Returns:
      `[B, length]` tokens, without the prompt.

    Raises:
      ValueError: an empty prompt, a length below 1, a negative temperature, or a body that is
        time-major or not causal.
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
    quiet = nnx.merge(*nnx.split(model), copy=True)
    quiet.eval()
    return _generate(quiet, prompt, length, key, jnp.float32(temperature))
