"""What each step takes of a split, on the device or sent."""

import jax
import numpy as np
import pytest

from jrnn.tasks.task import Split
from jrnn.train import data as data_module
from jrnn.train import feed as feed_module
from jrnn.train.data import Examples, take
from jrnn.train.feed import Feed
from jrnn.train.tbptt import Window, Windows


def split(size=50, steps=6):
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(size, steps, 2)).astype(np.float32)
    return Split(xs, xs.sum(-1), rng.integers(1, steps + 1, size).astype(np.int32))


def readers():
    whole = split()
    windows = Split(whole.xs[:, None], whole.ys[:, None], whole.lengths)
    return {
        "examples": (whole, lambda: Examples(50, 8, 3)),
        "windows": (windows, lambda: Windows(Window(6, 6), windows, 8, 3)),
    }


@pytest.mark.parametrize("kind", ["examples", "windows"])
@pytest.mark.parametrize("counts", [(1, 2, 4, 8, 3, 8), (8, 8, 8)], ids=str)
def test_what_is_sent_is_what_lies_on_the_device(kind, counts, monkeypatch):
    """Whatever the threads do, and from any step on, as after a run was resumed."""
    whole, reader = readers()[kind]
    monkeypatch.setattr(data_module, "ON_DEVICE", 0)
    for first in (0, 5, 33):
        feed = Feed(whole, reader(), 8)
        step = first
        for count in counts:
            source, places = feed.next(step, count)
            for k in range(count):
                plan = jax.tree.map(lambda array: array[0], reader().plan(step + k, 1))
                want = reader().batch(whole, plan)
                got = take(source, places[k])
                for one, other in zip(got, want, strict=True):
                    np.testing.assert_array_equal(one, other)
            step += count


def test_steps_may_be_read_again_from_anywhere(monkeypatch):
    whole, reader = readers()["examples"]
    monkeypatch.setattr(data_module, "ON_DEVICE", 0)
    feed = Feed(whole, reader(), 4)
    first, _ = feed.next(0, 4)
    feed.next(9, 4)
    again, _ = feed.next(0, 4)
    np.testing.assert_array_equal(first.xs, again.xs)


def test_what_is_sent_at_once_is_bounded(monkeypatch):
    whole, reader = readers()["examples"]
    monkeypatch.setattr(data_module, "ON_DEVICE", 0)
    one = sum(a.nbytes for a in take(whole, np.arange(8)) if a is not None)
    monkeypatch.setattr(feed_module, "SENT", 3 * one)
    assert Feed(whole, reader(), 256).most == 3
