"""A cell or a layer as a flax module, and a cell inside flax's own modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.nn import RNN, FlaxCell, StackedRNN
from jrnn.testing import randomized
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


def shaken(module, seed=0):
    """The module with all its parameters random."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graphdef, randomized(params, jax.random.key(seed)), rest)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    xs = jnp.asarray(rng.normal(size=(B, T, I)), jnp.float32)
    resets = np.zeros((B, T), bool)
    resets[0, 2] = resets[1, 3] = resets[2, 5] = True
    return xs, np.array([6, 4, 3]), resets


@pytest.mark.parametrize("reverse", [False, True])
def test_rnn_matches_unroll(cell, reverse):
    rnn = shaken(RNN(cell, I, rngs=nnx.Rngs(0), reverse=reverse))
    xs, lengths, resets = batch()
    first = randomized(cell.init_carry(rnn.params, (B,)), jax.random.key(1))
    carry, ys = rnn(xs, first, lengths=lengths, resets=resets)
    want_carry, want = jrnn.unroll(
        cell,
        rnn.params,
        xs.swapaxes(0, 1),
        first,
        lengths=lengths,
        resets=resets.T,
        reverse=reverse,
    )
    assert_close((carry, ys), (want_carry, want.swapaxes(0, 1)), 1e-6)


def test_noise_is_drawn_in_training_and_expected_in_evaluation():
    rnn = shaken(RNN(Noisy(H), I, rngs=nnx.Rngs(0, dropout=1)))
    xs, lengths, _ = batch()
    run = lambda **options: rnn(xs, lengths=lengths, **options)[1]
    assert not np.allclose(run(), run())
    assert_close(run(key=jax.random.key(3)), run(key=jax.random.key(3)), 0)
    rnn.eval()
    want = jrnn.unroll(Noisy(H), rnn.params, xs.swapaxes(0, 1), lengths=lengths)[1]
    assert_close(run(), want.swapaxes(0, 1), 1e-6)
    assert not np.allclose(run(key=jax.random.key(3)), run())
    rnn.train()
    assert not np.allclose(run(), run())


def test_noise_needs_a_stream_of_random_numbers_in_training_alone():
    rnn = RNN(Noisy(H), I, rngs=nnx.Rngs(params=0))
    xs, _, _ = batch()
    with pytest.raises(ValueError, match=r"RNN: Noisy\(.* draws noise, and rngs had no stream"):
        rnn(xs)
    assert not np.allclose(rnn(xs, key=jax.random.key(0))[1], rnn(xs, key=jax.random.key(1))[1])
    rnn.eval()
    assert_close(rnn(xs), rnn(xs), 0)
    adapter = nnx.RNN(FlaxCell(Noisy(H), I, rngs=nnx.Rngs(params=0)))
    adapter.train()
    assert_close(adapter(xs), adapter(xs), 0)


def test_layers_and_steps_have_noise_of_their_own():
    model = StackedRNN(Noisy(H), H, 2, rngs=nnx.Rngs(0, dropout=1))
    first, second = model.rnns
    drawn = [jax.random.key_data(half.rngs()).tolist() for half in (first, second, first)]
    assert len({str(key) for key in drawn}) == 3
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, xs):
        model = nnx.merge(graphdef, state)
        return model(xs)[1], nnx.state(model)

    xs = jnp.ones((B, T, H))
    one, state = run(state, xs)
    two, _ = run(state, xs)
    assert not np.allclose(one, two)


def test_a_cell_without_noise_takes_no_random_numbers():
    rngs = nnx.Rngs(0, dropout=1)
    assert RNN(jrnn.GRU(H), I, rngs=rngs).rngs is None
    assert int(rngs.dropout.count[...]) == 0


