"""The recurrent operators of ONNX in ONNX Runtime on the CPU, without gradients."""
# pyright: reportMissingImports=false

from typing import Any

import jax
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jrnn.bench import machine
from jrnn.bench.contenders import GATES, Case, Contender, Unavailable, select_layer

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "elman": ("RNN", {}),
}


def build(case: Case) -> list[Contender]:
    """A model of one operator and its weights."""
    operator, attributes = select_layer("onnxruntime", case, OPERATORS)
    if case.backward:
        raise Unavailable("has no gradients")
    if jax.default_backend() != "cpu":
        raise Unavailable(f"is timed only on the CPU, but JAX runs on {jax.default_backend()}")
    session = onnxruntime.InferenceSession(
        _model(case, operator, attributes), _options(), providers=["CPUExecutionProvider"]
    )
    feed = {"X": case.inputs()}
    call = lambda: np.asarray(session.run(["Y"], feed)[0])[:, 0]
    return [Contender(f"onnxruntime {operator}", "onnxruntime", call)]


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    # Its threads would otherwise spin after a call, and slow the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _model(case: Case, operator: str, attributes: dict[str, Any]) -> bytes:
    batch, steps, inputs, hidden = case.shape
    rng, rows = np.random.default_rng(1), GATES[case.cell] * hidden
    shapes = {"W": (1, rows, inputs), "R": (1, rows, hidden), "B": (1, 2 * rows)}
    weights = [
        numpy_helper.from_array(
            rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(hidden)), name
        )
        for name, shape in shapes.items()
    ]
    node = helper.make_node(operator, ["X", *shapes], ["Y"], hidden_size=hidden, **attributes)
    kind = TensorProto.FLOAT
    xs = helper.make_tensor_value_info("X", kind, (steps, batch, inputs))
    ys = helper.make_tensor_value_info("Y", kind, (steps, 1, batch, hidden))
    graph = helper.make_graph([node], "recurrent", [xs], [ys], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()
