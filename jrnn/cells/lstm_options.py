"""Validation of the options of the LSTM, individually and in combination."""

from typing import Any, Literal

from jrnn import checks
from jrnn.cells import common

LSTMActivation = Literal["tanh", "relu", "sigmoid", "linear"]
ACTIVATIONS = common.ACTIVATIONS | {"linear": lambda a: a}

BOOLEAN_OPTIONS = (
    "peepholes",
    "coupled",
    "input_gate",
    "forget_gate",
    "output_gate",
    "gate_recurrence",
    "bias",
)


def validate_options(cell: Any) -> None:
    """Raises a ValueError for invalid or incompatible options of an `LSTM`."""
    for name in BOOLEAN_OPTIONS:
        checks.boolean("LSTM", name, getattr(cell, name))
    for name in ("input_activation", "output_activation"):
        checks.one_of("LSTM", name, getattr(cell, name), ACTIVATIONS)
    gates = (cell.input_gate, cell.forget_gate, cell.output_gate)
    if cell.coupled and not (cell.input_gate and cell.forget_gate):
        option = "input_gate" if cell.forget_gate else "forget_gate"
        raise ValueError(
            "LSTM: coupled=True requires an input gate and a forget gate, got "
            f"{option}=False; remove {option}=False or coupled=True"
        )
    if not cell.forget_gate and (cell.forget_bias != 1.0 or cell.t_max is not None):
        name = "forget_bias" if cell.t_max is None else "t_max"
        raise ValueError(
            f"LSTM: {name}={getattr(cell, name)} requires a forget gate, got forget_gate=False; "
            "remove one of them"
        )
    if not cell.bias and (cell.forget_bias != 1.0 or cell.t_max is not None):
        name = "forget_bias" if cell.t_max is None else "t_max"
        raise ValueError(
            f"LSTM: {name}={getattr(cell, name)} requires biases, got bias=False; remove one of "
            "them"
        )
    if cell.peepholes and not any(gates):
        raise ValueError(
            "LSTM: peepholes=True requires an input, forget or output gate, got none; remove "
            "peepholes=True"
        )
    if cell.gate_recurrence and (cell.coupled or not all(gates)):
        got = ", ".join(gate for gate in cell.gates if gate != "g") or "none"
        raise ValueError(
            "LSTM: gate_recurrence=True requires the gates i, f and o, each with its own weights, "
            f"got {got}; remove gate_recurrence=True, or the options that remove gates"
        )
