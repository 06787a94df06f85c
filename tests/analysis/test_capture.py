"""Tests of `capture_gates`, against NumPy loops of the equations and against `jrnn.unroll`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn.analysis import GateCapture, capture_gates
from jrnn.cell import split_noise
from tests.helpers import assert_close as assert_close_trees
from tests.helpers import random_batch, random_params
from tests.table import Row

T, B, INPUT, HIDDEN = 7, 4, 3, 5


# --- reference -----------------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm_step(cell, p, carry, x):
    h, c = carry
    names = ["f", "g", "o"] if cell.coupled else ["i", "f", "g", "o"]
    a = dict(zip(names, np.split(x @ p.w_ih + h @ p.w_hh + p.b, len(names), axis=-1), strict=True))
    peepholes = (p.p_i, p.p_f, p.p_o) if cell.peepholes else (0.0, 0.0, 0.0)
    f = sigmoid(a["f"] + peepholes[1] * c)
    i = 1 - f if cell.coupled else sigmoid(a["i"] + peepholes[0] * c)
    g = np.tanh(a["g"])
    c = f * c + i * g
    o = sigmoid(a["o"] + peepholes[2] * c)
    h = o * np.tanh(c)
    return (h, c), h, {"i": i, "f": f, "g": g, "o": o}


def gru_step(cell, p, carry, x):
    (h,) = carry
    x_r, x_z, x_n = np.split(x @ p.w_ih + p.b, 3, axis=-1)
    u_r, u_z, u_n = np.split(p.w_hh, 3, axis=-1)
    r, z = sigmoid(x_r + h @ u_r), sigmoid(x_z + h @ u_z)
    n = np.tanh(x_n + (r * (h @ u_n + p.b_hn) if cell.reset_after else (r * h) @ u_n))
    h = (1 - z) * n + z * h
    return (h,), h, {"r": r, "z": z, "n": n}


def elman_step(cell, p, carry, x):
    h = np.tanh(x @ p.w_ih + carry[0] @ p.w_hh + p.b)
    return (h,), h, {"h": h}


def loop(step, cell, params, xs, carry, initial, lengths, resets, reverse):
    """Loops over sequences and steps; returns gates, carries, final carry and outputs."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    xs, carry, initial = (
        [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)] for tree in (xs, carry, initial)
    )
    gates, ys, final = {}, np.zeros((T, B, HIDDEN)), [a.copy() for a in carry]
    carries = [np.zeros((T, *a.shape)) for a in carry]
    for b in range(B):
        state = tuple(a[b] for a in carry)
        for t in reversed(range(T)) if reverse else range(T):
            if t < lengths[b]:
                if resets[t, b]:
                    state = tuple(a[b] for a in initial)
                state, ys[t, b], step_gates = step(cell, params, state, xs[0][t, b])
                for name, gate in step_gates.items():
                    gates.setdefault(name, np.zeros((T, B, HIDDEN)))[t, b] = gate
            for array, leaf in zip(carries, state, strict=True):
                array[t, b] = leaf
        for array, leaf in zip(final, state, strict=True):
            array[b] = leaf
    return gates, carries, final, ys


# --- cells and inputs ----------------------------------------------------------------------------

CELLS = {
    "lstm": (jrnn.LSTM(HIDDEN), lstm_step),
    "lstm-peepholes": (jrnn.LSTM(HIDDEN, peepholes=True), lstm_step),
    "lstm-coupled": (jrnn.LSTM(HIDDEN, coupled=True), lstm_step),
    "gru-after": (jrnn.GRU(HIDDEN), gru_step),
    "gru-before": (jrnn.GRU(HIDDEN, reset_after=False), gru_step),
    "elman": (jrnn.Elman(HIDDEN), elman_step),
}
LENGTHS = jnp.array([T, 4, 0, 1])
RESETS = jnp.zeros((T, B), bool).at[3].set(True).at[5, 1].set(True).at[0, 0].set(True)


