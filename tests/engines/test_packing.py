"""Packed sequences with resets, against separate sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from jrnn import Engine
from tests.helpers import assert_close, random_batch, random_params
from tests.table import Row

# Segment ids [T, B]. An id may occur again after another one: it then starts a new segment.
IDS: Any = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [5, 4, 4, 4, 4, 4, 5, 5]]).T


def test_segment_resets_are_at_segment_boundaries() -> None:
    forward, backward = jrnn.segment_resets(jnp.asarray(IDS))
    starts = [[0, 0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1, 0]]
    ends = [[0, 0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(forward.T, np.array(starts, bool))
    np.testing.assert_array_equal(backward.T, np.array(ends, bool))
    np.testing.assert_array_equal(jrnn.reverse_resets(forward), backward)
    assert forward.dtype == backward.dtype == bool


def test_reverse_resets_accept_lists() -> None:
    got = jrnn.reverse_resets([[False], [True], [False]])
    np.testing.assert_array_equal(got, [[True], [False], [False]])


def test_resets_of_zero_steps_are_empty() -> None:
    for resets in jrnn.segment_resets(jnp.zeros((0, 3), int)):
        assert resets.shape == (0, 3)
    assert jrnn.reverse_resets(jnp.zeros((0, 3), bool)).shape == (0, 3)


def test_packed_segments_equal_separate_sequences(kind: Row, engine: Engine, reverse: bool) -> None:
    cell = kind.make(3)
    params = random_params(cell, 1, 2, np.float32)
    batch = random_batch(cell, params, 2, len(IDS), len(IDS.T), np.float32)
    resets = jrnn.segment_resets(IDS)[int(reverse)]
    carry, ys = jrnn.unroll(
        cell, params, batch.xs, batch.carry, resets=resets, reverse=reverse, engine=engine
    )
    step = jax.jit(cell.step)
    for b, ids in enumerate(IDS.T):
        boundaries = [0, *(np.flatnonzero(np.diff(ids)) + 1), len(ids)]
        segments = list(zip(boundaries[:-1], boundaries[1:], strict=True))[:: -1 if reverse else 1]
        # The first segment starts from the initial carry, all others from `init_carry`.
        s = final = jax.tree.map(lambda leaf, b=b: leaf[b], batch.carry)
        for start, end in segments:
            for t in range(start, end)[:: -1 if reverse else 1]:
                s, y = step(params, s, batch.xs[t, b])
                assert_close(ys[t, b], y, 1e-5)
            final, s = s, cell.init_carry(params, ())
        assert_close(jax.tree.map(lambda leaf, b=b: leaf[b], carry), final, 1e-5)
