"""The LSTM family."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import LSTM, LSTMCarry
from tests.oracles.common import Affine, Row, sigmoid


def lstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000."""
    h, c = carry
    a = Affine(params, "ifgo")
    i = sigmoid(a("i", x, h))
    f = sigmoid(a("f", x, h))
    g = np.tanh(a("g", x, h))
    o = sigmoid(a("o", x, h))
    c = f * c + i * g
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_peepholes(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Gers and Schmidhuber, 2000: i and f look at the old cell state, o at the new one."""
    h, c = carry
    a = Affine(params, "ifgo")
    i = sigmoid(a("i", x, h) + params.p_i * c)
    f = sigmoid(a("f", x, h) + params.p_f * c)
    g = np.tanh(a("g", x, h))
    c = f * c + i * g
    o = sigmoid(a("o", x, h) + params.p_o * c)
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_coupled(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, CIFG, with the weights of the forget gate: i = 1 - f."""
    h, c = carry
    a = Affine(params, "fgo")
    f = sigmoid(a("f", x, h))
    g = np.tanh(a("g", x, h))
    o = sigmoid(a("o", x, h))
    c = f * c + (1 - f) * g
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_peepholes_coupled(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, CIFG, with the peepholes that the vanilla LSTM of that paper has."""
    h, c = carry
    a = Affine(params, "fgo")
    f = sigmoid(a("f", x, h) + params.p_f * c)
    g = np.tanh(a("g", x, h))
    c = f * c + (1 - f) * g
    o = sigmoid(a("o", x, h) + params.p_o * c)
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_start(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(params.w_hh.shape[0])
    return LSTMCarry(zeros, zeros)


ROWS = {
    "lstm": Row(LSTM, lstm, lstm_start),
    "lstm-peepholes": Row(partial(LSTM, peepholes=True), lstm_peepholes, lstm_start),
    "lstm-coupled": Row(partial(LSTM, coupled=True), lstm_coupled, lstm_start),
    "lstm-peepholes-coupled": Row(
        partial(LSTM, peepholes=True, coupled=True), lstm_peepholes_coupled, lstm_start
    ),
}
