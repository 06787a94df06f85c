"""Tests of `jrnn.nn.RNN`, and of cells in the recurrent modules of flax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import RNN, FlaxCell, StackedRNN
from jrnn.testing import randomize
from tests.cells.toys import Noisy
from tests.helpers import assert_close

B, T, I, H = 3, 6, 4, 5
CELLS = {
    "lstm": jrnn.LSTM(H, peepholes=True),
    "gru": jrnn.GRU(H),
    "elman": jrnn.Elman(H),
}


@pytest.fixture(params=CELLS)
def cell(request):
    return CELLS[request.param]


def randomize_params(module, seed=0):
    """Returns the module with random parameters."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graphdef, randomize(params, jax.random.key(seed)), rest)


def batch(seed=0):
    """Returns inputs [B, T, I], lengths [B] and resets [B, T]."""
    rng = np.random.default_rng(seed)
    xs = jnp.asarray(rng.normal(size=(B, T, I)), jnp.float32)
    resets = np.zeros((B, T), bool)
    resets[0, 2] = resets[1, 3] = resets[2, 5] = True
    return xs, np.array([6, 4, 3]), resets


@pytest.mark.parametrize("reverse", [False, True])
def test_rnn_equals_unroll(cell, reverse):
    rnn = randomize_params(RNN(cell, I, rngs=nnx.Rngs(0), reverse=reverse))
    xs, lengths, resets = batch()
    initial_carry = randomize(cell.init_carry(rnn.params, (B,)), jax.random.key(1))
    carry, ys = rnn(xs, initial_carry, lengths=lengths, resets=resets)
    expected_carry, expected = jrnn.unroll(
        cell,
        rnn.params,
        xs.swapaxes(0, 1),
        initial_carry,
        lengths=lengths,
        resets=resets.T,
        reverse=reverse,
    )
    assert_close((carry, ys), (expected_carry, expected.swapaxes(0, 1)), 1e-6)


def test_noise_is_sampled_in_training_only():
    rnn = randomize_params(RNN(Noisy(H), I, rngs=nnx.Rngs(0, dropout=1)))
    xs, lengths, _ = batch()
    run = lambda **options: rnn(xs, lengths=lengths, **options)[1]
    assert not np.allclose(run(), run())
    assert_close(run(key=jax.random.key(3)), run(key=jax.random.key(3)), 0)
    rnn.eval()
    expected = jrnn.unroll(Noisy(H), rnn.params, xs.swapaxes(0, 1), lengths=lengths)[1]
    assert_close(run(), expected.swapaxes(0, 1), 1e-6)
    assert not np.allclose(run(key=jax.random.key(3)), run())
    rnn.train()
    assert not np.allclose(run(), run())


def test_noise_requires_a_key_or_an_rng_stream_in_training_only():
    rnn = RNN(Noisy(H), I, rngs=nnx.Rngs(params=0))
    xs, _, _ = batch()
    with pytest.raises(ValueError, match=r"RNN: rngs must have the stream 'dropout' .* Noisy\("):
        rnn(xs)
    assert not np.allclose(rnn(xs, key=jax.random.key(0))[1], rnn(xs, key=jax.random.key(1))[1])
    rnn.eval()
    assert_close(rnn(xs), rnn(xs), 0)
    adapter = nnx.RNN(FlaxCell(Noisy(H), I, rngs=nnx.Rngs(params=0)))
    adapter.train()
    assert_close(adapter(xs), adapter(xs), 0)


def test_layers_and_calls_have_different_noise():
    model = StackedRNN(Noisy(H), H, 2, rngs=nnx.Rngs(0, dropout=1))
    first, second = model.rnns
    keys = [jax.random.key_data(rnn.rngs()).tolist() for rnn in (first, second, first)]
    assert len({str(key) for key in keys}) == 3
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, xs):
        model = nnx.merge(graphdef, state)
        return model(xs)[1], nnx.state(model)

    xs = jnp.ones((B, T, H))
    ys_of_first_call, state = run(state, xs)
    ys_of_second_call, _ = run(state, xs)
    assert not np.allclose(ys_of_first_call, ys_of_second_call)


def test_deterministic_cell_uses_no_rng_stream():
    rngs = nnx.Rngs(0, dropout=1)
    assert RNN(jrnn.GRU(H), I, rngs=rngs).rngs is None
    assert int(rngs.dropout.count[...]) == 0


