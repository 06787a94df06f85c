"""`unroll` of stochastic cells, of cells with pytree inputs, and with integers in the carry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import Engine
from tests.cells.toys import Clock, Counter, Leaky, Noisy, NoisyParams, Timed
from tests.helpers import assert_close

STEPS, BATCH, INPUT, HIDDEN = 6, 4, 2, 3
LENGTHS = np.array([6, 4, 0, 1], np.int32)
RESETS = np.random.default_rng(5).random((STEPS, BATCH)) < 0.4
RESETS[1, 0], RESETS[4:, 1] = True, True  # on a valid step, on padding


def normal(*shape: int, seed: int = 0) -> Any:
    """Returns normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scan_order(b: int, reverse: bool) -> list[int]:
    """Returns the valid steps of sequence b, in scan order."""
    return list(range(LENGTHS[b]))[:: -1 if reverse else 1]


def noisy_loop(params: NoisyParams, xs: Any, masks: Any, reverse: bool) -> tuple[Any, Any]:
    """Computes h' = tanh(m_t * (W x) + U h) in NumPy, where h is ones initially and at resets."""
    masks, ys, last = np.asarray(masks), np.zeros((STEPS, BATCH, HIDDEN)), np.ones((BATCH, HIDDEN))
    for b in range(BATCH):
        for t in scan_order(b, reverse):
            h = np.ones(HIDDEN) if RESETS[t, b] else last[b]
            last[b] = np.tanh(masks[t, b] * (xs[t, b] @ params.w_ih) + h @ params.w_hh)
            ys[t, b] = last[b]
    return last, ys


def test_noise_depends_only_on_the_key(engines: tuple[Engine, ...], reverse: bool) -> None:
    cell = Noisy(HIDDEN)
    params = NoisyParams(normal(INPUT, HIDDEN), normal(HIDDEN, HIDDEN, seed=1))
    xs = normal(STEPS, BATCH, INPUT, seed=2)
    run = lambda engine, key: jrnn.unroll(
        cell, params, xs, lengths=LENGTHS, resets=RESETS, reverse=reverse, key=key, engine=engine
    )
    keys = [jax.random.key(n) for n in range(2)]
    for engine, key in [(engines[0], keys[0]), (engines[0], None), (engines[-1], keys[0])]:
        dropped, masks = params, np.ones((STEPS, BATCH, 1))
        if key is not None:
            dropped, masks = cell.sample_noise(params, xs, (STEPS, BATCH), key)
        expected = noisy_loop(jax.tree.map(np.asarray, dropped), xs, masks, reverse)
        assert_close(run(engine, key), expected, 1e-5)
    first, second = (run(engines[0], key)[1] for key in keys)
    assert (np.asarray(first) != np.asarray(second)).any()
    np.testing.assert_array_equal(first, run(engines[0], keys[0])[1])


def test_noise_of_a_step_equals_samples_from_the_key() -> None:
    cell = Noisy(HIDDEN)
    params = NoisyParams(normal(INPUT, HIDDEN), normal(HIDDEN, HIDDEN, seed=1))
    x, h = normal(BATCH, INPUT), normal(BATCH, HIDDEN, seed=2)
    outputs = [cell.step(params, h, x, key=k)[1] for k in (jax.random.key(0), jax.random.key(1))]
    assert (np.asarray(outputs[0]) != np.asarray(outputs[1])).any()
    dropped, masks = cell.sample_noise(params, x[None], (1, BATCH), jax.random.key(0))
    want = np.tanh(masks[0] * (x @ params.w_ih) + h @ dropped.w_hh)
    assert_close(outputs[0], want, 1e-5)
    expected = np.tanh(x @ params.w_ih + h @ params.w_hh)
    assert_close(cell.step(params, h, x)[1], expected, 1e-5)


def timed_inputs(dtype: Any = np.float32) -> Timed:
    """Returns random inputs `[T, B, input]` and time steps `[T, B]`."""
    dt = np.abs(normal(STEPS, BATCH, seed=3))
    return Timed(normal(STEPS, BATCH, INPUT, seed=2).astype(dtype), dt.astype(dtype))


