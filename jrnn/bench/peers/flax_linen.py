"""`flax.linen.RNN` with several cells."""

from typing import Any

import flax.linen as nn
import jax

from jrnn.bench.implementations import Case, Implementation, JaxModel, compile_model, select_layer

CELLS: dict[str, tuple[Any, ...]] = {
    "lstm": (nn.LSTMCell, nn.OptimizedLSTMCell),
    "gru": (nn.GRUCell,),
    "elman": (nn.SimpleCell,),
}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation for each cell class."""
    return [
        compile_model(_make_model(cell_class, case), case)
        for cell_class in select_layer("flax linen", case, CELLS)
    ]


def _make_model(cell_class: Any, case: Case) -> JaxModel:
    layer: Any = nn.RNN(cell_class(case.shape.hidden), time_major=True)
    params = layer.init(jax.random.key(0), case.inputs()[:1])
    return JaxModel(f"linen {cell_class.__name__}", layer.apply, params)
