"""`flax.nnx.RNN` with several cells, as a pure function of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jrnn.bench.implementations import Case, Implementation, JaxModel, compile_model, select_layer

CELLS: dict[str, tuple[Any, ...]] = {
    "lstm": (nnx.LSTMCell, nnx.OptimizedLSTMCell),
    "gru": (nnx.GRUCell,),
    "elman": (nnx.SimpleCell,),
}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation for each cell class."""
    return [
        compile_model(_make_model(cell_class, case), case)
        for cell_class in select_layer("flax nnx", case, CELLS)
    ]


def _make_model(cell_class: Any, case: Case) -> JaxModel:
    dtype = jnp.dtype(case.dtype)
    sizes = case.shape.input, case.shape.hidden
    cell = cell_class(
        *sizes,
        dtype=dtype,
        param_dtype=dtype,
        recurrent_kernel_init=_orthogonal,
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        layer: Any = nnx.merge(graphdef, params, rest, copy=True)
        return layer(xs)

    return JaxModel(f"nnx {cell_class.__name__}", apply, params)


def _orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Calls the default initializer in float32, since JAX has no QR decomposition in bfloat16."""
    return nnx.initializers.orthogonal()(key, shape, jnp.float32).astype(dtype)
