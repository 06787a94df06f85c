"""Results of cells equal those of the LSTM, GRU and RNN operators of ONNX in ONNX Runtime."""

from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper

from jrnn import GRU, LSTM, Cell, Elman, Engine, LSTMCarry
from tests.helpers import Batch, Scenario, assert_close, random_batch, random_params, unroll_all
from tests.table import Row

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "linear": "Affine"}


def onnx_weights(params: Any, gates: str, order: str, signs: dict[str, int]) -> list[np.ndarray]:
    """Returns W and R `[1, G·hidden, ...]` in the gate order of ONNX, and the bias `[1, G·hidden]`.

    Args:
      params: the parameters of jrnn.
      gates: the gates of jrnn in the order of concatenation.
      order: for each gate of ONNX, the corresponding gate of jrnn.
      signs: factors of the weights and the bias of a gate, by default 1; -1 turns sigmoid(a) into
        1 - sigmoid(a).
    """

    def part(weights: np.ndarray, gate: str) -> np.ndarray:
        return np.split(weights, len(gates), axis=-1)[gates.index(gate)].T * signs.get(gate, 1)

    parts = (params.w_ih, params.w_hh, params.b)
    return [np.concatenate([part(weights, gate) for gate in order])[None] for weights in parts]


def lstm_attributes_and_inputs(
    cell: LSTM, params: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the attributes and the weight inputs of the LSTM operator."""
    # With coupled gates, ONNX computes f = 1 - i from the weights of i, and jrnn computes i = 1 - f
    # from those of f. So i in ONNX has the negated weights of f in jrnn; the f weights of ONNX are
    # unused.
    order, signs = ("fofg", {"f": -1}) if cell.coupled else ("iofg", {})
    w, r, b = onnx_weights(params, "".join(cell.gates), order, signs)
    inputs: dict[str, Any] = {"W": w, "R": r, "B": np.concatenate([b, np.zeros_like(b)], axis=-1)}
    if cell.peepholes:
        p_i = -params.p_f if cell.coupled else params.p_i
        inputs["P"] = np.concatenate([p_i, params.p_o, params.p_f])[None]
    activations = ["sigmoid", cell.input_activation, cell.output_activation]
    attributes: dict[str, Any] = {
        "op_type": "LSTM",
        "input_forget": int(cell.coupled),
        "activations": [ACTIVATIONS[name] for name in activations],
    }
    if "linear" in activations:
        # ONNX's Affine is alpha * x + beta.
        attributes |= {"activation_alpha": [1.0], "activation_beta": [0.0]}
    return attributes, inputs


def gru_attributes_and_inputs(
    cell: GRU, params: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the attributes and the weight inputs of the GRU operator."""
    w, r, b = onnx_weights(params, "rzn", "zrn", {})
    recurrent_b = np.zeros_like(b)
    if cell.reset_after:
        recurrent_b[:, 2 * HIDDEN :] = params.b_hn
    inputs = {"W": w, "R": r, "B": np.concatenate([b, recurrent_b], axis=-1)}
    return {"op_type": "GRU", "linear_before_reset": int(cell.reset_after)}, inputs


def elman_attributes_and_inputs(
    cell: Elman, params: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the attributes and the weight inputs of the RNN operator."""
    w, r, b = onnx_weights(params, "h", "h", {})
    inputs = {"W": w, "R": r, "B": np.concatenate([b, np.zeros_like(b)], axis=-1)}
    return {"op_type": "RNN", "activations": [ACTIVATIONS[cell.activation]]}, inputs


CONVERTERS: dict[type[Cell], Any] = {
    LSTM: lstm_attributes_and_inputs,
    GRU: gru_attributes_and_inputs,
    Elman: elman_attributes_and_inputs,
}


def has_operator(cell: Cell) -> bool:
    """Returns whether ONNX has an operator with all options of a cell."""
    if isinstance(cell, LSTM):
        gates = cell.input_gate and cell.forget_gate and cell.output_gate
        return gates and not cell.gate_recurrence and cell.proj_size is None and cell.heads == 1
    return type(cell) in CONVERTERS and getattr(cell, "heads", 1) == 1


def onnx_unroll(
    cell: Cell, params: Any, batch: Batch, scenario: Scenario
) -> tuple[Any, np.ndarray]:
    """Runs the operator; returns its final carry and outputs in the layout of jrnn."""
    attributes, inputs = CONVERTERS[type(cell)](cell, params)
    is_lstm = isinstance(batch.carry, LSTMCarry)
    inputs |= {"X": batch.xs}
    for name, leaf in zip(["initial_h", "initial_c"], jax.tree.leaves(batch.carry), strict=False):
        inputs[name] = leaf[None]
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    if scenario.lengths:
        inputs["sequence_lens"] = batch.lengths

    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in inputs else "" for name in names[: 8 if is_lstm else 6]]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if is_lstm else 2]
    direction = "reverse" if scenario.reverse else "forward"
    node = helper.make_node(
        inputs=names, outputs=outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )
    model = serialize(node, inputs)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ys, *carry = (np.asarray(output) for output in session.run(None, inputs))
    structure = jax.tree.structure(batch.carry)
    return jax.tree.unflatten(structure, [leaf[0] for leaf in carry]), ys[:, 0]


def serialize(node: Any, inputs: dict[str, np.ndarray]) -> bytes:
    """Serializes a model of one node; the weights are inputs of the model."""
    input_infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    output_infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (4 if name == "Y" else 3))
        for name in node.output
    ]
    graph = helper.make_graph([node], "recurrent", input_infos, output_infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


SCENARIOS = tuple(
    Scenario(lengths=lengths, resets=False, carry=True, reverse=reverse)
    for lengths in (False, True)
    for reverse in (False, True)
)


def test_cell_equals_the_onnx_operator(row: Row, engine: Engine) -> None:
    cell = row.make(HIDDEN)
    if not has_operator(cell):
        pytest.skip(f"ONNX has no operator for {cell}")
    params = random_params(cell, 1, INPUT, np.float32)
    batch = random_batch(cell, params, 2, STEPS, BATCH, np.float32)
    # For a length of 0, ONNX Runtime returns a zero carry instead of the initial carry.
    batch = batch._replace(lengths=np.array([7, 1, 4, 6], np.int32))
    for scenario, got in zip(
        SCENARIOS, unroll_all(cell, engine, SCENARIOS, params, batch), strict=True
    ):
        assert_close(got, onnx_unroll(cell, params, batch, scenario), 1e-5)
