"""`jax.experimental.rnn`: the LSTM of cuDNN, called from JAX. It takes `[B, T, input]` only."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from jrnn.bench.contenders import Case, Contender, JaxModel, Unavailable, compiled, of_cell


def build(case: Case) -> list[Contender]:
    """The layer of the case."""
    of_cell("jax.experimental.rnn", case, {"lstm": rnn.lstm})
    if jax.default_backend() != "gpu":
        raise Unavailable(f"runs on GPUs only, JAX on {jax.default_backend()}")
    return [compiled(model(case), case)]


def model(case: Case) -> JaxModel:
    """One layer in one direction."""
    batch, steps, inputs, hidden = case.shape
    weights = rnn.init_lstm_weight(jax.random.key(0), inputs, hidden, 1, bidirectional=False)

    def apply(weights: Any, xs: jax.Array) -> jax.Array:
        zeros = jnp.zeros((1, batch, hidden), xs.dtype)
        lstm: Any = rnn.lstm  # whose type says nothing
        ys, _, _ = lstm(
            xs,
            zeros,
            zeros,
            weights,
            jnp.full(batch, steps, jnp.int32),
            input_size=inputs,
            hidden_size=hidden,
            num_layers=1,
            dropout=0.0,
            bidirectional=False,
        )
        return ys

    return JaxModel("jax cuDNN LSTM", apply, weights, time_major=False)
