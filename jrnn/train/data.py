"""What each training step takes out of a split: fixed by a seed and the number of the step."""

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np

from jrnn.tasks.task import Split

ON_DEVICE = 2**30
"""Bytes of a split that are put on the device whole; a larger one is sent by and by."""
SENT = 2**26
"""Bytes of examples that are sent at a time."""

THREADS = 4
"""Threads that gather batches to be sent."""

Plan = Any
"""Arrays of whole numbers that say what a step takes; of many steps, with a first axis."""


class Reader(Protocol):
    """A way through a split."""

    def plan(self, first: int, count: int) -> Plan:
        """What the steps from `first` on take, counted from 0."""
        ...

    def batch(self, split: Split, plan: Plan) -> Split:
        """The examples of one step, from arrays of NumPy or of JAX."""
        ...


class Examples:
    """Whole examples: each epoch in a new order, which depends on (seed, epoch) alone.

    The last, smaller batch of an epoch is left out, so that every batch has one shape.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        """For a split of `size` examples, at least one batch; see `check_batch_size`."""
        self.batch_size = batch_size
        self._per_epoch = size // batch_size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
        )

    def plan(self, first: int, count: int) -> np.ndarray:
        """The rows `[count, batch]` of the steps from `first` on, counted from 0."""
        rows = np.empty((count, self.batch_size), np.int32)
        for k in range(count):
            epoch, place = divmod(first + k, self._per_epoch)
            begin = place * self.batch_size
            rows[k] = self._epoch(epoch)[begin : begin + self.batch_size]
        return rows

    def batch(self, split: Split, plan: Any) -> Split:
        """The examples of some rows."""
        return take(split, plan)


class Batches:
    """The batches of all steps, read by grain in the background some steps ahead.

    What a step is given depends on the number of the step alone, whichever thread reads it.
    """

    def __init__(self, split: Split, reader: Reader, ahead: int):
        """Reads at most so many steps ahead."""
        self._split, self._reader, self._ahead = split, reader, ahead
        self._planning = threading.Lock()
        self._next, self._steps = -1, iter(())

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def __getitem__(self, step: int) -> Split:
        """The batch of a step, counted from 0."""
        with self._planning:  # readers draw an epoch where they first need it
            plan = self._reader.plan(step, 1)
        return self._reader.batch(self._split, jax.tree.map(lambda array: array[0], plan))

    def take(self, first: int, count: int) -> list[Split]:
        """The batches of some steps."""
        import grain  # takes a while, and most runs have no need of it

        if first != self._next:
            options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=self._ahead)
            source: Any = self
            steps = grain.MapDataset.source(source)[first:]
            self._steps = iter(steps.to_iter_dataset(options))
        self._next = first + count
        return [next(self._steps) for _ in range(count)]


class Feed:
    """Examples for many steps at once: a source on the device, and what each step takes of it.

    A split that fits is put on the device once. Of a larger one the batches of the next steps are
    sent, and the source is these. Either way all shapes stay as they are.
    """

    def __init__(
        self,
        split: Split,
        reader: Reader,
        most: int,
        put: Callable[[Split], Split] = jax.device_put,
    ):
        """At most `most` steps at once, and fewer where these would be too much to send."""
        self._reader = reader
        self._whole = fits(split)
        if self._whole:
            self._source = put(split)
        else:
            one = Batches(split, reader, 1)[0]
            most = min(most, max(1, SENT // max(nbytes(one), 1)))
            self._batches = Batches(split, reader, most)
        self.most = most

    def next(self, first: int, count: int) -> tuple[Split, Plan]:
        """The source, and plans `[most, ...]` of which the first `count` are to be used."""
        if self._whole:
            return self._source, filled(self._reader.plan(first, count), self.most)
        sent = jax.tree.map(lambda *parts: np.stack(parts), *self._batches.take(first, count))
        return filled(sent, self.most), np.arange(self.most)

    def batch(self, source: Split, plan: Plan) -> Split:
        """The examples of one step, on the device."""
        if self._whole:
            return self._reader.batch(source, plan)
        return take(source, plan)


def shuffled_batches(split: Split, batch_size: int, seed: int) -> Iterator[Split]:
    """Batches without end, in the order of `Examples`.

    Args:
      split: at least one batch of examples; see `check_batch_size`.
      batch_size: examples in a batch.
      seed: of the order.
    """
    examples, step = Examples(len(split.xs), batch_size, seed), 0
    while True:
        yield take(split, examples.plan(step, 1)[0])
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


def filled(tree: Any, size: int) -> Any:
    """Arrays with their first axis made longer, by zeros."""
    fill = lambda array: np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
    return jax.tree.map(fill, tree)


def take(split: Split, rows: Any) -> Split:
    """Some examples of a split."""
    return jax.tree.map(lambda array: array[rows], split)


def fits(split: Split) -> bool:
    """Whether a split is small enough to lie on the device whole."""
    return nbytes(split) <= ON_DEVICE


def nbytes(split: Split) -> int:
    """Bytes of all examples."""
    return sum(array.nbytes for array in jax.tree.leaves(split))
