"""Transformed cells without a key, so that noise is replaced by its expected value."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jrnn import GRU, LRU, LSTM, LSTMCarry, MinGRU
from jrnn.transforms import (
    clip,
    dropout,
    layer_norm,
    learned_carry,
    projection,
    weight_drop,
    zoneout,
)
from tests.oracles.common import Row, sigmoid, split_gates, zero_carry
from tests.oracles.gru import gru_reset_after
from tests.oracles.linear import lru, lru_init_carry, mingru, positive
from tests.oracles.lstm import lstm, lstm_init_carry

Step = Callable[[Any, Any, np.ndarray], tuple[Any, np.ndarray]]

EPSILON = 1e-5


def norm(v: np.ndarray) -> np.ndarray:
    """Ba et al., 2016, equation 4, without gain and shift."""
    return (v - v.mean()) / np.sqrt(v.var() + EPSILON)


def layer_norm_lstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Ba et al., 2016, equations 20 to 22; b includes the shifts of the first two norms."""
    h, c = carry
    p = params.cell
    from_input = params.gain_ih * norm(p.w_ih.T @ x)
    a = split_gates(from_input + params.gain_hh * norm(p.w_hh.T @ h) + p.b, "ifgo")
    c = sigmoid(a["f"]) * c + sigmoid(a["i"]) * np.tanh(a["g"])
    h = sigmoid(a["o"]) * np.tanh(params.gain_c * norm(c) + params.shift_c)
    return LSTMCarry(h, c), h


def layer_norm_gru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The GRU with each gate normalized separately; b_hn is added after the norm."""
    p = params.cell
    W, U, b = split_gates(p.w_ih, "rzn"), split_gates(p.w_hh, "rzn"), split_gates(p.b, "rzn")
    gain_x, gain_h = split_gates(params.gain_ih, "rzn"), split_gates(params.gain_hh, "rzn")
    from_input = {k: gain_x[k] * norm(W[k].T @ x) + b[k] for k in "rzn"}
    from_state = {k: gain_h[k] * norm(U[k].T @ h) for k in "rzn"}
    r = sigmoid(from_input["r"] + from_state["r"])
    z = sigmoid(from_input["z"] + from_state["z"])
    n = np.tanh(from_input["n"] + r * (from_state["n"] + p.b_hn))
    h = z * h + (1 - z) * n
    return h, h


def layer_norm_mingru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The minGRU with all gates normalized together; it has no recurrent matrix."""
    p = params.cell
    a = split_gates(params.gain_ih * norm(p.w_ih.T @ x) + p.b, "zn")
    z = sigmoid(a["z"])
    h = (1 - z) * h + z * a["n"]
    return h, h


def zoneout_lstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Krueger et al., 2017, with expected values, h at rate 0.25 and c at rate 0.5."""
    new, _ = lstm(params, carry, x)
    h = 0.25 * carry.h + 0.75 * new.h
    return LSTMCarry(h, 0.5 * carry.c + 0.5 * new.c), h


def zoneout_mingru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    new, _ = mingru(params, h, x, positive)
    h = 0.25 * h + 0.75 * new
    return h, h


def zoneout_lru(params: Any, s: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The LRU with zoneout at rate 0.25; the output is that of the new state s': Re(C s') + D x."""
    new, _ = lru(params, s, x)
    s = 0.25 * s + 0.75 * new
    d = x @ params.w_ih[:, -params.c_re.shape[1] :]
    return s, s.real @ params.c_re - s.imag @ params.c_im + d


def projection_gru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    h, y = gru_reset_after(params.cell, h, x)
    return h, params.w_y.T @ y


def clipped_lstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Sak et al., 2014: the carry is clipped to [-0.4, 0.4]; the output is the clipped h."""
    (h, c), _ = lstm(params, carry, x)
    h, c = np.clip(h, -0.4, 0.4), np.clip(c, -0.4, 0.4)
    return LSTMCarry(h, c), h


CELLS = {
    "layer_norm-lstm": Row(
        lambda hidden: layer_norm(LSTM(hidden)),
        layer_norm_lstm,
        lambda params: lstm_init_carry(params.cell),
    ),
    "layer_norm-gru": Row(
        lambda hidden: layer_norm(GRU(hidden), per_gate=True),
        layer_norm_gru,
        lambda params: zero_carry(params.cell),
    ),
    "layer_norm-mingru": Row(
        lambda hidden: layer_norm(MinGRU(hidden)),
        layer_norm_mingru,
        lambda params: np.zeros(len(params.cell.b) // 2),
    ),
    "zoneout-lstm": Row(
        lambda hidden: zoneout(LSTM(hidden), h=0.25, c=0.5), zoneout_lstm, lstm_init_carry
    ),
    "zoneout-mingru": Row(
        lambda hidden: zoneout(MinGRU(hidden, log_space=True), h=0.25),
        zoneout_mingru,
        lambda params: np.zeros(len(params.b) // 2),
    ),
    "zoneout-lru": Row(lambda hidden: zoneout(LRU(hidden), h=0.25), zoneout_lru, lru_init_carry),
    "dropped-lstm": Row(
        lambda hidden: dropout(weight_drop(LSTM(hidden)), x=0.5, y=0.5, candidate=0.5),
        lstm,
        lstm_init_carry,
    ),
    "projection-gru": Row(
        lambda hidden: projection(GRU(hidden), size=2),
        projection_gru,
        lambda params: zero_carry(params.cell),
    ),
    "learned_carry-gru": Row(
        lambda hidden: learned_carry(GRU(hidden)),
        lambda params, h, x: gru_reset_after(params.cell, h, x),
        lambda params: params.carry,
    ),
    "clip-lstm": Row(lambda hidden: clip(LSTM(hidden), carry=0.4), clipped_lstm, lstm_init_carry),
}
