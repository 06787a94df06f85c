"""The LSTM family."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import LSTM, LSTMCarry, LSTMGateCarry, lstm_variant
from tests.oracles.common import Affine, Row, block_diagonal, project_input, sigmoid, split_gates


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
    """Gers and Schmidhuber, 2000: i and f depend on the old cell state, o on the new one."""
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
    """Greff et al., 2017, CIFG without peepholes; i = 1 - f here, and f = 1 - i in the paper."""
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


def lstm_nig(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, NIG: no input gate."""
    h, c = carry
    a = Affine(params, "fgo")
    f = sigmoid(a("f", x, h) + params.p_f * c)
    c = f * c + np.tanh(a("g", x, h))
    h = sigmoid(a("o", x, h) + params.p_o * c) * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_nfg(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, NFG: no forget gate, as in Hochreiter and Schmidhuber, 1997."""
    h, c = carry
    a = Affine(params, "igo")
    i = sigmoid(a("i", x, h) + params.p_i * c)
    c = c + i * np.tanh(a("g", x, h))
    h = sigmoid(a("o", x, h) + params.p_o * c) * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_nog(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, NOG: no output gate."""
    h, c = carry
    a = Affine(params, "ifg")
    i = sigmoid(a("i", x, h) + params.p_i * c)
    f = sigmoid(a("f", x, h) + params.p_f * c)
    c = f * c + i * np.tanh(a("g", x, h))
    h = np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_niaf(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, NIAF: no input activation function."""
    h, c = carry
    a = Affine(params, "ifgo")
    i = sigmoid(a("i", x, h) + params.p_i * c)
    f = sigmoid(a("f", x, h) + params.p_f * c)
    c = f * c + i * a("g", x, h)
    h = sigmoid(a("o", x, h) + params.p_o * c) * np.tanh(c)
    return LSTMCarry(h, c), h


def lstm_noaf(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, NOAF: no output activation function."""
    h, c = carry
    a = Affine(params, "ifgo")
    i = sigmoid(a("i", x, h) + params.p_i * c)
    f = sigmoid(a("f", x, h) + params.p_f * c)
    c = f * c + i * np.tanh(a("g", x, h))
    h = sigmoid(a("o", x, h) + params.p_o * c) * c
    return LSTMCarry(h, c), h


def lstm_fgr(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Greff et al., 2017, FGR: nine recurrent matrices from the previous gates to the gates."""
    h, c, *prev_gates = carry
    a = Affine(params, "ifgo")
    R = {
        source + target: block.T
        for source, weights in zip("ifo", params.w_gates, strict=True)
        for target, block in split_gates(weights, "ifo").items()
    }
    prev = dict(zip("ifo", prev_gates, strict=True))
    recur = lambda k: R["i" + k] @ prev["i"] + R["f" + k] @ prev["f"] + R["o" + k] @ prev["o"]
    i: Any = sigmoid(a("i", x, h) + params.p_i * c + recur("i"))
    f: Any = sigmoid(a("f", x, h) + params.p_f * c + recur("f"))
    c = f * c + i * np.tanh(a("g", x, h))
    o: Any = sigmoid(a("o", x, h) + params.p_o * c + recur("o"))
    h = o * np.tanh(c)
    return LSTMGateCarry(h, c, i, f, o), h


def lstm_projected(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Sak et al., 2014, without peepholes and non-recurrent projection: r = W_rm m, and y = r.

    The carry contains m, from which the paper's r is computed.
    """
    m, c = carry
    r = params.w_hr.T @ m
    a, U = project_input(params, "ifgo", x), split_gates(params.w_hh, "ifgo")
    i, f, o = (sigmoid(a[k] + U[k].T @ r) for k in "ifo")
    c = f * c + i * np.tanh(a["g"] + U["g"].T @ r)
    m = o * np.tanh(c)
    return LSTMCarry(m, c), params.w_hr.T @ m


def lstm_heads(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The LSTM with the block-diagonal matrices of the heads."""
    return lstm(params._replace(w_hh=block_diagonal(params.w_hh, "ifgo")), carry, x)


def lstm_init_carry(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(params.w_hh.shape[0])
    return LSTMCarry(zeros, zeros)


def lstm_fgr_init_carry(params: Any) -> LSTMGateCarry:
    zeros: Any = np.zeros(params.w_hh.shape[0])
    return LSTMGateCarry(zeros, zeros, zeros, zeros, zeros)


def lstm_projected_init_carry(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(len(params.w_hr))
    return LSTMCarry(zeros, zeros)


def lstm_heads_init_carry(params: Any) -> LSTMCarry:
    zeros: Any = np.zeros(len(params.b) // 4)
    return LSTMCarry(zeros, zeros)


CELLS = {
    "lstm": Row(LSTM, lstm, lstm_init_carry),
    "lstm-peepholes": Row(partial(LSTM, peepholes=True), lstm_peepholes, lstm_init_carry),
    "lstm-coupled": Row(partial(LSTM, coupled=True), lstm_coupled, lstm_init_carry),
    "lstm-peepholes-coupled": Row(
        partial(LSTM, peepholes=True, coupled=True), lstm_peepholes_coupled, lstm_init_carry
    ),
    "lstm-nig": Row(partial(lstm_variant, "NIG"), lstm_nig, lstm_init_carry),
    "lstm-nfg": Row(partial(lstm_variant, "NFG"), lstm_nfg, lstm_init_carry),
    "lstm-nog": Row(partial(lstm_variant, "NOG"), lstm_nog, lstm_init_carry),
    "lstm-niaf": Row(partial(lstm_variant, "NIAF"), lstm_niaf, lstm_init_carry),
    "lstm-noaf": Row(partial(lstm_variant, "NOAF"), lstm_noaf, lstm_init_carry),
    "lstm-fgr": Row(partial(lstm_variant, "FGR"), lstm_fgr, lstm_fgr_init_carry),
    "lstm-projected": Row(
        lambda hidden: LSTM(hidden + 1, proj_size=hidden), lstm_projected, lstm_projected_init_carry
    ),
    "lstm-heads": Row(lambda hidden: LSTM(2 * hidden, heads=2), lstm_heads, lstm_heads_init_carry),
}
