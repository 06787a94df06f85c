"""Networks without gates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jrnn import Elman, IndRNN
from tests.oracles.common import Row, relu, sigmoid, zero_carry, zero_carry_from_bias


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


CELLS = {
    "elman-tanh": Row(Elman, partial(elman, activation=np.tanh), zero_carry),
    "elman-relu": Row(
        partial(Elman, activation="relu"), partial(elman, activation=relu), zero_carry
    ),
    "elman-sigmoid": Row(
        partial(Elman, activation="sigmoid"), partial(elman, activation=sigmoid), zero_carry
    ),
    "indrnn": Row(IndRNN, partial(indrnn, activation=relu), zero_carry_from_bias(num_gates=1)),
}
