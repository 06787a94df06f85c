"""Recurrent operators of ONNX, run by ONNX Runtime on the CPU, without gradients."""
# pyright: reportMissingImports=false

from typing import Any

import jax
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jrnn.bench import machine
from jrnn.bench.implementations import NUM_GATES, Case, Implementation, Unavailable, select_layer

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "elman": ("RNN", {}),
}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, with the operator of the case."""
    operator, attributes = select_layer("onnxruntime", case, OPERATORS)
    if case.has_backward:
        raise Unavailable("has no gradients")
    if jax.default_backend() != "cpu":
        raise Unavailable(f"the backend of JAX must be cpu, got {jax.default_backend()}")
    session = onnxruntime.InferenceSession(
        _make_model(case, operator, attributes),
        _session_options(),
        providers=["CPUExecutionProvider"],
    )
    feed = {"X": case.inputs()}
    call = lambda: np.asarray(session.run(["Y"], feed)[0])[:, 0]
    return [Implementation(f"onnxruntime {operator}", "onnxruntime", call)]


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    # Otherwise its threads spin after a call, and slow down the next implementation.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _make_model(case: Case, operator: str, attributes: dict[str, Any]) -> bytes:
    batch, steps, inputs, hidden = case.shape
    rng, size = np.random.default_rng(1), NUM_GATES[case.cell] * hidden
    shapes = {"W": (1, size, inputs), "R": (1, size, hidden), "B": (1, 2 * size)}
    weights = [
        numpy_helper.from_array(
            rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(hidden)), name
        )
        for name, shape in shapes.items()
    ]
    node = helper.make_node(operator, ["X", *shapes], ["Y"], hidden_size=hidden, **attributes)
    dtype = TensorProto.FLOAT
    xs = helper.make_tensor_value_info("X", dtype, (steps, batch, inputs))
    ys = helper.make_tensor_value_info("Y", dtype, (steps, 1, batch, hidden))
    graph = helper.make_graph([node], "recurrent", [xs], [ys], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()
