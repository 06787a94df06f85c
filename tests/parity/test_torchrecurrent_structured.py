"""The outputs of AntisymmetricRNN, CoRNN and FastGRNN equal those of torchrecurrent.

The LEM of torchrecurrent computes the state y from the previous memory z instead of the new one, so
it is not compared.
"""

from typing import Any

import numpy as np
import pytest

import jrnn
from jrnn import AntisymmetricRNN, Cell, CoRNN, FastGRNN
from tests.helpers import assert_close, random_params

pytest.importorskip("torchrecurrent")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5


def assert_equals_torchrecurrent(
    cell: Cell, class_name: str, options: dict[str, Any], names: dict[str, str]
) -> None:
    """Asserts that a cell has the outputs of a torchrecurrent cell, from a zero state.

    `names` maps parameters of torchrecurrent to those of jrnn. Parameters of torchrecurrent that it
    does not contain are set to 0.
    """
    from torchrecurrent import cells

    params = random_params(cell, 1, INPUT, np.float32)
    theirs = getattr(cells, class_name)(INPUT, HIDDEN, **options)
    for name, value in theirs.named_parameters():
        value.data.zero_()
        if name in names:
            value.data.copy_(torch.tensor(getattr(params, names[name]).T))
    xs = np.random.default_rng(2).normal(size=(STEPS, BATCH, INPUT)).astype(np.float32)
    state: Any = None
    ys = []
    with torch.no_grad():
        for x in torch.tensor(xs):
            state = theirs(x, state)
            ys.append((state[0] if isinstance(state, tuple) else state).numpy())
    assert_close(jrnn.unroll(cell, params, xs)[1], np.stack(ys), 1e-5)


SHARED_NAMES = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b"}


@pytest.mark.parametrize("gated", [False, True])
def test_antisymmetric_rnn_equals_torchrecurrent(gated: bool) -> None:
    options = {"epsilon": 0.5, "gamma": 0.2}
    class_name = "GatedAntisymmetricRNNCell" if gated else "AntisymmetricRNNCell"
    cell = AntisymmetricRNN(HIDDEN, **options, gated=gated)
    assert_equals_torchrecurrent(cell, class_name, options, SHARED_NAMES)


def test_cornn_equals_torchrecurrent() -> None:
    options = {"dt": 0.3, "gamma": 1.5, "epsilon": 0.7}
    names = {**SHARED_NAMES, "weight_ch": "w_zh"}
    assert_equals_torchrecurrent(CoRNN(HIDDEN, **options), "coRNNCell", options, names)


def test_fastgrnn_equals_torchrecurrent() -> None:
    names = {**SHARED_NAMES, "zeta": "zeta", "nu": "nu"}
    options = {"nonlinearity": "sigmoid"}
    assert_equals_torchrecurrent(FastGRNN(HIDDEN), "FastGRNNCell", options, names)
