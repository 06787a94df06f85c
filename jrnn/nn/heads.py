"""Models: recurrent layers with an output layer."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry
from jrnn.masking import max_propagating_nan, valid_steps
from jrnn.nn.dropout import Dropout
from jrnn.nn.layers import GRU, LSTM, StackedRNN
from jrnn.nn.options import MODULE_HINTS, check_body, check_rngs
from jrnn.nn.rnn import RNN, swap_time_and_batch
from jrnn.signatures import SEQUENCE_HINTS, explain_signature

Body = RNN | StackedRNN | LSTM | GRU
"""The recurrent modules to which a model adds an output layer."""
Embedding = Callable[[jax.Array], Any]
"""Maps the inputs of a model to those of its body."""
POOLS = ("last", "mean", "max")


class Classifier(nnx.Module):
    """One output for each sequence: class logits, or the values of a regression.

    ::

        ys = body(embedding(xs))
        outputs = dropout(pool(ys)) W + b
    """

    @explain_signature(MODULE_HINTS)
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
        """Initializes the parameters of the head.

        Args:
          body: an `RNN`, `LSTM`, `GRU` or `StackedRNN`.
          output_size: number of classes, or of values.
          rngs: the streams `params` and `dropout` are used.
          pool: pooling over the valid steps. "last" is the output of the last step in scan order,
            which is the first step for a layer that scans in reverse; "mean" and "max" are the
            mean and the maximum over steps.
          embedding: maps the inputs to the inputs of the body, such as `nnx.Embed` for tokens.
          dropout: dropout rate of the pooled outputs in training mode.

        Raises:
          TypeError: `body` is not a recurrent module, or `rngs` is not an `nnx.Rngs`.
          ValueError: `output_size` is not a positive int, `pool` is unknown, `dropout` is not in
            [0, 1), or `rngs` has no stream for it.
        """
        check_body("Classifier", body)
        check_rngs("Classifier", rngs)
        _check_embedding("Classifier", embedding)
        output_size = checks.positive_int("Classifier", "output_size", output_size)
        checks.one_of("Classifier", "pool", pool, POOLS)
        self.body = body
        self.embedding = embedding
        self.pool = pool
        self.dropout = _make_dropout("Classifier", dropout, rngs)
        self.head = nnx.Linear(body.output_size, output_size, rngs=rngs)

    @explain_signature(SEQUENCE_HINTS)
    def __call__(self, xs: jax.Array, *, lengths: ArrayLike | None = None) -> jax.Array:
        """Computes the outputs of each sequence.

        Args:
          xs: inputs `[B, T, input]`, or the inputs of the embedding (first axes `[T, B]` if the
            body is time_major).
          lengths: `[B]` ints, the number of valid steps of each sequence, as in `jrnn.unroll`; by
            default T.

        Returns:
          The outputs `[B, output_size]`; for a sequence without valid steps, the bias of the head.
        """
        _, ys = self.body(_embed(self, xs), lengths=lengths)
        ys = ys if self.body.time_major else swap_time_and_batch(ys)
        pooled = _pool(self.pool, ys, lengths, self.body)
        return self.head(pooled if self.dropout is None else self.dropout(pooled))


class SequenceToSequence(nnx.Module):
    """One output for each step: the next token, a tag, or a forecast.

    ::

        ys = body(embedding(xs))
        outputs[t] = dropout(ys[t]) W + b
    """

    @explain_signature(MODULE_HINTS)
    def __init__(
        self,
        body: Body,
        output_size: int,
        *,
        rngs: nnx.Rngs,
        embedding: Embedding | None = None,
        dropout: float = 0.0,
    ):
        """Initializes the parameters of the head.

        Args:
          body: an `RNN`, `LSTM`, `GRU` or `StackedRNN`.
          output_size: number of classes, or of values, at each step.
          rngs: the streams `params` and `dropout` are used.
          embedding: maps the inputs to the inputs of the body, such as `nnx.Embed` for tokens.
          dropout: dropout rate of the outputs of the body in training mode.

        Raises:
          TypeError: `body` is not a recurrent module, or `rngs` is not an `nnx.Rngs`.
          ValueError: `output_size` is not a positive int, `dropout` is outside
            [0, 1), or `rngs` has no stream for it.
        """
        check_body("SequenceToSequence", body)
        check_rngs("SequenceToSequence", rngs)
        _check_embedding("SequenceToSequence", embedding)
        output_size = checks.positive_int("SequenceToSequence", "output_size", output_size)
        self.body = body
        self.embedding = embedding
        self.dropout = _make_dropout("SequenceToSequence", dropout, rngs)
        self.head = nnx.Linear(body.output_size, output_size, rngs=rngs)

    @explain_signature(SEQUENCE_HINTS)
    def __call__(
        self,
        xs: jax.Array,
        carry: Carry | None = None,
        *,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Computes the outputs of each step.

        Args:
          xs: inputs `[B, T, input]`, or the inputs of the embedding (first axes `[T, B]` here and
            below if the body is time_major).
          carry: the initial carry; by default that of the body.
          lengths: `[B]` ints, the number of valid steps of each sequence, as in `jrnn.unroll`; by
            default T.
          resets: `[B, T]` bool, True where the carry is reset before the step.

        Returns:
          The final carry of the body, and outputs `[B, T, output_size]`; on padding they equal the
          bias of the head.
        """
        carry, ys = self.body(_embed(self, xs), carry, lengths=lengths, resets=resets)
        return carry, self.head(ys if self.dropout is None else self.dropout(ys))


