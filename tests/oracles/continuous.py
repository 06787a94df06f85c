"""Cells derived from continuous-time models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jrnn import CTRNN, CfC, CTRNNCarry
from tests.oracles.common import Row, relu, sigmoid, split_gates, zero_carry


def ctrnn(
    params: Any,
    carry: Any,
    x: np.ndarray,
    activation: Callable[[np.ndarray], np.ndarray],
    alpha: float,
    noise: np.ndarray | float = 0.0,
) -> tuple[Any, np.ndarray]:
    """Song, Yang and Wang, 2016, in discrete time: potentials h with added noise, rates r."""
    h, r = carry
    h = h + alpha * (-h + params.w_ih.T @ x + params.w_hh.T @ r + params.b) + noise
    r: Any = activation(h)
    return CTRNNCarry(h, r), r


def ctrnn_init_carry(params: Any, activation: Callable[[np.ndarray], np.ndarray]) -> CTRNNCarry:
    h: Any = zero_carry(params)
    rate: Any = activation(h)
    return CTRNNCarry(h, rate)


def cfc(
    params: Any,
    h: np.ndarray,
    x: np.ndarray,
    dt: float = 1.0,
    backbone: bool = True,
    gated: bool = True,
) -> tuple[Any, np.ndarray]:
    """Hasani et al., 2022, by the code of the authors.

    Their ff1, ff2, time_a and time_b are f, g, a and b here.
    """
    v = np.concatenate([params.w_ih, params.w_hh]).T @ np.concatenate([x, h]) + params.b
    if backbone:
        v = params.w_heads.T @ (1.7159 * np.tanh(0.666 * v)) + params.b_heads
    head = split_gates(v, "fgab")
    f, g = np.tanh(head["f"]), np.tanh(head["g"])
    t = sigmoid(head["a"] * dt + head["b"])
    h = f * (1 - t) + t * g if gated else f + t * g
    return h, h


CELLS = {
    "ctrnn": Row(
        partial(CTRNN, tau=50.0),
        partial(ctrnn, activation=relu, alpha=0.4),
        partial(ctrnn_init_carry, activation=relu),
    ),
    "ctrnn-sigmoid": Row(
        partial(CTRNN, activation="sigmoid"),
        partial(ctrnn, activation=sigmoid, alpha=0.2),
        partial(ctrnn_init_carry, activation=sigmoid),
    ),
    "cfc": Row(partial(CfC, backbone_units=5), cfc, zero_carry),
    "cfc-no-backbone": Row(
        partial(CfC, backbone_units=None, mode="no_gate"),
        partial(cfc, backbone=False, gated=False),
        zero_carry,
    ),
}
