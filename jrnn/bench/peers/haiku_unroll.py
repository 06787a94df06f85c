"""`haiku.dynamic_unroll` with several cores."""
# pyright: reportMissingImports=false

from typing import Any

import haiku as hk
import jax

from jrnn.bench.implementations import Case, Implementation, JaxModel, compile_model, select_layer

CORES = {"lstm": hk.LSTM, "gru": hk.GRU, "elman": hk.VanillaRNN}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, with the core of the case."""
    core_class = select_layer("haiku", case, CORES)

    def unroll(xs: jax.Array) -> jax.Array:
        core = core_class(case.shape.hidden)
        ys: Any
        ys, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return ys

    layer = hk.without_apply_rng(hk.transform(unroll))
    params = layer.init(jax.random.key(0), case.inputs()[:1])
    return [compile_model(JaxModel(f"haiku {core_class.__name__}", layer.apply, params), case)]
