"""Layers of Keras on its JAX backend, called through `stateless_call`. They are batch-major."""
# pyright: reportMissingImports=false

import os
from typing import Any

import jax

from jrnn.bench.implementations import (
    Case,
    Implementation,
    JaxModel,
    Unavailable,
    compile_model,
    select_layer,
)

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads this when it is imported

import keras

LAYERS: dict[str, Any] = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "elman": keras.layers.SimpleRNN,
}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, with the layer of the case and its default options."""
    if keras.backend.backend() != "jax":
        raise Unavailable(
            f"backend must be jax, got {keras.backend.backend()}; set KERAS_BACKEND=jax"
        )
    layer_class = select_layer("keras", case, LAYERS)
    layer = layer_class(case.shape.hidden, return_sequences=True)
    layer.build((None, None, case.shape.input))
    params = [variable.value for variable in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        ys, _ = layer.stateless_call(params, state, xs)
        return ys

    model = JaxModel(f"keras {layer_class.__name__}", apply, params, time_major=False)
    return [compile_model(model, case)]
