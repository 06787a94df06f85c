"""Dropout whose rate is an array, so that networks with different rates share one compilation."""

import jax
import jax.numpy as jnp
from flax import nnx


def fork_dropout_stream(rngs: nnx.Rngs) -> nnx.RngStream | None:
    """Forks the stream `dropout` or `default` of `rngs`; returns None if there is neither."""
    return rngs.dropout.fork() if "dropout" in rngs or "default" in rngs else None


def missing_stream(purpose: str) -> str:
    """Returns an error message without its beginning, for `rngs` without a stream."""
    return (
        f"rngs must have the stream 'dropout' for {purpose}, got none; pass for example "
        "rngs=nnx.Rngs(params=0, dropout=1)"
    )


class DropoutRate(nnx.Variable):
    """A dropout rate, which is part of the state of a module but is not trained."""


class Dropout(nnx.Module):
    """Dropout with the same values as `nnx.Dropout`, bit for bit.

    Attributes:
      rate: the probability of setting an element to zero, in [0, 1), a float32 scalar.
      deterministic: whether the inputs are returned unchanged; set by `eval()` and `train()`.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs, owner: str = "Dropout"):
        """Stores the rate, and forks the stream `dropout` or `default` of `rngs`.

        Raises:
          ValueError: `rngs` has neither stream; the message begins with `owner`.
        """
        stream = fork_dropout_stream(rngs)
        if stream is None:
            raise ValueError(f"{owner}: {missing_stream('dropout')}")
        self.rate = DropoutRate(jnp.float32(rate))
        self.rngs = stream
        self.deterministic = False

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Sets random elements to zero and divides the others by 1 - rate, in training mode."""
        if self.deterministic:
            return inputs
        keep_prob = 1 - self.rate[...]
        mask = jax.random.bernoulli(self.rngs(), keep_prob, inputs.shape)
        return jnp.where(mask, inputs / keep_prob.astype(inputs.dtype), jnp.zeros_like(inputs))