def leaky_loop(params: Any, xs: Timed, carry: Clock, reverse: bool) -> tuple[Clock, np.ndarray]:
    """Computes the final carry and the outputs of `Leaky` in NumPy."""
    ys = np.zeros((STEPS, BATCH, HIDDEN))
    leaks, counts = carry.inner["leak"].copy(), carry.steps.copy()
    for b in range(BATCH):
        for t in scan_order(b, reverse):
            if RESETS[t, b]:
                leaks[b], counts[b] = 0.5, 100
            leaks[b] = np.exp(-xs.dt[t, b]) * leaks[b] + xs.x[t, b] @ params
            counts[b] += 1
            ys[t, b] = leaks[b] + counts[b]
    return Clock({"leak": leaks}, counts), ys


def test_pytree_inputs_and_carry_equal_a_loop(engine: Engine, reverse: bool) -> None:
    params, xs = normal(INPUT, HIDDEN), timed_inputs()
    counts: Any = np.array([7, 8, 9, 10], np.int32)
    carry = Clock({"leak": normal(BATCH, HIDDEN)}, counts)
    options = {"lengths": LENGTHS, "resets": RESETS, "reverse": reverse, "engine": engine}
    got = jrnn.unroll(Leaky(HIDDEN), params, xs, carry, **options)
    assert got[0].steps.dtype == np.int32
    assert_close(got, leaky_loop(params, xs, carry, reverse), 1e-5)


@pytest.mark.parametrize("part", ["x", "dt"])
def test_nan_on_padding_or_before_a_reset_in_any_input_leaf_has_no_effect(
    engine: Engine, part: str
) -> None:
    params, xs = normal(INPUT, HIDDEN), timed_inputs()
    with_nan = getattr(xs, part).copy()
    with_nan[4:, 1], with_nan[0, 0] = np.nan, np.nan  # on padding; before a reset
    options = {"lengths": LENGTHS, "resets": RESETS, "engine": engine}

    @jax.jit
    def loss(params: Any, xs: Timed) -> jax.Array:
        carry, ys = jrnn.unroll(Leaky(HIDDEN), params, xs, **options)
        return ys[1:].sum() + carry.inner["leak"].sum()

    grads = jax.jit(jax.value_and_grad(loss, (0, 1)))
    got, want = grads(params, xs._replace(**{part: with_nan})), grads(params, xs)
    assert_close(got, want, 1e-6)


def test_integer_carry_leaves_keep_their_dtype_in_half_precision(engine: Engine) -> None:
    # The initial value 100 plus 257 steps is 357, which bfloat16 cannot represent.
    xs = Timed(jnp.zeros((257, 1, INPUT), jnp.bfloat16), jnp.zeros((257, 1), jnp.bfloat16))
    params = np.zeros((INPUT, HIDDEN), jnp.bfloat16)
    carry, _ = jrnn.unroll(Leaky(HIDDEN), params, xs, engine=engine)
    assert carry.steps.dtype == jnp.int32
    assert carry.steps.tolist() == [357]
    assert carry.inner["leak"].dtype == jnp.bfloat16


def test_integer_carry_obeys_resets(engine: Engine, reverse: bool) -> None:
    xs = normal(STEPS, BATCH, 1)
    options = {"lengths": LENGTHS, "resets": RESETS, "reverse": reverse, "engine": engine}
    carry, ys = jrnn.unroll(Counter(), np.float32(0), xs, **options)
    want, last = np.zeros((STEPS, BATCH)), np.zeros(BATCH)
    for b in range(BATCH):
        for t in scan_order(b, reverse):
            last[b] = 1 if RESETS[t, b] else last[b] + 1
            want[t, b] = last[b]
    np.testing.assert_array_equal(ys[..., 0], want)
    np.testing.assert_array_equal(carry, last)
