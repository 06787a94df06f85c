"""Dropout whose rate is an array, so that networks that differ in it are one compiled code."""

import jax
import jax.numpy as jnp
from flax import nnx


class Rate(nnx.Variable):
    """A rate of dropout: part of the state of a network, and no parameter."""


class Dropout(nnx.Module):
    """Zero with probability `rate`, else the input over `1 - rate`: as `nnx.Dropout`, bit for bit.

    Attributes:
      rate: in [0, 1), a float32 scalar.
      deterministic: whether it leaves the inputs as they are, as after `eval()`.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        """Takes a stream of its own out of the stream `dropout`."""
        self.rate = Rate(jnp.float32(rate))
        self.rngs = rngs.dropout.fork()
        self.deterministic = False

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Drops entries of the inputs, in training mode."""
        if self.deterministic:
            return inputs
        keep = 1 - self.rate[...]
        mask = jax.random.bernoulli(self.rngs(), keep, inputs.shape)
        return jnp.where(mask, inputs / keep.astype(inputs.dtype), jnp.zeros_like(inputs))
