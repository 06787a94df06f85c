"""The one table of cells. A new cell is a new row here, and every property is tested for it.

The oracles are steps of one sequence in NumPy, written gate by gate from the papers and knowing
nothing of the cells but the names of their parameters and the order of their gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jrnn import (
    GRU,
    LRU,
    LSTM,
    Cell,
    Elman,
    Engine,
    Fused,
    IndRNN,
    LSTMCarry,
    MinGRU,
    MinLSTM,
    ParaGRU,
    ParaLSTM,
    Scan,
)


class Row(NamedTuple):
    """One cell and its truth.

    Attributes:
      make: `hidden_size -> cell`.
      step: the oracle `(params, carry, x [input]) -> (carry, y [output])`, all NumPy.
      start: the oracle's first carry, `(params) -> carry`.
    """

    make: Callable[[int], Cell]
    step: Callable[[Any, Any, np.ndarray], tuple[Any, np.ndarray]]
    start: Callable[[Any], Any]


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


class Affine:
    """W_k x + U_k h + b_k for gate k, out of weights that lie side by side in the order given."""

    def __init__(self, params: Any, order: str) -> None:
        width = params.w_hh.shape[0]
        blocks = {k: slice(n * width, (n + 1) * width) for n, k in enumerate(order)}
        self.W = {k: params.w_ih[:, block].T for k, block in blocks.items()}
        self.U = {k: params.w_hh[:, block].T for k, block in blocks.items()}
        self.b = {k: params.b[block] for k, block in blocks.items()}

    def __call__(self, k: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return self.W[k] @ x + self.U[k] @ h + self.b[k]


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


def gru_reset_after(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Cho et al., 2014, with the reset gate after the product, as in cuDNN."""
    a = Affine(params, "rzn")
    r = sigmoid(a("r", x, h))
    z = sigmoid(a("z", x, h))
    n = np.tanh(a.W["n"] @ x + a.b["n"] + r * (a.U["n"] @ h + params.b_hn))
    h = z * h + (1 - z) * n
    return h, h


def gru_reset_before(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Cho et al., 2014, equations 5 to 8."""
    a = Affine(params, "rzn")
    r = sigmoid(a("r", x, h))
    z = sigmoid(a("z", x, h))
    n = np.tanh(a("n", x, r * h))
    h = z * h + (1 - z) * n
    return h, h


def elman(
    params: Any, h: np.ndarray, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]
) -> tuple[Any, np.ndarray]:
    """Elman, 1990."""
    h = activation(params.w_ih.T @ x + params.w_hh.T @ h + params.b)
    return h, h


def relu(a: np.ndarray) -> np.ndarray:
    # np.maximum, unlike (a > 0) * a, lets a NaN through.
    return np.maximum(a, 0)


def zeros_start(params: Any) -> np.ndarray:
    return np.zeros(params.w_hh.shape[0])


def blocks(leaf: np.ndarray, order: str) -> dict[str, np.ndarray]:
    """The gates of weights that lie side by side in the order given."""
    return dict(zip(order, np.split(leaf, len(order), axis=-1), strict=True))


def inputs(params: Any, order: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """W_k x + b_k for each gate k."""
    W, b = blocks(params.w_ih, order), blocks(params.b, order)
    return {k: W[k].T @ x + b[k] for k in order}


def positive(v: np.ndarray) -> np.ndarray:
    """Feng et al., 2024, the g of appendix B."""
    return np.where(v >= 0, v + 0.5, sigmoid(v))


def mingru(
    params: Any, h: np.ndarray, x: np.ndarray, g: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[Any, np.ndarray]:
    """Feng et al., 2024, minGRU; its log-space form computed in plain space."""
    a = inputs(params, "zn", x)
    z = sigmoid(a["z"])
    h = (1 - z) * h + z * g(a["n"])
    return h, h


def minlstm(
    params: Any, h: np.ndarray, x: np.ndarray, g: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[Any, np.ndarray]:
    """Feng et al., 2024, minLSTM; its log-space form computed in plain space."""
    a = inputs(params, "fin", x)
    f, i = sigmoid(a["f"]), sigmoid(a["i"])
    h = f / (f + i) * h + i / (f + i) * g(a["n"])
    return h, h


def lru(params: Any, s: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Orvieto et al., 2023, with complex matrices."""
    eigenvalues = np.exp(-np.exp(params.nu_log) + 1j * np.exp(params.theta_log))
    re, im, d = np.split(params.w_ih, 3, axis=-1)
    b, c = (re + 1j * im).T, (params.c_re + 1j * params.c_im).T
    s = eigenvalues * s + np.exp(params.gamma_log) * (b @ x)
    return s, (c @ s).real + d.T @ x


def lru_start(params: Any) -> np.ndarray:
    return np.zeros(len(params.nu_log), np.complex128)


def indrnn(
    params: Any, h: np.ndarray, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]
) -> tuple[Any, np.ndarray]:
    """Li et al., 2018."""
    h = activation(params.w_ih.T @ x + params.w_hh * h + params.b)
    return h, h


