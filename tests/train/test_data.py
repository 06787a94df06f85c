"""The batches of each step, from examples on the device or streamed."""

import jax
import numpy as np
import pytest

from jrnn.tasks.task import Split
from jrnn.train.data import loader, sampler
from jrnn.train.data.loader import DataLoader
from jrnn.train.data.sampler import EpochSampler, take
from jrnn.train.data.windows import Window, WindowSampler


def split(size=50, steps=6):
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(size, steps, 2)).astype(np.float32)
    return Split(xs, xs.sum(-1), rng.integers(1, steps + 1, size).astype(np.int32))


def samplers():
    examples = split()
    windows = Split(examples.xs[:, None], examples.ys[:, None], examples.lengths)
    return {
        "examples": (examples, lambda: EpochSampler(50, 8, 3)),
        "windows": (windows, lambda: WindowSampler(Window(6, 6), windows, 8, 3)),
    }


@pytest.mark.parametrize("kind", ["examples", "windows"])
@pytest.mark.parametrize("counts", [(1, 2, 4, 8, 3, 8), (8, 8, 8)], ids=str)
def test_streamed_batches_equal_those_on_the_device(kind, counts, monkeypatch):
    """Batches are read from several first steps, as in a resumed run, and in several counts."""
    examples, make_sampler = samplers()[kind]
    monkeypatch.setattr(sampler, "DEVICE_BYTES", 0)
    for first in (0, 5, 33):
        batches = DataLoader(examples, make_sampler(), 8)
        step = first
        for count in counts:
            source, positions = batches.next(step, count)
            for k in range(count):
                plan = jax.tree.map(lambda array: array[0], make_sampler().plan(step + k, 1))
                expected = make_sampler().get_batch(examples, plan)
                actual = take(source, positions[k])
                for one, other in zip(actual, expected, strict=True):
                    np.testing.assert_array_equal(one, other)
            step += count


def test_steps_can_be_read_in_any_order(monkeypatch):
    examples, make_sampler = samplers()["examples"]
    monkeypatch.setattr(sampler, "DEVICE_BYTES", 0)
    batches = DataLoader(examples, make_sampler(), 4)
    first, _ = batches.next(0, 4)
    batches.next(9, 4)
    repeated, _ = batches.next(0, 4)
    np.testing.assert_array_equal(first.xs, repeated.xs)


def test_streamed_bytes_are_bounded(monkeypatch):
    examples, make_sampler = samplers()["examples"]
    monkeypatch.setattr(sampler, "DEVICE_BYTES", 0)
    batch_bytes = sum(a.nbytes for a in take(examples, np.arange(8)) if a is not None)
    monkeypatch.setattr(loader, "STREAMED_BYTES", 3 * batch_bytes)
    assert DataLoader(examples, make_sampler(), 256).max_steps == 3
