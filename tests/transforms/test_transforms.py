"""What transforms forward, refuse, and do to whole sequences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import GRU, LRU, LSTM, CfC, DepthGatedLSTM, Fused, MinGRU, Newton, ParaLSTM, Scan, Timed
from jrnn.testing import check_cell
from jrnn.transforms import (
    REGISTRY,
    bidirectional,
    clip,
    dropout,
    highway,
    layer_norm,
    learned_carry,
    projection,
    residual,
    stack,
    weight_drop,
    zoneout,
)
from tests.cells.toys import Learned
from tests.helpers import assert_close, random_batch, random_params
from tests.oracles.common import sigmoid
from tests.oracles.lstm import lstm, lstm_start

SIZE = 3
XS = np.random.default_rng(0).normal(size=(7, 4, SIZE)).astype(np.float32)
LENGTHS = np.array([7, 4, 0, 1])
RESETS = np.random.default_rng(1).random((7, 4)) < 0.3


def test_what_the_cell_inside_can_do_is_forwarded() -> None:
    linear = residual(zoneout(dropout(layer_norm(MinGRU(SIZE)), x=0.1), h=0.1))
    assert (linear.recurrence, linear.pointwise) == ("linear", True)
    assert linear.coefficients is not None
    assert layer_norm(ParaLSTM(SIZE), shown=False).recurrence == "block_diagonal"
    assert layer_norm(LSTM(SIZE)).pointwise is False
    assert clip(MinGRU(SIZE), carry=1.0).recurrence == "dense"
    assert zoneout(LSTM(SIZE), h=0.1).kernel is None
    assert zoneout(MinGRU(SIZE, log_space=True), h=0.1).log_space is False
    assert projection(LRU(SIZE), 2).coefficients is not None
    assert residual(LSTM(SIZE)).perturb is None


def test_auto_takes_the_associative_engine_for_a_linear_cell_in_a_stack() -> None:
    # Layer by layer: the linear one alone can be solved by a prefix.
    cell = stack([LSTM(SIZE), MinGRU(SIZE)])
    params = random_params(cell, 1, SIZE, np.float32)
    xs = jnp.ones((300, 1, SIZE))
    text = str(jax.make_jaxpr(lambda p: jrnn.unroll(cell, p, xs))(params))
    assert "custom_linear_solve" in text or "linear_solve" in text


@pytest.mark.parametrize("wrap", [residual, highway])
def test_ways_round_a_cell_need_one_size(wrap: Any) -> None:
    with pytest.raises(ValueError, match=r"must be of one size, got input_size=2 and outputs of 3"):
        wrap(LSTM(SIZE)).init(jax.random.key(0), 2)


def test_residual_and_highway_are_their_equations(x64: None) -> None:
    for wrap in (residual, highway):
        cell = wrap(LSTM(SIZE))
        params = random_params(cell, 1, SIZE)
        xs = XS.astype(np.float64)
        got = jrnn.unroll(cell, params, xs)[1]
        inside = params if wrap is residual else params.cell
        for b in range(4):
            carry = lstm_start(inside)
            for t in range(7):
                carry, y = lstm(inside, carry, xs[t, b])
                if wrap is residual:
                    want = y + xs[t, b]
                else:
                    gate = sigmoid(params.w_t.T @ xs[t, b] + params.b_t)
                    want = gate * y + (1 - gate) * xs[t, b]
                np.testing.assert_allclose(got[t, b], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [residual(GRU(SIZE)), highway(dropout(MinGRU(SIZE), x=0.3))])
def test_cells_of_the_size_of_their_input_conform(cell: jrnn.Cell) -> None:
    check_cell(cell, input_size=SIZE)


def test_layer_norm_refuses_what_it_cannot_normalise() -> None:
    with pytest.raises(ValueError, match="multiplies a matrix in update, where it cannot be"):
        layer_norm(GRU(SIZE, reset_after=False))
    for cell in (learned_carry(LSTM(SIZE)), jrnn.CTRNN(SIZE, sigma=1.0)):
        with pytest.raises(ValueError, match="goes directly round a cell without noise, inside of"):
            layer_norm(cell)
    with pytest.raises(ValueError, match=r"MinimalRNN\(.* does more to its inputs than W x \+ b"):
        layer_norm(jrnn.MinimalRNN(SIZE))
    with pytest.raises(TypeError, match=r"must have a bias b \[\d+\].*choose another cell"):
        layer_norm(Learned(2)).init(jax.random.key(0), 2)


def test_scaling_the_weights_changes_nothing_under_layer_norm(x64: None) -> None:
    cell = layer_norm(LSTM(SIZE), epsilon=1e-12)
    params = random_params(cell, 1, SIZE)
    batch = random_batch(cell, params, 2, 5, 2)
    inside = params.cell._replace(w_ih=3 * params.cell.w_ih, w_hh=0.5 * params.cell.w_hh)
    scaled = params._replace(cell=inside)
    got, want = (jrnn.unroll(cell, p, batch.xs, batch.carry) for p in (scaled, params))
    assert_close(got, want, 1e-8)


def test_a_first_carry_is_learned() -> None:
    cell = learned_carry(GRU(SIZE))
    params = random_params(cell, 1, SIZE, np.float32)
    grads = jax.grad(lambda p: jrnn.unroll(cell, p, XS, resets=RESETS)[1].sum())(params)
    assert (np.asarray(grads.carry) != 0).all()
    with pytest.raises(TypeError, match="the carry must be of real floats alone, got .*complex64"):
        learned_carry(LRU(SIZE)).init(jax.random.key(0), 2)


@pytest.mark.parametrize("engine", [Scan(), Fused(), Fused(chunk=2, remat=True)])
def test_a_cotangent_is_clipped_at_each_step(engine: Any) -> None:
    # h' = 2 h, written as a GRU would be too much: a relu network with U = 2.
    plain = jrnn.Elman(1, activation="relu")
    params = plain.init(jax.random.key(0), 1)._replace(
        w_ih=jnp.ones((1, 1)), w_hh=2 * jnp.ones((1, 1)), b=jnp.zeros(1)
    )
    xs, first = jnp.ones((5, 1, 1)), jnp.ones((1, 1))

    def by_carry(cell: Any) -> jax.Array:
        loss = lambda carry: jrnn.unroll(cell, params, xs, carry, engine=engine)[1][-1].sum()
        return jax.grad(loss)(first)

    np.testing.assert_allclose(by_carry(plain), [[32.0]])
    # The last output gives 1 to its own step, so 2 to the carry before it: clipped to 1.5, then 3,
    # clipped again, and so on; to the first carry nothing comes back through a limit.
    np.testing.assert_allclose(by_carry(clip(plain, gradient=1.5)), [[3.0]])


def test_newton_refuses_what_has_no_jacobian() -> None:
    cell = clip(GRU(SIZE), gradient=1.0)
    params = random_params(cell, 1, SIZE, np.float32)
    with pytest.raises(TypeError, match="derivatives of reverse mode alone.*use engine='fused'"):
        jrnn.unroll(cell, params, XS, engine="newton")
    check_cell(clip(GRU(SIZE), gradient=100.0))


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_both_directions_are_two_runs(merge: Any) -> None:
    cell = bidirectional(LSTM(SIZE), GRU(SIZE), merge)
    params = random_params(cell, 1, SIZE, np.float32)
    first = cell.init_carry(params, (4,))
    first = jax.tree.map(lambda a: a + 0.3, first)
    (ahead, back), ys = jrnn.unroll(cell, params, XS, first, lengths=LENGTHS, resets=RESETS)
    last, forward = jrnn.unroll(
        LSTM(SIZE), params.forward, XS, first.forward, lengths=LENGTHS, resets=RESETS
    )
    other, backward = jrnn.unroll(
        GRU(SIZE),
        params.backward,
        XS,
        first.backward,
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
    assert_close((ahead, back), (last, other), 1e-6)


def test_bidirectional_has_no_step_and_goes_into_a_stack() -> None:
    both = bidirectional(LSTM(SIZE))
    cell = stack([both, GRU(2)])
    params = random_params(cell, 1, SIZE, np.float32)
    _, ys = jrnn.unroll(cell, params, XS, lengths=LENGTHS)
    want = jrnn.unroll(
        GRU(2), params[1], jrnn.unroll(both, params[0], XS, lengths=LENGTHS)[1], lengths=LENGTHS
    )[1]
    assert_close(ys, want, 1e-6)
    rnn = jrnn.nn.RNN(cell, SIZE, time_major=True, rngs=nnx.Rngs(0))
    assert rnn.output_size == 2 and rnn(XS)[1].shape == (7, 4, 2)
    with pytest.raises(TypeError, match="Bidirectional has no single step"):
        both.step(params[0], both.init_carry(params[0], ()), np.ones(SIZE))
    with pytest.raises(ValueError, match="Residual: Bidirectional has no single step to act on"):
        residual(both)
    with pytest.raises(ValueError, match="reverse must be False"):
        jrnn.unroll(both, params[0], XS, reverse=True)
    with pytest.raises(ValueError, match="goes in both directions itself"):
        bidirectional(both)


@pytest.mark.parametrize("engine", ["scan", "fused", "auto"])
def test_a_stack_hands_the_cell_state_up(engine: str, x64: None) -> None:
    lower, upper = LSTM(SIZE), DepthGatedLSTM(SIZE)
    cell = stack([lower, upper])
    params = random_params(cell, 1, SIZE)
    xs = XS.astype(np.float64)
    (_, last), ys = jrnn.unroll(cell, params, xs, lengths=LENGTHS, resets=RESETS, engine=engine)
    for b in range(4):
        first, second = lower.init_carry(params[0], ()), upper.init_carry(params[1], ())
        for t in range(LENGTHS[b]):
            if RESETS[t, b]:
                first, second = lower.init_carry(params[0], ()), upper.init_carry(params[1], ())
            first, y = lower.step(params[0], first, xs[t, b])
            second, y = upper.step(params[1], second, jrnn.Below(y, first.c))
            np.testing.assert_allclose(ys[t, b], y, rtol=1e-9, atol=1e-12)
        assert_close(jax.tree.map(lambda a, b=b: a[b], last), second, 1e-9)
    check_cell(cell)


def test_a_stack_hands_the_times_up(x64: None) -> None:
    rng = np.random.default_rng(5)
    xs = Timed(XS.astype(np.float64), rng.uniform(0.1, 3, XS.shape[:2]))
    layers = [GRU(SIZE), CfC(SIZE, backbone_units=3), zoneout(CfC(SIZE, None), h=0.2)]
    for order in (layers, layers[::-1]):
        cell = stack(order)
        params = random_params(cell, 1, SIZE)
        want = xs.x
        for layer, p in zip(order, params, strict=True):
            takes = not isinstance(layer, GRU)
            want = jrnn.unroll(layer, p, Timed(want, xs.dt) if takes else want)[1]
        assert_close(jrnn.unroll(cell, params, xs)[1], want, 1e-12)
        noisy = jrnn.unroll(cell, params, xs, key=jax.random.key(0))[1]
        assert not np.allclose(noisy, want)
        carry, y = cell.init_carry(params, (XS.shape[1],)), None
        for t in range(XS.shape[0]):
            carry, y = cell.step(params, carry, Timed(xs.x[t], xs.dt[t]))
        assert_close(y, want[-1], 1e-9)
    for half in (None, GRU(SIZE)):
        both = stack([GRU(SIZE), bidirectional(CfC(SIZE, None), half)])
        params = random_params(both, 2, SIZE)
        below = Timed(jrnn.unroll(GRU(SIZE), params[0], xs.x)[1], xs.dt)
        ahead, back = both.cells[1].forward, both.cells[1].backward
        given = below if half is None else below.x
        want = [
            jrnn.unroll(ahead, params[1].forward, below)[1],
            jrnn.unroll(back, params[1].backward, given, reverse=True)[1],
        ]
        assert_close(jrnn.unroll(both, params, xs)[1], np.concatenate(want, -1), 1e-12)


def test_the_input_of_a_stack_that_takes_state_and_time_goes_round_it(x64: None) -> None:
    inner = stack([DepthGatedLSTM(SIZE), CfC(SIZE, None)])
    cell = stack([LSTM(SIZE), residual(inner)])
    params = random_params(cell, 1, SIZE)
    xs = Timed(XS.astype(np.float64), np.random.default_rng(5).uniform(0.1, 3, XS.shape[:2]))
    carry, y = cell.init_carry(params, (XS.shape[1],)), None
    low, high = LSTM(SIZE).init_carry(params[0], (4,)), inner.init_carry(params[1], (4,))
    for t in range(XS.shape[0]):
        carry, y = cell.step(params, carry, jax.tree.map(lambda a, t=t: a[t], xs))
        low, below = LSTM(SIZE).step(params[0], low, xs.x[t])
        high, top = inner.step(params[1], high, Timed(jrnn.Below(below, low.c), xs.dt[t]))
        assert_close(y, top + below, 1e-12)
    assert_close(jrnn.unroll(cell, params, xs)[1][-1], y, 1e-9)


def test_the_cell_state_goes_through_transforms_and_stacks(x64: None) -> None:
    plain = stack([LSTM(SIZE), DepthGatedLSTM(SIZE)])
    params, xs = random_params(plain, 1, SIZE), XS.astype(np.float64)
    want = jrnn.unroll(plain, params, xs)[1]
    for cell, given in [
        (stack([LSTM(SIZE), dropout(DepthGatedLSTM(SIZE))]), params),
        (stack([LSTM(SIZE), stack([DepthGatedLSTM(SIZE)])]), (params[0], (params[1],))),
    ]:
        assert_close(jrnn.unroll(cell, given, xs)[1], want, 1e-12)
    skipped = jrnn.unroll(stack([LSTM(SIZE), residual(DepthGatedLSTM(SIZE))]), params, xs)[1]
    assert_close(skipped - want, jrnn.unroll(LSTM(SIZE), params[0], xs)[1], 1e-10)


def test_wrappers_forward_what_a_cell_is() -> None:
    # All data of the contract: what is new there must be forwarded, or named here.
    own = {"kernel", "stepwise", "sequence", "directions", "hidden_size", "perturb", "coefficients"}
    data = {name for name in vars(jrnn.Cell) if not name.startswith("_")}
    data = {name for name in data if not callable(getattr(jrnn.Cell, name))} - own
    for name in data:
        assert isinstance(vars(jrnn.transforms.Wrapper).get(name), property), name


def test_layers_of_a_stack_are_recorded_each_by_itself() -> None:
    cell = stack([LSTM(SIZE), LSTM(5)])
    params = random_params(cell, 1, SIZE, np.float32)
    seen = jrnn.analysis.capture_gates(cell, params, XS).gates
    below = jrnn.analysis.capture_gates(LSTM(SIZE), params[0], XS).gates
    assert set(seen) == {f"{n}.{gate}" for n in (0, 1) for gate in "ifgo"}
    assert_close({gate: seen[f"0.{gate}"] for gate in "ifgo"}, dict(below), 1e-6)


def test_a_carry_whose_parts_belong_together_is_left_whole() -> None:
    for cell in (jrnn.CTRNN(SIZE), jrnn.SLSTM(SIZE)):
        for wrap in (zoneout, learned_carry, lambda cell: clip(cell, carry=1.0)):
            with pytest.raises(ValueError, match="would part them: choose another transform"):
                wrap(cell)
        check_cell(clip(cell, gradient=100.0))


def test_only_the_first_cell_of_a_stack_may_take_more_than_outputs() -> None:
    stack([jrnn.GRUD(SIZE), GRU(SIZE)])
    with pytest.raises(ValueError, match="takes more than the output of a layer below"):
        stack([GRU(SIZE), jrnn.GRUD(SIZE)])


def test_no_sequences_are_none_for_cells_with_heads() -> None:
    for cell in (LSTM(4, heads=2), GRU(4, heads=2), jrnn.SLSTM(4, heads=2), jrnn.MLSTM(4, heads=2)):
        params = random_params(cell, 1, SIZE, np.float32)
        assert jrnn.unroll(cell, params, np.zeros((3, 0, SIZE), np.float32))[1].shape == (3, 0, 4)


def test_layer_norm_of_halves_is_near_that_of_floats() -> None:
    cell = layer_norm(LSTM(4))
    params = random_params(cell, 1, 4, np.float32)
    xs = 300 * np.random.default_rng(3).normal(size=(3, 2, 4)).astype(np.float16)
    got = jrnn.unroll(cell, jax.tree.map(lambda w: w.astype(np.float16), params), xs)[1]
    want = jrnn.unroll(cell, params, xs.astype(np.float32))[1]
    assert_close(got.astype(np.float32), want, 2e-2)


def test_a_complex_carry_has_no_limit() -> None:
    cell = clip(LRU(SIZE), carry=1.0)
    with pytest.raises(TypeError, match="is complex, and has no order"):
        jrnn.unroll(cell, random_params(cell, 1, SIZE, np.float32), XS)


def test_outputs_that_are_added_are_of_one_size() -> None:
    with pytest.raises(ValueError, match=r"merge='sum' needs outputs of one size, got \(4,\)"):
        bidirectional(LSTM(4), LSTM(1), merge="sum").init(jax.random.key(0), SIZE)


def test_modules_know_that_a_cell_goes_both_ways() -> None:
    both = bidirectional(LSTM(SIZE))
    assert jrnn.nn.RNN(both, SIZE, rngs=nnx.Rngs(0)).directions == (False, True)
    layers = jrnn.nn.StackedRNN(both, SIZE, num_layers=2, rngs=nnx.Rngs(0))
    assert layers.directions == (False, True) and layers.output_size == 2 * SIZE
    for given in ({"bidirectional": True},):
        with pytest.raises(ValueError, match="goes in both directions itself; leave out"):
            jrnn.nn.StackedRNN(both, SIZE, rngs=nnx.Rngs(0), **given)


def test_a_stack_needs_a_cell_state_to_hand_up() -> None:
    cell = stack([GRU(SIZE), DepthGatedLSTM(SIZE)])
    with pytest.raises(ValueError, match=r"takes the cell state c of the layer below.*GRU\("):
        cell.init(jax.random.key(0), SIZE)
        jrnn.unroll(cell, cell.init(jax.random.key(0), SIZE), XS)


def test_a_stack_by_newton_solves_each_layer(x64: None) -> None:
    cell = stack([LSTM(SIZE), LRU(SIZE)])
    params = random_params(cell, 1, SIZE)
    xs = XS.astype(np.float64)
    got, want = (jrnn.unroll(cell, params, xs, engine=e) for e in (Newton(), Scan()))
    assert_close(got, want, 1e-9)


@pytest.mark.parametrize("name", [n for n in REGISTRY if n not in ("stack", "bidirectional")])
def test_a_class_in_place_of_a_cell_is_refused(name: str) -> None:
    wrap: Any = REGISTRY[name]
    wrap = partial(wrap, size=2) if name == "projection" else wrap
    with pytest.raises(TypeError, match=r"cell must be a cell such as jrnn.LSTM\(64\), got <class"):
        wrap(LSTM)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Zoneout: h must lie in \[0, 1\), got 1"):
        zoneout(LSTM(2), h=1.0)
    with pytest.raises(ValueError, match=r"Zoneout: c must lie in \[0, 1\), got '0.5'"):
        zoneout(LSTM(2), c="0.5")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"Dropout: candidate must lie in \[0, 1\), got -0.1"):
        dropout(LSTM(2), candidate=-0.1)
    with pytest.raises(ValueError, match="Highway: bias must be a finite number, got nan"):
        highway(LSTM(2), bias=float("nan"))
    with pytest.raises(ValueError, match=r"WeightDrop: rate must lie in \[0, 1\), got 1.5"):
        weight_drop(LSTM(2), rate=1.5)
    with pytest.raises(ValueError, match="Projection: size must be a positive int, got 0"):
        projection(LSTM(2), size=0)
    with pytest.raises(ValueError, match="Clip: give a limit"):
        clip(LSTM(2))
    with pytest.raises(ValueError, match="Clip: carry must be a number above 0, got -1"):
        clip(LSTM(2), carry=-1)
    with pytest.raises(ValueError, match="Stack: cells must be a list of cells, at least one"):
        stack([])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Stack: each must be a cell"):
        stack([LSTM])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Bidirectional: merge must be one of concat, sum, mul"):
        bidirectional(LSTM(2), merge="max")  # pyright: ignore[reportArgumentType]


def test_transformed_cells_print_as_what_makes_them() -> None:
    cell = stack([zoneout(layer_norm(LSTM(4)), h=0.1), bidirectional(GRU(2))])
    assert eval(repr(cell), dict(vars(jrnn)) | dict(vars(jrnn.transforms))) == cell
    assert hash(cell) == hash(eval(repr(cell), dict(vars(jrnn)) | dict(vars(jrnn.transforms))))
