"""Cells equal those of torch.nn, including the gradients of parameters, inputs and initial state.

A bidirectional torch layer is compared, so that both directions are tested, each with its own
weights. With a projection, the carry contains h after the projection in torch, and before it in
jrnn. So the initial h is zero, and the final h is projected before the comparison.
"""

from typing import Any

import jax
import numpy as np
import pytest

from jrnn import Engine
from jrnn.cells import GRUParams, LSTMParams
from tests.helpers import (
    Batch,
    Scenario,
    assert_close,
    differentiate_all,
    random_batch,
    random_params,
)
from tests.table import CELLS

torch = pytest.importorskip("torch")
rnn_utils = torch.nn.utils.rnn
# torch warns once that oneDNN does not support projections.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:LSTM with projections")]

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5
LENGTHS = np.array([7, 1, 4, 6], np.int32)  # torch does not pack sequences of length 0
SUFFIXES = ("l0", "l0_reverse")

LAYERS: dict[str, Any] = {
    "lstm": torch.nn.LSTM,
    "lstm-projected": lambda input_size, proj_size, **options: torch.nn.LSTM(
        input_size, proj_size + 1, proj_size=proj_size, **options
    ),
    "gru": torch.nn.GRU,
    "elman-tanh": torch.nn.RNN,
    "elman-relu": lambda *sizes, **options: torch.nn.RNN(*sizes, nonlinearity="relu", **options),
}


def copy_params_to_torch(layer: Any, all_params: list[Any]) -> None:
    """Copies the parameters of both directions to a layer of torch, with weights transposed."""
    for params, suffix in zip(all_params, SUFFIXES, strict=True):
        # torch has two biases, whose sum is the bias of jrnn.
        b_ih, b_hh = 0.75 * params.b, 0.25 * params.b
        if isinstance(params, GRUParams):
            # For gate n of the GRU, jrnn has two biases as well.
            b_ih[2 * HIDDEN :], b_hh[2 * HIDDEN :] = params.b[2 * HIDDEN :], params.b_hn
        values = {
            "weight_ih": params.w_ih.T,
            "weight_hh": params.w_hh.T,
            "bias_ih": b_ih,
            "bias_hh": b_hh,
        }
        if is_projected(params):
            values["weight_hr"] = getattr(params, "w_hr").T  # noqa: B009
        for name, value in values.items():
            getattr(layer, f"{name}_{suffix}").data.copy_(torch.tensor(value))


def get_params_grads(layer: Any, params: Any, suffix: str) -> Any:
    """Returns the gradients of one direction of a layer of torch, in the layout of `params`."""
    grad = lambda name: getattr(layer, f"{name}_{suffix}").grad.numpy()
    grads = params._replace(w_ih=grad("weight_ih").T, w_hh=grad("weight_hh").T, b=grad("bias_ih"))
    if isinstance(params, GRUParams):
        grads = grads._replace(b_hn=grad("bias_hh")[2 * HIDDEN :])
    if is_projected(params):
        grads = grads._replace(w_hr=grad("weight_hr").T)
    return grads


def is_projected(params: Any) -> bool:
    """Returns whether the parameters are those of an LSTM with a projection of h."""
    return isinstance(params, LSTMParams) and params.w_hr is not None


def to_torch_states(params: Any, carry: Any) -> list[Any]:
    """Converts a carry of jrnn to the states of torch, by projecting h."""
    leaves = jax.tree.leaves(carry)
    return [leaves[0] @ params.w_hr, *leaves[1:]] if is_projected(params) else leaves


def move_ct_to_last_output(batch: Batch, ct_h: Any, scenario: Scenario) -> Batch:
    """Adds the cotangent of torch's final h to that of the last output, which equals this h."""
    last = 0 if scenario.reverse else (LENGTHS if scenario.lengths else STEPS) - 1
    ct_ys = batch.ct_ys.copy()
    ct_ys[last, np.arange(BATCH)] += ct_h
    ct_carry = batch.ct_carry._replace(h=np.zeros_like(batch.ct_carry.h))
    return batch._replace(ct_ys=ct_ys, ct_carry=ct_carry)


def run_torch(
    layer: Any, all_params: list[Any], batches: list[Batch], lengths: bool
) -> tuple[Any, Any, Any, Any]:
    """Runs a layer of torch; returns xs, initial and final states `[2, B, ...]`, and ys."""
    pairs = zip(all_params, batches, strict=True)
    carries = [to_torch_states(params, batch.carry) for params, batch in pairs]
    states = [
        torch.tensor(np.stack(leaves), requires_grad=True) for leaves in zip(*carries, strict=True)
    ]
    xs = torch.tensor(batches[0].xs, requires_grad=True)
    initial = tuple(states) if len(states) == 2 else states[0]
    inputs = xs
    if lengths:
        inputs = rnn_utils.pack_padded_sequence(xs, torch.tensor(LENGTHS), enforce_sorted=False)
    ys, final = layer(inputs, initial)
    if lengths:
        ys, _ = rnn_utils.pad_packed_sequence(ys, total_length=STEPS)
    return xs, states, list(final) if len(states) == 2 else [final], ys


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_cell_equals_torch(name: str, engine: Engine, lengths: bool) -> None:
    cell = CELLS[name].make(HIDDEN)
    all_params = [random_params(cell, seed, INPUT, np.float32) for seed in (1, 2)]
    batches = [random_batch(cell, all_params[0], seed, STEPS, BATCH, np.float32) for seed in (3, 4)]
    batches = [batch._replace(xs=batches[0].xs, lengths=LENGTHS) for batch in batches]
    ct_carries = [jax.tree.leaves(batch.ct_carry) for batch in batches]
    if is_projected(all_params[0]):
        initial_h = np.zeros_like(batches[0].carry.h)
        batches = [b._replace(carry=b.carry._replace(h=initial_h)) for b in batches]
        ct_carries = [[ct_h[:, :HIDDEN], ct_c] for ct_h, ct_c in ct_carries]
    layer = LAYERS[name](INPUT, HIDDEN, bidirectional=True)
    copy_params_to_torch(layer, all_params)
    xs, states, carries, ys = run_torch(layer, all_params, batches, lengths)
    ct_ys = np.concatenate([batch.ct_ys for batch in batches], axis=-1)
    stacked = map(np.stack, zip(*ct_carries, strict=True))
    pairs = zip([ys, *carries], [ct_ys, *stacked], strict=True)
    loss: Any = sum((tensor * torch.tensor(ct)).sum() for tensor, ct in pairs)
    loss.backward()

    xs_grad = np.zeros_like(batches[0].xs)
    for n, (params, batch) in enumerate(zip(all_params, batches, strict=True)):
        scenario = Scenario(lengths=lengths, resets=False, reverse=n == 1)
        if is_projected(params):
            batch = move_ct_to_last_output(batch, ct_carries[n][0], scenario)
        (got,) = differentiate_all(cell, engine, (scenario,), params, batch)
        assert_close(got.ys, np.split(ys.detach().numpy(), 2, axis=-1)[n], 1e-5)
        assert_close(
            to_torch_states(params, got.carry), [c.detach().numpy()[n] for c in carries], 1e-5
        )
        assert_close(got.params_grad, get_params_grads(layer, params, SUFFIXES[n]), 1e-5)
        state_grads = [s.grad.numpy()[n] for s in states]
        if is_projected(params):
            state_grads[0] = state_grads[0] @ params.w_hr.T
        assert_close(jax.tree.leaves(got.carry_grad), state_grads, 1e-5)
        xs_grad += got.xs_grad
    assert_close(xs_grad, xs.grad.numpy(), 1e-5)