def paragru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Danieli et al., 2025, ParaGRU, where z writes: here it is the complement of what keeps."""
    w, a = inputs(params, "rzn", x), blocks(params.w_hh, "rzn")
    r = sigmoid(w["r"] + a["r"] * h)
    writes = sigmoid(-w["z"] - a["z"] * h)
    n = np.tanh(w["n"] + a["n"] * (r * h))
    h = (1 - writes) * h + writes * n
    return h, h


def paralstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Danieli et al., 2025, ParaLSTM: coupled gates, peepholes, diagonal matrices."""
    h, c = carry
    w, a = inputs(params, "fgo", x), blocks(params.w_hh, "fgo")
    f = sigmoid(w["f"] + a["f"] * h + params.p_f * c)
    g = np.tanh(w["g"] + a["g"] * h)
    c = f * c + (1 - f) * g
    o = sigmoid(w["o"] + a["o"] * h + params.p_o * c)
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def start_of(gates: int) -> Callable[[Any], np.ndarray]:
    """Zeros, where the biases of so many gates tell how many."""
    return lambda params: np.zeros(len(params.b) // gates)


def paralstm_start(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(len(params.p_f))
    return LSTMCarry(zeros, zeros)


CELLS: dict[str, Row] = {
    "lstm": Row(LSTM, lstm, lstm_start),
    "lstm-peepholes": Row(partial(LSTM, peepholes=True), lstm_peepholes, lstm_start),
    "lstm-coupled": Row(partial(LSTM, coupled=True), lstm_coupled, lstm_start),
    "lstm-peepholes-coupled": Row(
        partial(LSTM, peepholes=True, coupled=True), lstm_peepholes_coupled, lstm_start
    ),
    "gru": Row(GRU, gru_reset_after, zeros_start),
    "gru-reset-before": Row(partial(GRU, reset_after=False), gru_reset_before, zeros_start),
    "elman-tanh": Row(Elman, partial(elman, activation=np.tanh), zeros_start),
    "elman-relu": Row(
        partial(Elman, activation="relu"), partial(elman, activation=relu), zeros_start
    ),
    "elman-sigmoid": Row(
        partial(Elman, activation="sigmoid"), partial(elman, activation=sigmoid), zeros_start
    ),
    "mingru": Row(MinGRU, mingru, start_of(2)),
    "mingru-log": Row(partial(MinGRU, log_space=True), partial(mingru, g=positive), start_of(2)),
    "minlstm": Row(MinLSTM, minlstm, start_of(3)),
    "minlstm-log": Row(partial(MinLSTM, log_space=True), partial(minlstm, g=positive), start_of(3)),
    "lru": Row(LRU, lru, lru_start),
    "indrnn": Row(IndRNN, partial(indrnn, activation=relu), start_of(1)),
    "paragru": Row(ParaGRU, paragru, start_of(3)),
    "paralstm": Row(ParaLSTM, paralstm, paralstm_start),
}

ENGINES: dict[str, tuple[Engine, ...]] = {
    "scan": (Scan(), Scan(unroll=2), Scan(unroll=3), Scan(unroll=4)),
    "fused": (Fused(), Fused(chunk=2), Fused(chunk=3, remat=True)),
}
"""Every engine that runs all cells, with variants: the first alone is tested in every way."""
