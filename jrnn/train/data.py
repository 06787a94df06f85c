"""Batches out of a split, in an order that a seed and the number of the step fix."""

from collections.abc import Iterator
from functools import lru_cache

import jax
import numpy as np

from jrnn.tasks.task import Split

ON_DEVICE = 2**30
"""Bytes of a split that are put on the device whole; a larger one is sent by and by."""
SENT = 2**26
"""Bytes of examples that are sent at a time."""


class Order:
    """Which examples each training step takes: a function of seed and step alone.

    Each epoch has a new order, which depends on (seed, epoch); the last, smaller batch of an epoch
    is left out, so that every batch has one shape.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """For a split of `size` examples, at least one batch; see `check_batch_size`."""
        self.batch_size = batch_size
        self._per_epoch = size // batch_size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
        )

    def rows(self, first: int, count: int) -> np.ndarray:
        """The examples `[count, batch]` of the steps from `first` on, counted from 0."""
        found = np.empty((count, self.batch_size), np.int32)
        for k in range(count):
            epoch, place = divmod(first + k, self._per_epoch)
            begin = place * self.batch_size
            found[k] = self._epoch(epoch)[begin : begin + self.batch_size]
        return found


class Feed:
    """Examples for many steps at once: a source on the device, and the rows of it that they take.

    A split that fits is put on the device once. Of a larger one the examples of the next steps are
    sent, and the source is these. Either way source and rows keep their shapes.
    """

    def __init__(self, split: Split, order: Order, most: int):
        """At most `most` steps at once, and fewer where these would be too much to send."""
        self._split, self._order = split, order
        self._whole = fits(split)
        if self._whole:
            self._source = jax.device_put(split)
        else:
            each = nbytes(split) * order.batch_size // len(split.xs)
            most = min(most, max(1, SENT // max(each, 1)))
        self.most = most

    def next(self, first: int, count: int) -> tuple[Split, np.ndarray]:
        """The source, and rows of it `[most, batch]`, of which the first `count` are to be used."""
        rows = np.zeros((self.most, self._order.batch_size), np.int32)
        rows[:count] = self._order.rows(first, count)
        if self._whole:
            return self._source, rows
        places = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        return take(self._split, rows.ravel()), places


def shuffled_batches(split: Split, batch_size: int, seed: int) -> Iterator[Split]:
    """Batches without end, in the order of `Order`.

    Args:
      split: at least one batch of examples; see `check_batch_size`.
      batch_size: examples in a batch.
      seed: of the order.
    """
    order, step = Order(len(split.xs), batch_size, seed), 0
    while True:
        yield take(split, order.rows(step, 1)[0])
        step += 1


def check_batch_size(split: Split, batch_size: int) -> None:
    """Refuses a batch with more examples than the split has."""
    if len(split.xs) < batch_size:
        raise ValueError(
            f"train: batch_size must be at most the {len(split.xs)} training examples, "
            f"got {batch_size}"
        )


def whole_rows(size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All examples in order, as rows `[batches, batch]`.

    The last batch is filled up, and `present [batches, batch]` is False there.
    """
    rows = np.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)
    return np.minimum(rows, size - 1).astype(np.int32), rows < size


def take(split: Split, rows: np.ndarray) -> Split:
    """Some examples of a split."""
    return jax.tree.map(lambda array: array[rows], split)


def fits(split: Split) -> bool:
    """Whether a split is small enough to lie on the device whole."""
    return nbytes(split) <= ON_DEVICE


def nbytes(split: Split) -> int:
    """Bytes of all examples."""
    return sum(array.nbytes for array in jax.tree.leaves(split))
