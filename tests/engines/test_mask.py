"""Masks of any pattern, against loops over the valid steps, on several engines and layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import (
    GRU,
    LSTM,
    Associative,
    Engine,
    Fused,
    Layer,
    Native,
    Newton,
    Scan,
    bidirectional,
    reverse_resets,
    stack,
)
from jrnn.nn import RNN, StackedRNN
from jrnn.transforms import dropout, highway, zoneout
from tests.helpers import (
    Batch,
    Scenario,
    as_dtype,
    assert_close,
    differentiate_all,
    loop_grads,
    oracle,
    random_batch,
    random_params,
)
from tests.table import CELLS, Row

# One sequence per column: the first has no valid step, the last only valid steps.
MASK = np.array(
    [
        [0, 1, 0, 0, 1],
        [0, 0, 1, 0, 1],
        [0, 1, 1, 0, 1],
        [0, 1, 1, 0, 1],
        [0, 0, 1, 0, 1],
        [0, 1, 0, 1, 1],
    ],
    bool,
)
STEPS, BATCH = MASK.shape
LENGTHS = np.array([6, 4, 3, 6, 2], np.int32)
RESETS = np.random.default_rng(3).random(MASK.shape) < 0.4
RESETS[3, 1] = RESETS[2, 2] = True  # on valid steps
RESETS[1, 1] = RESETS[4, 3] = True  # on padding
SCENARIOS = (
    Scenario(lengths=False, resets=False, carry=True),
    Scenario(lengths=False, resets=True, carry=False, reverse=True),
    Scenario(lengths=True, resets=True, carry=True),
    Scenario(lengths=True, resets=False, carry=False, reverse=True),
)
CASES: list[tuple[str, Engine]] = [
    ("lstm-peepholes", Scan()),
    ("lstm-projected", Fused(chunk=3)),
    ("mingru-log", Associative()),
    ("gru", Newton()),
]
MORE_CASES: list[tuple[str, Engine]] = [
    ("gru-reset-before", Scan(unroll=2)),
    ("lstm-projected", Scan()),
    ("lstm-peepholes", Fused(chunk=2)),
    ("gru", Fused(chunk=4, remat=True)),
    ("lru", Associative(chunk=2)),
    ("lru", Newton()),
]
ALL_CASES = CASES + [pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE_CASES]
NATIVE_CELLS = ["lstm-peepholes", "gru", "elman-relu"]


def make_example(row: Row) -> tuple[Any, Any, Batch]:
    """Returns a cell, its parameters, and a batch with a mask.

    Inputs are NaN where the mask is False; these NaNs must reach neither outputs nor gradients.
    """
    cell = row.make(3)
    params = random_params(cell, 1, input_size=2)
    batch = random_batch(cell, params, 2, STEPS, BATCH)
    xs = np.where(MASK[..., None], batch.xs, np.nan)
    return cell, params, batch._replace(xs=xs, mask=MASK, lengths=LENGTHS, resets=RESETS)


def assert_equals_loop(
    row: Row, cell: Any, engine: Engine, params: Any, batch: Batch, arguments: Any, tolerance: float
) -> None:
    """Compares the engine with loops that run on `params` and `batch`.

    `arguments` are the parameters and the batch for the engine; they may have another precision.
    """
    assert np.isnan(batch.xs).any()
    for scenario, got in zip(
        SCENARIOS, differentiate_all(cell, engine, SCENARIOS, *arguments), strict=True
    ):
        assert_close((got.carry, got.ys), oracle(row, scenario, params, batch), tolerance)
        assert_close(tuple(got[2:]), loop_grads(cell, scenario, params, batch), 5 * tolerance)


@pytest.mark.parametrize(("name", "engine"), ALL_CASES, ids=str)
def test_a_mask_equals_a_loop_over_valid_steps(name: str, engine: Engine, x64: None) -> None:
    cell, params, batch = make_example(CELLS[name])
    tolerance = 1e-8 if isinstance(engine, Newton) else 1e-10
    assert_equals_loop(CELLS[name], cell, engine, params, batch, (params, batch), tolerance)


@pytest.mark.parametrize("name", NATIVE_CELLS)
def test_a_mask_on_the_native_engine_equals_a_loop(name: str, x64: None) -> None:
    pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")
    cell, params, batch = make_example(CELLS[name])
    narrow = as_dtype((params, batch), np.float32)
    params, batch = as_dtype(narrow, np.float64)
    assert_equals_loop(CELLS[name], cell, Native(), params, batch, narrow, 2e-6)


# --- layers --------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """Moves the valid steps of each sequence to the front, and back."""

    lengths: np.ndarray  # [B], the number of valid steps
    source: np.ndarray  # [T, B], the n-th valid step of each sequence; 0 if there are fewer

    @staticmethod
    def from_mask(valid: np.ndarray) -> "Packed":
        source = np.zeros(valid.shape, int)
        for b in range(valid.shape[1]):
            steps = np.flatnonzero(valid[:, b])
            source[: len(steps), b] = steps
        return Packed(valid.sum(axis=0), source)

    def pack(self, a: Any) -> Any:
        """Moves the valid steps of `[T, B, ...]` to the front; the rest repeats step 0."""
        return a[self.source, np.arange(a.shape[1])]

    def unpack(self, ys: Any) -> Any:
        """Inverts `pack`, with zeros on padding."""
        out = jnp.zeros_like(ys)
        for b, length in enumerate(self.lengths):
            out = out.at[self.source[:length, b], b].set(ys[:length, b])
        return out


LAYERS: dict[str, Layer] = {
    "stack": stack([LSTM(4), zoneout(GRU(3), h=0.3)]),
    "bidirectional": bidirectional(LSTM(4), GRU(4), merge="sum"),
    "bidirectional-in-a-stack": stack([bidirectional(GRU(4)), highway(LSTM(8))]),
    "depth-gated": stack([LSTM(3), jrnn.DepthGatedLSTM(3)]),
    "stack-in-bidirectional": bidirectional(stack([jrnn.LRU(3), GRU(3)])),
}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, engine, marks=[pytest.mark.exhaustive] * (name != default))
        for engine, default in (("auto", "bidirectional-in-a-stack"), ("scan", "bidirectional"))
        for name in LAYERS
    ],
)
def test_layers_with_a_mask_equal_layers_on_packed_valid_steps(name: str, engine: str) -> None:
    layer = LAYERS[name]
    rng = np.random.default_rng(0)
    params = random_params(layer, 1, 3, np.float32)
    xs = rng.normal(size=(STEPS, BATCH, 3)).astype(np.float32)
    mask_and_lengths = Packed.from_mask(MASK & (np.arange(STEPS)[:, None] < LENGTHS))
    mask_only = Packed.from_mask(MASK)

    @jax.jit
    def run(params: Any, xs: Any, clean: Any) -> Any:
        def masked(params: Any, xs: Any) -> Any:
            first = jrnn.unroll(layer, params, xs, mask=MASK, resets=RESETS, engine=engine)
            options = {"mask": MASK, "lengths": LENGTHS, "engine": engine}
            return first, jrnn.unroll(layer, params, xs, **options)

        def packed(params: Any, xs: Any) -> Any:
            results = []
            for packing, resets in ((mask_only, RESETS), (mask_and_lengths, None)):
                resets = None if resets is None else packing.pack(resets)
                options = {"lengths": packing.lengths, "resets": resets, "engine": "scan"}
                carry, ys = jrnn.unroll(layer, params, packing.pack(xs), **options)
                results.append((carry, packing.unpack(ys)))
            return tuple(results)

        def with_gradients(function: Any, xs: Any) -> Any:
            out, vjp = jax.vjp(function, params, xs)
            return out, vjp(jax.tree.map(jnp.cos, out))

        return with_gradients(masked, xs), with_gradients(packed, clean)

    got, want = run(params, np.where(MASK[..., None], xs, np.nan), xs)
    assert_close(got, want, 1e-5)


def test_modules_accept_masks_in_the_layout_of_their_inputs() -> None:
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(BATCH, STEPS, 3)).astype(np.float32)
    batch_major_masks = {"lengths": LENGTHS, "mask": MASK.T, "resets": RESETS.T}
    time_major_masks = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}
    layer = bidirectional(LSTM(4))
    rnn = RNN(layer, 3, rngs=nnx.Rngs(0))
    time_major = RNN(layer, 3, rngs=nnx.Rngs(0), time_major=True)
    carry, ys = jrnn.unroll(layer, rnn.params, xs.swapaxes(0, 1), **time_major_masks)
    assert_close(rnn(xs, **batch_major_masks), (carry, ys.swapaxes(0, 1)), 1e-6)
    assert_close(time_major(xs.swapaxes(0, 1), **time_major_masks), (carry, ys), 1e-6)

    layers = StackedRNN(GRU(4), 3, 2, bidirectional=True, rngs=nnx.Rngs(0))
    params = [rnn.params for rnn in layers.rnns]
    pairs = [jrnn.layers.BidirectionalParams(*params[n : n + 2]) for n in (0, 2)]
    equivalent = stack([bidirectional(GRU(4)), bidirectional(GRU(4))])
    carries, ys = jrnn.unroll(equivalent, tuple(pairs), xs.swapaxes(0, 1), **time_major_masks)
    carry, got = layers(xs, **batch_major_masks)
    assert_close(got, ys.swapaxes(0, 1), 1e-6)
    assert_close(carry, jnp.stack(jax.tree.leaves(carries)), 1e-6)
    with pytest.raises(ValueError, match=r"mask must have shape \(batch, time\) = \(5, 6\)"):
        rnn(xs, mask=MASK)


def test_inputs_on_padding_have_no_effect_with_noise() -> None:
    layer = stack([dropout(LSTM(4), x=0.5, y=0.5, each_step=True), GRU(3)])
    params = random_params(layer, 1, 3, np.float32)
    xs = np.random.default_rng(0).normal(size=(STEPS, BATCH, 3)).astype(np.float32)

    @jax.jit
    def run(xs: Any) -> Any:
        options = {"mask": MASK, "key": jax.random.key(0)}
        results = [jrnn.unroll(layer, params, xs, engine=e, **options) for e in ("auto", "scan")]
        return results[0], results[1]

    got, want = run(np.where(MASK[..., None], xs, np.nan))
    assert_close(got, want, 1e-5)
    assert_close(got, run(xs)[0], 0)
    np.testing.assert_array_equal(np.asarray(got[1])[~MASK], 0)


# --- resets in reverse, and arguments ------------------------------------------------------------


def reversed_by_loop(resets: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns True at the last valid step before each reset, by a loop over valid steps."""
    result = np.zeros_like(resets)
    for b in range(resets.shape[1]):
        steps = np.flatnonzero(valid[:, b])
        for prev, step in zip(steps[:-1], steps[1:], strict=True):
            result[prev, b] = resets[step, b]
    return result


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_reverse_resets_are_at_the_previous_valid_step(steps: int) -> None:
    rng = np.random.default_rng(steps)
    for share in (0.0, 0.3, 0.7, 1.0):
        mask = rng.random((steps, 12)) < share
        resets = rng.random((steps, 12)) < 0.5
        lengths = rng.integers(0, steps + 1, 12)
        inside = np.arange(steps)[:, None] < lengths
        got = reverse_resets(resets, mask=mask)
        np.testing.assert_array_equal(got, reversed_by_loop(resets, mask))
        got = reverse_resets(resets, lengths, mask)
        np.testing.assert_array_equal(got, reversed_by_loop(resets, mask & inside))
        got = reverse_resets(resets, lengths)
        np.testing.assert_array_equal(got, reversed_by_loop(resets, inside))


