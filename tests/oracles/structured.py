"""Cells with a structured recurrence: discretized equations, shared weights, update periods."""

from functools import partial
from typing import Any

import numpy as np

from jrnn import (
    LEM,
    AntisymmetricRNN,
    Clockwork,
    ClockworkCarry,
    CoRNN,
    CoRNNCarry,
    FastGRNN,
    LEMCarry,
)
from tests.oracles.common import Row, project_input, sigmoid, split_gates, zero_carry


def antisymmetric(
    params: Any, h: np.ndarray, x: np.ndarray, epsilon: float, gamma: float
) -> tuple[Any, np.ndarray]:
    """Chang et al., 2019, with damping."""
    m = params.w_hh.T
    a = (m - m.T - gamma * np.eye(len(h))) @ h
    h = h + epsilon * np.tanh(a + params.w_ih.T @ x + params.b)
    return h, h


def antisymmetric_gated(
    params: Any, h: np.ndarray, x: np.ndarray, epsilon: float, gamma: float
) -> tuple[Any, np.ndarray]:
    """Chang et al., 2019, gated: the gate and the candidate share a matrix."""
    m, v = params.w_hh.T, project_input(params, "zn", x)
    a = (m - m.T - gamma * np.eye(len(h))) @ h
    h = h + epsilon * sigmoid(a + v["z"]) * np.tanh(a + v["n"])
    return h, h


def cornn(
    params: Any, carry: Any, x: np.ndarray, dt: float, gamma: float, epsilon: float
) -> tuple[Any, np.ndarray]:
    """Rusch and Mishra, 2021, with the old velocity in the damping term."""
    y, z = carry
    force = np.tanh(params.w_hh.T @ y + params.w_zh.T @ z + params.w_ih.T @ x + params.b)
    z = z + dt * force - dt * gamma * y - dt * epsilon * z
    y = y + dt * z
    return CoRNNCarry(y, z), y


def lem(params: Any, carry: Any, x: np.ndarray, dt: float) -> tuple[Any, np.ndarray]:
    """Rusch et al., 2022; a names the gate dt, and b the gate dt_bar."""
    y, z = carry
    v, w = project_input(params, "abzy", x), split_gates(params.w_hh, "abzy")
    step = dt * sigmoid(w["a"].T @ y + v["a"])
    step_bar = dt * sigmoid(w["b"].T @ y + v["b"])
    z = (1 - step) * z + step * np.tanh(w["z"].T @ y + v["z"])
    y = (1 - step_bar) * y + step_bar * np.tanh(w["y"].T @ z + v["y"])
    return LEMCarry(y, z), y


def fastgrnn(params: Any, h: np.ndarray, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Kusupati et al., 2018, FastGRNN."""
    a, b = params.w_ih.T @ x + params.w_hh.T @ h, split_gates(params.b, "zh")
    z, candidate = sigmoid(a + b["z"]), np.tanh(a + b["h"])
    h = (sigmoid(params.zeta) * (1 - z) + sigmoid(params.nu)) * candidate + z * h
    return h, h


def clockwork(
    params: Any, carry: Any, x: np.ndarray, periods: tuple[int, ...]
) -> tuple[Any, np.ndarray]:
    """Koutnik et al., 2014, one module after another."""
    h, t = carry
    size = len(h) // len(periods)
    new_h = h.copy()
    for i, period in enumerate(periods):
        own = slice(i * size, (i + 1) * size)
        if t % period == 0:
            slower = slice(i * size, None)
            past = params.w_hh[slower, own].T @ h[slower]
            new_h[own] = np.tanh(params.w_ih[:, own].T @ x + past + params.b[own])
    return ClockworkCarry(new_h, (t + 1) % np.lcm.reduce(periods)), new_h


def zero_carry_pair(carry_type: Any, params: Any) -> Any:
    return carry_type(zero_carry(params), zero_carry(params))


def clockwork_init_carry(params: Any) -> ClockworkCarry:
    h: Any = zero_carry(params)
    t: Any = np.zeros((), np.int32)
    return ClockworkCarry(h, t)


ANTISYMMETRIC = {"epsilon": 0.5, "gamma": 0.2}
OSCILLATORS = {"dt": 0.3, "gamma": 1.5, "epsilon": 0.7}

CELLS = {
    "antisymmetricrnn": Row(
        partial(AntisymmetricRNN, **ANTISYMMETRIC),
        partial(antisymmetric, **ANTISYMMETRIC),
        zero_carry,
    ),
    "antisymmetricrnn-gated": Row(
        partial(AntisymmetricRNN, **ANTISYMMETRIC, gated=True),
        partial(antisymmetric_gated, **ANTISYMMETRIC),
        zero_carry,
    ),
    "cornn": Row(
        partial(CoRNN, **OSCILLATORS),
        partial(cornn, **OSCILLATORS),
        partial(zero_carry_pair, CoRNNCarry),
    ),
    "lem": Row(partial(LEM, dt=0.8), partial(lem, dt=0.8), partial(zero_carry_pair, LEMCarry)),
    "fastgrnn": Row(FastGRNN, fastgrnn, zero_carry),
    "clockwork": Row(
        lambda hidden: Clockwork(2 * hidden, periods=(1, 3)),
        partial(clockwork, periods=(1, 3)),
        clockwork_init_carry,
    ),
}
