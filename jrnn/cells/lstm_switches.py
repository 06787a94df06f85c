"""Validation of the options of the LSTM, each by itself and in combination."""

from typing import Any, Literal

from jrnn import checks
from jrnn.cells import common

LSTMActivation = Literal["tanh", "relu", "sigmoid", "linear"]
ACTIVATIONS = common.ACTIVATIONS | {"linear": lambda a: a}

SWITCHES = (
    "peepholes",
    "coupled",
    "input_gate",
    "forget_gate",
    "output_gate",
    "gate_recurrence",
)


def check_switches(cell: Any) -> None:
    """Raises for invalid options of an `LSTM`, and for options that contradict each other."""
    for name in SWITCHES:
        checks.boolean("LSTM", name, getattr(cell, name))
    for name in ("input_activation", "output_activation"):
        checks.one_of("LSTM", name, getattr(cell, name), ACTIVATIONS)
    gates = (cell.input_gate, cell.forget_gate, cell.output_gate)
    if cell.coupled and not (cell.input_gate and cell.forget_gate):
        raise ValueError(
            "LSTM: coupled=True makes i = 1 - f, and needs both gates; leave out "
            f"{'input_gate' if cell.forget_gate else 'forget_gate'}=False or coupled=True"
        )
    if not cell.forget_gate and (cell.forget_bias != 1.0 or cell.t_max is not None):
        name = "forget_bias" if cell.t_max is None else "t_max"
        raise ValueError(
            f"LSTM: {name}={getattr(cell, name)} is about a forget gate, and there is none; leave "
            "it out, or forget_gate=False"
        )
    if cell.peepholes and not any(gates):
        raise ValueError("LSTM: peepholes=True, and no gate that looks; leave it out")
    if cell.gate_recurrence and (cell.coupled or not all(gates)):
        got = ", ".join(gate for gate in cell.gates if gate != "g") or "none"
        raise ValueError(
            "LSTM: gate_recurrence=True needs each of the gates i, f and o, with weights of its "
            f"own, got {got}; leave it out, or what switches gates off"
        )
