"""The convolutional LSTM."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import ConvLSTM, LSTMCarry
from tests.oracles.common import Row, sigmoid, split_gates


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves `[*spatial, in]` with a kernel `[*sizes, in, out]`, with zero padding."""
    spatial, kernel_shape = x.shape[:-1], kernel.shape[:-2]
    padded = np.pad(x, [*((n // 2, n // 2) for n in kernel_shape), (0, 0)])
    out = np.zeros((*spatial, kernel.shape[-1]))
    for offset in np.ndindex(kernel_shape):
        shifted = tuple(slice(k, k + size) for k, size in zip(offset, spatial, strict=True))
        out += padded[shifted] @ kernel[offset]
    return out


def convlstm(params: Any, carry: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Shi et al., 2015, equation 3, with peepholes of one weight for each channel."""
    h, c = carry
    a = split_gates(convolve(x, params.w_ih) + convolve(h, params.w_hh) + params.b, "ifgo")
    p_i, p_f, p_o = (0 if p is None else p for p in (params.p_i, params.p_f, params.p_o))
    i = sigmoid(a["i"] + p_i * c)
    f = sigmoid(a["f"] + p_f * c)
    c = f * c + i * np.tanh(a["g"])
    o = sigmoid(a["o"] + p_o * c)
    h = o * np.tanh(c)
    return LSTMCarry(h, c), h


def convlstm_init_carry(params: Any, spatial: tuple[int, ...]) -> LSTMCarry:
    zeros: Any = np.zeros((*spatial, len(params.b) // 4))
    return LSTMCarry(zeros, zeros)


CELLS = {
    "convlstm": Row(
        partial(ConvLSTM, spatial_shape=(4,)), convlstm, partial(convlstm_init_carry, spatial=(4,))
    ),
    "convlstm-peepholes": Row(
        partial(ConvLSTM, spatial_shape=(2, 2), peepholes=True),
        convlstm,
        partial(convlstm_init_carry, spatial=(2, 2)),
    ),
}
