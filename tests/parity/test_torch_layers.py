"""Layers of `jrnn.nn` equal those of torch.nn with the same arguments.

Gradients are compared for the inputs and the recurrent weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jrnn import nn
from tests.helpers import assert_close
from tests.nn.test_rnn import randomize_params

torch = pytest.importorskip("torch")
# torch warns once that oneDNN does not support projections.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:LSTM with projections")]

LAYERS, INPUT, HIDDEN, BATCH, STEPS = 2, 3, 5, 4, 7
LENGTHS = np.array([7, 1, 4, 6])


def copy_to_torch(model, kind, **options):
    """Creates a bidirectional layer of torch with the weights of a layer of jrnn."""
    theirs = kind(INPUT, HIDDEN, LAYERS, bidirectional=True, batch_first=True, **options)
    for k, rnn in enumerate(model.rnns):
        suffix = f"l{k // 2}" + ("_reverse" if k % 2 else "")
        params = {
            name: np.asarray(value)
            for name, value in rnn.params._asdict().items()
            if value is not None
        }
        b_hh = np.zeros_like(params["b"])
        if "b_hn" in params:
            b_hh[2 * HIDDEN :] = params["b_hn"]
        values = {
            "weight_ih": params["w_ih"].T,
            "weight_hh": params["w_hh"].T,
            "bias_ih": params["b"],
            "bias_hh": b_hh,
        }
        if "w_hr" in params:
            values["weight_hr"] = params["w_hr"].T
        for name, value in values.items():
            getattr(theirs, f"{name}_{suffix}").data.copy_(torch.tensor(value))
    return theirs


@pytest.mark.parametrize(
    ("name", "options"), [("LSTM", {}), ("GRU", {}), ("LSTM", {"proj_size": 2})], ids=str
)
@pytest.mark.parametrize("padded", [False, True])
def test_bidirectional_layers_equal_torch(name, options, padded):
    build, output = getattr(nn, name), options.get("proj_size", HIDDEN)
    ours = randomize_params(
        build(INPUT, HIDDEN, LAYERS, bidirectional=True, rngs=nnx.Rngs(0), **options)
    )
    theirs = copy_to_torch(ours, getattr(torch.nn, name), **options)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(BATCH, STEPS, INPUT)).astype(np.float32)
    ct_ys = rng.normal(size=(BATCH, STEPS, 2 * output)).astype(np.float32)
    sample_states = lambda size: rng.normal(size=(2 * LAYERS, BATCH, size)).astype(np.float32)
    initial = sample_states(HIDDEN)
    if name == "LSTM":
        initial = (sample_states(output), initial)
    is_projected = "proj_size" in options
    if is_projected:  # the carry of torch has h after the projection, that of jrnn h before it
        initial = (np.zeros_like(initial[0]), initial[1])

    torch_xs = torch.tensor(xs, requires_grad=True)
    torch_initial = jax.tree.map(torch.tensor, initial)
    if padded:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            torch_xs, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
        )
        out, final = theirs(packed, torch_initial)
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=STEPS)
    else:
        out, final = theirs(torch_xs, torch_initial)
    (out * torch.tensor(ct_ys)).sum().backward()

    carry: Any = nn_carry(name, initial)
    if is_projected:
        carry = carry._replace(h=np.zeros((2 * LAYERS, BATCH, HIDDEN), np.float32))
    lengths = LENGTHS if padded else None
    got_final, got = ours(jnp.asarray(xs), carry, lengths=lengths)
    assert_close(got, out.detach().numpy(), 1e-5)
    if is_projected:
        w_hr = np.stack([rnn.params.w_hr for rnn in ours.rnns])
        got_final = got_final._replace(h=got_final.h @ w_hr)
    assert_close(got_final, nn_carry(name, jax.tree.map(lambda a: a.detach().numpy(), final)), 1e-5)

    loss = lambda model, xs: jnp.sum(model(xs, carry, lengths=lengths)[1] * ct_ys)
    xs_grad = jax.grad(lambda xs: loss(ours, xs))(jnp.asarray(xs))
    assert_close(xs_grad, torch_xs.grad.numpy(), 1e-5)
    grads = nnx.grad(loss)(ours, jnp.asarray(xs))
    for k in range(2 * LAYERS):
        suffix = f"l{k // 2}" + ("_reverse" if k % 2 else "")
        w_hh_grad = grads["rnns"][k]["weights"]["w_hh"][...]
        assert_close(w_hh_grad, getattr(theirs, f"weight_hh_{suffix}").grad.numpy().T, 1e-5)


def nn_carry(name, state):
    """Converts (h, c) or h of torch to a carry of `jrnn.nn`; both have the same first axis."""
    from jrnn import LSTMCarry

    return LSTMCarry(*state) if name == "LSTM" else state
