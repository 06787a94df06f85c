"""Cells that are linear in their carry."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jrnn import LRU, RGLRU, S5, MinGRU, MinLSTM
from tests.oracles.common import Row, project_input, sigmoid, zero_carry_from_bias


def positive(v: np.ndarray) -> np.ndarray:
    """Feng et al., 2024, the function g of appendix B."""
    return np.where(v >= 0, v + 0.5, sigmoid(v))


def mingru(
    params: Any, h: np.ndarray, x: np.ndarray, g: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[Any, np.ndarray]:
    """Feng et al., 2024, minGRU; with `g=positive` the log-space form, without logarithms."""
    a = project_input(params, "zn", x)
    z = sigmoid(a["z"])
    h = (1 - z) * h + z * g(a["n"])
    return h, h


def minlstm(
    params: Any, h: np.ndarray, x: np.ndarray, g: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> tuple[Any, np.ndarray]:
    """Feng et al., 2024, minLSTM; with `g=positive` the log-space form, as in `mingru`."""
    a = project_input(params, "fin", x)
    f, i = sigmoid(a["f"]), sigmoid(a["i"])
    h = f / (f + i) * h + i / (f + i) * g(a["n"])
    return h, h


def lru(params: Any, s: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Orvieto et al., 2023, with complex matrices."""
    eigenvalues = np.exp(-np.exp(params.nu_log) + 1j * np.exp(params.theta_log))
    re, im, d = np.split(params.w_ih, 3, axis=-1)
    b, c = (re + 1j * im).T, (params.c_re + 1j * params.c_im).T
    s = eigenvalues * s + np.exp(params.gamma_log) * (b @ x)
    return s, (c @ s).real + d.T @ x


def lru_init_carry(params: Any) -> np.ndarray:
    return np.zeros(len(params.nu_log), np.complex128)


def rglru(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """De et al., 2024, equations 1 to 4, with a as a power of sigmoid(-lam)."""
    u = project_input(params, "riv", x)
    base = sigmoid(-params.lam)
    a = base ** (8 * sigmoid(u["r"]))
    h = a * h + np.sqrt(1 - a**2) * (sigmoid(u["i"]) * u["v"])
    return h, h


def s5(params: Any, s: np.ndarray, x: np.ndarray, conjugates: bool) -> tuple[Any, np.ndarray]:
    """Smith et al., 2023, equation 6, with both states of each conjugate pair."""
    b_re, b_im, d = np.split(params.w_ih, [len(s), 2 * len(s)], axis=-1)
    eigenvalues, step = params.lambda_re + 1j * params.lambda_im, np.exp(params.log_step)
    b, c = (b_re + 1j * b_im).T, (params.c_re + 1j * params.c_im).T
    a = np.exp(eigenvalues * step)
    s = a * s + (a - 1) / eigenvalues * (b @ x)
    y = c @ s + (c.conj() @ s.conj() if conjugates else 0)
    return s, y.real + d.T @ x


def s5_init_carry(params: Any) -> np.ndarray:
    return np.zeros(len(params.log_step), np.complex128)


CELLS = {
    "mingru": Row(MinGRU, mingru, zero_carry_from_bias(num_gates=2)),
    "mingru-log": Row(
        partial(MinGRU, log_space=True),
        partial(mingru, g=positive),
        zero_carry_from_bias(num_gates=2),
    ),
    "minlstm": Row(MinLSTM, minlstm, zero_carry_from_bias(num_gates=3)),
    "minlstm-log": Row(
        partial(MinLSTM, log_space=True),
        partial(minlstm, g=positive),
        zero_carry_from_bias(num_gates=3),
    ),
    "lru": Row(LRU, lru, lru_init_carry),
    "rglru": Row(RGLRU, rglru, zero_carry_from_bias(num_gates=3)),
    "s5": Row(S5, partial(s5, conjugates=True), s5_init_carry),
    "s5-no-conjugate": Row(
        lambda hidden: S5(hidden, state_size=hidden + 1, conjugate=False),
        partial(s5, conjugates=False),
        s5_init_carry,
    ),
}
