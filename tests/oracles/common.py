"""Helpers of the oracles, and the rows of the table of cells.

An oracle is a step of one sequence in NumPy, written gate by gate from the paper. It uses nothing
of the cell except the names of its parameters and the order of its gates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jrnn import Cell


class Row(NamedTuple):
    """One cell and its oracle.

    Attributes:
      make: `hidden_size -> cell`.
      step: the oracle `(params, carry, x [input]) -> (carry, y [output])`, all NumPy.
      start: the oracle's initial carry, `(params) -> carry`.
    """

    make: Callable[[int], Cell]
    step: Callable[[Any, Any, np.ndarray], tuple[Any, np.ndarray]]
    start: Callable[[Any], Any]


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def relu(a: np.ndarray) -> np.ndarray:
    # np.maximum, unlike (a > 0) * a, propagates NaN.
    return np.maximum(a, 0)


class Affine:
    """W_k x + U_k h + b_k for gate k, with weights concatenated in the given order."""

    def __init__(self, params: Any, order: str) -> None:
        width = params.w_hh.shape[0]
        blocks = {k: slice(n * width, (n + 1) * width) for n, k in enumerate(order)}
        self.W = {k: params.w_ih[:, block].T for k, block in blocks.items()}
        self.U = {k: params.w_hh[:, block].T for k, block in blocks.items()}
        self.b = {k: params.b[block] for k, block in blocks.items()}

    def __call__(self, k: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return self.W[k] @ x + self.U[k] @ h + self.b[k]


def blocks(leaf: np.ndarray, order: str) -> dict[str, np.ndarray]:
    """Splits weights that are concatenated in the given order into gates."""
    return dict(zip(order, np.split(leaf, len(order), axis=-1), strict=True))


def block_diagonal(leaf: np.ndarray, order: str) -> np.ndarray:
    """Expands weights `[heads, head, G·head]` to block-diagonal matrices `[hidden, G·hidden]`."""
    gates = []
    for weights in blocks(leaf, order).values():
        heads, rows, columns = weights.shape
        full = np.zeros((heads * rows, heads * columns))
        for n, block in enumerate(weights):
            full[n * rows : (n + 1) * rows, n * columns : (n + 1) * columns] = block
        gates.append(full)
    return np.concatenate(gates, axis=-1)


def inputs(params: Any, order: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns W_k x + b_k for each gate k."""
    W, b = blocks(params.w_ih, order), blocks(params.b, order)
    return {k: W[k].T @ x + b[k] for k in order}


def zeros_carry(params: Any) -> np.ndarray:
    return np.zeros(params.w_hh.shape[0])


def zeros_like_bias(gates: int) -> Callable[[Any], np.ndarray]:
    """Returns an initial carry of zeros, for biases `[gates·hidden]`."""
    return lambda params: np.zeros(len(params.b) // gates)
