"""Variants of the GRU and of the LSTM, with fewer or more gates."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import (
    GRUD,
    JANET,
    MGU,
    UGRNN,
    DepthGatedLSTM,
    GRUDCarry,
    LSTMCarry,
    MinimalRNN,
    MogrifierLSTM,
    MultiplicativeLSTM,
)
from tests.oracles.common import Affine, Row, sigmoid, split_gates, zero_carry
from tests.oracles.lstm import lstm_init_carry


def mgu(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Zhou et al., 2016."""
    a = Affine(params, "fn")
    f = sigmoid(a("f", x, h))
    n = np.tanh(a("n", x, f * h))
    h = (1 - f) * h + f * n
    return h, h


def ugrnn(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Collins et al., 2017."""
    a = Affine(params, "gc")
    c = np.tanh(a("c", x, h))
    g = sigmoid(a("g", x, h))
    h = g * h + (1 - g) * c
    return h, h


def minimal_rnn(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Chen, 2017, where z is the embedding of the input, and u the gate."""
    b = split_gates(params.b, "uz")
    z = np.tanh(params.w_ih.T @ x + b["z"])
    u = sigmoid(params.w_hh.T @ h + params.w_nz.T @ z + b["u"])
    h = u * h + (1 - u) * z
    return h, h


def janet(params: Any, c: np.ndarray, x: np.ndarray, beta: float) -> tuple[Any, np.ndarray]:
    """Van der Westhuizen and Lasenby, 2018."""
    a = Affine(params, "sc")
    s = a("s", x, c)
    candidate = np.tanh(a("c", x, c))
    c = sigmoid(s) * c + (1 - sigmoid(s - beta)) * candidate
    return c, c


def multiplicative_lstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Krause et al., 2016."""
    h, c = carry
    W, V = split_gates(params.w_ih, "ifgom"), split_gates(params.w_mh, "ifgo")
    b = split_gates(params.b, "ifgo")
    m = (W["m"].T @ x) * (params.w_hh.T @ h)
    i, f, g, o = (W[k].T @ x + V[k].T @ m + b[k] for k in "ifgo")
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = np.tanh(c) * sigmoid(o)
    return LSTMCarry(h, c), h


def mogrifier_lstm(params: Any, carry: Any, x: np.ndarray, rounds: int) -> tuple[Any, np.ndarray]:
    """Melis et al., 2020, equations 1 and 2; equation 3 if the matrices are low-rank products."""
    h, c = carry

    def matrix(left: np.ndarray, right: np.ndarray | None, n: int) -> np.ndarray:
        return left[n] if right is None else left[n] @ right[n]

    for i in range(1, rounds + 1):
        if i % 2 == 1:
            x = 2 * sigmoid(matrix(params.q, params.q_right, (i - 1) // 2).T @ h) * x
        else:
            h = 2 * sigmoid(matrix(params.r, params.r_right, i // 2 - 1).T @ x) * h
    a = Affine(params, "ifgo")
    c = sigmoid(a("f", x, h)) * c + sigmoid(a("i", x, h)) * np.tanh(a("g", x, h))
    h = sigmoid(a("o", x, h)) * np.tanh(c)
    return LSTMCarry(h, c), h


def depth_gated_lstm(
    params: Any, carry: Any, x: np.ndarray, below: np.ndarray | None = None
) -> tuple[Any, np.ndarray]:
    """Yao et al., 2015; without a layer below there is no depth gate."""
    h, c = carry
    W, U = split_gates(params.w_ih, "ifgod"), split_gates(params.w_hh, "ifgo")
    b = split_gates(params.b, "ifgod")
    a = {k: W[k].T @ x + U[k].T @ h + b[k] for k in "ifgo"}
    f = sigmoid(a["f"] + params.p_f * c)
    i = sigmoid(a["i"] + params.p_i * c)
    new_c = f * c + i * np.tanh(a["g"])
    if below is not None:
        d = sigmoid(b["d"] + W["d"].T @ x + params.p_d * c + params.p_below * below)
        new_c = d * below + new_c
    o = sigmoid(a["o"] + params.p_o * new_c)
    h = o * np.tanh(new_c)
    return LSTMCarry(h, new_c), h


def grud(params: Any, carry: Any, x: Any) -> tuple[Any, np.ndarray]:
    """Che et al., 2018. The update gate z of the paper is 1 - z in `jrnn.GRUD`."""
    h, x_last = carry
    W, U, V = (split_gates(leaf, "rzn") for leaf in (params.w_ih, params.w_hh, params.w_mh))
    b = split_gates(params.b, "rzn")
    value, m, delta = x
    gamma_x = np.exp(-np.maximum(0, params.w_decay_x * delta + params.b_decay_x))
    gamma_h = np.exp(-np.maximum(0, params.w_decay_h.T @ delta + params.b_decay_h))
    imputed = m * value + (1 - m) * gamma_x * x_last + (1 - m) * (1 - gamma_x) * params.mean
    h = gamma_h * h
    r = sigmoid(W["r"].T @ imputed + U["r"].T @ h + V["r"].T @ m + b["r"])
    z = sigmoid(-(W["z"].T @ imputed + U["z"].T @ h + V["z"].T @ m + b["z"]))
    n = np.tanh(W["n"].T @ imputed + U["n"].T @ (r * h) + V["n"].T @ m + b["n"])
    h = (1 - z) * h + z * n
    return GRUDCarry(h, m * value + (1 - m) * x_last), h


def grud_init_carry(params: Any) -> GRUDCarry:
    zeros: Any = np.zeros(params.w_hh.shape[0])
    return GRUDCarry(zeros, params.mean)


CELLS = {
    "mgu": Row(MGU, mgu, zero_carry),
    "ugrnn": Row(UGRNN, ugrnn, zero_carry),
    "minimalrnn": Row(MinimalRNN, minimal_rnn, zero_carry),
    "janet": Row(JANET, partial(janet, beta=1.0), zero_carry),
    "multiplicativelstm": Row(MultiplicativeLSTM, multiplicative_lstm, lstm_init_carry),
    "mogrifierlstm": Row(MogrifierLSTM, partial(mogrifier_lstm, rounds=5), lstm_init_carry),
    "mogrifierlstm-rank": Row(
        partial(MogrifierLSTM, rounds=4, rank=2), partial(mogrifier_lstm, rounds=4), lstm_init_carry
    ),
    "depthgatedlstm": Row(DepthGatedLSTM, depth_gated_lstm, lstm_init_carry),
    "grud": Row(GRUD, grud, grud_init_carry),
}
