"""Helpers for the oracles, and the type of the rows in the table of cells.

An oracle computes one step of one sequence in NumPy, gate by gate, from the equations of the paper.
It has only the names and layouts of parameters and carry in common with the implementation.

Each module in this folder has a dict `CELLS` of rows, which `tests.table` combines.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jrnn import Cell


class Row(NamedTuple):
    """A row of the table of cells: a cell and its oracle.

    Attributes:
      make: constructs the cell, `hidden_size -> cell`.
      step: the oracle in NumPy, `(params, carry, x [input]) -> (carry, y [output])`.
      init_carry: the initial carry in NumPy, `params -> carry`.
    """

    make: Callable[[int], Cell]
    step: Callable[[Any, Any, np.ndarray], tuple[Any, np.ndarray]]
    init_carry: Callable[[Any], Any]


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def relu(a: np.ndarray) -> np.ndarray:
    # Unlike (a > 0) * a, np.maximum propagates NaN.
    return np.maximum(a, 0)


class Affine:
    """Computes W_k x + U_k h + b_k for a gate k.

    `order` has a letter for each gate, in the order of concatenation.
    """

    def __init__(self, params: Any, order: str) -> None:
        width = params.w_hh.shape[0]
        blocks = {k: slice(n * width, (n + 1) * width) for n, k in enumerate(order)}
        self.W = {k: params.w_ih[:, block].T for k, block in blocks.items()}
        self.U = {k: params.w_hh[:, block].T for k, block in blocks.items()}
        self.b = {k: params.b[block] for k, block in blocks.items()}

    def __call__(self, k: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        return self.W[k] @ x + self.U[k] @ h + self.b[k]


def split_gates(array: np.ndarray, order: str) -> dict[str, np.ndarray]:
    """Splits `[..., G·hidden]` into gates by name; `order` is as in `Affine`."""
    return dict(zip(order, np.split(array, len(order), axis=-1), strict=True))


def block_diagonal(leaf: np.ndarray, order: str) -> np.ndarray:
    """Expands weights `[heads, units, G·units]` to block-diagonal matrices `[hidden, G·hidden]`."""
    gates = []
    for weights in split_gates(leaf, order).values():
        heads, rows, columns = weights.shape
        full = np.zeros((heads * rows, heads * columns))
        for n, block in enumerate(weights):
            full[n * rows : (n + 1) * rows, n * columns : (n + 1) * columns] = block
        gates.append(full)
    return np.concatenate(gates, axis=-1)


def project_input(params: Any, order: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns W_k x + b_k for each gate k; `order` is as in `Affine`."""
    W, b = split_gates(params.w_ih, order), split_gates(params.b, order)
    return {k: W[k].T @ x + b[k] for k in order}


def zero_carry(params: Any) -> np.ndarray:
    """Returns zeros `[hidden]`, for a cell with weights w_hh `[hidden, ...]`."""
    return np.zeros(params.w_hh.shape[0])


def zero_carry_from_bias(num_gates: int) -> Callable[[Any], np.ndarray]:
    """Returns a function like `zero_carry`, for a cell with biases `[num_gates·hidden]`."""
    return lambda params: np.zeros(len(params.b) // num_gates)
