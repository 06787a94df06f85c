"""MUT1, MUT2 and MUT3."""

from typing import Any

import numpy as np

from jrnn import MUT1, MUT2, MUT3
from tests.oracles.common import Row, sigmoid, split_gates, zero_carry


def mut1(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Jozefowicz et al., 2015, MUT1, with weights W_n for x in the inner tanh."""
    W, U = split_gates(params.w_ih, "zrn"), split_gates(params.w_hh, "rn")
    b = split_gates(params.b, "zrn")
    z = sigmoid(W["z"].T @ x + b["z"])
    r = sigmoid(W["r"].T @ x + U["r"].T @ h + b["r"])
    h = np.tanh(U["n"].T @ (r * h) + np.tanh(W["n"].T @ x) + b["n"]) * z + h * (1 - z)
    return h, h


def mut2(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Jozefowicz et al., 2015, MUT2, with weights W_r for x in the reset gate."""
    W, U = split_gates(params.w_ih, "zrn"), split_gates(params.w_hh, "zrn")
    b = split_gates(params.b, "zrn")
    z = sigmoid(W["z"].T @ x + U["z"].T @ h + b["z"])
    r = sigmoid(W["r"].T @ x + U["r"].T @ h + b["r"])
    h = np.tanh(U["n"].T @ (r * h) + W["n"].T @ x + b["n"]) * z + h * (1 - z)
    return h, h


def mut3(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Jozefowicz et al., 2015, MUT3."""
    W, U = split_gates(params.w_ih, "zrn"), split_gates(params.w_hh, "zrn")
    b = split_gates(params.b, "zrn")
    z = sigmoid(W["z"].T @ x + U["z"].T @ np.tanh(h) + b["z"])
    r = sigmoid(W["r"].T @ x + U["r"].T @ h + b["r"])
    h = np.tanh(U["n"].T @ (r * h) + W["n"].T @ x + b["n"]) * z + h * (1 - z)
    return h, h


CELLS = {
    "mut1": Row(MUT1, mut1, zero_carry),
    "mut2": Row(MUT2, mut2, zero_carry),
    "mut3": Row(MUT3, mut3, zero_carry),
}
