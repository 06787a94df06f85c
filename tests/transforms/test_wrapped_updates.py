"""Cells whose `update` is wrapped in `jax.jit` or `jax.checkpoint`.

Results must not depend on which use of a cell is traced first.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jrnn
from jrnn import LSTM
from jrnn.analysis import capture_gates
from jrnn.transforms import dropout, layer_norm
from tests.helpers import assert_close, random_params

SIZE = 3
XS = np.random.default_rng(0).normal(size=(4, 2, SIZE)).astype(np.float32)
PARAMS = random_params(LSTM(SIZE), 1, SIZE, np.float32)
LAYER_NORM_PARAMS = random_params(layer_norm(LSTM(SIZE)), 2, SIZE, np.float32)
KEY = jax.random.key(0)

jit: Any = partial(jax.jit, static_argnums=0)
checkpoint: Any = partial(jax.checkpoint, static_argnums=(0,))
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "jit": jit,
    "checkpoint": checkpoint,
    "jit-checkpoint": lambda f: jit(checkpoint(f)),
    "checkpoint-jit": lambda f: checkpoint(jit(f)),
}


def loss(cell: Any, params: Any) -> jax.Array:
    """Returns the sum of squares of the outputs, with noise if the cell is stochastic."""
    return (jrnn.unroll(cell, params, XS, key=KEY, engine="scan")[1] ** 2).sum()


def gates_and_gradient(cell: Any) -> Any:
    """Returns the gradient of the sum of the captured forget gates, all gates, and the outputs."""

    def loss(params: Any) -> Any:
        capture = capture_gates(cell, params, XS)
        return capture.gates["f"].sum(), (dict(capture.gates), capture.ys)

    return jax.jit(jax.grad(loss, has_aux=True))(PARAMS)


def loss_and_gradient(cell: Any, params: Any) -> Any:
    return jax.jit(jax.value_and_grad(partial(loss, cell)))(params)


USES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda cell: loss_and_gradient(cell, PARAMS),
    "layer_norm": lambda cell: loss_and_gradient(layer_norm(cell), LAYER_NORM_PARAMS),
    "dropout": lambda cell: loss_and_gradient(dropout(cell, candidate=0.5), PARAMS),
    "capture_gates": gates_and_gradient,
}


@functools.cache
def expected(use: str) -> Any:
    """Returns the result of a use with an LSTM whose `update` is not wrapped."""
    return USES[use](LSTM(SIZE))


def make_cell(wrapper: Callable[[Any], Any]) -> LSTM:
    """Returns an LSTM whose `update` is wrapped and has never been traced."""

    def update(self: LSTM, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return LSTM.update(self, params, carry, z, u)

    return dataclass(frozen=True)(type("Wrapped", (LSTM,), {"update": wrapper(update)}))(SIZE)


# The parameters of the test below that are not only in the exhaustive tests.
ALWAYS = [("jit", 1), ("jit", -1)]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        pytest.param(name, order, marks=[pytest.mark.exhaustive] * ((name, order) not in ALWAYS))
        for name in WRAPPERS
        for order in (1, -1)
    ],
)
def test_wrapped_update_is_correct_in_any_order_of_uses(name: str, order: int) -> None:
    cell = make_cell(WRAPPERS[name])
    for use in list(USES)[::order]:
        assert_close(USES[use](cell), expected(use), 1e-5)


def test_uses_have_different_losses() -> None:
    # Otherwise an update that ignores the transforms would pass the test above.
    losses = [float(expected(use)[0]) for use in ("plain", "layer_norm", "dropout")]
    assert len(set(losses)) == 3
    no_gain = LAYER_NORM_PARAMS._replace(gain_c=0 * LAYER_NORM_PARAMS.gain_c)
    assert float(loss(layer_norm(LSTM(SIZE)), no_gain)) != losses[1]
