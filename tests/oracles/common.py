"""What the oracles share, and what a row of the table is.

An oracle is a step of one sequence in NumPy, written gate by gate from the paper and knowing
nothing of the cell but the names of its parameters and the order of its gates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jrnn import Cell


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


def relu(a: np.ndarray) -> np.ndarray:
    # np.maximum, unlike (a > 0) * a, lets a NaN through.
    return np.maximum(a, 0)


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


def blocks(leaf: np.ndarray, order: str) -> dict[str, np.ndarray]:
    """The gates of weights that lie side by side in the order given."""
    return dict(zip(order, np.split(leaf, len(order), axis=-1), strict=True))


def heads_joined(leaf: np.ndarray, order: str) -> np.ndarray:
    """Weights `[heads, head, G·head]` as the matrices `[hidden, G·hidden]` that they stand for.

    Gate beside gate, each zero but for one block after another on its diagonal.
    """
    gates = []
    for weights in blocks(leaf, order).values():
        heads, rows, columns = weights.shape
        full = np.zeros((heads * rows, heads * columns))
        for n, block in enumerate(weights):
            full[n * rows : (n + 1) * rows, n * columns : (n + 1) * columns] = block
        gates.append(full)
    return np.concatenate(gates, axis=-1)


def inputs(params: Any, order: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """W_k x + b_k for each gate k."""
    W, b = blocks(params.w_ih, order), blocks(params.b, order)
    return {k: W[k].T @ x + b[k] for k in order}


def zeros_start(params: Any) -> np.ndarray:
    return np.zeros(params.w_hh.shape[0])


def start_of(gates: int) -> Callable[[Any], np.ndarray]:
    """Zeros, where the biases of so many gates tell how many."""
    return lambda params: np.zeros(len(params.b) // gates)
