"""The LSTM of cuDNN, called through `jax.experimental.rnn`. It is batch-major."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from jrnn.bench.implementations import (
    Case,
    Implementation,
    JaxModel,
    Unavailable,
    compile_model,
    select_layer,
)


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, for an LSTM on a GPU."""
    select_layer("jax.experimental.rnn", case, {"lstm": rnn.lstm})
    if jax.default_backend() != "gpu":
        raise Unavailable(f"the backend of JAX must be gpu, got {jax.default_backend()}")
    return [compile_model(make_model(case), case)]


def make_model(case: Case) -> JaxModel:
    """Makes a unidirectional LSTM of one layer."""
    batch, steps, inputs, hidden = case.shape
    weights = rnn.init_lstm_weight(jax.random.key(0), inputs, hidden, 1, bidirectional=False)

    def apply(weights: Any, xs: jax.Array) -> jax.Array:
        zeros = jnp.zeros((1, batch, hidden), xs.dtype)
        lstm: Any = rnn.lstm  # its type annotations are not usable
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
