"""`Bidirectional`, compared with separate runs in each direction."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import GRU, LSTM, bidirectional, stack
from jrnn.nn import RNN, StackedRNN
from jrnn.transforms import dropout
from tests.helpers import assert_close, random_params

SIZE = 3
STEPS, BATCH = 7, 4
XS = np.random.default_rng(0).normal(size=(STEPS, BATCH, SIZE)).astype(np.float32)
LENGTHS = np.array([7, 4, 0, 1])
RESETS = np.random.default_rng(1).random((STEPS, BATCH)) < 0.3


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_bidirectional_equals_two_runs(merge: Any) -> None:
    layer = bidirectional(LSTM(SIZE), GRU(SIZE), merge)
    params = random_params(layer, 1, SIZE, np.float32)
    initial = jax.tree.map(lambda a: a + 0.3, layer.init_carry(params, (BATCH,)))
    got, ys = jrnn.unroll(layer, params, XS, initial, lengths=LENGTHS, resets=RESETS)
    forward_carry, forward = jrnn.unroll(
        LSTM(SIZE), params.forward, XS, initial.forward, lengths=LENGTHS, resets=RESETS
    )
    backward_carry, backward = jrnn.unroll(
        GRU(SIZE),
        params.backward,
        XS,
        initial.backward,
        lengths=LENGTHS,
        resets=jrnn.reverse_resets(RESETS, LENGTHS),
        reverse=True,
    )
    merged = {
        "concat": np.concatenate([forward, backward], axis=-1),
        "sum": forward + backward,
        "mul": forward * backward,
        "ave": (forward + backward) / 2,
    }[merge]
    assert_close(ys, merged, 1e-6)
    assert_close(tuple(got), (forward_carry, backward_carry), 1e-6)


def test_bidirectional_in_a_stack_equals_separate_layers() -> None:
    bilstm = bidirectional(LSTM(SIZE))
    layer = stack([bilstm, GRU(2)])
    params = random_params(layer, 1, SIZE, np.float32)
    _, ys = jrnn.unroll(layer, params, XS, lengths=LENGTHS)
    hidden = jrnn.unroll(bilstm, params[0], XS, lengths=LENGTHS)[1]
    assert_close(ys, jrnn.unroll(GRU(2), params[1], hidden, lengths=LENGTHS)[1], 1e-6)
    rnn = RNN(layer, SIZE, time_major=True, rngs=nnx.Rngs(0))
    assert rnn.output_size == 2 and rnn(XS)[1].shape == (STEPS, BATCH, 2)


def test_stack_as_a_direction_equals_separate_runs() -> None:
    layer = bidirectional(stack([LSTM(SIZE), GRU(2)]), GRU(2), merge="sum")
    params = random_params(layer, 1, SIZE, np.float32)
    got = jrnn.unroll(layer, params, XS, lengths=LENGTHS)[1]
    forward = jrnn.unroll(stack([LSTM(SIZE), GRU(2)]), params.forward, XS, lengths=LENGTHS)[1]
    backward = jrnn.unroll(GRU(2), params.backward, XS, lengths=LENGTHS, reverse=True)[1]
    assert_close(got, forward + backward, 1e-6)


def test_reverse_raises_for_bidirectional_layers() -> None:
    bilstm = bidirectional(LSTM(SIZE))
    params = random_params(bilstm, 1, SIZE, np.float32)
    with pytest.raises(ValueError, match="reverse must be False"):
        jrnn.unroll(bilstm, params, XS, reverse=True)
    with pytest.raises(ValueError, match="reverse must be False"):
        jrnn.analysis.capture_gates(bilstm, params, XS, reverse=True)
    for inner in (bilstm, stack([bilstm, GRU(2)])):
        with pytest.raises(ValueError, match="Bidirectional: forward must be causal, got"):
            bidirectional(inner)
        with pytest.raises(ValueError, match="cell must be causal for reverse=True or"):
            RNN(inner, SIZE, rngs=nnx.Rngs(0), reverse=True)
    with pytest.raises(ValueError, match="cell must be causal for reverse=True or"):
        StackedRNN(bilstm, SIZE, rngs=nnx.Rngs(0), bidirectional=True)
    with pytest.raises(ValueError, match="Bidirectional: backward must be causal, got"):
        bidirectional(GRU(2), bilstm)


def test_initial_carry_must_have_one_entry_for_each_direction() -> None:
    layer = bidirectional(GRU(SIZE))
    params = random_params(layer, 1, SIZE, np.float32)
    one = np.zeros((BATCH, SIZE), np.float32)
    for carry in (one, (one,), (one, one, one)):
        with pytest.raises(TypeError, match="carry of a Bidirectional must be a tuple .* both dir"):
            jrnn.unroll(layer, params, XS, carry)
    assert_close(jrnn.unroll(layer, params, XS, (one, one)), jrnn.unroll(layer, params, XS), 0)


def test_bidirectional_layer_is_not_a_cell() -> None:
    bigru = bidirectional(GRU(SIZE))
    assert not isinstance(bigru, jrnn.Cell) and not hasattr(bigru, "step")
    with pytest.raises(TypeError, match="must be a single cell for return_carries"):
        jrnn.unroll(bigru, random_params(bigru, 1, SIZE, np.float32), XS, return_carries=True)


def test_layers_and_modules_report_output_directions() -> None:
    bilstm = bidirectional(LSTM(SIZE))
    assert RNN(bilstm, SIZE, rngs=nnx.Rngs(0)).output_directions == (False, True)
    layers = StackedRNN(bilstm, SIZE, num_layers=2, rngs=nnx.Rngs(0))
    assert layers.output_directions == (False, True) and layers.output_size == 2 * SIZE
    summed = bidirectional(LSTM(SIZE), merge="sum")
    assert RNN(summed, SIZE, rngs=nnx.Rngs(0)).output_directions == (False,)
    assert stack([GRU(2), bilstm]).output_directions == (False, True)


def test_merge_sum_raises_for_outputs_of_different_sizes() -> None:
    with pytest.raises(
        ValueError, match=r"must have the same size for merge='sum', got shapes \(4,\)"
    ):
        bidirectional(LSTM(4), LSTM(1), merge="sum").init(jax.random.key(0), SIZE)


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="Bidirectional: merge must be one of concat, sum, mul"):
        bidirectional(LSTM(2), merge="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Bidirectional: forward must be a cell .*or a layer, got"):
        bidirectional(LSTM)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Bidirectional: backward must be a cell .*or a layer, got"):
        bidirectional(LSTM(2), 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("merge", ["concat", "sum"])
@pytest.mark.parametrize(
    "make_layer",
    [
        lambda merge: bidirectional(dropout(GRU(4), x=0.5), merge=merge),
        lambda merge: bidirectional(GRU(4), dropout(GRU(4), x=0.5), merge),
        lambda merge: stack([bidirectional(dropout(GRU(4), y=0.5), merge=merge), GRU(4)]),
    ],
    ids=["both-directions", "backward", "in-a-stack"],
)
def test_noise_is_drawn_at_each_call_in_training_mode(make_layer: Any, merge: str) -> None:
    rnn = RNN(make_layer(merge), SIZE, time_major=True, rngs=nnx.Rngs(0))
    first, second = (np.asarray(rnn(XS)[1]) for _ in range(2))
    assert (first != second).any()
    rnn.eval()
    deterministic = np.asarray(rnn(XS)[1])
    np.testing.assert_array_equal(deterministic, rnn(XS)[1])
    assert (first != deterministic).any() and (second != deterministic).any()
    assert_close(deterministic, jrnn.unroll(rnn.cell, rnn.params, XS)[1], 1e-6)


def test_directions_draw_different_noise() -> None:
    layer = bidirectional(dropout(GRU(4), x=0.5))
    params = random_params(GRU(4), 1, SIZE, np.float32)
    equal_params = jrnn.layers.BidirectionalParams(params, params)
    xs, key = np.broadcast_to(XS[:1], XS.shape), jax.random.key(0)
    _, ys = jrnn.unroll(layer, equal_params, xs, key=key)
    forward, backward = np.split(np.asarray(ys), 2, axis=-1)
    # With constant inputs and without noise, each direction is the time reversal of the other.
    deterministic = np.split(np.asarray(jrnn.unroll(layer, equal_params, xs)[1]), 2, axis=-1)
    np.testing.assert_allclose(deterministic[0], deterministic[1][::-1], rtol=1e-6)
    assert not np.allclose(forward, backward[::-1])