def add_noise(tree, key):
    """Adds noise to every leaf, so that no bias and no peephole is zero."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 0.5 * jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


def make_example(cell, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = add_noise(cell.init(keys[0], INPUT), keys[1])
    xs = jax.random.normal(keys[2], (T, B, INPUT), jnp.float32)
    carry = add_noise(cell.init_carry(params, (B,)), keys[3])
    return params, xs, carry


def assert_close(got, expected, tol=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol),
        jax.tree.leaves(got),
        jax.tree.leaves(expected),
    )


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masked", "reverse"),
    [(False, False), (True, False), (True, True)],
    ids=["unmasked", "masked", "masked-reverse"],
)
@pytest.mark.parametrize("name", CELLS)
def test_capture_equals_a_loop_of_the_equations(name, masked, reverse):
    cell, step = CELLS[name]
    params, xs, carry = make_example(cell)
    lengths, resets = (LENGTHS, RESETS) if masked else (None, None)
    capture = capture_gates(
        cell, params, xs, carry, lengths=lengths, resets=resets, reverse=reverse
    )
    gates, carries, final, ys = loop(
        step,
        cell,
        params,
        xs,
        carry,
        cell.init_carry(params, (B,)),
        np.full(B, T) if lengths is None else np.asarray(lengths),
        np.zeros((T, B), bool) if resets is None else np.asarray(resets),
        reverse,
    )
    assert list(capture.gates) == list(gates)
    for gate in gates:
        assert_close(capture.gates[gate], gates[gate])
    assert_close(capture.carries, carries)
    assert_close(capture.carry, final)
    assert_close(capture.ys, ys)


def test_capture_equals_unroll(kind: Row, reverse: bool):
    cell = kind.make(HIDDEN)
    params = random_params(cell, seed=1, input_size=INPUT)
    xs, carry, lengths, resets, *_ = random_batch(cell, params, seed=2, steps=T, batch=B)
    options = {"lengths": lengths, "resets": resets, "reverse": reverse}
    capture = capture_gates(cell, params, xs, carry, **options)
    expected = jrnn.unroll(cell, params, xs, carry, engine="scan", **options)
    assert_close_trees((capture.carry, capture.ys), expected, 1e-6)
    last = 0 if reverse else -1
    assert_close_trees(jax.tree.map(lambda a: a[last], capture.carries), capture.carry, 0)


def test_gradients_of_capture_equal_those_of_unroll():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, carry = make_example(cell)
    options: dict[str, Any] = {"lengths": LENGTHS, "resets": RESETS}
    weights = jax.random.normal(jax.random.key(9), (T, B, HIDDEN), jnp.float32)
    grad_of_capture = jax.grad(
        lambda p: (weights * capture_gates(cell, p, xs, carry, **options).ys).sum()
    )
    grad_of_unroll = jax.grad(
        lambda p: (weights * jrnn.unroll(cell, p, xs, carry, engine="scan", **options)[1]).sum()
    )
    assert_close(grad_of_capture(params), grad_of_unroll(params), tol=1e-5)


def test_coupled_input_gate_is_one_minus_the_forget_gate():
    cell = jrnn.LSTM(HIDDEN, coupled=True)
    params, xs, carry = make_example(cell)
    gates = capture_gates(cell, params, xs, carry).gates
    np.testing.assert_allclose(gates["i"], 1 - gates["f"], rtol=1e-6)
    assert 0.01 < float(jnp.std(gates["f"]))


def test_default_carry_is_the_initial_carry_of_the_cell():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    assert_close(
        capture_gates(cell, params, xs),
        capture_gates(cell, params, xs, cell.init_carry(params, (B,))),
        tol=0,
    )


def test_capture_contains_lengths_resets_and_reverse():
    cell = jrnn.GRU(HIDDEN)
    params, xs, _ = make_example(cell)
    capture = capture_gates(cell, params, xs, lengths=LENGTHS, resets=RESETS, reverse=True)
    assert capture.lengths is not None and capture.resets is not None and capture.reverse is True
    np.testing.assert_array_equal(capture.lengths, LENGTHS)
    np.testing.assert_array_equal(capture.resets, RESETS)


def test_zero_steps_return_empty_gates_and_the_initial_carry():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, carry = make_example(cell)
    capture = capture_gates(cell, params, xs[:0], carry)
    assert capture.gates["f"].shape == capture.carries.c.shape == (0, B, HIDDEN)
    assert_close(capture.carry, carry, tol=0)


def test_nan_before_a_reset_does_not_reach_later_steps():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    capture = capture_gates(cell, params, xs.at[1, 0].set(jnp.nan), resets=resets)
    is_nan = np.zeros((T, B), bool)
    is_nan[1:3, 0] = True
    for values in (*capture.gates.values(), capture.carries.h, capture.carries.c, capture.ys):
        np.testing.assert_array_equal(np.isnan(values).any(axis=-1), is_nan)


def test_mixed_precision_gates_and_carries_have_the_wider_dtype():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    capture = capture_gates(cell, params, xs.astype(jnp.bfloat16))
    assert capture.ys.dtype == jnp.bfloat16
    assert {gate.dtype for gate in capture.gates.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(capture.carries.c[-1], capture.carry.c)
    expected, _ = jrnn.unroll(cell, params, xs.astype(jnp.bfloat16), engine="scan")
    assert_close(capture.carry, expected, tol=1e-6)


# --- custom cells --------------------------------------------------------------------------------

update_calls = []  # one entry for each trace of `LeakyCell.update`


class LeakyCellParams(NamedTuple):
    w: jax.Array
    leak: jax.Array


@dataclass(frozen=True)
class LeakyCell(jrnn.Cell):
    """h' = a * h + (1 - a) * W x with a = sigmoid(leak + h).

    Attributes:
      hidden_size: number of units.
      tap_name: name of the tap of a; None means no tap.
      broadcast: whether to tap a, `[..., hidden]`; otherwise the parameter `leak`, `[hidden]`.
    """

    hidden_size: int
    tap_name: str | None = "a"
    broadcast: bool = True

    def init(self, key, input_size, dtype=jnp.float32):
        w = jax.random.normal(key, (input_size, self.hidden_size), dtype)
        return LeakyCellParams(w, jnp.full((self.hidden_size,), 0.5, dtype))

    def init_carry(self, params, batch_shape):
        return {"memory": jnp.zeros((*batch_shape, self.hidden_size), params.w.dtype)}

    def project(self, params, x):
        return x @ params.w

    def recur(self, params, carry):
        return ()

    def update(self, params, carry, z, u):
        update_calls.append(self)
        h = carry["memory"]
        a = jax.nn.sigmoid(params.leak + h)
        if self.tap_name is not None:
            jrnn.tap(self.tap_name, a if self.broadcast else params.leak)
        return {"memory": a * h + (1 - a) * z}

    def readout(self, params, carry, z):
        return carry["memory"]


@dataclass(frozen=True)
class NoisyLeakyCell(LeakyCell):
    """A `LeakyCell` in which noise sets random inputs to zero."""

    def sample_noise(self, params, xs, leading, key):
        return params, jax.random.bernoulli(key, 0.5, leading).astype(jnp.float32)

    def project(self, params, x):
        x, mask = split_noise(x)
        return x @ params.w if mask is None else (mask[..., None] * x) @ params.w


def test_custom_cell_returns_its_taps():
    cell = LeakyCell(HIDDEN, tap_name="leak")
    params, xs, _ = make_example(cell)
    capture = capture_gates(cell, params, xs)
    h = np.zeros((B, HIDDEN))
    assert list(capture.gates) == ["leak"]
    for t in range(T):
        a = sigmoid(np.asarray(params.leak) + h)
        h = a * h + (1 - a) * np.asarray(xs[t] @ params.w)
        assert_close(capture.gates["leak"][t], a)
        assert_close(capture.carries["memory"][t], h)


def test_cell_without_taps_returns_carries_and_outputs():
    cell = LeakyCell(HIDDEN, tap_name=None)
    params, xs, _ = make_example(cell)
    capture = capture_gates(cell, params, xs, lengths=LENGTHS)
    assert capture.gates == {}
    assert_close(
        (capture.carry, capture.ys), jrnn.unroll(cell, params, xs, lengths=LENGTHS, engine="scan")
    )
    np.testing.assert_array_equal(capture.carries["memory"][-1], capture.carry["memory"])


@pytest.mark.parametrize("key", [None, 3])
def test_noise_equals_that_of_unroll(key):
    cell = NoisyLeakyCell(HIDDEN)
    params, xs, _ = make_example(cell)
    key = None if key is None else jax.random.key(key)
    capture = capture_gates(cell, params, xs, key=key)
    assert_close((capture.carry, capture.ys), jrnn.unroll(cell, params, xs, key=key, engine="scan"))


def test_gates_are_in_the_order_of_the_taps():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    assert list(capture_gates(cell, params, xs).gates) == ["i", "f", "g", "o"]
    assert list(jax.jit(lambda p: capture_gates(cell, p, xs))(params).gates) == ["i", "f", "g", "o"]


def test_unroll_returns_no_gates():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    capture_gates(cell, params, xs)
    assert jax.tree.structure(jrnn.unroll(cell, params, xs, engine="scan")[1]).num_leaves == 1


# --- transformations, errors ---------------------------------------------------------------------


def test_second_call_with_an_equal_cell_does_not_retrace():
    params, xs, _ = make_example(LeakyCell(HIDDEN))
    capture_gates(LeakyCell(HIDDEN), params, xs)
    num_traces = len(update_calls)
    capture_gates(LeakyCell(HIDDEN), params, 2 * xs)
    assert len(update_calls) == num_traces
    capture_gates(LeakyCell(HIDDEN), params, xs, reverse=True)
    assert len(update_calls) > num_traces


def test_jit_returns_an_equal_capture():
    cell = jrnn.LSTM(HIDDEN, peepholes=True)
    params, xs, carry = make_example(cell)
    expected = capture_gates(cell, params, xs, carry, lengths=LENGTHS, resets=RESETS)
    jitted = jax.jit(lambda *a: capture_gates(cell, *a, lengths=LENGTHS, resets=RESETS))
    capture = jitted(params, xs, carry)
    assert isinstance(capture, GateCapture)
    # After jit, `reverse` is an array.
    assert_close(capture._replace(reverse=False), expected, tol=1e-6)


def test_vmap_over_parameters_equals_separate_captures():
    cell = jrnn.GRU(HIDDEN)
    (first, xs, _), (second, _, _) = make_example(cell), make_example(cell, seed=5)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), first, second)
    capture = jax.vmap(lambda p: capture_gates(cell, p, xs, lengths=LENGTHS))(stacked)
    for n, params in enumerate((first, second)):
        expected = capture_gates(cell, params, xs, lengths=LENGTHS)
        assert_close(jax.tree.map(lambda a, n=n: a[n], capture), expected, tol=1e-6)


def test_gate_without_batch_axis_raises():
    cell = LeakyCell(HIDDEN, broadcast=False)
    params, xs, _ = make_example(cell)
    with pytest.raises(ValueError, match=r"LeakyCell must tap 'a' with shape \(batch, hidden\)"):
        capture_gates(cell, params, xs)


def test_invalid_arguments_raise_as_in_unroll():
    cell = jrnn.LSTM(HIDDEN)
    params, xs, _ = make_example(cell)
    with pytest.raises(ValueError, match=r"lengths must have shape \(batch,\) = \(4,\)"):
        capture_gates(cell, params, xs, lengths=jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match="carry must be .*, as in LSTM.init_carry"):
        capture_gates(cell, params, xs, jnp.zeros((B, HIDDEN)))
    with pytest.raises(
        TypeError, match=r"layer must be a cell such as jrnn.LSTM\(64\), or a layer, got 'lstm'"
    ):
        capture_gates("lstm", params, xs)  # pyright: ignore[reportArgumentType]
