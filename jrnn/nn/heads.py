"""Whole models: layers of cells with something to read from them."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry
from jrnn.masking import max_propagating_nan
from jrnn.nn.dropout import Dropout
from jrnn.nn.layers import GRU, LSTM, StackedRNN
from jrnn.nn.rnn import RNN, swap_time_and_batch

Body = RNN | StackedRNN | LSTM | GRU
Embedding = Callable[[jax.Array], jax.Array]
POOLS = ("last", "mean", "max")


class Classifier(nnx.Module):
    """One output for each sequence: class scores, or the values of a regression.

    ::

        ys = body(embedding(xs))
        scores = dropout(pool(ys)) W + b
    """

    def __init__(
        self,
        body: Body,
        output_size: int,
        *,
        rngs: nnx.Rngs,
        pool: Literal["last", "mean", "max"] = "last",
        embedding: Embedding | None = None,
        dropout: float = 0.0,
    ):
        """Draws the parameters of the head.

        Args:
          body: an `RNN`, `LSTM`, `GRU` or `StackedRNN`.
          output_size: number of classes, or of values.
          rngs: source of randomness: streams `params` and `dropout`.
          pool: what is read: the output after the last valid step (in reverse, the first), or the
            mean or the largest over all valid steps.
          embedding: applied to the inputs first, such as `nnx.Embed` for tokens.
          dropout: rate at which pooled outputs are dropped, in training mode.

        Raises:
          ValueError: an unknown pool, or a rate outside [0, 1).
        """
        checks.one_of("Classifier", "pool", pool, POOLS)
        self.body = body
        self.embedding = embedding
        self.pool = pool
        self.dropout = _dropout("Classifier", dropout, rngs)
        self.head = nnx.Linear(body.output_size, output_size, rngs=rngs)

    def __call__(self, xs: jax.Array, *, lengths: ArrayLike | None = None) -> jax.Array:
        """Scores for each sequence.

        Args:
          xs: inputs `[B, T, input]`, or what the embedding takes (first axes `[T, B]` if the body
            is time_major).
          lengths: `[B]`, valid steps of each sequence.

        Returns:
          `[B, output_size]`.
        """
        _, ys = self.body(_embed(self.embedding, xs), lengths=lengths)
        ys = ys if self.body.time_major else swap_time_and_batch(ys)
        pooled = _pool(self.pool, ys, lengths, self.body.output_directions)
        return self.head(pooled if self.dropout is None else self.dropout(pooled))


class SequenceToSequence(nnx.Module):
    """One output for each step: the next token, a tag, or a forecast.

    ::

        ys = body(embedding(xs))
        outputs[t] = dropout(ys[t]) W + b
    """

    def __init__(
        self,
        body: Body,
        output_size: int,
        *,
        rngs: nnx.Rngs,
        embedding: Embedding | None = None,
        dropout: float = 0.0,
    ):
        """Draws the parameters of the head.

        Args:
          body: an `RNN`, `LSTM`, `GRU` or `StackedRNN`.
          output_size: number of classes, or of values, at each step.
          rngs: source of randomness: streams `params` and `dropout`.
          embedding: applied to the inputs first, such as `nnx.Embed` for tokens.
          dropout: rate at which outputs are dropped before the head, in training mode.

        Raises:
          ValueError: a rate outside [0, 1).
        """
        self.body = body
        self.embedding = embedding
        self.dropout = _dropout("SequenceToSequence", dropout, rngs)
        self.head = nnx.Linear(body.output_size, output_size, rngs=rngs)

    def __call__(
        self,
        xs: jax.Array,
        carry: Carry | None = None,
        *,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Outputs for each step.

        Args:
          xs: inputs `[B, T, input]`, or what the embedding takes.
          carry: the carry to go on from; by default the body's own.
          lengths: `[B]`, valid steps of each sequence.
          resets: `[B, T]` bool, the carry is reset before these steps.

        Returns:
          The last carry of the body, and outputs `[B, T, output_size]`; on padding they are the
          bias of the head.
        """
        carry, ys = self.body(_embed(self.embedding, xs), carry, lengths=lengths, resets=resets)
        return carry, self.head(ys if self.dropout is None else self.dropout(ys))


def _embed(embedding: Embedding | None, xs: jax.Array) -> jax.Array:
    return xs if embedding is None else embedding(xs)


def _dropout(owner: str, rate: float, rngs: nnx.Rngs) -> Dropout | None:
    checks.rate(owner, "dropout", rate)
    return Dropout(rate, rngs=rngs) if rate else None


def _pool(
    pool: str, ys: jax.Array, lengths: ArrayLike | None, directions: tuple[bool, ...]
) -> jax.Array:
    """From outputs `[T, B, output]`, zero on padding, one vector `[B, output]` a sequence.

    An empty sequence gives zeros.
    """
    steps, batch = ys.shape[:2]
    if steps == 0:
        return jnp.zeros((batch, ys.shape[-1]), ys.dtype)
    lengths = jnp.clip(steps if lengths is None else jnp.asarray(lengths), 0, steps)
    lengths = jnp.broadcast_to(lengths, (batch,))
    if pool == "mean":
        return ys.sum(axis=0) / jnp.maximum(lengths, 1)[:, None].astype(ys.dtype)
    if pool == "max":
        valid = jnp.arange(steps)[:, None] < lengths
        most = max_propagating_nan(jnp.where(valid[..., None], ys, -jnp.inf), axis=0)
        return jnp.where(lengths[:, None] > 0, most, 0)
    last = jnp.maximum(lengths - 1, 0)
    parts = jnp.split(ys, len(directions), axis=-1)
    return jnp.concatenate(
        [
            part[0] if reverse else jnp.take_along_axis(part, last[None, :, None], axis=0)[0]
            for part, reverse in zip(parts, directions, strict=True)
        ],
        axis=-1,
    )
