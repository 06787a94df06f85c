"""Gated cells with a diagonal recurrence."""

from typing import Any

import numpy as np

from jrnn import LSTMCarry, ParaGRU, ParaLSTM
from tests.oracles.common import Row, project_input, sigmoid, split_gates, zero_carry_from_bias


def paragru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Danieli et al., 2025, ParaGRU, whose z is 1 - z of `jrnn.ParaGRU`."""
    w, a = project_input(params, "rzn", x), split_gates(params.w_hh, "rzn")
    r = sigmoid(w["r"] + a["r"] * h)
    z = sigmoid(-w["z"] - a["z"] * h)
    n = np.tanh(w["n"] + a["n"] * (r * h))
    h = (1 - z) * h + z * n
    return h, h


def paralstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Danieli et al., 2025, ParaLSTM: coupled gates, peepholes, diagonal matrices."""
    h, c = carry
    w, a = project_input(params, "fgo", x), split_gates(params.w_hh, "fgo")
    f = sigmoid(w["f"] + a["f"] * h + params.p_f * c)
    g = np.tanh(w["g"] + a["g"] * h)
    c = f * c + (1 - f) * g
    o = sigmoid(w["o"] + a["o"] * h + params.p_o * c)
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def paralstm_init_carry(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(len(params.p_f))
    return LSTMCarry(zeros, zeros)


CELLS = {
    "paragru": Row(ParaGRU, paragru, zero_carry_from_bias(num_gates=3)),
    "paralstm": Row(ParaLSTM, paralstm, paralstm_init_carry),
}