def test_rnn_time_major_takes_time_first(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    turned = RNN(cell, I, rngs=nnx.Rngs(0), time_major=True)
    xs, lengths, resets = batch()
    carry, ys = rnn(xs, lengths=lengths, resets=resets)
    turned_carry, turned_ys = turned(xs.swapaxes(0, 1), lengths=lengths, resets=resets.T)
    assert_close((turned_carry, turned_ys), (carry, ys.swapaxes(0, 1)), 1e-6)


def test_params_keep_the_names_of_the_cell(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(rnn, nnx.Param))
    given = {k: v for k, v in rnn.params._asdict().items() if v is not None}
    assert set(state["weights"]) == set(given)
    assert_close(state["weights"], given, 0)


def test_dtypes_of_compute_and_params_are_apart():
    rnn = RNN(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    carry, ys = rnn(jnp.ones((B, T, I)))
    assert ys.dtype == jnp.bfloat16 and carry.c.dtype == jnp.float32
    half = RNN(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}


def test_jit_grad_split_and_merge_agree_with_the_functional_core(cell):
    rnn = shaken(RNN(cell, I, rngs=nnx.Rngs(0)))
    xs, lengths, _ = batch()

    def loss(model):
        return jnp.sum(model(xs, lengths=lengths)[1] ** 2)

    def functional(params):
        _, ys = jrnn.unroll(cell, params, xs.swapaxes(0, 1), lengths=lengths)
        return jnp.sum(ys**2)

    want = jax.grad(functional)(rnn.params)
    got = nnx.jit(nnx.grad(loss))(rnn)["weights"]
    named = {name: value for name, value in want._asdict().items() if value is not None}
    assert_close({name: got[name][...] for name in named}, named, 1e-5)
    graphdef, state = nnx.split(rnn)
    again = nnx.merge(graphdef, jax.tree.map(lambda a: 2 * a, state))
    assert_close(again.params, jax.tree.map(lambda a: 2 * a, rnn.params), 1e-6)
    assert_close(nnx.jit(loss)(rnn), functional(rnn.params), 1e-5)


def test_flax_cell_drives_flax_rnn(cell):
    adapter = shaken(FlaxCell(cell, I, rngs=nnx.Rngs(0)))
    xs, lengths, _ = batch()
    carry, ys = nnx.RNN(adapter, return_carry=True)(xs, seq_lengths=lengths)
    want_carry, want = jrnn.unroll(cell, adapter.rnn.params, xs.swapaxes(0, 1), lengths=lengths)
    valid = np.arange(T) < lengths[:, None]  # flax leaves garbage in the padding
    assert_close(carry, want_carry, 1e-6)
    assert_close(np.where(valid[..., None], ys, 0), want.swapaxes(0, 1), 1e-6)


def test_flax_cell_drives_flax_bidirectional():
    forward, backward = (shaken(FlaxCell(jrnn.GRU(H), I, rngs=nnx.Rngs(k)), k) for k in (0, 1))
    xs, _, _ = batch()
    ys = nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward))(xs)
    halves = [
        jrnn.unroll(jrnn.GRU(H), half.rnn.params, xs.swapaxes(0, 1), reverse=reverse)[1]
        for half, reverse in ((forward, False), (backward, True))
    ]
    assert_close(ys, jnp.concatenate(halves, axis=-1).swapaxes(0, 1), 1e-6)


def test_flax_cell_in_bfloat16_keeps_a_wide_carry():
    adapter = FlaxCell(jrnn.LSTM(H), I, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    carry, ys = nnx.RNN(adapter, return_carry=True)(jnp.ones((B, T, I)))
    assert ys.dtype == jnp.bfloat16 and carry.c.dtype == jnp.float32


def test_flax_cell_refuses_carry_init():
    adapter = FlaxCell(jrnn.GRU(H), I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="carry_init must be None"):
        adapter.initialize_carry((B, I), carry_init=nnx.initializers.ones)


def test_flax_cell_refuses_a_layer_that_is_no_cell():
    for layer in (jrnn.stack([jrnn.GRU(H)]), jrnn.bidirectional(jrnn.GRU(H)), 3):
        with pytest.raises(TypeError, match="FlaxCell: cell must be a single cell .*jrnn.nn.RNN"):
            FlaxCell(layer, I, rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]


def test_flax_cell_runs_a_cell_with_noise_at_its_expected_value():
    adapter = shaken(FlaxCell(Noisy(H), I, rngs=nnx.Rngs(0)))
    xs, _, _ = batch()
    want = jrnn.unroll(Noisy(H), adapter.rnn.params, xs.swapaxes(0, 1))[1]
    assert_close(nnx.RNN(adapter)(xs), want.swapaxes(0, 1), 1e-6)


def test_shapes_are_refused_in_the_terms_of_a_batch_major_user(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"resets must have shape \(batch, time\) = \(3, 6\)"):
        rnn(jnp.ones((B, T, I)), resets=np.zeros((T, B), bool))
    with pytest.raises(ValueError, match=r"xs must have shape \(batch, time, \.\.\.\), got"):
        rnn(jnp.ones(I))


def test_tokens_are_refused_even_with_a_dtype():
    rnn = RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), dtype=jnp.float32)
    with pytest.raises(TypeError, match="embed or one-hot"):
        rnn(jnp.ones((B, T, I), int))


def test_unknown_engine_is_refused_at_once():
    with pytest.raises(ValueError, match="did you mean 'scan'"):
        RNN(jrnn.GRU(H), I, rngs=nnx.Rngs(0), engine="scann")


def test_wrong_input_size_is_refused(cell):
    rnn = RNN(cell, I, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=rf"last axis of {I}"):
        rnn(jnp.ones((B, T, I + 1)))
