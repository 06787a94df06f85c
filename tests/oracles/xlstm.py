"""The cells of xLSTM without stabilizers, for inputs that do not overflow."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import MLSTM, SLSTM, MLSTMCarry, SLSTMCarry
from tests.oracles.common import Row, project_input, sigmoid


def slstm(params: Any, carry: Any, x: np.ndarray, forget: Any = sigmoid) -> tuple[Any, np.ndarray]:
    """Beck et al., 2024, equations 8 to 14; the carry is scaled as in equations 15 to 17.

    The denominator is at least the scale. This affects only random carries: in a sequence, the
    normalizer is never smaller.
    """
    h, c, n, m = carry
    a = project_input(params, "ifgo", x)
    heads, units = params.w_hh.shape[:2]
    for head in range(heads):
        own = slice(head * units, (head + 1) * units)
        for gate, U in zip("ifgo", np.split(params.w_hh[head], 4, axis=-1), strict=True):
            a[gate][own] += U.T @ h[own]
    i, f, z, o = np.exp(a["i"]), forget(a["f"]), np.tanh(a["g"]), sigmoid(a["o"])
    scale = np.where(n == 0, i, np.maximum(f * np.exp(m), i))
    c = f * np.exp(m) * c + i * z
    n = f * np.exp(m) * n + i
    h = o * c / np.maximum(n, scale)
    m: Any = np.log(scale)
    return SLSTMCarry(h, c / scale, n / scale, m), h


def slstm_init_carry(params: Any) -> SLSTMCarry:
    zeros: Any = np.zeros(len(params.b) // 4)
    return SLSTMCarry(zeros, zeros, zeros, zeros)


def mlstm(
    params: Any, carry: Any, x: np.ndarray, heads: int, cap: Any = lambda a: 15 * np.tanh(a / 15)
) -> tuple[Any, np.ndarray]:
    """Beck et al., 2024, equations 19 to 27, head by head."""
    a = params.w_ih.T @ x + params.b
    hidden = (len(a) - 2 * heads) // 4
    q, k, v, o = (part.reshape(heads, -1) for part in np.split(a[: 4 * hidden], 4))
    i, f = np.exp(cap(a[4 * hidden :][:heads])), sigmoid(cap(a[4 * hidden + heads :]))
    C, n, h = np.zeros_like(carry.c), np.zeros_like(carry.n), np.zeros_like(q)
    for head in range(heads):
        key = k[head] / np.sqrt(hidden // heads)
        C[head] = f[head] * carry.c[head] + i[head] * np.outer(v[head], key)
        n[head] = f[head] * carry.n[head] + i[head] * key
        h[head] = sigmoid(o[head]) * (C[head] @ q[head]) / max(abs(n[head] @ q[head]), 1)
    return MLSTMCarry(C, n), h.reshape(-1)


def mlstm_init_carry(params: Any, heads: int) -> MLSTMCarry:
    units = (len(params.b) - 2 * heads) // 4 // heads
    c: Any = np.zeros((heads, units, units))
    n: Any = np.zeros((heads, units))
    return MLSTMCarry(c, n)


CELLS = {
    "slstm": Row(SLSTM, slstm, slstm_init_carry),
    "slstm-heads-exp": Row(
        lambda hidden: SLSTM(2 * hidden, heads=2, forget_activation="exp"),
        partial(slstm, forget=np.exp),
        slstm_init_carry,
    ),
    "mlstm": Row(
        lambda hidden: MLSTM(2 * hidden, heads=2),
        partial(mlstm, heads=2),
        partial(mlstm_init_carry, heads=2),
    ),
    "mlstm-no-cap": Row(
        partial(MLSTM, soft_cap=None),
        partial(mlstm, heads=1, cap=np.asarray),
        partial(mlstm_init_carry, heads=1),
    ),
}