def test_mask_of_lengths_equals_lengths() -> None:
    cell = LSTM(3)
    params = random_params(cell, 1, 2, np.float32)
    xs = np.random.default_rng(0).normal(size=(STEPS, BATCH, 2)).astype(np.float32)
    inside = np.arange(STEPS)[:, None] < LENGTHS
    for mask, lengths in ((np.ones_like(MASK), None), (inside, LENGTHS)):
        for engine in ("scan", "auto"):
            got = jrnn.unroll(cell, params, xs, mask=mask, engine=engine)
            assert_close(got, jrnn.unroll(cell, params, xs, lengths=lengths, engine=engine), 1e-6)


def test_masks_are_validated_and_may_be_lists() -> None:
    cell = GRU(3)
    params = random_params(cell, 1, 2, np.float32)
    xs = np.ones((STEPS, BATCH, 2), np.float32)
    with pytest.raises(ValueError, match=r"unroll: mask must have shape .* = \(6, 5\), got \(5, 6"):
        jrnn.unroll(cell, params, xs, mask=MASK.T)
    with pytest.raises(TypeError, match=r"unroll: mask must be bool, got int32; write mask != 0"):
        jrnn.unroll(cell, params, xs, mask=MASK.astype(np.int32))
    got = jrnn.unroll(cell, params, xs, mask=MASK.tolist())
    assert_close(got, jrnn.unroll(cell, params, xs, mask=MASK), 0)
    empty = jrnn.unroll(cell, params, xs[:0], mask=MASK[:0])
    assert_close(empty, (np.zeros((BATCH, 3)), np.zeros((0, BATCH, 3))), 0)
