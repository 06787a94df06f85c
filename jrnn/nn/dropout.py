"""Dropout whose rate is an array, so that networks with different rates share a compilation."""

import jax
import jax.numpy as jnp
from flax import nnx


class Rate(nnx.Variable):
    """A dropout rate: part of the state of a network, but not a parameter."""


class Dropout(nnx.Module):
    """Dropout that returns the same values as `nnx.Dropout`, bit for bit.

    Attributes:
      rate: in [0, 1), a float32 scalar.
      deterministic: whether it returns its inputs unchanged, as after `eval()`.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        """Forks the stream `dropout` of `rngs`."""
        self.rate = Rate(jnp.float32(rate))
        self.rngs = rngs.dropout.fork()
        self.deterministic = False

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Drops elements of the inputs in training mode."""
        if self.deterministic:
            return inputs
        keep = 1 - self.rate[...]
        mask = jax.random.bernoulli(self.rngs(), keep, inputs.shape)
        return jnp.where(mask, inputs / keep.astype(inputs.dtype), jnp.zeros_like(inputs))
