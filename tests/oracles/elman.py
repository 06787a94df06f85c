"""Networks without gates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jrnn import Elman, IndRNN
from tests.oracles.common import Row, relu, sigmoid, zeros_carry, zeros_like_bias


def elman(
    params: Any, h: np.ndarray, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]
) -> tuple[Any, np.ndarray]:
    """Elman, 1990."""
    h = activation(params.w_ih.T @ x + params.w_hh.T @ h + params.b)
    return h, h


def indrnn(
    params: Any, h: np.ndarray, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]
) -> tuple[Any, np.ndarray]:
    """Li et al., 2018."""
    h = activation(params.w_ih.T @ x + params.w_hh * h + params.b)
    return h, h


ROWS = {
    "elman-tanh": Row(Elman, partial(elman, activation=np.tanh), zeros_carry),
    "elman-relu": Row(
        partial(Elman, activation="relu"), partial(elman, activation=relu), zeros_carry
    ),
    "elman-sigmoid": Row(
        partial(Elman, activation="sigmoid"), partial(elman, activation=sigmoid), zeros_carry
    ),
    "indrnn": Row(IndRNN, partial(indrnn, activation=relu), zeros_like_bias(1)),
}
