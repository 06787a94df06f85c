"""Results of variants of the GRU and of the LSTM equal those of torchrecurrent."""

from typing import Any

import jax
import numpy as np
import pytest

import jrnn
from jrnn import Cell
from tests.helpers import assert_close, random_params

torchrecurrent = pytest.importorskip("torchrecurrent")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5


def split(leaf: np.ndarray) -> list[np.ndarray]:
    return np.split(leaf, leaf.shape[-1] // HIDDEN, axis=-1)


def join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=-1)


ZERO = np.zeros(HIDDEN)


# The following functions convert parameters of jrnn to those of torchrecurrent, whose weights are
# transposed later. A key `b_x` stands for its parameter `bias_x`, any other key `x` for `weight_x`.


def mut1(p: Any) -> dict[str, np.ndarray]:
    z, r, n = split(p.b)
    # torchrecurrent has one more bias, inside the inner tanh; it is 0 here.
    return {"ih": p.w_ih, "hh": p.w_hh, "b_ih": join(z, r, ZERO), "b_hh": join(ZERO, n)}


def two_biases(p: Any) -> dict[str, np.ndarray]:
    # torchrecurrent has two biases, whose sum is the bias of jrnn.
    return {"ih": p.w_ih, "hh": p.w_hh, "b_ih": 0.75 * p.b, "b_hh": 0.25 * p.b}


def ugrnn(p: Any) -> dict[str, np.ndarray]:
    return two_biases(p._replace(**{k: join(*reversed(split(v))) for k, v in p._asdict().items()}))


def minimal_rnn(p: Any) -> dict[str, np.ndarray]:
    z, n = split(p.b)
    return {"ih": p.w_ih, "hh": p.w_hh, "mm": p.w_nz, "b_ih": n, "b_hh": z}


def multiplicative(p: Any) -> dict[str, np.ndarray]:
    *gates, m = split(p.w_ih)
    # torchrecurrent also has biases in the factors of m; they are 0 here.
    biases = {"b_ih": join(ZERO, p.b), "b_hh": ZERO, "b_mh": np.zeros(4 * HIDDEN)}
    return {"ih": join(m, *gates), "hh": p.w_hh, "mh": p.w_mh, **biases}


PAIRS = {
    "MUT1": (jrnn.MUT1, mut1),
    "MUT2": (jrnn.MUT2, two_biases),
    "MUT3": (jrnn.MUT3, two_biases),
    "MGU": (jrnn.MGU, two_biases),
    "UGRNN": (jrnn.UGRNN, ugrnn),
    "MinimalRNN": (jrnn.MinimalRNN, minimal_rnn),
    "JANET": (jrnn.JANET, two_biases),
    "MultiplicativeLSTM": (jrnn.MultiplicativeLSTM, multiplicative),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_final_state_equal_torchrecurrent(name: str) -> None:
    make, convert_params = PAIRS[name]
    cell: Cell = make(HIDDEN)
    params, rng = random_params(cell, 1, INPUT, np.float32), np.random.default_rng(2)
    xs = rng.normal(size=(STEPS, BATCH, INPUT)).astype(np.float32)
    init_carry = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        cell.init_carry(params, (BATCH,)),
    )
    carry, ys = jrnn.unroll(cell, params, xs, init_carry)

    theirs = getattr(torchrecurrent, f"{name}Cell")(INPUT, HIDDEN)
    for key, value in convert_params(params).items():
        full_name = f"bias_{key[2:]}" if key.startswith("b_") else f"weight_{key}"
        getattr(theirs, full_name).data.copy_(torch.tensor(value.T))
    # The state of JANET in torchrecurrent also has c, which equals h.
    state = [torch.tensor(leaf) for leaf in jax.tree.leaves(init_carry)]
    state = state * 2 if name == "JANET" else state
    for x, y in zip(torch.tensor(xs), np.asarray(ys), strict=True):
        new_state = theirs(x, tuple(state) if len(state) > 1 else state[0])
        state = list(new_state) if isinstance(new_state, tuple) else [new_state]
        assert_close(y, state[0].detach().numpy(), 1e-5)
    ours = jax.tree.leaves(carry)
    assert_close(ours, [leaf.detach().numpy() for leaf in state[: len(ours)]], 1e-5)
