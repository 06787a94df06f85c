"""`flax.linen.RNN`."""

from typing import Any

import flax.linen as nn
import jax

from jrnn.bench.contenders import Case, Contender, JaxModel, compile_model, select_layer

CELLS: dict[str, tuple[Any, ...]] = {
    "lstm": (nn.LSTMCell, nn.OptimizedLSTMCell),
    "gru": (nn.GRUCell,),
    "elman": (nn.SimpleCell,),
}


def build(case: Case) -> list[Contender]:
    """One contender for each cell class."""
    return [
        compile_model(_model(kind, case), case) for kind in select_layer("flax linen", case, CELLS)
    ]


def _model(kind: Any, case: Case) -> JaxModel:
    layer: Any = nn.RNN(kind(case.shape.hidden), time_major=True)
    params = layer.init(jax.random.key(0), case.inputs()[:1])
    return JaxModel(f"linen {kind.__name__}", layer.apply, params)