def _check_embedding(owner: str, embedding: Any) -> None:
    """Raises a TypeError unless the embedding is None or callable."""
    if embedding is not None and not callable(embedding):
        raise TypeError(
            f"{owner}: embedding must be a module such as nnx.Embed(6, 3, rngs=nnx.Rngs(0)), got "
            f"{checks.describe(embedding)}"
        )


def _embed(model: "Classifier | SequenceToSequence", xs: jax.Array) -> Any:
    """Returns the inputs of the body; raises TypeError for tokens without an embedding."""
    if model.embedding is not None:
        return model.embedding(xs)
    if getattr(xs, "ndim", 3) < 3 and jnp.issubdtype(xs.dtype, jnp.integer):
        raise TypeError(
            f"{type(model).__name__}: xs must be floating, of shape (batch, time, input), got "
            f"{xs.dtype} of shape {xs.shape}; for tokens pass embedding=nnx.Embed(number of "
            "tokens, size, rngs=rngs) to the constructor"
        )
    return xs


def _make_dropout(owner: str, rate: float, rngs: nnx.Rngs) -> Dropout | None:
    """Returns a dropout module, or None for rate 0; raises if the rate is outside [0, 1)."""
    rate = checks.rate(owner, "dropout", rate)
    return Dropout(rate, rngs=rngs, owner=owner) if rate else None


def _pool(pool: str, ys: jax.Array, lengths: ArrayLike | None, body: Body) -> jax.Array:
    """Pools outputs `[T, B, output]` over the valid steps, to `[B, output]`.

    Args:
      pool: one of `POOLS`.
      ys: the outputs, zero on padding.
      lengths: `[B]` ints, the number of valid steps of each sequence; None for T.
      body: the module that has computed the outputs.

    Returns:
      `[B, output]`, zero for a sequence without valid steps.
    """
    steps, batch = ys.shape[:2]
    if steps == 0:
        return jnp.zeros((batch, ys.shape[-1]), ys.dtype)
    lengths = jnp.clip(steps if lengths is None else jnp.asarray(lengths), 0, steps)
    lengths = jnp.broadcast_to(lengths, (batch,))
    if pool == "mean":
        return ys.sum(axis=0) / jnp.maximum(lengths, 1)[:, None].astype(ys.dtype)
    if pool == "max":
        valid = valid_steps(lengths, steps)
        lowest = jnp.finfo(ys.dtype).min  # not -inf, for which `jax_debug_infs` raises
        maximum = max_propagating_nan(jnp.where(valid[..., None], ys, lowest), axis=0)
        return jnp.where(lengths[:, None] > 0, maximum, 0)
    last = jnp.maximum(lengths - 1, 0)
    ends = np.cumsum(body.output_sizes)[:-1]
    parts = jnp.split(ys, ends, axis=-1)
    return jnp.concatenate(
        [
            part[0] if reverse else jnp.take_along_axis(part, last[None, :, None], axis=0)[0]
            for part, reverse in zip(parts, body.output_directions, strict=True)
        ],
        axis=-1,
    )
