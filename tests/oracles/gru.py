"""The GRU family."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import GRU
from tests.oracles.common import Affine, Row, sigmoid, zeros_start


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


ROWS = {
    "gru": Row(GRU, gru_reset_after, zeros_start),
    "gru-reset-before": Row(partial(GRU, reset_after=False), gru_reset_before, zeros_start),
}
