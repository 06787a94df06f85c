"""The outputs of CfC with irregular time steps equal those of ncps."""

from typing import Any

import numpy as np
import pytest

import jrnn
from jrnn import CfC, Timed
from tests.helpers import assert_close, random_params

pytest.importorskip("ncps")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5


def copy_weights(layer: Any, weights: Any, bias: Any) -> None:
    """Copies weights and bias to a linear layer of torch, which has transposed weights."""
    layer.weight.data.copy_(torch.tensor(weights.T))
    layer.bias.data.copy_(torch.tensor(bias))


@pytest.mark.parametrize("mode", ["default", "no_gate"])
@pytest.mark.parametrize("units", [None, 6])
def test_outputs_of_cfc_equal_ncps(units: int | None, mode: Any) -> None:
    from ncps.torch import CfCCell

    cell = CfC(HIDDEN, backbone_units=units, mode=mode)
    params = random_params(cell, 1, INPUT, np.float32)
    theirs: Any = CfCCell(
        INPUT, HIDDEN, mode, backbone_units=units or 1, backbone_layers=0 if units is None else 1
    )
    weights_xh = np.concatenate([params.w_ih, params.w_hh])
    weights, biases = weights_xh, params.b
    if units is not None:
        copy_weights(theirs.backbone[0], weights_xh, params.b)
        weights, biases = params.w_heads, params.b_heads
    heads = theirs.ff1, theirs.ff2, theirs.time_a, theirs.time_b
    for head, w, b in zip(heads, np.split(weights, 4, -1), np.split(biases, 4), strict=True):
        copy_weights(head, w, b)

    rng = np.random.default_rng(2)
    xs: Any = rng.normal(size=(STEPS, BATCH, INPUT)).astype(np.float32)
    dt: Any = rng.uniform(0.1, 4.0, (STEPS, BATCH)).astype(np.float32)
    h, ys = torch.zeros(BATCH, HIDDEN), []
    with torch.no_grad():
        for x, elapsed in zip(torch.tensor(xs), torch.tensor(dt), strict=True):
            y, h = theirs(x, h, elapsed[:, None])
            ys.append(y.numpy())
    assert_close(jrnn.unroll(cell, params, Timed(xs, dt))[1], np.stack(ys), 1e-5)
