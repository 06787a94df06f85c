"""A layer of Keras on its JAX backend, stateless. Its inputs are `[B, T, input]`."""
# pyright: reportMissingImports=false

import os
from typing import Any

import jax

from jrnn.bench.contenders import (
    Case,
    Contender,
    JaxModel,
    Unavailable,
    compile_model,
    select_layer,
)

os.environ.setdefault("KERAS_BACKEND", "jax")  # keras reads it when imported

import keras

LAYERS: dict[str, Any] = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "elman": keras.layers.SimpleRNN,
}


def build(case: Case) -> list[Contender]:
    """The layer of the case, with default options."""
    if keras.backend.backend() != "jax":
        raise Unavailable(
            f"backend must be jax, got {keras.backend.backend()}; set KERAS_BACKEND=jax"
        )
    layer_class = select_layer("keras", case, LAYERS)
    layer = layer_class(case.shape.hidden, return_sequences=True)
    layer.build((None, None, case.shape.input))
    params = [variable.value for variable in layer.trainable_variables]
    rest = [variable.value for variable in layer.non_trainable_variables]

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        ys, _ = layer.stateless_call(params, rest, xs)
        return ys

    model = JaxModel(f"keras {layer_class.__name__}", apply, params, time_major=False)
    return [compile_model(model, case)]
