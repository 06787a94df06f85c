"""The GRU family."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import GRU
from tests.oracles.common import Affine, Row, heads_joined, sigmoid, start_of, zeros_start


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


def of_heads(step: Any) -> Any:
    """The same with matrices that are zero but for the blocks of the heads."""
    join = lambda params: params._replace(w_hh=heads_joined(params.w_hh, "rzn"))
    return lambda params, h, x: step(join(params), h, x)


ROWS = {
    "gru": Row(GRU, gru_reset_after, zeros_start),
    "gru-reset-before": Row(partial(GRU, reset_after=False), gru_reset_before, zeros_start),
    "gru-heads": Row(
        lambda hidden: GRU(2 * hidden, heads=2), of_heads(gru_reset_after), start_of(3)
    ),
    "gru-heads-reset-before": Row(
        lambda hidden: GRU(2 * hidden, reset_after=False, heads=2),
        of_heads(gru_reset_before),
        start_of(3),
    ),
}