def test_rnn_time_major_equals_batch_major(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    time_major = RNN(cell, I, rngs=nnx.Rngs(0), time_major=True)
    xs, lengths, resets = batch()
    carry, ys = rnn(xs, lengths=lengths, resets=resets)
    time_major_carry, time_major_ys = time_major(
        xs.swapaxes(0, 1), lengths=lengths, resets=resets.T
    )
    assert_close((time_major_carry, time_major_ys), (carry, ys.swapaxes(0, 1)), 1e-6)


def test_params_have_the_names_of_the_cell(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(rnn, nnx.Param))
    params = {k: v for k, v in rnn.params._asdict().items() if v is not None}
    assert set(state["weights"]) == set(params)
    assert_close(state["weights"], params, 0)


def test_dtype_and_param_dtype_are_independent():
    rnn = RNN(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    carry, ys = rnn(jnp.ones((B, T, I)))
    assert ys.dtype == jnp.bfloat16 and carry.c.dtype == jnp.float32
    rnn = RNN(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(rnn.params)} == {jnp.dtype(jnp.bfloat16)}


def test_jit_grad_split_and_merge_equal_those_of_unroll(cell):
    rnn = randomize_params(RNN(cell, I, rngs=nnx.Rngs(0)))
    xs, lengths, _ = batch()

    def loss(model):
        return jnp.sum(model(xs, lengths=lengths)[1] ** 2)

    def unroll_loss(params):
        _, ys = jrnn.unroll(cell, params, xs.swapaxes(0, 1), lengths=lengths)
        return jnp.sum(ys**2)

    expected = jax.grad(unroll_loss)(rnn.params)
    got = nnx.jit(nnx.grad(loss))(rnn)["weights"]
    expected = {name: value for name, value in expected._asdict().items() if value is not None}
    assert_close({name: got[name][...] for name in expected}, expected, 1e-5)
    graphdef, state = nnx.split(rnn)
    doubled = nnx.merge(graphdef, jax.tree.map(lambda a: 2 * a, state))
    assert_close(doubled.params, jax.tree.map(lambda a: 2 * a, rnn.params), 1e-6)
    assert_close(nnx.jit(loss)(rnn), unroll_loss(rnn.params), 1e-5)


def test_flax_cell_in_nnx_rnn_equals_unroll(cell):
    adapter = randomize_params(FlaxCell(cell, I, rngs=nnx.Rngs(0)))
    xs, lengths, _ = batch()
    carry, ys = nnx.RNN(adapter, return_carry=True)(xs, seq_lengths=lengths)
    expected_carry, expected = jrnn.unroll(
        cell, adapter.rnn.params, xs.swapaxes(0, 1), lengths=lengths
    )
    valid = np.arange(T) < lengths[:, None]  # flax does not set outputs on padding to zero
    assert_close(carry, expected_carry, 1e-6)
    assert_close(np.where(valid[..., None], ys, 0), expected.swapaxes(0, 1), 1e-6)


def test_flax_cell_in_nnx_bidirectional_equals_unroll():
    forward, backward = (
        randomize_params(FlaxCell(jrnn.GRU(H), I, rngs=nnx.Rngs(k)), k) for k in (0, 1)
    )
    xs, _, _ = batch()
    ys = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward))(xs)
    outputs = [
        jrnn.unroll(jrnn.GRU(H), adapter.rnn.params, xs.swapaxes(0, 1), reverse=reverse)[1]
        for adapter, reverse in ((forward, False), (backward, True))
    ]
    assert_close(ys, jnp.concatenate(outputs, axis=-1).swapaxes(0, 1), 1e-6)


def test_flax_cell_in_bfloat16_has_a_float32_carry():
    adapter = FlaxCell(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    rnn: Any = nnx.RNN(adapter, return_carry=True)
    carry, ys = rnn(jnp.ones((B, T, I)))
    assert ys.dtype == jnp.bfloat16 and carry.c.dtype == jnp.float32


def test_flax_cell_raises_for_carry_init():
    adapter = FlaxCell(jrnn.GRU(H), I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="carry_init must be None"):
        adapter.initialize_carry((B, I), carry_init=nnx.initializers.ones)


def test_flax_cell_raises_for_a_layer():
    for layer in (jrnn.stack([jrnn.GRU(H)]), jrnn.bidirectional(jrnn.GRU(H)), 3):
        with pytest.raises(TypeError, match="FlaxCell: cell must be a single cell .*jrnn.nn.RNN"):
            FlaxCell(layer, I, rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]


def test_flax_cell_uses_the_expected_value_of_noise():
    adapter = randomize_params(FlaxCell(Noisy(H), I, rngs=nnx.Rngs(0)))
    xs, _, _ = batch()
    expected = jrnn.unroll(Noisy(H), adapter.rnn.params, xs.swapaxes(0, 1))[1]
    assert_close(nnx.RNN(adapter)(xs), expected.swapaxes(0, 1), 1e-6)


def test_shape_errors_use_batch_major_axes(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"resets must have shape \(batch, time\) = \(3, 6\)"):
        rnn(jnp.ones((B, T, I)), resets=np.zeros((T, B), bool))
    with pytest.raises(
        ValueError, match=r"xs must have shape \(batch, time, \.\.\.\), with the same .*, got"
    ):
        rnn(jnp.ones(I))


def test_tokens_with_dtype_raise():
    rnn = RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), dtype=jnp.float32)
    with pytest.raises(TypeError, match="embed or one-hot"):
        rnn(jnp.ones((B, T, I), int))


def test_unknown_engine_raises_at_construction():
    with pytest.raises(ValueError, match="did you mean 'scan'"):
        RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), engine="scann")


def test_wrong_input_size_raises(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=rf"last axis of {I}"):
        rnn(jnp.ones((B, T, I + 1)))
