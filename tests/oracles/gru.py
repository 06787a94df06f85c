"""The GRU family."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import GRU
from tests.oracles.common import (
    Affine,
    Row,
    block_diagonal,
    sigmoid,
    zero_carry,
    zero_carry_from_bias,
)


def gru_reset_after(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Cho et al., 2014, with the reset gate applied after the recurrent product, as in cuDNN."""
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


def with_block_diagonal(step: Any) -> Any:
    """Applies `step` with the block-diagonal matrices of the heads."""
    expand = lambda params: params._replace(w_hh=block_diagonal(params.w_hh, "rzn"))
    return lambda params, h, x: step(expand(params), h, x)


CELLS = {
    "gru": Row(GRU, gru_reset_after, zero_carry),
    "gru-reset-before": Row(partial(GRU, reset_after=False), gru_reset_before, zero_carry),
    "gru-heads": Row(
        lambda hidden: GRU(2 * hidden, heads=2),
        with_block_diagonal(gru_reset_after),
        zero_carry_from_bias(num_gates=3),
    ),
    "gru-heads-reset-before": Row(
        lambda hidden: GRU(2 * hidden, reset_after=False, heads=2),
        with_block_diagonal(gru_reset_before),
        zero_carry_from_bias(num_gates=3),
    ),
}
