"""The results of SLSTM and MLSTM equal those of the xlstm package."""

from typing import Any

import numpy as np
import pytest

import jrnn
from jrnn import MLSTM, SLSTM
from tests.helpers import random_params

pytest.importorskip("xlstm")
torch = pytest.importorskip("torch")
slstm = pytest.importorskip("xlstm.blocks.slstm.cell")
mlstm = pytest.importorskip("xlstm.blocks.mlstm.backends")

STEPS, BATCH, INPUT, HEADS, UNITS = 7, 3, 4, 2, 3
HIDDEN = HEADS * UNITS


def make_params_and_inputs(cell: Any) -> tuple[Any, Any]:
    xs = np.random.default_rng(2).normal(size=(STEPS, BATCH, INPUT)).astype(np.float32)
    return random_params(cell, 1, INPUT, np.float32), xs


def test_slstm_equals_the_xlstm_package() -> None:
    cell = SLSTM(HIDDEN, heads=HEADS)
    params, xs = make_params_and_inputs(cell)
    theirs = slstm.sLSTMCell_vanilla(
        slstm.sLSTMCellConfig(
            hidden_size=HIDDEN,
            num_heads=HEADS,
            backend="vanilla",
            dtype="float32",
            enable_automatic_mixed_precision=False,
            input_shape="SBGNH",
            output_shape="SBH",
        )
    )
    # The layout of xlstm is [heads, 4·units of the gates, units of h].
    theirs._recurrent_kernel_.data = torch.tensor(params.w_hh.transpose(0, 2, 1).copy())
    theirs._bias_.data = torch.tensor(params.b)
    with torch.no_grad():
        ys, states = theirs(torch.tensor(xs @ params.w_ih))
    carry, got = jrnn.unroll(cell, params, xs)
    np.testing.assert_allclose(got, ys.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.stack(carry), states.numpy(), rtol=1e-5, atol=1e-5)


def test_mlstm_equals_both_forms_of_the_xlstm_package() -> None:
    cell = MLSTM(HIDDEN, heads=HEADS, soft_cap=None)
    params, xs = make_params_and_inputs(cell)
    z = cell.project(params, xs)
    # The layout of xlstm is [batch, heads, steps, units]. These functions apply no output gate.
    q, k, v = (torch.tensor(np.asarray(part)).permute(1, 2, 0, 3) for part in (z.q, z.k, z.v))
    i, f = (torch.tensor(np.asarray(part)).permute(1, 2, 0)[..., None] for part in (z.i, z.f))
    parallel_h = mlstm.parallel_stabilized_simple(q, k, v, i, f, eps=0.0)
    state = (
        torch.zeros(BATCH, HEADS, UNITS, UNITS),
        torch.zeros(BATCH, HEADS, UNITS, 1),
        torch.zeros(BATCH, HEADS, 1, 1),
    )
    steps = []
    for t in range(STEPS):
        inputs = [part[:, :, t : t + 1].clone() for part in (q, k, v, i, f)]
        h, state = mlstm.recurrent_step_stabilized_simple(*state, *inputs, eps=0.0)
        steps.append(h)
    gate = 1 / (1 + np.exp(-np.asarray(z.o)))
    _, ys = jrnn.unroll(cell, params, xs)
    for theirs in (parallel_h, torch.cat(steps, dim=2)):
        h = theirs.permute(2, 0, 1, 3).reshape(STEPS, BATCH, HIDDEN).numpy()
        np.testing.assert_allclose(ys, gate * h, rtol=1e-5, atol=1e-5)
