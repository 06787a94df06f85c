"""`Stack`, compared with running its layers one after another."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import (
    GRU,
    LRU,
    LSTM,
    CfC,
    DepthGatedLSTM,
    MinGRU,
    Newton,
    Scan,
    Timed,
    bidirectional,
    stack,
)
from jrnn.transforms import dropout, residual, weight_drop, zoneout
from tests.helpers import assert_close, public_names, random_params

SIZE = 3
STEPS, BATCH = 7, 4
XS: Any = np.random.default_rng(0).normal(size=(STEPS, BATCH, SIZE)).astype(np.float32)
DT: Any = np.random.default_rng(5).uniform(0.1, 3, (STEPS, BATCH))
LENGTHS = np.array([7, 4, 0, 1])
RESETS = np.random.default_rng(1).random((STEPS, BATCH)) < 0.3
KEY = jax.random.key(4)


def test_auto_chooses_the_associative_engine_for_a_linear_cell_in_a_stack() -> None:
    # Only the linear layer can be run by an associative scan.
    layer = stack([LSTM(SIZE), MinGRU(SIZE)])
    params = random_params(layer, 1, SIZE, np.float32)
    xs = jnp.ones((300, 1, SIZE))
    text = str(jax.make_jaxpr(lambda p: jrnn.unroll(layer, p, xs))(params))
    assert "linear_solve" in text


@pytest.mark.parametrize("engine", ["scan", "fused", "auto"])
def test_stack_passes_cell_states_to_the_layer_above(engine: str, x64: None) -> None:
    lower, upper = LSTM(SIZE), DepthGatedLSTM(SIZE)
    layer = stack([lower, upper])
    params = random_params(layer, 1, SIZE)
    xs = XS.astype(np.float64)
    (_, last), ys = jrnn.unroll(layer, params, xs, lengths=LENGTHS, resets=RESETS, engine=engine)
    for b in range(BATCH):
        first, second = lower.init_carry(params[0], ()), upper.init_carry(params[1], ())
        for t in range(LENGTHS[b]):
            if RESETS[t, b]:
                first, second = lower.init_carry(params[0], ()), upper.init_carry(params[1], ())
            first, y = lower.step(params[0], first, xs[t, b])
            second, y = upper.step(params[1], second, jrnn.WithCellState(y, first.c))
            np.testing.assert_allclose(ys[t, b], y, rtol=1e-9, atol=1e-12)
        assert_close(jax.tree.map(lambda a, b=b: a[b], last), second, 1e-9)


def test_stack_passes_time_steps_to_all_layers(x64: None) -> None:
    xs = Timed(XS.astype(np.float64), DT)
    layers = [
        GRU(SIZE),
        CfC(SIZE, backbone_units=3),
        zoneout(CfC(SIZE, backbone_units=None), h=0.2),
    ]
    for cells in (layers, layers[:0:-1]):
        layer = stack(cells)
        params = random_params(layer, 1, SIZE)
        expected = xs.x
        for cell, p in zip(cells, params, strict=True):
            inputs = expected if isinstance(cell, GRU) else Timed(expected, xs.dt)
            expected = jrnn.unroll(cell, p, inputs)[1]
        assert_close(jrnn.unroll(layer, params, xs)[1], expected, 1e-12)
        noisy = jrnn.unroll(layer, params, xs, key=KEY)[1]
        assert not np.allclose(noisy, expected)
    for backward_cell in (None, GRU(SIZE)):
        layer = stack([GRU(SIZE), bidirectional(CfC(SIZE, backbone_units=None), backward_cell)])
        params = random_params(layer, 2, SIZE)
        below = Timed(jrnn.unroll(GRU(SIZE), params[0], xs.x)[1], xs.dt)
        forward, backward = (
            CfC(SIZE, backbone_units=None),
            backward_cell or CfC(SIZE, backbone_units=None),
        )
        backward_inputs = below if backward_cell is None else below.x
        expected = [
            jrnn.unroll(forward, params[1].forward, below)[1],
            jrnn.unroll(backward, params[1].backward, backward_inputs, reverse=True)[1],
        ]
        assert_close(jrnn.unroll(layer, params, xs)[1], np.concatenate(expected, -1), 1e-12)


def test_residual_in_a_stack_adds_only_the_output_below(x64: None) -> None:
    inner = [residual(DepthGatedLSTM(SIZE)), residual(CfC(SIZE, backbone_units=None))]
    layer = stack([LSTM(SIZE), *inner])
    params = random_params(layer, 1, SIZE)
    xs = Timed(XS.astype(np.float64), DT)
    lowest, first = LSTM(SIZE), LSTM(SIZE).init_carry(params[0], (BATCH,))
    second, third = (
        cell.init_carry(p, (BATCH,)) for cell, p in zip(inner, params[1:], strict=True)
    )
    got = jrnn.unroll(layer, params, xs)[1]
    for t in range(STEPS):
        first, low = lowest.step(params[0], first, xs.x[t])
        inputs = jrnn.WithCellState(low, first.c)
        second, middle = DepthGatedLSTM(SIZE).step(params[1], second, inputs)
        middle = middle + low
        third, top = CfC(SIZE, backbone_units=None).step(params[2], third, Timed(middle, xs.dt[t]))
        assert_close(got[t], top + middle, 1e-9)


def test_cell_state_passes_through_transforms_and_stacks(x64: None) -> None:
    plain = stack([LSTM(SIZE), DepthGatedLSTM(SIZE)])
    params, xs = random_params(plain, 1, SIZE), XS.astype(np.float64)
    expected = jrnn.unroll(plain, params, xs)[1]
    for layer, layer_params in [
        (stack([LSTM(SIZE), dropout(DepthGatedLSTM(SIZE))]), params),
        (stack([dropout(LSTM(SIZE)), DepthGatedLSTM(SIZE)]), params),
        (stack([LSTM(SIZE), stack([DepthGatedLSTM(SIZE)])]), (params[0], (params[1],))),
    ]:
        assert_close(jrnn.unroll(layer, layer_params, xs)[1], expected, 1e-12)
    skipped = jrnn.unroll(stack([LSTM(SIZE), residual(DepthGatedLSTM(SIZE))]), params, xs)[1]
    assert_close(skipped - expected, jrnn.unroll(LSTM(SIZE), params[0], xs)[1], 1e-10)


def test_zoneout_in_a_stack_equals_separate_layers(x64: None) -> None:
    layer = stack([zoneout(LSTM(SIZE), h=0.25), zoneout(GRU(SIZE), h=0.5)])
    params, xs = random_params(layer, 1, SIZE), XS.astype(np.float64)
    got = jrnn.unroll(layer, params, xs, lengths=LENGTHS)
    first, ys = jrnn.unroll(zoneout(LSTM(SIZE), h=0.25), params[0], xs, lengths=LENGTHS)
    second, ys = jrnn.unroll(zoneout(GRU(SIZE), h=0.5), params[1], ys, lengths=LENGTHS)
    assert_close(got, ((first, second), ys), 1e-12)


def test_layers_of_a_stack_draw_independent_noise(x64: None) -> None:
    cells = [dropout(LSTM(SIZE), x=0.4, y=0.4), weight_drop(GRU(SIZE)), zoneout(LRU(2), h=0.3)]
    layer = stack(cells)
    params, xs = random_params(layer, 1, SIZE), XS.astype(np.float64)
    assert layer.is_stochastic and not stack([LSTM(SIZE)]).is_stochastic

    def run(params: Any) -> Any:
        return jrnn.unroll(layer, params, xs, lengths=LENGTHS, key=KEY, engine="scan")

    def composed(params: Any) -> Any:
        carries, ys = [], xs
        for cell, p, key in zip(cells, params, jax.random.split(KEY, 3), strict=True):
            carry, ys = jrnn.unroll(cell, p, ys, lengths=LENGTHS, key=key, engine="scan")
            carries.append(carry)
        return tuple(carries), ys

    @jax.jit
    def run_both(params: Any) -> Any:
        loss = lambda p, run: ((run(p)[1] ** 2).sum(), run(p))
        return [jax.grad(partial(loss, run=run), has_aux=True)(params) for run in (run, composed)]

    got, expected = run_both(params)
    assert_close(got, expected, 1e-10)
    assert (np.asarray(expected[1][1]) != np.asarray(jrnn.unroll(layer, params, xs)[1])).any()


def test_gates_are_captured_by_layer() -> None:
    layer = stack([LSTM(SIZE), bidirectional(GRU(5))])
    params = random_params(layer, 1, SIZE, np.float32)
    captured = jrnn.analysis.capture_gates(layer, params, XS, lengths=LENGTHS)
    below = jrnn.analysis.capture_gates(LSTM(SIZE), params[0], XS, lengths=LENGTHS)
    names = [f"0.{gate}" for gate in "ifgo"]
    names += [f"1.{direction}.{gate}" for direction in ("forward", "backward") for gate in "rzn"]
    assert list(captured.gates) == names
    assert_close({gate: captured.gates[f"0.{gate}"] for gate in "ifgo"}, dict(below.gates), 1e-6)
    above = jrnn.analysis.capture_gates(
        GRU(5), params[1].backward, below.ys, lengths=LENGTHS, reverse=True
    )
    got = {gate: captured.gates[f"1.backward.{gate}"] for gate in "rzn"}
    assert_close(got, dict(above.gates), 1e-6)
    assert_close(captured.carries[1].backward, above.carries, 1e-6)
    assert_close(
        (captured.carry, captured.ys), jrnn.unroll(layer, params, XS, lengths=LENGTHS), 1e-5
    )


def test_only_the_first_layer_may_require_inputs_of_another_type() -> None:
    stack([jrnn.GRUD(SIZE), GRU(SIZE)])
    with pytest.raises(ValueError, match="must accept one array, got GRUD"):
        stack([GRU(SIZE), jrnn.GRUD(SIZE)])


def test_inputs_with_cell_state_require_a_cell_state_of_the_layer_below() -> None:
    for lower in (GRU(SIZE), stack([LSTM(SIZE)]), bidirectional(LSTM(SIZE), merge="sum")):
        layer = stack([lower, DepthGatedLSTM(SIZE)])
        params = layer.init(jax.random.key(0), SIZE)
        with pytest.raises(ValueError, match="WithCellState must have a cell state c, got"):
            jrnn.unroll(layer, params, XS)


def test_newton_on_a_stack_equals_scan(x64: None) -> None:
    layer = stack([LSTM(SIZE), LRU(SIZE)])
    params = random_params(layer, 1, SIZE)
    xs = XS.astype(np.float64)
    got, expected = (jrnn.unroll(layer, params, xs, engine=e) for e in (Newton(), Scan()))
    assert_close(got, expected, 1e-9)


def test_initial_carry_must_have_one_entry_for_each_layer() -> None:
    layer = stack([LSTM(SIZE), GRU(2)])
    params = random_params(layer, 1, SIZE, np.float32)
    initial = jax.tree.map(lambda a: a + 0.3, layer.init_carry(params, (BATCH,)))
    got = jrnn.unroll(layer, params, XS, initial)
    low, ys = jrnn.unroll(LSTM(SIZE), params[0], XS, initial[0])
    high, ys = jrnn.unroll(GRU(2), params[1], ys, initial[1])
    assert_close(got, ((low, high), ys), 1e-6)
    with pytest.raises(TypeError, match="carry of a Stack must be a tuple .* each of its 2 layers"):
        jrnn.unroll(layer, params, XS, initial[:1])


def test_stack_raises_for_invalid_layers() -> None:
    with pytest.raises(ValueError, match="Stack: layers must be a non-empty list of cells or la"):
        stack([])
    with pytest.raises(
        TypeError, match=r"Stack: layers\[0\] must be a cell such as jrnn.LSTM.*, or a la"
    ):
        stack([LSTM])  # pyright: ignore[reportArgumentType]


def test_stack_repr_can_be_evaluated() -> None:
    layer = stack([zoneout(LSTM(4), h=0.1), bidirectional(GRU(2))])
    names = public_names(jrnn) | vars(jrnn.transforms) | vars(jrnn.layers)
    assert eval(repr(layer), names) == layer and hash(eval(repr(layer), names)) == hash(layer)
