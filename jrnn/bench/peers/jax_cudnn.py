"""`jax.experimental.rnn`: the LSTM of cuDNN, called from JAX. Its inputs are `[B, T, input]`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from jrnn.bench.contenders import (
    Case,
    Contender,
    JaxModel,
    Unavailable,
    compile_model,
    select_layer,
)


def build(case: Case) -> list[Contender]:
    """The layer of the case."""
    select_layer("jax.experimental.rnn", case, {"lstm": rnn.lstm})
    if jax.default_backend() != "gpu":
        raise Unavailable(f"needs a GPU, but JAX runs on {jax.default_backend()}")
    return [compile_model(model(case), case)]


def model(case: Case) -> JaxModel:
    """One layer in one direction."""
    batch, steps, inputs, hidden = case.shape
    weights = rnn.init_lstm_weight(jax.random.key(0), inputs, hidden, 1, bidirectional=False)

    def apply(weights: Any, xs: jax.Array) -> jax.Array:
        zeros = jnp.zeros((1, batch, hidden), xs.dtype)
        lstm: Any = rnn.lstm  # it has no usable type annotations
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
