"""`flax.nnx.RNN`, as a pure function of the parameters."""

from typing import Any

import jax
from flax import nnx

from ..contenders import Case, Contender, JaxModel, compiled, of_cell

CELLS: dict[str, tuple[Any, ...]] = {
    "lstm": (nnx.LSTMCell, nnx.OptimizedLSTMCell),
    "gru": (nnx.GRUCell,),
    "elman": (nnx.SimpleCell,),
}


def build(case: Case) -> list[Contender]:
    """One contender for each cell class."""
    return [compiled(_model(kind, case), case) for kind in of_cell("flax nnx", case, CELLS)]


def _model(kind: Any, case: Case) -> JaxModel:
    cell = kind(case.shape.input, case.shape.hidden, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        layer: Any = nnx.merge(graphdef, params, rest, copy=True)
        return layer(xs)

    return JaxModel(f"nnx {kind.__name__}", apply, params)
